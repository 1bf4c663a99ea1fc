//! The loader over real folders.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn route(name: &str) -> String {
    format!(
        "apiVersion: edge.tidegate.dev/v1alpha1\nkind: TlsRoute\nmetadata:\n  name: {name}\nspec:\n  hostnames: [{name}.test]\n  rules:\n    - backends:\n        - address: 127.0.0.1:1\n"
    )
}

struct Folder {
    folder: tempfile::TempDir,
    loader: Loader,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            loader: Loader::new(folder.path(), None),
            folder,
        }
    }

    fn write(&self, file: &str, content: impl AsRef<[u8]>) {
        let path = self.folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn load(&mut self) -> (Vec<String>, Vec<&'static str>, Vec<String>) {
        let loaded = self.loader.load(SystemTime::now());
        (
            loaded
                .objects
                .iter()
                .map(|located| located.identity.to_string())
                .collect(),
            loaded
                .problems
                .iter()
                .map(|problem| problem.reason)
                .collect(),
            loaded.kept.iter().map(ToString::to_string).collect(),
        )
    }

    #[track_caller]
    fn expect(&mut self, objects: &[&str], problems: &[&str], kept: &[&str]) {
        let (found_objects, found_problems, found_kept) = self.load();
        assert_eq!(found_objects, objects);
        assert_eq!(found_problems, problems);
        assert_eq!(found_kept, kept);
    }
}

const A: &str = "TlsRoute default/a";
const B: &str = "TlsRoute default/b";

#[test]
fn a_bad_document_harms_only_itself_and_its_last_good_object_is_kept() {
    let mut folder = Folder::new();
    folder.write("x.yaml", format!("{}---\n{}", route("a"), route("b")));
    folder.expect(&[A, B], &[], &[]);
    // Known to be `a`: only `a` is kept.
    folder.write(
        "x.yaml",
        format!("{}  typo: 1\n---\n{}", route("a"), route("b")),
    );
    folder.expect(&[A, B], &["UnknownField"], &[A]);
    // Not known what it is: everything that the file held and that is not there now.
    folder.write("x.yaml", format!("a: [\n---\n{}", route("b")));
    folder.expect(&[A, B], &["MalformedYaml"], &[A]);
    folder.write("x.yaml", format!("a: [\n---\n{}", route("c")));
    folder.expect(&[A, "TlsRoute default/c", B], &["MalformedYaml"], &[A, B]);
    // Mended without them: they are gone.
    folder.write("x.yaml", route("c"));
    folder.expect(&["TlsRoute default/c"], &[], &[]);
}

#[test]
fn a_deleted_file_deletes_and_an_unreadable_one_does_not() {
    let mut folder = Folder::new();
    folder.write("a.yaml", route("a"));
    folder.write("b.yaml", route("b"));
    folder.expect(&[A, B], &[], &[]);
    folder.write("a.yaml", [0xff, 0xfe]);
    folder.expect(&[A, B], &["FileUnreadable"], &[A]);
    fs::remove_file(folder.folder.path().join("b.yaml")).unwrap();
    folder.expect(&[A], &["FileUnreadable"], &[A]);
    fs::remove_file(folder.folder.path().join("a.yaml")).unwrap();
    folder.expect(&[], &[], &[]);
}

#[test]
fn a_file_that_is_half_saved_deletes_nothing() {
    let mut folder = Folder::new();
    folder.write("a.yaml", route("a"));
    folder.write("b.yaml", "");
    folder.expect(&[A], &[], &[]);
    folder.write("a.yaml", "");
    folder.expect(&[A], &["EmptyFile"], &[A]);
    folder.expect(&[A], &["EmptyFile"], &[A]);
    folder.write("a.yaml", "# nothing any more\n");
    folder.expect(&[], &[], &[]);
}

#[test]
fn a_lost_folder_empties_nothing() {
    let mut folder = Folder::new();
    folder.write("a.yaml", route("a"));
    folder.expect(&[A], &[], &[]);
    let moved = folder.folder.path().with_extension("moved");
    fs::rename(folder.folder.path(), &moved).unwrap();
    folder.expect(&[A], &["FolderUnreadable"], &[A]);
    fs::rename(&moved, folder.folder.path()).unwrap();
    folder.expect(&[A], &[], &[]);
}

