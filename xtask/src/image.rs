//! `cargo xtask image`: the container image, from scratch, without a daemon and without a base to pull.
//!
//! The program is static (musl), so that the image holds it, the authorities it trusts, and a name for its user.
//! Builds for the machine's own architecture, or for the other one with a cross compiler; must not push anything,
//! which is the release workflow's part.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::shell::{self, find, phase, run};

/// Largest image that may be published, compressed.
const LARGEST: u64 = 40 << 20;

const USAGE: &str = "\
usage: cargo xtask image [OPTIONS]

  --profile NAME   profile of Cargo; default: release, of the agent: agent
  --tag NAME       name in the archive; default: ghcr.io/tidegate/tidegate:VERSION
  --program FILE   a static program that is built already
  --agent          the image of tidegate-agent instead; also checks that the program is at most 10 MB
  --arch NAME      amd64 or arm64; default: the machine's. The other one needs Debian's cross compiler,
                   gcc-aarch64-linux-gnu or gcc-x86-64-linux-gnu
";

/// What is asked for.
struct Options {
    profile: Option<String>,
    tag: Option<String>,
    program: Option<PathBuf>,
    architecture: Option<String>,
    what: &'static Product,
}

/// A program that has an image.
struct Product {
    name: &'static str,
    profile: &'static str,
    containerfile: &'static str,
    /// Largest program, stripped, in bytes.
    largest: u64,
}

const EDGE: Product = Product {
    name: "tidegate",
    profile: "release",
    containerfile: "Containerfile",
    largest: u64::MAX,
};

const AGENT: Product = Product {
    name: "tidegate-agent",
    profile: "agent",
    containerfile: "Containerfile.agent",
    largest: 10 << 20,
};

/// An architecture, as everybody calls it.
struct Architecture {
    /// Of images.
    image: &'static str,
    /// Of machines, as Rust and GNU call it.
    machine: &'static str,
}

const ARCHITECTURES: [Architecture; 2] = [
    Architecture {
        image: "amd64",
        machine: "x86_64",
    },
    Architecture {
        image: "arm64",
        machine: "aarch64",
    },
];

impl Architecture {
    fn target(&self) -> String {
        format!("{}-unknown-linux-musl", self.machine)
    }

    fn is_own(&self) -> bool {
        self.machine == std::env::consts::ARCH
    }

    /// A program of the GNU tools that knows this architecture.
    fn gnu(&self, tool: &str) -> String {
        if self.is_own() {
            tool.to_owned()
        } else {
            format!("{}-linux-gnu-{tool}", self.machine.replace('_', "-"))
        }
    }
}

/// Builds the image of this checkout into `target/image`.
pub(crate) fn build(args: &[String]) -> Result<()> {
    let Some(options) = parse(args)? else {
        print!("{USAGE}");
        return Ok(());
    };
    let Some(buildah) = find("buildah") else {
        bail!("buildah is not installed; Debian: apt-get install buildah musl-tools");
    };
    let architecture = architecture(options.architecture.as_deref())?;
    let program = if let Some(program) = &options.program {
        program.clone()
    } else {
        let profile = options.profile.as_deref().unwrap_or(options.what.profile);
        compile(architecture, profile, options.what)?
    };
    is_static(&program)?;
    let folder = shell::root().join("target/image");
    let product = options.what;
    let context = folder.join(format!("{}-{}", product.name, architecture.image));
    fill(&context.join("root"), &program, architecture, product)?;
    let unpacked = fs::metadata(context.join("root").join(product.name));
    let unpacked = unpacked.context("read the program")?.len();
    if unpacked > product.largest {
        bail!(
            "{} has {:.1} MB, more than {:.0}",
            product.name,
            megabytes(unpacked),
            megabytes(product.largest)
        );
    }

    let version = version()?;
    let tag =
        (options.tag).unwrap_or_else(|| format!("ghcr.io/tidegate/{}:{version}", product.name));
    let archive = folder.join(format!("{}-{}.tar", product.name, architecture.image));
    let revision = shell::output(
        Command::new("git")
            .current_dir(shell::root())
            .args(["rev-parse", "HEAD"]),
    )?;
    phase("image", || {
        // Works in any container and on any file system; there is one layer.
        let buildah = || {
            let mut command = Command::new(&buildah);
            command.args(["--storage-driver", "vfs"]);
            command.arg("--root").arg(folder.join("storage"));
            command.arg("--runroot").arg(folder.join("run"));
            command
        };
        run(buildah()
            .args(["build", "--format", "oci", "--layers=false"])
            .args(["--arch", architecture.image, "--timestamp", "0"])
            .arg(format!("--build-arg=VERSION={version}"))
            .arg(format!("--build-arg=REVISION={}", revision.trim()))
            .args(["--tag", &tag, "--file"])
            .arg(
                shell::root()
                    .join("packaging/image")
                    .join(product.containerfile),
            )
            .arg(&context))?;
        let _ = fs::remove_file(&archive);
        let target = format!("oci-archive:{}:{tag}", archive.display());
        run(buildah().args(["push", "--quiet", &tag, &target]))?;
        run(buildah().args(["rmi", "--force", &tag]))
    })?;
    let size = fs::metadata(&archive).context("read the archive")?.len();
    println!(
        "{tag}\n  {}\n  compressed {:.1} MB, program {:.1} MB, linux/{}",
        archive.display(),
        megabytes(size),
        megabytes(unpacked),
        architecture.image
    );
    if size > LARGEST {
        bail!("the image is larger than {:.0} MB", megabytes(LARGEST));
    }
    Ok(())
}

