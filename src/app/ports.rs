//! Who has the port that we want, and how to get it: the most common reason for an edge not to start.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// What to tell a person whose listener could not be bound.
pub(super) fn advice(flag: &str, address: SocketAddr, error: &io::Error) -> String {
    let port = address.port();
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            let owner = match owner(port) {
                Some(owner) => format!("{owner} has the port"),
                None => format!(
                    "another process has the port; `sudo ss -ltnp 'sport = :{port}'` tells which"
                ),
            };
            format!("{owner}: stop it, or choose another with {flag}")
        }
        io::ErrorKind::PermissionDenied => format!(
            "ports below 1024 need a permission: choose a higher one with {flag} (such as {flag} {}), run as root, or allow it with `sudo setcap cap_net_bind_service=+ep` on the tidegate binary",
            u32::from(port) + 8000
        ),
        io::ErrorKind::AddrNotAvailable => format!(
            "no network interface has the address {}: `ip address` lists them; correct {flag}",
            address.ip()
        ),
        _ => format!("correct {flag}"),
    }
}

/// Name and id of the process that listens on the port, as far as this user may see.
fn owner(port: u16) -> Option<String> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listening_inodes(&table, port))
        .collect();
    for process in fs::read_dir("/proc").ok()?.filter_map(Result::ok) {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(files) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let has_it = files.filter_map(Result::ok).any(|file| {
            fs::read_link(file.path())
                .ok()
                .and_then(|link| link.to_str().map(str::to_owned))
                .and_then(|link| {
                    link.strip_prefix("socket:[")
                        .and_then(|rest| rest.strip_suffix(']'))
                        .map(str::to_owned)
                })
                .is_some_and(|inode| inodes.contains(&inode))
        });
        if has_it {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {pid})", command.trim()));
        }
    }
    None
}

/// Inodes of the sockets that listen on the port, out of a table of `/proc/net`.
fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    const LISTEN: &str = "0A";
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
            let matches =
                u16::from_str_radix(local_port, 16) == Ok(port) && *fields.get(3)? == LISTEN;
            matches.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
        })
        .collect()
}

/// Binds the admin listener. `shared` lets it have a port that an older process of this edge still holds.
pub(super) fn bind_admin(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = || {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        io::Result::Ok(socket)
    };
    if !shared && address.port() != 0 {
        let probe = socket()?;
        probe.bind(&address.into())?;
        probe.listen(1)?;
    }
    let socket = socket()?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_the_port_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let error = bind_admin(address, false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let advice = advice("--admin", address, &error);
        let us = format!("(process {})", std::process::id());
        assert!(
            advice.contains(&us) && advice.contains("--admin"),
            "{advice}"
        );
    }

    #[test]
    fn two_processes_of_one_edge_may_share_the_admin_port() {
        let first = bind_admin("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let address = first.local_addr().unwrap();
        assert!(bind_admin(address, true).is_ok());
    }
}
