//! Compiles the BPF programs and leaves one object per slice in `OUT_DIR`, from where `object.rs` embeds them.

use std::path::Path;
use std::{env, fs};

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain, build_ebpf};

fn main() -> Result<()> {
    let manifest = env::var("CARGO_MANIFEST_DIR")?;
    let workspace = Path::new(&manifest).parent().context("perf-agent lies in the workspace")?;

    // `cargo xtask build` installs bpf-linker here; a plain `cargo build` then finds it as well.
    println!("cargo:rerun-if-env-changed=AYA_BUILD_SKIP");
    let tools = workspace.join("target/tools/bin");
    let path = env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", tools.display());
    if !path.split(':').any(|dir| Path::new(dir).join("bpf-linker").exists()) {
        bail!("bpf-linker was not found: run `cargo xtask build`, which installs it into target/tools");
    }

    if env::var_os("AYA_BUILD_SKIP").is_some() {
        // For checking the user half alone: objects that load as nothing.
        let out = env::var("OUT_DIR")?;
        for slice in ["tcp", "sched", "disk", "l7", "dns", "process", "drops", "irq"] {
            fs::write(Path::new(&out).join(slice), [])?;
        }
        return Ok(());
    }

    // build-std is unstable; this allows it on the stable compiler for the BPF target alone.
    // SAFETY: a build script is single-threaded here.
    unsafe {
        env::set_var("PATH", path);
        env::set_var("RUSTC_BOOTSTRAP", "1");
    }
    let root_dir = workspace.join("perf-ebpf");
    // Where rustup could not provide core's sources, `cargo xtask setup` leaves a second compiler that has them.
    let second = workspace.join("target/tools/rustc-web/usr");
    let toolchain = if second.join("bin/rustc").exists() {
        second.to_str().context("the workspace's path is UTF-8")?.to_owned()
    } else {
        env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| "stable".to_owned())
    };
    build_ebpf(
        [Package {
            name: "perf-ebpf",
            root_dir: root_dir.to_str().context("the workspace's path is UTF-8")?,
            ..Default::default()
        }],
        Toolchain::Custom(&toolchain),
    )
    .context("the BPF programs did not build; `cargo xtask build` sets up rust-src and bpf-linker")?;
    println!("cargo:rerun-if-changed={}", workspace.join("perf-common/src").display());
    Ok(())
}
