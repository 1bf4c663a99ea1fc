//! The certification authority of the integration tests, the tap on the way to it, and the network from it
//! to the replicas.

#[path = "../../../tests/it/acme/authority.rs"]
pub(crate) mod authority;
#[path = "../../../tests/it/acme/tap.rs"]
pub(crate) mod tap;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

pub(crate) use authority::{Authority, Behaviour};
pub(crate) use tap::{Exchange, Tap, When};

use super::{Replica, breathe};

/// Where the authority looks: leads each connection to one of the replicas that it is told of, in turn. While
/// there are none, connections wait.
pub(crate) struct Front {
    targets: Arc<Mutex<Vec<[u16; 2]>>>,
    carried: Arc<AtomicUsize>,
}

impl Front {
    pub(crate) fn start(authority: &Authority) -> Self {
        let front = Self {
            targets: Arc::default(),
            carried: Arc::default(),
        };
        for (index, port) in [authority.http, authority.https].into_iter().enumerate() {
            let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
            let (targets, carried) = (Arc::clone(&front.targets), Arc::clone(&front.carried));
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let (targets, carried) = (Arc::clone(&targets), Arc::clone(&carried));
                    std::thread::spawn(move || carry(&stream.unwrap(), index, &targets, &carried));
                }
            });
        }
        front
    }

    /// Leads to these from now on.
    pub(crate) fn lead_to(&self, replicas: &[&Replica]) {
        let ports = replicas.iter().map(|it| [it.http, it.https]);
        *self.targets.lock().unwrap() = ports.collect();
    }

    /// Connections that were led on so far.
    pub(crate) fn carried(&self) -> usize {
        self.carried.load(Ordering::SeqCst)
    }
}

fn carry(client: &TcpStream, index: usize, targets: &Mutex<Vec<[u16; 2]>>, carried: &AtomicUsize) {
    let server = loop {
        let open = targets.lock().unwrap().clone();
        if let Some(turn) = carried.load(Ordering::SeqCst).checked_rem(open.len())
            && let Ok(server) = TcpStream::connect(("127.0.0.1", open[turn][index]))
        {
            carried.fetch_add(1, Ordering::SeqCst);
            break server;
        }
        breathe();
    };
    // Either side may break off at any time.
    let copy = |mut from: &TcpStream, mut to: &TcpStream| {
        let mut buffer = [0; 4096];
        while let Ok(length) = from.read(&mut buffer)
            && length > 0
            && to.write_all(&buffer[..length]).is_ok()
        {}
        let _ = to.shutdown(Shutdown::Write);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| copy(client, &server));
        copy(&server, client);
    });
}