fn parse(args: &[String]) -> Result<Option<Options>> {
    let mut options = Options {
        profile: None,
        tag: None,
        program: None,
        architecture: None,
        what: &EDGE,
    };
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if arg == "--help" {
            return Ok(None);
        }
        if arg == "--agent" {
            options.what = &AGENT;
            continue;
        }
        let Some(value) = rest.next().cloned() else {
            bail!("{arg} needs a value\n\n{USAGE}");
        };
        match arg.as_str() {
            "--profile" => options.profile = Some(value),
            "--tag" => options.tag = Some(value),
            "--program" => options.program = Some(value.into()),
            "--arch" => options.architecture = Some(value),
            other => bail!("no option {other:?}\n\n{USAGE}"),
        }
    }
    Ok(Some(options))
}

fn architecture(asked: Option<&str>) -> Result<&'static Architecture> {
    let found = ARCHITECTURES.iter().find(|it| match asked {
        Some(name) => it.image == name,
        None => it.is_own(),
    });
    found.with_context(|| {
        let name = asked.unwrap_or(std::env::consts::ARCH);
        format!("there is no image for {name}: amd64 or arm64")
    })
}

/// The static program of this checkout.
fn compile(architecture: &Architecture, profile: &str, product: &Product) -> Result<PathBuf> {
    let compiler = if architecture.is_own() {
        "musl-gcc".to_owned()
    } else {
        architecture.gnu("gcc")
    };
    if find(&compiler).is_none() {
        let machine = architecture.machine.replace('_', "-");
        let package = if architecture.is_own() {
            "musl-tools".to_owned()
        } else {
            format!(
                "gcc-{machine}-linux-gnu libc6-dev-{}-cross",
                architecture.image
            )
        };
        bail!("{compiler} is not installed; Debian: apt-get install {package}");
    }
    let target = architecture.target();
    let mut command = shell::cargo(&["build", "--locked", "--bin", product.name]);
    if product.name != EDGE.name {
        // Alone: it is small because it has nothing of the edge, not even its features of shared parts.
        command.args(["--package", product.name]);
    }
    command.args(["--target", &target, "--profile", profile]);
    // C parts of the cryptography are built too.
    let variable = target.replace('-', "_");
    command.env(format!("CC_{variable}"), &compiler);
    if !architecture.is_own() {
        command.env(format!("AR_{variable}"), architecture.gnu("ar"));
        let linker = format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase());
        command.env(linker, &compiler);
    }
    phase("build", || run(&mut command))?;
    let built = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| shell::root().join("target"), PathBuf::from);
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(built.join(target).join(folder).join(product.name))
}

/// Nothing else is in the image, so a loader would be missed at the start of the first pod.
fn is_static(program: &Path) -> Result<()> {
    let mut readelf = Command::new("readelf");
    let headers = shell::output(readelf.args(["--program-headers", "--wide"]).arg(program))?;
    if headers.contains("INTERP") {
        bail!("{} is not static", program.display());
    }
    Ok(())
}

/// What the image holds.
fn fill(root: &Path, program: &Path, architecture: &Architecture, product: &Product) -> Result<()> {
    let _ = fs::remove_dir_all(root);
    let certificates = root.join("etc/ssl/certs");
    fs::create_dir_all(&certificates).context("create the image's folder")?;
    let mut strip = Command::new(architecture.gnu("strip"));
    let inside = root.join(product.name);
    run(strip.arg("-o").arg(&inside).arg(program))?;
    let bundle = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
    ]
    .into_iter()
    .find(|path| Path::new(path).exists())
    .context("find the system's certificate authorities: install ca-certificates")?;
    fs::copy(bundle, certificates.join("ca-certificates.crt"))
        .with_context(|| format!("copy {bundle}"))?;
    for (file, text) in [
        ("etc/passwd", "root:x:0:0::/:\ntidegate:x:65532:65532::/:\n"),
        ("etc/group", "root:x:0:\ntidegate:x:65532:\n"),
    ] {
        fs::write(root.join(file), text).with_context(|| format!("write {file}"))?;
    }
    Ok(())
}

fn version() -> Result<String> {
    let metadata = shell::output(&mut shell::cargo(&["pkgid"]))?;
    let version = metadata.trim().rsplit(['#', '@']).next();
    version
        .map(str::to_owned)
        .context("find the version of the program")
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
