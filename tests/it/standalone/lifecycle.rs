//! Start, refusal to start, end, takeover.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::edge::PATIENCE;
use crate::support::program::{not_root, run};
use crate::support::{Client, Edge, Origin, Program, eventually, missing, ports, route};

/// `tidegate run` on an empty folder of its own, which is expected to end by itself.
fn start_that_fails(edit: impl FnOnce(&mut Command, &std::path::Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Edge::command();
    command.arg("run").arg(folder.path());
    for flag in ["--http", "--https", "--admin"] {
        command
            .arg(flag)
            .arg(format!("127.0.0.1:{}", ports::free()));
    }
    edit(&mut command, folder.path());
    let (ok, output) = run(&mut command);
    assert!(!ok, "{output}");
    output
}

#[test]
fn a_port_in_use_is_told_with_flag_address_and_owner() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--http", "--https", "--admin"] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Edge::command();
        command.arg("run").arg(folder.path());
        for other in ["--http", "--https", "--admin"] {
            let value = if other == flag {
                address.clone()
            } else {
                "127.0.0.1:0".to_owned()
            };
            command.arg(other).arg(value);
        }
        let (ok, output) = run(&mut command);
        assert!(!ok, "{output}");
        let owner = format!("(process {})", std::process::id());
        for expected in [flag, &address, &owner] {
            assert!(output.contains(expected), "{expected} in {output}");
        }
    }
}

#[test]
fn a_missing_folder_and_a_state_folder_in_use_are_told() {
    let output = start_that_fails(|command, folder| {
        std::fs::remove_dir(folder).unwrap();
        command.arg("--log-level").arg("warn");
    });
    assert!(output.contains("it does not exist"), "{output}");

    let edge = Edge::builder().start();
    let output = start_that_fails(|command, _| {
        command.arg("--state-dir").arg(edge.folder().join("state"));
    });
    assert!(
        output.contains("another tidegate uses it (process "),
        "{output}"
    );
    assert!(output.contains("--state-dir"), "{output}");
}

#[test]
fn a_second_edge_on_the_same_ports_is_refused() {
    let edge = Edge::builder().start();
    let folder = tempfile::tempdir().unwrap();
    let (ok, output) = run(Edge::command()
        .arg("run")
        .arg(folder.path())
        .args(["--http", "off", "--admin", "off"])
        .arg("--https")
        .arg(format!("127.0.0.1:{}", edge.https)));
    assert!(!ok && output.contains("tidegate (process "), "{output}");
}

