//! What a file does to routes: right, wrong, wrong from the start, beside objects.

use std::time::SystemTime;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::api::TlsRoute;
use crate::translate::{IssuerChoice, LastGood, Translation, translate};

const ISSUER: &str = "\
apiVersion: edge.tidegate.dev/v1alpha1
kind: AcmeIssuer
metadata:
  name: letsencrypt
spec:
  directory: https://acme.example/directory
  termsOfServiceAgreed: true
  solvers:
  - name: http
    http01: {}
";

struct Bed {
    folder: TempDir,
    file: DefaultIssuerFile,
    issuers: Vec<Arc<AcmeIssuer>>,
    last_good: Arc<LastGood>,
}

impl Bed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            file: DefaultIssuerFile::new(folder.path().join("issuer.yaml")),
            folder,
            issuers: Vec::new(),
            last_good: Arc::default(),
        }
    }

    fn write(&self, text: &str) {
        fs::write(self.folder.path().join("issuer.yaml"), text).unwrap();
    }

    fn object(&mut self, name: &str, default: bool) {
        let text = ISSUER.replace("letsencrypt", name);
        let good = understand(Path::new("x"), &text).ok().unwrap();
        let mut issuer = AcmeIssuer::clone(&good.issuer);
        issuer.spec.default = Some(default);
        self.issuers.push(Arc::new(issuer));
    }

    fn refresh(&mut self) -> (Translation, Vec<Finding>) {
        let route: TlsRoute = serde_json::from_value(json!({
            "apiVersion": "edge.tidegate.dev/v1alpha1", "kind": "TlsRoute",
            "metadata": {"name": "blog", "namespace": "default"},
            "spec": {
                "hostnames": ["blog.example.com"],
                "rules": [{"backends": [{"address": "192.0.2.1:80"}]}],
            },
        }))
        .unwrap();
        let mut inputs = Inputs {
            routes: vec![Arc::new(route)],
            issuers: self.issuers.clone(),
            last_good: Arc::clone(&self.last_good),
            ..Inputs::default()
        };
        let names = (self.issuers.iter()).filter_map(|it| it.metadata.name.clone());
        let mut findings = Vec::new();
        (self.file).fill(&mut inputs, &names.collect(), &mut findings);
        let translation = translate(&inputs, SystemTime::UNIX_EPOCH);
        self.last_good = Arc::new(translation.last_good.clone());
        (translation, findings)
    }
}

fn issuer_of(translation: &Translation) -> Option<&IssuerChoice> {
    let wanted = translation.wanted_certificates.first();
    wanted.map(|wanted| &wanted.issuer)
}

fn shown(findings: &[Finding]) -> Vec<String> {
    let line = |finding: &Finding| {
        let line = finding.line.map_or("-".to_owned(), |line| line.to_string());
        assert!(finding.file.is_some(), "{finding:?}");
        assert!(
            finding.hint.as_ref().is_some_and(|hint| !hint.is_empty()),
            "{finding:?}"
        );
        format!(
            "{line} {} {} {}",
            finding.reason, finding.field, finding.message
        )
    };
    findings.iter().map(line).collect()
}

#[test]
fn routes_without_an_issuer_use_the_files() {
    let mut bed = Bed::new();
    bed.write(ISSUER);
    let (translation, findings) = bed.refresh();
    assert_eq!(findings, []);
    let expected = IssuerChoice::Acme("letsencrypt".to_owned());
    assert_eq!(issuer_of(&translation), Some(&expected));
    assert!(translation.issuers.contains_key("letsencrypt"));

    // Another name is another issuer.
    bed.write(&ISSUER.replace("letsencrypt", "other"));
    let (translation, findings) = bed.refresh();
    assert_eq!(findings, []);
    assert!(!translation.issuers.contains_key("letsencrypt"));
    let expected = IssuerChoice::Acme("other".to_owned());
    assert_eq!(issuer_of(&translation), Some(&expected));
}

