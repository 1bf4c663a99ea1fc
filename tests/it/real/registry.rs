//! A container registry: chunked PATCH uploads, absolute `Location` built from the forwarded host.

use std::fs;
use std::process::Command;

use crate::support::program::{python, real_file, succeed};
use crate::support::{Edge, Program, missing, ports, route};

#[test]
fn an_image_is_pushed_and_pulled_unchanged() {
    if missing(&["docker-registry", "skopeo"]) || missing(&[python("python")]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    succeed(
        Command::new(python("python"))
            .arg(real_file("oci_image.py"))
            .args([&at("image"), "24000000"]),
    );
    let port = ports::free();
    let config = format!(
        "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n",
        at("registry")
    );
    fs::write(at("config.yml"), config).unwrap();
    let _registry =
        Program::start(Command::new("docker-registry").args(["serve", &at("config.yml")]))
            .wait_for_port(port);
    // skopeo cannot be told addresses, so the name has to be one that every machine knows.
    let edge = Edge::start(&[route("registry", "localhost", format!("127.0.0.1:{port}"))]);
    edge.wait_for_status("localhost", "/v2/", 200);
    fs::create_dir(at("certs")).unwrap();
    fs::copy(edge.ca_file(), at("certs/ca.crt")).unwrap();

    let skopeo = |args: &[&str]| {
        let mut skopeo = Command::new("skopeo");
        skopeo
            .args(["--insecure-policy", "copy", "--quiet"])
            .args(args)
            .env_remove("SSL_CERT_FILE");
        skopeo
    };
    let remote = format!("docker://localhost:{}/team/image:v1", edge.https);
    let certs = at("certs");
    succeed(&mut skopeo(&[
        "--dest-cert-dir",
        &certs,
        &format!("oci:{}:v1", at("image")),
        &remote,
    ]));
    succeed(&mut skopeo(&[
        "--src-cert-dir",
        &certs,
        &remote,
        &format!("oci:{}:v1", at("back")),
    ]));
    let digest = |folder: &str| -> String {
        let index: serde_json::Value =
            serde_json::from_slice(&fs::read(format!("{folder}/index.json")).unwrap()).unwrap();
        index["manifests"][0]["digest"].as_str().unwrap().to_owned()
    };
    assert_eq!(digest(&at("image")), digest(&at("back")));
}
