//! opentracker: answers HTTP/1.1 without `Connection: close`, then closes. Whoever keeps upstream
//! connections meets requests on dead ones; none of them may be lost.

use std::fs;
use std::process::Command;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;

use crate::support::client::block_on;
use crate::support::{Edge, Program, missing, ports, route};

const HOST: &str = "tracker.test";
const ANNOUNCES: usize = 2000;

/// Torrents that the Debian build, which serves only listed ones, is told of.
const TORRENT: &str = "86737a4c940e74d53b44f2c3ee5f1eb0a5ac1d11";
const ESCAPED: &str = "%86szL%94%0et%d5;D%f2%c3%ee_%1e%b0%a5%ac%1d%11";

#[test]
fn two_thousand_announces_all_reach_a_tracker_that_closes_connections() {
    if missing(&["opentracker"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let port = ports::free();
    fs::write(folder.path().join("white.txt"), format!("{TORRENT}\n")).unwrap();
    // It gives up root and changes into its folder, so that folder has to be open to others.
    open_to_all(folder.path());
    let config = format!(
        "listen.tcp 127.0.0.1:{port}\naccess.whitelist white.txt\ntracker.rootdir {}\ntracker.user nobody\n",
        folder.path().display()
    );
    let config_file = folder.path().join("tracker.conf");
    fs::write(&config_file, config).unwrap();
    let _tracker = Program::start(
        Command::new("opentracker")
            .current_dir(folder.path())
            .arg("-f")
            .arg(&config_file),
    )
    .wait_for_port(port);
    let yaml = route("tracker", HOST, format!("127.0.0.1:{port}"))
        .replace("  - backends", "  - tracker: {type: HTTP}\n    backends");
    let edge = Edge::start(&[yaml]);
    edge.wait_for_status(HOST, &announce(0), 200);

    let client = edge.client();
    let (answered, wrong) = block_on(async {
        let stream = client.connect(HOST, &["http/1.1"]).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let driver = tokio::spawn(connection);
        let (mut answered, mut wrong) = (0, Vec::new());
        for index in 0..ANNOUNCES {
            let request = Request::get(announce(index))
                .header("host", HOST)
                .body(Full::<Bytes>::default())
                .unwrap();
            let response = sender.send_request(request).await.unwrap();
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            if status == 200 && body.starts_with(b"d8:complete") {
                answered += 1;
            } else {
                wrong.push(format!(
                    "{index}: {status} {}",
                    String::from_utf8_lossy(&body)
                ));
            }
        }
        driver.abort();
        (answered, wrong)
    });
    assert_eq!(answered, ANNOUNCES, "{:?}", wrong.first());
}

fn announce(index: usize) -> String {
    format!(
        "/announce?info_hash={ESCAPED}&peer_id=-XX0001-{index:012}&port=6881&uploaded=0&downloaded=0&left=0&compact=1"
    )
}

fn open_to_all(folder: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
}