#[test]
fn the_service_manager_is_told_and_a_signal_ends_in_order() {
    let origin = Origin::text("x");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let mut edge = Edge::builder()
        .object(route("a", "a.test", origin.address()))
        .env("NOTIFY_SOCKET", &path.display().to_string())
        .start();
    assert_eq!(told(), "READY=1\n");
    edge.program().signal("HUP");
    let reloading = told();
    assert!(
        reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    assert_eq!(told(), "READY=1\n");
    edge.program().signal("TERM");
    assert_eq!(told(), "STOPPING=1\n");
    let status = edge.program().wait(PATIENCE);
    assert!(status.success(), "{status}: {}", edge.log());
}

#[test]
fn the_watchdog_of_the_service_manager_is_fed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let _edge = Edge::builder()
        .env("NOTIFY_SOCKET", &path.display().to_string())
        .env("WATCHDOG_USEC", "200000")
        .start();
    let mut told = Vec::new();
    while told.len() < 4 {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        told.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    let fed = "WATCHDOG=1\n".to_owned();
    assert_eq!(
        told,
        ["READY=1\n".to_owned(), fed.clone(), fed.clone(), fed]
    );
}

/// systemd kills a main process that is another one's child instead of waiting for its end.
#[test]
fn a_new_process_gives_signs_of_life_and_is_not_the_old_one_s_child() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let tells = |words: &str| loop {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        let told = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if let Some(rest) = told.strip_prefix(words) {
            break rest.trim().to_owned();
        }
    };
    // A visitor whose answer does not come keeps the old process.
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut edge = Edge::builder()
        .object(route("a", "a.test", origin.local_addr().unwrap()))
        .env("NOTIFY_SOCKET", &path.display().to_string())
        .env("WATCHDOG_USEC", "200000")
        // As systemd says it.
        .under(&["sh", "-c", "export WATCHDOG_PID=$$; exec \"$0\" \"$@\""])
        .start();
    tells("WATCHDOG=1");
    let client = edge.client();
    let visitor = std::thread::spawn(move || client.try_get("a.test", "/"));
    let held = origin.accept().unwrap();
    let old = edge.program().pid();
    edge.program().signal("USR2");
    let new = tells("MAINPID=");
    let stat = std::fs::read_to_string(format!("/proc/{new}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let parent = fields.split_whitespace().nth(1).unwrap();
    assert_ne!(parent, old.to_string(), "{stat}");
    // The old one gives none while it drains.
    tells("WATCHDOG=1");
    assert!(edge.program().ended().is_none(), "{}", edge.log());
    drop((held, origin));
    let _ = visitor.join().unwrap();
    let status = edge.program().wait(PATIENCE);
    assert!(status.success(), "{status}: {}", edge.log());
}

#[test]
fn a_folder_that_becomes_unreadable_loses_nothing_and_says_so() {
    if not_root("taking a folder away from another user") || missing(&["setpriv"]) {
        return;
    }
    let origin = Origin::text("x");
    let user = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let folder = tempfile::tempdir().unwrap();
    let objects = folder.path().join("objects");
    std::fs::create_dir(&objects).unwrap();
    std::fs::write(
        objects.join("a.yaml"),
        route("a", "a.test", origin.address()),
    )
    .unwrap();
    let mode = |path: &std::path::Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(folder.path(), 0o755);
    let state = folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(65534), Some(65534)).unwrap();
    // The binary may lie where that user cannot go.
    let binary = folder.path().join("tidegate");
    std::fs::copy(Edge::binary(), &binary).unwrap();
    let check = || {
        run(Command::new(user[0])
            .args(&user[1..])
            .arg(&binary)
            .arg("check")
            .arg(&objects))
    };
    let (ok, output) = check();
    assert!(ok, "{output}");
    mode(&objects, 0o700);
    let (ok, output) = check();
    assert!(
        !ok && output.contains("[FolderUnreadable]") && output.contains("permission"),
        "{output}"
    );
    mode(&objects, 0o755);

    let (https, admin) = (ports::free(), ports::free());
    let program = Program::start(
        Command::new(user[0])
            .args(&user[1..])
            .arg(&binary)
            .arg("run")
            .arg(&objects)
            .args(["--http", "off", "--workers", "1", "--https"])
            .arg(format!("127.0.0.1:{https}"))
            .args(["--admin", &format!("127.0.0.1:{admin}"), "--state-dir"])
            .arg(&state),
    )
    .wait_for_port(admin);
    let client = eventually("the root certificate", PATIENCE, || {
        std::fs::read(state.join("ca/ca.crt"))
            .map(|pem| Client::new(https, &pem))
            .map_err(|error| error.to_string())
    });
    eventually("the route", PATIENCE, || client.try_get("a.test", "/"));
    mode(&objects, 0o700);
    program.signal("HUP");
    eventually("what is wrong is told", PATIENCE, || {
        let log = program.log();
        if log.contains("FolderUnreadable") {
            Ok(())
        } else {
            Err(log)
        }
    });
    assert_eq!(client.get("a.test", "/").status, 200);
    mode(&objects, 0o755);
    program.signal("HUP");
    eventually("it is mended", PATIENCE, || {
        let log = program.log();
        if log.contains("mended") {
            Ok(())
        } else {
            Err(log)
        }
    });
    assert_eq!(client.get("a.test", "/").status, 200);
}

#[test]
fn a_new_process_takes_over_without_a_refused_connection() {
    let origin = Origin::text("x");
    let mut edge = Edge::builder()
        .object(route("a", "a.test", origin.address()))
        .start();
    edge.wait_for_status("a.test", "/", 200);
    let (stop, served) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (client, stop, served) = (edge.client(), Arc::clone(&stop), Arc::clone(&served));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // A new connection each time.
                    let reply = client.try_get("a.test", "/")?;
                    if reply.status != 200 {
                        return Err(format!("{} {}", reply.status, reply.text()));
                    }
                    served.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        })
        .collect();
    let more = |than: usize| {
        eventually("more requests", PATIENCE, || {
            let now = served.load(Ordering::Relaxed);
            if now > than + 50 {
                Ok(now)
            } else {
                Err(now.to_string())
            }
        })
    };
    let before = more(0);
    let old = edge.program().pid();
    edge.program().signal("USR2");
    let status = edge.program().wait(PATIENCE);
    assert!(status.success(), "{status}: {}", edge.log());
    more(served.load(Ordering::Relaxed).max(before));
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        let outcome: Result<(), String> = client.join().unwrap();
        assert_eq!(outcome, Ok(()), "{}", edge.log());
    }
    assert_ne!(edge.successor().unwrap(), old);
}

#[test]
fn a_takeover_that_fails_leaves_the_old_process_serving() {
    let origin = Origin::text("x");
    let mut edge = Edge::builder()
        .object(route("a", "a.test", origin.address()))
        .start();
    edge.wait_for_status("a.test", "/", 200);
    // The new process cannot read the folder that the old one has open.
    let away = edge.folder().join("away");
    std::fs::rename(edge.objects(), &away).unwrap();
    edge.program().signal("USR2");
    eventually("the failure is told", PATIENCE, || {
        let log = edge.log();
        if log.contains("upgrade failed; this process goes on") {
            Ok(())
        } else {
            Err(log)
        }
    });
    assert!(edge.program().ended().is_none());
    edge.wait_for_status("a.test", "/", 200);
}
