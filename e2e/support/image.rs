//! Container images without a registry or a builder: a tar file that containerd imports.
//!
//! The form is that of `docker save`: `manifest.json`, a configuration and one layer. It holds programs, the
//! shared libraries that they name, and nothing else.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::program;

/// What an image is made of.
pub(crate) struct Image<'a> {
    /// Such as `tidegate.test/echo:1`.
    pub(crate) name: &'a str,
    /// Files: path in the image without a leading `/`, and the file on this machine. All are executable.
    pub(crate) files: &'a [(&'a str, &'a Path)],
    /// What a container of it runs.
    pub(crate) entrypoint: &'a [&'a str],
    /// User and group id as `65532:65532`.
    pub(crate) user: &'a str,
}

impl Image<'_> {
    /// Writes the archive.
    pub(crate) fn write(&self, archive: &Path) {
        let mut layer = Tar::default();
        for (path, source) in self.files {
            let content = fs::read(source)
                .unwrap_or_else(|error| panic!("read {}: {error}", source.display()));
            layer.add(path, 0o755, &content);
        }
        let layer = layer.finish();
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "User": self.user, "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))]},
        })
        .to_string();
        let config_name = format!("{}.json", hex(config.as_bytes()));
        let manifest = json!([{
            "Config": config_name,
            "RepoTags": [self.name],
            "Layers": ["layer.tar"],
        }])
        .to_string();
        let mut image = Tar::default();
        image.add("layer.tar", 0o644, &layer);
        image.add(&config_name, 0o644, config.as_bytes());
        image.add("manifest.json", 0o644, manifest.as_bytes());
        fs::write(archive, image.finish()).unwrap();
    }
}

/// The image of one program with the shared libraries that it names, and nothing else. The first word of the entry
/// point says where it is, such as `/tidegate`.
pub(crate) fn of_program(name: &str, program: &Path, entrypoint: &[&str], archive: &Path) {
    // It ends with 1 where there are none.
    let (_, said) = program::run(Command::new("ldd").arg(program));
    let libraries: Vec<PathBuf> = said
        .split_whitespace()
        .filter(|word| word.starts_with('/') && Path::new(word) != program)
        .map(PathBuf::from)
        .filter(|path| path.is_file())
        .collect();
    let mut files = vec![(entrypoint[0].trim_start_matches('/'), program)];
    for library in &libraries {
        files.push((library.to_str().unwrap().trim_start_matches('/'), library));
    }
    let image = Image {
        name,
        files: &files,
        entrypoint,
        user: "65532:65532",
    };
    image.write(archive);
}

/// A tar archive in the form of POSIX.1-1988 (ustar).
#[derive(Default)]
struct Tar(Vec<u8>);

const BLOCK: usize = 512;

impl Tar {
    fn add(&mut self, path: &str, mode: u32, content: &[u8]) {
        assert!(path.len() <= 100, "{path} is too long for a simple archive");
        let mut header = [0; BLOCK];
        header[..path.len()].copy_from_slice(path.as_bytes());
        let mut put = |at: usize, text: String| {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        put(100, format!("{mode:07o}"));
        put(108, "0000000".to_owned());
        put(116, "0000000".to_owned());
        put(124, format!("{:011o}", content.len()));
        put(136, "00000000000".to_owned());
        // While the sum is made, its own field holds spaces.
        put(148, " ".repeat(8));
        put(156, "0".to_owned());
        put(257, "ustar\0".to_owned());
        put(263, "00".to_owned());
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        let mut field = &mut header[148..156];
        write!(field, "{sum:06o}\0 ").unwrap();
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }
}

fn hex(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}
