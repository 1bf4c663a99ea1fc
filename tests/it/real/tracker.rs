//! opentracker: answers HTTP/1.1 without `Connection: close`, then closes. Whoever keeps upstream
//! connections meets requests on dead ones; none of them may be lost.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;

use crate::support::client::block_on;
use crate::support::trackers::Opentracker;
use crate::support::{Edge, route};

const HOST: &str = "tracker.test";
const ANNOUNCES: usize = 2000;

/// The torrent, as it is written and as it is announced.
const TORRENT: &str = "86737a4c940e74d53b44f2c3ee5f1eb0a5ac1d11";
const ESCAPED: &str = "%86szL%94%0et%d5;D%f2%c3%ee_%1e%b0%a5%ac%1d%11";

#[test]
fn two_thousand_announces_all_reach_a_tracker_that_closes_connections() {
    let Some(tracker) = Opentracker::start(&[TORRENT.to_owned()]) else {
        return;
    };
    let yaml = route("tracker", HOST, tracker.address)
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
