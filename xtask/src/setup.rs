//! Installs what building and testing need on a fresh Debian machine, step by step, each with its reason and its remedy.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::process::{command, fresh_dir, is_root, output, text, tools, which};

/// Install what building and testing need.
///
/// rust-src (the BPF target has no prebuilt core), bpf-linker (into target/tools), and the Debian packages of the servers,
/// load generators and emulators that the tests use. What is there already is left alone; a second run takes no time.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only what building needs; no Debian packages, so root is not needed either
    #[arg(long)]
    build_only: bool,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    for_building()?;
    if !args.build_only {
        for_testing()?;
    }
    println!("setup: all there");
    Ok(())
}

/// rust-src and bpf-linker.
pub(crate) fn for_building() -> Result<()> {
    rust_src()?;
    bpf_linker()
}

/// The servers and tools that the tests talk to.
pub(crate) fn for_testing() -> Result<()> {
    let missing: Vec<&Package> = PACKAGES.iter().filter(|package| which(package.program).is_none()).collect();
    install(&missing)
}

/// Just these of the packages in the list, by the name of their program.
pub(crate) fn programs(wanted: &[&str]) -> Result<()> {
    let missing: Vec<&Package> =
        PACKAGES.iter().filter(|p| wanted.contains(&p.program) && which(p.program).is_none()).collect();
    install(&missing)
}

/// The version that loads the LLVM of the stable compiler this tree is built with.
const BPF_LINKER: &str = "0.10.3";

struct Package {
    program: &'static str,
    debian: &'static str,
    why: &'static str,
    /// A daemon comes along, which is neither to be started now nor at the next boot.
    service: Option<&'static str>,
}

const PACKAGES: [Package; 20] = [
    Package { program: "nginx", debian: "nginx-light", why: "a server to measure", service: Some("nginx") },
    Package { program: "wrk", debian: "wrk", why: "keep-alive load", service: None },
    Package { program: "ab", debian: "apache2-utils", why: "an exact number of requests", service: None },
    Package { program: "curl", debian: "curl", why: "a client that is not ours", service: None },
    Package {
        program: "promtool",
        debian: "prometheus",
        why: "checks /metrics and the alert rules",
        service: Some("prometheus"),
    },
    Package { program: "losetup", debian: "mount", why: "a block device to measure", service: None },
    Package { program: "nft", debian: "nftables", why: "a network that loses packets", service: None },
    Package {
        program: "biolatency",
        debian: "libbpf-tools",
        why: "what the agent's scheduler and disk figures are compared with",
        service: None,
    },
    Package {
        program: "qemu-system-x86_64",
        debian: "qemu-system-x86",
        why: "boots other kernels",
        service: None,
    },
    Package { program: "busybox", debian: "busybox-static", why: "the shell of those VMs", service: None },
    Package { program: "ip", debian: "iproute2", why: "network namespaces of the live tests", service: None },
    Package {
        program: "pg_ctlcluster",
        debian: "postgresql",
        why: "a database to measure, with pgbench and pg_stat_statements",
        service: Some("postgresql"),
    },
    Package {
        program: "redis-server",
        debian: "redis",
        why: "another database to measure, with its benchmark",
        service: Some("redis-server"),
    },
    Package {
        program: "mariadbd",
        debian: "mariadb-server",
        why: "a third database to measure, with its load generator",
        service: Some("mariadb"),
    },
    Package {
        program: "openssl",
        debian: "openssl",
        why: "a certificate for connections that are encrypted",
        service: None,
    },
    Package {
        program: "dnsmasq",
        debian: "dnsmasq-base",
        why: "a DNS server that logs what it is asked",
        service: None,
    },
    Package {
        program: "dig",
        debian: "bind9-dnsutils",
        why: "a resolver of its own, also over TCP",
        service: None,
    },
    Package { program: "dnsperf", debian: "dnsperf", why: "an exact number of DNS lookups", service: None },
    Package {
        program: "musl-gcc",
        debian: "musl-tools",
        why: "the resolver of another C library",
        service: None,
    },
    Package { program: "g++", debian: "g++", why: "compiles the fuzzer's runtime", service: None },
];

fn rust_src() -> Result<()> {
    let sysroot = text(command("rustc").args(["--print", "sysroot"]))
        .context("rustc does not run: install Rust 1.95 or later by rustup")?;
    if Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library").is_dir()
        || bookworm_toolchain().is_some()
    {
        return Ok(());
    }
    let first = step(
        "rust-src: the BPF target has no prebuilt core library, so core is compiled from source",
        || // Its message would drown in a backtrace.
        output(command("rustup").env("RUST_BACKTRACE", "0").args(["component", "add", "rust-src"])).map(drop),
    );
    let Err(first) = first else { return Ok(()) };
    eprintln!("setup: rustup could not: {first:#}");
    step("rust-src, second way: Debian's rustc-web with its sources, into target/tools/rustc-web", unpack_rustc_web)
        .context(
            "neither rustup nor apt could provide the core library's sources; remedy: `rustup component add rust-src` \
             from a network that reaches rustup's server, or Debian bookworm's security suite in apt's sources",
        )
}

/// The compiler that [`unpack_rustc_web`] leaves, in the form that `rustup run` takes.
pub(crate) fn bookworm_toolchain() -> Option<PathBuf> {
    let toolchain = tools().join("rustc-web/usr");
    toolchain.join("bin/rustc").is_file().then_some(toolchain)
}

