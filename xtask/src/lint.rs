//! Formatting and clippy, for the host and for the BPF target.

use anyhow::{Context as _, Result};

use crate::process::{cargo, run};
use crate::setup::{bookworm_toolchain, for_building};
use crate::tidy;

pub(crate) fn main() -> Result<()> {
    for_building()?;
    format()?;
    clippy()?;
    if !bpf_clippy()? {
        eprintln!("lint: SKIPPED clippy for the BPF target: {NO_RUST_SRC}");
    }
    tidy::main()
}

/// Why [`bpf_clippy`] cannot run.
pub(crate) const NO_RUST_SRC: &str = "the compiler that has clippy lacks the component rust-src";

pub(crate) fn format() -> Result<()> {
    run(&mut cargo(&["fmt", "--all", "--check"])).context("remedy: `cargo fmt --all`")
}

pub(crate) fn clippy() -> Result<()> {
    let arguments =
        ["clippy", "--workspace", "--exclude", "perf-ebpf", "--all-targets", "--", "--deny", "warnings"];
    run(&mut cargo(&arguments))
        .context("remedy: follow clippy's advice above, or `#[expect(…, reason = …)]` it")
}

/// Lints the kernel half; false where the sources of core are not this compiler's.
pub(crate) fn bpf_clippy() -> Result<bool> {
    if bookworm_toolchain().is_some() {
        return Ok(false);
    }
    let arguments =
        ["clippy", "--package", "perf-ebpf", "--target", "bpfel-unknown-none", "-Z", "build-std=core"];
    let mut cargo = cargo(&arguments);
    // As perf-agent's build script does it: build-std is unstable, and aya's bindings ask for the architecture.
    cargo.args(["--release", "--", "--deny", "warnings"]).env("RUSTC_BOOTSTRAP", "1");
    run(cargo.env("CARGO_ENCODED_RUSTFLAGS", "--cfg=bpf_target_arch=\"x86_64\""))
        .context("remedy: follow clippy's advice above, or `#[expect(…, reason = …)]` it")?;
    Ok(true)
}
