//! Runs the fuzz targets of `fuzz/`, each for some seconds.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::process::{cargo, root, run, text, tools};
use crate::setup;

/// Run the fuzz targets for a while.
///
/// They feed the parsers that the kernel runs on payloads with arbitrary bytes. A crash leaves its input in fuzz/artifacts
/// and the command that reproduces it on the screen; inputs that reached new code stay in fuzz/corpus.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this target [default: all, one after the other]
    target: Option<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    setup_fuzzer()?;
    let targets = targets()?;
    if let Some(target) = args.target.as_ref().filter(|target| !targets.contains(target)) {
        bail!("there is no fuzz target `{target}`; there are: {}", targets.join(", "));
    }
    for target in targets.iter().filter(|target| args.target.as_ref().is_none_or(|wanted| wanted == *target))
    {
        println!("fuzz: {target}, {} s", args.seconds);
        fuzz(target, args.seconds)?;
    }
    Ok(())
}

/// The version that builds with the compiler of this tree.
const CARGO_FUZZ: &str = "0.13.2";

/// cargo-fuzz, in target/tools, and a C++ compiler for the fuzzer's runtime.
pub(crate) fn setup_fuzzer() -> Result<()> {
    setup::programs(&["g++"])?;
    let there = text(crate::process::command(tools().join("bin/cargo-fuzz")).arg("--version"));
    if there.is_ok_and(|version| version.trim().ends_with(CARGO_FUZZ)) {
        return Ok(());
    }
    println!("setup: cargo-fuzz {CARGO_FUZZ}: drives the fuzz targets; about a minute");
    setup::cargo_install("cargo-fuzz", CARGO_FUZZ)
        .context("cargo-fuzz was not built; remedy: check that cargo reaches its registry")
}

/// The targets, by their files.
pub(crate) fn targets() -> Result<Vec<String>> {
    let dir = root().join("fuzz/fuzz_targets");
    let mut targets = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
        targets.extend(entry?.path().file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    targets.sort();
    Ok(targets)
}

pub(crate) fn fuzz(target: &str, seconds: u64) -> Result<()> {
    // The address sanitizer needs nightly's libraries. What is fuzzed is safe code without allocation, where overflow and
    // index panics are the finds, and those the debug assertions of this build report.
    let mut cargo = cargo(&["fuzz", "run", "--sanitizer", "none", "--debug-assertions", target, "--"]);
    cargo.arg(format!("-max_total_time={seconds}")).args(["-max_len=4096", "-print_final_stats=1"]);
    run(cargo.env("RUSTC_BOOTSTRAP", "1")).with_context(|| format!("fuzz target {target} failed"))
}
