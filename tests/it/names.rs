//! Backends by name, over the system's own resolver and a name server of the test's: the edge runs in a mount
//! namespace whose resolv.conf leads here.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};

use crate::support::edge::PATIENCE;
use crate::support::program::{not_root, run, skipped};
use crate::support::{Edge, Origin, eventually, missing, route};

const HOST: &str = "names.test";

/// Answers for every name with the addresses of the moment, or that it does not exist. Ends with the process.
struct NameServer {
    address: Ipv4Addr,
    answer: Arc<Mutex<Vec<Ipv4Addr>>>,
}

impl NameServer {
    fn start() -> Self {
        // resolv.conf knows no ports, and other runs of the tests have name servers too.
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, 53, high, low);
        let socket = UdpSocket::bind((address, 53)).unwrap();
        let answer: Arc<Mutex<Vec<Ipv4Addr>>> = Arc::default();
        let current = Arc::clone(&answer);
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((length, peer)) = socket.recv_from(&mut query) {
                let reply = reply(&query[..length], &current.lock().unwrap());
                let _ = socket.send_to(&reply, peer);
            }
        });
        Self { address, answer }
    }

    fn now(&self, addresses: &[Ipv4Addr]) {
        *self.answer.lock().unwrap() = addresses.to_vec();
    }
}

/// RFC 1035 §4: the question again, and an A record for each address; no other type has any.
fn reply(query: &[u8], addresses: &[Ipv4Addr]) -> Vec<u8> {
    const HEADER: usize = 12;
    const A: [u8; 2] = [0, 1];
    let name = query[HEADER..].iter().position(|byte| *byte == 0).unwrap();
    let question = &query[HEADER..HEADER + name + 5];
    let addresses = if question[name + 1..name + 3] == A {
        addresses
    } else {
        &[]
    };
    let missing = u8::from(addresses.is_empty() && question[name + 1..name + 3] == A) * 3;
    let mut reply = query[..2].to_vec();
    reply.extend([0x84, missing, 0, 1, 0]);
    reply.extend([u8::try_from(addresses.len()).unwrap(), 0, 0, 0, 0]);
    reply.extend(question);
    for address in addresses {
        // The name of the question, type A, class IN, TTL 0, four bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        reply.extend(address.octets());
    }
    reply
}

#[test]
fn a_name_whose_address_changes_leads_to_the_new_one_without_a_failed_request() {
    if not_root("a resolver of the test's own")
        || missing(&["unshare"])
        || !run(std::process::Command::new("unshare").args(["--mount", "true"])).0
    {
        skipped("there are no mount namespaces here");
        return;
    }
    let (old, new) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3));
    let first = Origin::text_at(SocketAddr::from((old, 0)), "first");
    let port = first.address().port();
    let second = Origin::text_at(SocketAddr::from((new, port)), "second");
    let names = NameServer::start();
    names.now(&[old]);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let resolver = file("resolv.conf", format!("nameserver {}\n", names.address));
    let order = file("nsswitch.conf", "hosts: dns\n".to_owned());
    let script = format!(
        "mount --bind {resolver} /etc/resolv.conf && mount --bind {order} /etc/nsswitch.conf && exec \"$0\" \"$@\""
    );
    let edge = Edge::builder()
        .object(route(
            "names",
            HOST,
            format_args!("backend.names.test:{port}"),
        ))
        .under(&["unshare", "--mount", "sh", "-c", &script])
        .start();
    edge.wait_for_status(HOST, "/", 200);
    assert_eq!(edge.get(HOST, "/").text(), "first");

    names.now(&[new]);
    eventually("the new address", PATIENCE, || {
        // The old one still answers, so that no request may fail on the way.
        let reply = edge.get(HOST, "/");
        assert_eq!(reply.status, 200, "{}", reply.text());
        match reply.text().as_str() {
            "second" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    let left = first.requests();
    for _ in 0..20 {
        assert_eq!(edge.get(HOST, "/").text(), "second");
    }
    assert_eq!(first.requests(), left, "the old address is still used");

    // A name that is gone is no reason to stop serving.
    names.now(&[]);
    eventually("the failure is told", PATIENCE, || {
        let log = edge.log();
        if log.contains("name not resolved") {
            Ok(())
        } else {
            Err(log)
        }
    });
    assert_eq!(edge.get(HOST, "/").text(), "second");
    assert!(second.requests() > 20);
}
