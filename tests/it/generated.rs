//! Committed files that are made from code are what the code would make now.
//!
//! `cargo xtask codegen` (or `UPDATE_GENERATED=1 cargo test generated`) rewrites them.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use tidegate::codegen::{DEFINITION_FOLDERS, generated_files};

#[test]
fn generated_files_are_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let update = std::env::var_os("UPDATE_GENERATED").is_some();
    let files = generated_files().unwrap();
    let mut stale = String::new();
    for file in &files {
        let path = root.join(&file.path);
        let committed = fs::read_to_string(&path).unwrap_or_default();
        if committed == file.content {
            continue;
        }
        if update {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &file.content).unwrap();
            continue;
        }
        writeln!(stale, "{}:", file.path).unwrap();
        let same = committed
            .lines()
            .zip(file.content.lines())
            .take_while(|(a, b)| a == b)
            .count();
        for line in committed.lines().skip(same).take(5) {
            writeln!(stale, "  - {line}").unwrap();
        }
        for line in file.content.lines().skip(same).take(5) {
            writeln!(stale, "  + {line}").unwrap();
        }
    }
    // A kind that is gone must not leave its definition behind.
    for folder in DEFINITION_FOLDERS {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let path = format!("{folder}/{}", entry.unwrap().file_name().to_string_lossy());
            if !files.iter().any(|file| file.path == path) {
                writeln!(stale, "{path}: nothing generates it").unwrap();
            }
        }
    }
    assert!(
        stale.is_empty(),
        "generated files differ; run: cargo xtask codegen\n{stale}"
    );
}
