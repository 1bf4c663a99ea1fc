//! A network of a test's own: a bridge, and machines on it with addresses of both families.
//!
//! ```text
//! hub (the test's thread, the edge, the backends)    10.77.0.1    fd77::1    own 127.0.0.1
//!  └─ bridge ── machine "alice"                      10.77.0.11   fd77::11
//!           └── machine "bob" …                      10.77.0.12   fd77::12
//! ```
//!
//! The hub is a namespace too, and the test's thread moves into it with everything that it starts:
//! addresses and ports are the same in every run and collide with nobody's. Only the names of namespaces
//! are the machine's; they hold the process id, and what a killed run left is removed by the next.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::missing;
use super::program::{not_root, run, skipped, succeed};

/// What the names of all namespaces of these tests begin with; the process id follows.
const PREFIX: &str = "tidegate-it-";
const BRIDGE: &str = "bridge";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A bridge in a namespace, which the test's thread is in. Dropping removes all of it.
pub(crate) struct Network {
    hub: String,
    machines: u8,
    names: Vec<String>,
}

/// A namespace on the bridge.
#[derive(Clone)]
pub(crate) struct Machine {
    /// Its name on the machine of the tests.
    pub(crate) namespace: String,
    /// Its IPv4 address.
    pub(crate) v4: Ipv4Addr,
    /// Its IPv6 address.
    pub(crate) v6: Ipv6Addr,
}

impl Network {
    /// The hub's IPv4 address.
    pub(crate) const V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
    /// The hub's IPv6 address.
    pub(crate) const V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);

    /// Runs the test in a thread inside the hub of a network of its own. Skips it loudly where it cannot be:
    /// without root, without `ip`, on a kernel without namespaces.
    #[track_caller]
    pub(crate) fn run(test: impl FnOnce(&mut Self) + Send) {
        if not_root("a network of the test's own") || missing(&["ip"]) {
            return;
        }
        sweep();
        let index = NEXT.fetch_add(1, Ordering::Relaxed);
        let hub = format!("{PREFIX}{}-{index}", std::process::id());
        let (made, said) = run(Command::new("ip").args(["netns", "add", &hub]));
        if !made {
            assert!(std::env::var_os("CI").is_none(), "no namespace: {said}");
            return skipped(format_args!("no network namespace can be made: {said}"));
        }
        let network = Self {
            names: vec![hub.clone()],
            machines: 0,
            hub,
        };
        // The skip's message and the harness name the test by its thread.
        let name = std::thread::current().name().unwrap_or("a test").to_owned();
        let done = std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name(name)
                .spawn_scoped(scope, move || {
                    let mut network = network;
                    network.enter();
                    test(&mut network);
                })
                .unwrap()
                .join()
        });
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    }

    /// Moves this thread, and what it starts from now on, into the hub.
    fn enter(&self) {
        let file = fs::File::open(format!("/run/netns/{}", self.hub)).unwrap();
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        ip(&["link", "set", "lo", "up"]);
        ip(&["link", "add", BRIDGE, "type", "bridge"]);
        self.address(IpAddr::V4(Self::V4));
        self.address(IpAddr::V6(Self::V6));
        ip(&["link", "set", BRIDGE, "up"]);
    }

    /// Gives the hub one more address on the bridge, as a floating IP is.
    #[track_caller]
    pub(crate) fn address(&self, address: IpAddr) {
        add_address(&["-n", &self.hub], address, BRIDGE);
    }

    /// Adds a machine. Its default routes lead to the hub.
    #[track_caller]
    pub(crate) fn machine(&mut self, name: &str) -> Machine {
        let namespace = format!("{}-{name}", self.hub);
        ip(&["netns", "add", &namespace]);
        self.names.push(namespace.clone());
        self.machines += 1;
        let last = 10 + self.machines;
        let machine = Machine {
            namespace,
            v4: Ipv4Addr::new(10, 77, 0, last),
            // Written like the other's last part, so that logs are read at a glance.
            v6: format!("fd77::{last}").parse().unwrap(),
        };
        let port = format!("port{last}");
        let inside = ["-n", &machine.namespace];
        let peer = ["peer", "name", "eth0", "netns", &machine.namespace];
        ip(&[&["link", "add", &port, "type", "veth"][..], &peer].concat());
        ip(&["link", "set", &port, "master", BRIDGE, "up"]);
        machine.ip(&["link", "set", "lo", "up"]);
        machine.ip(&["link", "set", "eth0", "up"]);
        for (address, hub) in [
            (IpAddr::V4(machine.v4), IpAddr::V4(Self::V4)),
            (IpAddr::V6(machine.v6), IpAddr::V6(Self::V6)),
        ] {
            add_address(&inside, address, "eth0");
            machine.ip(&["route", "add", "default", "via", &hub.to_string()]);
        }
        machine
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.names.iter().rev() {
            remove(name);
        }
    }
}

impl Machine {
    /// The program, to be run on this machine.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.namespace])
            .arg(program.as_ref());
        command
    }

    /// Runs a part of the test itself on this machine.
    pub(crate) fn inside<T: Send>(&self, part: impl FnOnce() -> T + Send) -> T {
        inside(&self.namespace, part)
    }

    /// `ip` with these arguments on this machine.
    #[track_caller]
    pub(crate) fn ip(&self, args: &[&str]) {
        ip(&[&["-n", &self.namespace], args].concat());
    }

    /// The names that programs on this machine find, each at its address.
    pub(crate) fn hosts(&self, names: &[(&str, IpAddr)]) {
        let folder = Path::new("/etc/netns").join(&self.namespace);
        fs::create_dir_all(&folder).unwrap();
        let lines = names
            .iter()
            .map(|(name, address)| format!("{address} {name}\n"));
        let local = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
        let text: String = std::iter::once(local).chain(lines).collect();
        fs::write(folder.join("hosts"), text).unwrap();
    }
}

/// Runs this in a thread that is in the namespace with everything that it starts.
fn inside<T: Send>(namespace: &str, part: impl FnOnce() -> T + Send) -> T {
    let file = fs::File::open(Path::new("/run/netns").join(namespace)).unwrap();
    // The skip's message and the harness name the test by its thread.
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let enter = move || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        part()
    };
    let done = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name);
        thread.spawn_scoped(scope, enter).unwrap().join()
    });
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[track_caller]
fn ip(args: &[&str]) {
    succeed(Command::new("ip").args(args));
}

#[track_caller]
fn add_address(inside: &[&str], address: IpAddr, device: &str) {
    let (prefix, options): (_, &[&str]) = match address {
        IpAddr::V4(_) => (24, &[]),
        // Without the second in which nobody may use a new address.
        IpAddr::V6(_) => (64, &["nodad"]),
    };
    let address = format!("{address}/{prefix}");
    let add = ["address", "add", &address, "dev", device];
    ip(&[inside, &add, options].concat());
}

fn remove(name: &str) {
    let _ = run(Command::new("ip").args(["netns", "delete", name]));
    let _ = fs::remove_dir_all(PathBuf::from("/etc/netns").join(name));
}

/// Removes what runs left that were killed.
fn sweep() {
    let Ok(entries) = fs::read_dir("/run/netns") else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if process.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
            remove(&name);
        }
    }
}
