//! Files that are changed, and files that are not.

use std::os::unix::fs::symlink;

use serde_json::json;

use super::*;
use crate::source::yaml::kinds::ObjectKind;

const FILE: &str = "\
# Secrets first.
apiVersion: v1
kind: Secret
metadata: {name: homelab-agent}
stringData:
  token: x
---
# The house.
apiVersion: edge.tidegate.dev/v1alpha1
kind: TunnelAgent
metadata: {name: homelab}
spec:
  credential: {secretName: homelab-agent}
  allowedHostnames: [\"*.home.example.com\"]
  mappings:
  - name: nas # upstairs
    hostname: nas.home.example.com
    target: http://192.168.1.10
--- # the last
apiVersion: v1
kind: ConfigMap
metadata: {name: other}
data: {a: b}
";

struct Folder {
    folder: tempfile::TempDir,
    editor: Editor,
}

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let editor = Editor::new(folder.path(), None);
        Self { folder, editor }
    }

    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.folder.path().join(file)).unwrap()
    }

    fn disable(&self) -> Result<Json, EditError<&'static str>> {
        self.editor.edit(&homelab(), |agent| {
            agent["spec"]["mappings"][0]["enabled"] = json!(false);
            Ok(())
        })
    }
}

fn homelab() -> Identity {
    Identity {
        kind: ObjectKind::TunnelAgent,
        namespace: "default".to_owned(),
        name: "homelab".to_owned(),
    }
}

#[test]
fn one_object_of_a_file_changes_and_the_rest_stays() {
    let text = FILE.to_owned();
    let folder = Folder::new(&[("all.yaml", &text)]);
    fs::set_permissions(
        folder.folder.path().join("all.yaml"),
        fs::Permissions::from_mode(0o640),
    )
    .unwrap();
    folder.disable().unwrap();
    let expected = text.replace(
        "target: http://192.168.1.10\n",
        "target: http://192.168.1.10\n    enabled: false\n",
    );
    assert_eq!(folder.text("all.yaml"), expected);
    let mode = fs::metadata(folder.folder.path().join("all.yaml")).unwrap();
    assert_eq!(mode.mode() & 0o777, 0o640);
    assert_eq!(fs::read_dir(folder.folder.path()).unwrap().count(), 1);
    let all = folder.editor.all(ObjectKind::TunnelAgent);
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].object["spec"]["mappings"][0]["enabled"], false);
}

#[test]
fn json_lists_and_links_are_changed_too() {
    let object = "apiVersion: edge.tidegate.dev/v1alpha1\nkind: TunnelAgent\nmetadata: {name: homelab}\nspec:\n  credential: {secretName: x}\n  allowedHostnames: [a.example.com]\n  mappings:\n  - name: a\n    hostname: a.example.com\n    target: http://a\n";
    let json = r#"{"apiVersion":"edge.tidegate.dev/v1alpha1","kind":"TunnelAgent","metadata":{"name":"homelab"},"spec":{"credential":{"secretName":"x"},"allowedHostnames":["a.example.com"],"mappings":[{"name":"a","hostname":"a.example.com","target":"http://a"}]}}"#;
    let item = object.replace('\n', "\n  ");
    let list = format!(
        "kind: List\napiVersion: v1\nitems:\n- {}\n",
        item.trim_end()
    );
    for (name, text) in [("a.yaml", object), ("a.json", json), ("list.yaml", &list)] {
        let folder = Folder::new(&[(name, text)]);
        folder
            .disable()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let all = folder.editor.all(ObjectKind::TunnelAgent);
        assert_eq!(
            all[0].object["spec"]["mappings"][0]["enabled"], false,
            "{name}"
        );
    }
    let folder = Folder::new(&[("kept/a.yml", object)]);
    symlink("kept/a.yml", folder.folder.path().join("link.yaml")).unwrap();
    // The same object by two names.
    assert_eq!(folder.disable().unwrap_err().reason(), "DuplicateObject");
}

#[test]
fn what_is_refused_changes_nothing() {
    let text = FILE.to_owned();
    let folder = Folder::new(&[("git/all.yaml", &text)]);
    let refused = folder.editor.edit(&homelab(), |_| Err::<(), _>("no"));
    assert_eq!(refused.unwrap_err().reason(), "Refused");
    let invalid = folder.editor.edit(&homelab(), |agent| {
        agent["spec"]["mappings"][0]["enabled"] = json!("maybe");
        agent["spec"]["mappings"][0]["colour"] = json!("red");
        Ok::<(), &str>(())
    });
    match invalid.unwrap_err() {
        EditError::Invalid { problems, .. } => {
            let mut fields: Vec<_> = problems.iter().map(|it| it.path.as_str()).collect();
            fields.sort_unstable();
            assert_eq!(
                fields,
                ["spec.mappings[0].colour", "spec.mappings[0].enabled"]
            );
        }
        error => panic!("{error}"),
    }
    let nobody = Identity {
        name: "nobody".to_owned(),
        ..homelab()
    };
    let missing = folder.editor.edit(&nobody, |_| Ok::<(), &str>(()));
    assert_eq!(missing.unwrap_err().reason(), "NotFound");
    fs::write(folder.folder.path().join("git").join(READ_ONLY), "").unwrap();
    let error = folder.disable().unwrap_err();
    assert_eq!(error.reason(), "ReadOnly");
    assert!(
        error.to_string().contains("git/.tidegate-read-only"),
        "{error}"
    );
    assert!(
        folder.editor.all(ObjectKind::TunnelAgent)[0]
            .read_only
            .is_some()
    );
    assert_eq!(folder.text("git/all.yaml"), text);
}

#[test]
fn a_file_that_changes_meanwhile_is_left_alone() {
    let text = FILE.to_owned();
    let folder = Folder::new(&[("all.yaml", &text)]);
    let path = folder.folder.path().join("all.yaml");
    let theirs = format!("{text}# theirs\n");
    let ours = folder.editor.edit(&homelab(), |agent| {
        fs::write(&path, &theirs).unwrap();
        agent["spec"]["suspend"] = json!(true);
        Ok::<(), &str>(())
    });
    assert_eq!(ours.unwrap_err().reason(), "Conflict");
    assert_eq!(folder.text("all.yaml"), theirs);
}