#[test]
fn a_folder_without_permission_empties_nothing() {
    if rustix::process::geteuid().is_root() {
        // The system lets root read everything; the case is covered by the folder that is gone.
        return;
    }
    let mut folder = Folder::new();
    folder.write("sub/a.yaml", route("a"));
    folder.expect(&[A], &[], &[]);
    let sub = folder.folder.path().join("sub");
    fs::set_permissions(&sub, fs::Permissions::from_mode(0o000)).unwrap();
    folder.expect(&[A], &["FileUnreadable"], &[A]);
    fs::set_permissions(&sub, fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn of_two_with_one_name_the_first_counts() {
    let mut folder = Folder::new();
    folder.write("1.yaml", route("a"));
    folder.write("2.yaml", format!("{}---\n{}", route("b"), route("a")));
    folder.expect(&[A, B], &["DuplicateObject"], &[]);
    let loaded = folder.loader.load(SystemTime::now());
    let problem = &loaded.problems[0];
    assert_eq!(problem.file, Path::new("2.yaml"));
    assert!(problem.message.contains("1.yaml"), "{}", problem.message);
}

#[test]
fn an_object_that_is_too_large_is_told_with_the_limit() {
    let mut folder = Folder::new();
    let large = format!("{}  big: {}\n", route("b"), "x".repeat(2_000_000));
    folder.write("x.yaml", format!("{}---\n{large}", route("a")));
    let loaded = folder.loader.load(SystemTime::now());
    assert_eq!(loaded.objects.len(), 1);
    let problem = &loaded.problems[0];
    assert_eq!(problem.reason, "TooLarge");
    assert!(problem.hint.as_ref().unwrap().contains("1572864"));
    assert_eq!(problem.line, Some(10));
}

#[test]
fn secrets_are_read_from_their_files() {
    let mut folder = Folder::new();
    folder.write("secrets/prod/web/tls.crt", "certificate");
    folder.write("secrets/prod/web/tls.key", [0, 1, 0xff]);
    folder.expect(&["Secret prod/web"], &[], &[]);
    let inputs = folder.loader.load(SystemTime::now()).inputs();
    let (name, secret) = inputs.secrets.iter().next().unwrap();
    assert_eq!(name.to_string(), "prod/web");
    assert_eq!(secret.type_, "kubernetes.io/tls");
    assert_eq!(secret.data["tls.key"], [0, 1, 0xff]);
}

#[test]
fn ten_thousand_objects_are_read_and_only_the_changed_file_again() {
    let mut folder = Folder::new();
    for file in 0..100 {
        let text: Vec<String> = (0..100)
            .map(|object| route(&format!("r{file}-{object}")))
            .collect();
        folder.write(&format!("{file}.yaml"), text.join("---\n"));
    }
    let (objects, problems, _) = folder.load();
    assert_eq!((objects.len(), problems.len()), (10_000, 0));
    folder.write("7.yaml", "bad: [");
    let loaded = folder.loader.load(SystemTime::now());
    assert_eq!(loaded.objects.len(), 10_000);
    assert_eq!(loaded.kept.len(), 100);
}

#[test]
fn an_object_is_as_old_as_its_first_sight() {
    let mut folder = Folder::new();
    folder.write("1.yaml", route("b"));
    folder.write("2.yaml", route("a"));
    let oldest_first = |folder: &mut Folder| {
        let inputs = folder.loader.load(SystemTime::now()).inputs();
        let mut routes: Vec<_> = inputs
            .routes
            .iter()
            .map(|route| {
                let made = route.metadata.creation_timestamp.clone().unwrap();
                (made, route.metadata.name.clone().unwrap())
            })
            .collect();
        routes.sort();
        routes.into_iter().map(|(_, name)| name).collect::<Vec<_>>()
    };
    assert_eq!(oldest_first(&mut folder), ["b", "a"]);
    folder.write("0.yaml", route("c"));
    assert_eq!(oldest_first(&mut folder), ["b", "a", "c"]);
}

#[test]
fn a_long_list_is_read_and_an_item_that_is_too_large_is_told() {
    let mut folder = Folder::new();
    let mut text = "apiVersion: v1\nkind: List\nitems:\n".to_owned();
    let item = |name: &str, data: &str| {
        format!(
            "  - {{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}}}, data: {{x: {data}}}}}\n"
        )
    };
    for number in 0..200 {
        text.push_str(&item(&format!("m{number}"), &"y".repeat(10_000)));
    }
    text.push_str(&item("large", &"y".repeat(MAX_OBJECT_BYTES + 1)));
    folder.write("list.yaml", text);
    let loaded = folder.loader.load(SystemTime::now());
    assert_eq!(loaded.objects.len(), 200);
    assert_eq!(loaded.problems.len(), 1);
    let problem = &loaded.problems[0];
    assert_eq!(problem.reason, "TooLarge");
    assert!(
        problem
            .object
            .as_ref()
            .unwrap()
            .to_string()
            .ends_with("/large")
    );
}

/// Objects of every kind, bent at random places: whatever comes out, it is objects or problems.
#[test]
fn no_text_makes_the_loader_panic() {
    let samples = [
        format!("{}---\n{}", route("a"), route("b")),
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: a}, data: {x: eA==}}\n".to_owned(),
        "{\"apiVersion\": \"edge.tidegate.dev/v1alpha1\", \"kind\": \"TunnelAgent\", \"metadata\": {\"name\": \"x\"}, \"spec\": {\"mappings\": [{\"name\": \"a\"}]}}".to_owned(),
        "apiVersion: edge.tidegate.dev/v1alpha1\nkind: AcmeIssuer\nmetadata: &m\n  name: x\nspec: *m\n".to_owned(),
    ];
    let pieces: [&[u8]; 12] = [
        b"---\n",
        b": ",
        b"- ",
        b"[",
        b"}",
        b"&a ",
        b"*a",
        b"\t",
        b"|\n",
        b"\xc3\xa4",
        b"\0",
        b"!!int ",
    ];
    // A small generator with a fixed seed: a failure can be repeated.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let mut folder = Folder::new();
    for round in 0..600 {
        let mut text = samples[round % samples.len()].clone().into_bytes();
        for _ in 0..=random(4) {
            let at = random(text.len());
            match random(3) {
                0 => text.truncate(at.max(1)),
                1 => {
                    text.remove(at);
                    text.push(b'\n');
                }
                _ => {
                    let piece = pieces[random(pieces.len())];
                    text.splice(at..at, piece.iter().copied());
                }
            }
        }
        folder.write("x.yaml", &text);
        folder.loader.load(SystemTime::now());
    }
}