/// A second compiler beside rustup's, with sources that fit it: those of 1.96 do not build with 1.95.
///
/// Unpacked rather than installed, because the package conflicts with other compilers of Debian's and needs root.
fn unpack_rustc_web() -> Result<()> {
    let ready = tools().join("rustc-web");
    let making = tools().join("rustc-web.tmp");
    fresh_dir(&making)?;
    let newest = |prefix: &str| -> Result<String> {
        let names = text(command("apt-cache").args(["pkgnames", prefix]))?;
        names.lines().max().map(str::to_owned).with_context(|| format!("apt knows no package {prefix}*"))
    };
    apt_update().ok();
    let std = newest("libstd-rust-web-1.")?;
    for package in ["rustc-web", "rust-web-src", "libstd-rust-web-dev", &std, "libllvm22"] {
        let debs = making.join("debs");
        fs::create_dir_all(&debs)?;
        output(command("apt-get").current_dir(&debs).args([
            "-o",
            "APT::Sandbox::User=root",
            "download",
            package,
        ]))?;
        for deb in fs::read_dir(&debs)? {
            let deb = deb?.path();
            output(command("dpkg").arg("-x").arg(&deb).arg(&making))?;
            fs::remove_file(deb)?;
        }
    }
    // rustup puts <toolchain>/lib into the loader's path, and Debian keeps libraries one directory deeper.
    for library in fs::read_dir(making.join("usr/lib/x86_64-linux-gnu"))? {
        let name = library?.file_name();
        symlink(Path::new("x86_64-linux-gnu").join(&name), making.join("usr/lib").join(&name))?;
    }
    // Else rustup falls back to any cargo it has, nightly's first.
    let cargo = text(command("rustup").args(["which", "cargo"]))?;
    symlink(cargo.trim(), making.join("usr/bin/cargo"))?;
    fs::rename(&making, &ready).context("moving rustc-web into place")
}

fn bpf_linker() -> Result<()> {
    let there = text(command(tools().join("bin/bpf-linker")).arg("--version"));
    if there.is_ok_and(|version| version.split_whitespace().any(|word| word == BPF_LINKER)) {
        return Ok(());
    }
    step(&format!("bpf-linker {BPF_LINKER}: links the BPF programs, by the compiler's own LLVM; about a minute"), || {
        cargo_install("bpf-linker", BPF_LINKER)
    })
    .context("bpf-linker was not built; remedy: see above, or check that cargo reaches its registry and that gcc is there")
}

/// Installs a tool of cargo's into target/tools.
pub(crate) fn cargo_install(tool: &str, version: &str) -> Result<()> {
    let mut cargo = command("cargo");
    cargo.args(["install", tool, "--version", version, "--locked", "--force", "--root"]).arg(tools());
    // Else the tool's build would share, and lock, the directory this very tool runs from.
    output(cargo.env_remove("CARGO_TARGET_DIR")).map(drop)
}

fn install(missing: &[&Package]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|package| package.debian).collect();
    let apt = format!("apt-get install -y --no-install-recommends {}", names.join(" "));
    if which("apt-get").is_none() {
        let programs: Vec<&str> = missing.iter().map(|package| package.program).collect();
        bail!("this is no Debian system; remedy: install these programs yourself: {}", programs.join(", "));
    }
    if !is_root() {
        bail!("only root may install Debian packages; remedy: sudo {apt}");
    }
    let updated = step("apt-get update: the packages below are not installed yet", apt_update);
    if let Err(error) = updated {
        // Lists that are there may do; the installation will tell.
        eprintln!("setup: {error:#}");
    }
    let _no_daemons = NoDaemons::set()?;
    for package in missing {
        step(&format!("{}: {}", package.debian, package.why), || {
            let options = ["install", "-y", "-q", "--no-install-recommends", package.debian];
            output(command("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(options)).map(drop)
        })
        .with_context(|| {
            format!("{} was not installed; remedy: look at what `{apt}` says", package.debian)
        })?;
        if let Some(service) = package.service
            && which("systemctl").is_some()
        {
            // Not there on every system; then there is nothing to switch off either.
            output(command("systemctl").args(["disable", "--quiet", service])).ok();
        }
    }
    Ok(())
}

fn apt_update() -> Result<()> {
    output(command("apt-get").args(["-q", "update"])).map(drop)
}

/// Keeps installed daemons from being started, by Debian's own means, for as long as it lives.
struct NoDaemons {
    written: Option<PathBuf>,
}

impl NoDaemons {
    fn set() -> Result<Self> {
        let policy = PathBuf::from("/usr/sbin/policy-rc.d");
        if policy.exists() {
            return Ok(Self { written: None });
        }
        fs::write(&policy, "#!/bin/sh\nexit 101\n").context("writing /usr/sbin/policy-rc.d")?;
        fs::set_permissions(&policy, fs::Permissions::from_mode(0o755))?;
        Ok(Self { written: Some(policy) })
    }
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        if let Some(policy) = &self.written {
            fs::remove_file(policy).ok();
        }
    }
}

/// Says what is being done and why while it is done, then how long it took.
fn step(what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    print!("setup: {what} … ");
    std::io::stdout().flush().ok();
    let result = work();
    let verdict = if result.is_ok() { "done" } else { "FAILED" };
    println!("{verdict}, {:.1} s", start.elapsed().as_secs_f64());
    result
}
