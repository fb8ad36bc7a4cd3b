//! Builds the agent, and refuses BPF programs that could panic.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSymbol as _};

use crate::process::{cargo, root, run, target};
use crate::setup;

/// Compile the BPF programs and the agent.
///
/// The result is target/release/perf-agent: one file with the BPF programs inside, to be copied to any Linux host of the
/// same architecture. Fails when a BPF program holds a panic path, which older verifiers refuse.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build target/debug/perf-agent instead: compiles faster, measures slower
    #[arg(long)]
    debug: bool,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    setup::for_building()?;
    let agent = agent(args.debug)?;
    panic_gate(args.debug)?;
    println!("{}", agent.display());
    Ok(())
}

/// Builds the agent and returns where it is.
pub(crate) fn agent(debug: bool) -> Result<PathBuf> {
    let mut cargo = cargo(&["build", "--package", "perf-agent"]);
    if !debug {
        cargo.arg("--release");
    }
    run(&mut cargo).context("the agent did not build; remedy: see the compiler's messages above")?;
    Ok(target().join(profile(debug)).join("perf-agent"))
}

/// Fails if any BPF object has a symbol of core's panic machinery: an index or an `unwrap` the compiler could not prove.
pub(crate) fn panic_gate(debug: bool) -> Result<()> {
    let objects = objects(&target().join(profile(debug)).join("build"))?;
    for program in programs()? {
        let path = objects.get(&program).with_context(|| {
            format!(
                "no BPF object `{program}` was built; remedy: `cargo clean -p perf-agent`, then build again"
            )
        })?;
        let paths = panic_paths(path)?;
        if !paths.is_empty() {
            bail!(
                "perf-ebpf/src/bin/{program}.rs can panic ({}), which the verifier refuses as `last insn is not an exit`; \
                 remedy: no `unwrap`, no division by what may be 0, and every index through a mask",
                paths.join(", ")
            );
        }
    }
    Ok(())
}

/// The programs that there should be an object of, by their source.
fn programs() -> Result<Vec<String>> {
    let dir = root().join("perf-ebpf/src/bin");
    let mut programs = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            programs.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    programs.sort();
    Ok(programs)
}

/// The newest BPF object of each name in the build scripts' output; older builds leave theirs beside it.
fn objects(build: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut newest: BTreeMap<String, (SystemTime, PathBuf)> = BTreeMap::new();
    for package in fs::read_dir(build).with_context(|| format!("reading {}", build.display()))? {
        let package = package?;
        let out = package.path().join("out");
        if !package.file_name().to_string_lossy().starts_with("perf-agent-") || !out.is_dir() {
            continue;
        }
        for file in fs::read_dir(out)? {
            let file = file?;
            let (changed, name) =
                (file.metadata()?.modified()?, file.file_name().to_string_lossy().into_owned());
            if file.file_type()?.is_file() && newest.get(&name).is_none_or(|(known, _)| *known < changed) {
                newest.insert(name, (changed, file.path()));
            }
        }
    }
    Ok(newest.into_iter().map(|(name, (_, path))| (name, path)).collect())
}

fn panic_paths(path: &Path) -> Result<Vec<String>> {
    let data = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let file = object::File::parse(&*data).with_context(|| format!("{} is no ELF", path.display()))?;
    let names = file.symbols().filter_map(|symbol| symbol.name().ok().map(str::to_owned));
    Ok(names.filter(|name| name.contains("panicking")).collect())
}

fn profile(debug: bool) -> &'static str {
    if debug { "debug" } else { "release" }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The gate reads symbols at all: this test's own binary panics for certain.
    #[test]
    fn finds_panic_paths() {
        let own = std::env::current_exe().unwrap();
        assert!(!panic_paths(&own).unwrap().is_empty());
    }
}