#[test]
fn a_bad_file_is_told_with_its_place_and_the_last_good_one_stays() {
    let mut bed = Bed::new();
    bed.write(ISSUER);
    bed.refresh();
    let two = format!("{ISSUER}---\n{ISSUER}");
    let cases = [
        (
            ISSUER.replace("directory:", "directry:"),
            "6 UnknownField spec.directry",
        ),
        (
            ISSUER.replace("https://acme.example/directory", "[1"),
            " MalformedYaml  ",
        ),
        (
            ISSUER.replace("AcmeIssuer", "TunnelAgent"),
            " UnknownField spec.directory",
        ),
        (ISSUER.replace("AcmeIssuer", "Issuer"), "2 UnknownKind kind"),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n".to_owned(),
            "1 UnknownKind kind the file must hold one AcmeIssuer",
        ),
        (
            ISSUER.replace("  name: letsencrypt\n", "  labels: {a: b}\n"),
            "MissingField metadata.name",
        ),
        (two, "SeveralDocuments  the file holds 2 documents"),
        ("# nothing\n".to_owned(), "- EmptyFile  "),
        (
            "é".repeat(MAX_OBJECT_BYTES),
            "- FileUnreadable  the file has more than",
        ),
    ];
    for (text, expected) in cases {
        bed.write(&text);
        let (translation, findings) = bed.refresh();
        let shown = shown(&findings);
        assert!(
            shown.iter().any(|it| it.contains(expected)),
            "{expected}: {shown:?}"
        );
        assert!(findings.iter().all(|it| it.kept), "{shown:?}");
        assert!(
            translation.issuers.contains_key("letsencrypt"),
            "{expected}"
        );
        let (_, again) = bed.refresh();
        assert_eq!(findings, again, "told the same way while it stays so");
    }
    fs::remove_file(bed.folder.path().join("issuer.yaml")).unwrap();
    let (translation, findings) = bed.refresh();
    assert_eq!(
        shown(&findings),
        ["- FileUnreadable  the file does not exist"]
    );
    assert!(translation.issuers.contains_key("letsencrypt"));
    bed.write(ISSUER);
    assert_eq!(bed.refresh().1, [], "mended");
}

#[test]
fn without_a_file_that_was_ever_right_nobody_steps_in() {
    let mut bed = Bed::new();
    let (translation, findings) = bed.refresh();
    assert_eq!(
        shown(&findings),
        ["- FileUnreadable  the file does not exist"]
    );
    assert_eq!(issuer_of(&translation), None, "not the internal CA");
    let problem = translation
        .problems
        .iter()
        .find(|it| it.field == "spec.tls");
    let problem = problem.unwrap();
    assert!(problem.message.contains("issuer.yaml"), "{problem}");
    bed.object("own", true);
    let (translation, _) = bed.refresh();
    let expected = IssuerChoice::Acme("own".to_owned());
    assert_eq!(issuer_of(&translation), Some(&expected));
}

#[test]
fn what_is_wrong_with_the_issuer_is_told_with_its_line_and_to_its_routes() {
    let mut bed = Bed::new();
    bed.write(&ISSUER.replace("https://acme", "http://acme"));
    let (translation, findings) = bed.refresh();
    assert_eq!(findings, []);
    let object = ObjectRef {
        kind: Kind::AcmeIssuer,
        namespace: None,
        name: "letsencrypt".to_owned(),
    };
    let problem = translation.problems.iter().find(|it| it.object == object);
    let field = &problem.unwrap().field;
    assert_eq!(field, "spec.directory");
    let (file, line) = bed.file.place(&object, field).unwrap();
    assert!(file.ends_with("issuer.yaml"));
    assert_eq!(line, Some(6));
    let of_route = translation
        .problems
        .iter()
        .find(|it| it.field == "spec.tls");
    let hint = of_route.unwrap().hint.as_ref().unwrap();
    assert!(hint.contains("issuer.yaml"), "{hint}");
    assert!(hint.starts_with("spec.directory: "), "{hint}");
}

#[test]
fn objects_win() {
    let mut bed = Bed::new();
    bed.write(ISSUER);
    bed.object("own", true);
    let (translation, findings) = bed.refresh();
    assert!(
        shown(&findings)[0].contains("NotTheDefault"),
        "{findings:?}"
    );
    let own = IssuerChoice::Acme("own".to_owned());
    assert_eq!(issuer_of(&translation), Some(&own));
    // Routes may still name it.
    assert!(translation.issuers.contains_key("letsencrypt"));
    assert!(translation.issuers.contains_key("own"));

    let mut bed = Bed::new();
    bed.write(&ISSUER.replace("https://acme.example", "https://file.example"));
    bed.object("letsencrypt", false);
    let (translation, findings) = bed.refresh();
    assert!(
        shown(&findings)[0].starts_with("4 IssuerReplaced metadata.name"),
        "{findings:?}"
    );
    let settings = format!("{:?}", translation.issuers["letsencrypt"]);
    assert!(settings.contains("https://acme.example"), "{settings}");
    assert_eq!(issuer_of(&translation), Some(&IssuerChoice::InternalCa));
}

#[test]
fn issuers_of_other_classes_are_not_in_its_way() {
    let mut bed = Bed::new();
    bed.write(ISSUER);
    bed.object("other", true);
    let other = AcmeIssuer::clone(&bed.issuers[0]);
    bed.issuers[0] = Arc::new(AcmeIssuer {
        spec: crate::api::AcmeIssuerSpec {
            class_name: Some("outer".to_owned()),
            ..other.spec
        },
        metadata: other.metadata,
        status: None,
    });
    let (translation, findings) = bed.refresh();
    assert_eq!(findings, []);
    let expected = IssuerChoice::Acme("letsencrypt".to_owned());
    assert_eq!(issuer_of(&translation), Some(&expected));
    assert!(!translation.issuers.contains_key("other"));
}