#[test]
fn content_of_a_static_site_is_no_configuration() {
    let mut folder = Folder::new();
    let site = route("a").replace("address: 127.0.0.1:1", "static: {path: ./site}");
    folder.write("a.yaml", &site);
    folder.write("site/manifest.json", "{\"name\": \"app\"}");
    folder.write("site/planted.yaml", route("b"));
    folder.write("site2/c.yaml", route("c"));
    folder.expect(&[A, "TlsRoute default/c"], &[], &[]);
    // Also while the route itself is being mended.
    folder.write("a.yaml", "bad: [");
    folder.expect(&[A, "TlsRoute default/c"], &["MalformedYaml"], &[A]);
}

#[test]
fn an_object_of_another_program_is_left_out_and_loses_nothing() {
    let mut folder = Folder::new();
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n";
    folder.write("x.yaml", format!("{}---\n{service}", route("a")));
    folder.expect(&[A], &["ForeignKind"], &[]);
    let loaded = folder.loader.load(SystemTime::now());
    assert_eq!(loaded.problems[0].severity(), Severity::Warning);
    // The route was taken out on purpose: what stays is understood, so that nothing is kept.
    folder.write("x.yaml", service);
    folder.expect(&[], &["ForeignKind"], &[]);
    // What may be a slip of the pen is an error.
    for slip in ["apiVersion: v1\nkind: Secrets\n", "kind: Service\n"] {
        folder.write("x.yaml", slip);
        folder.expect(&[], &["UnknownKind"], &[]);
    }
}
