//! Every check and test there is, in one run: what continuous integration calls.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::process::{cargo, command, output, root, target, which};
pub(crate) use crate::test::tally::Tally;
use crate::test::tally::{Failures, Harness};
use crate::{build, fuzz, lint, setup, tidy, vm};

mod tally;

/// Run every check and test; the last line counts them.
///
/// A failing step does not stop the others. What this machine cannot do is counted as skipped and says why. With a filter
/// only the tests run whose name contains it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only tests with this in their name; no lints, no VMs
    filter: Option<String>,
    /// Without the VMs and the fuzzer
    #[arg(long)]
    short: bool,
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let mut steps = Steps::default();
    let filter = args.filter.as_deref();
    // What follows needs both; without them every message below would be about that.
    steps.check("setup", || {
        setup::for_building()?;
        setup::for_testing()
    });
    if filter.is_none() {
        steps.check("formatting", lint::format);
        steps.check("clippy", lint::clippy);
        steps.step("clippy for BPF", bpf_clippy);
        steps.check("tidy", tidy::main);
    }
    let built = steps.check("build", || build::agent(false).map(drop));
    if built && filter.is_none() {
        steps.check("no panic in BPF", || build::panic_gate(false));
    }
    if filter.is_none() {
        steps.step("alert rules", alert_rules);
    }
    steps.step("unit and property tests", || unit_tests(filter));
    if filter.is_none() {
        steps.step("documentation tests", doc_tests);
    }
    // Without the agent they would all fail for one reason, which `build` has counted.
    if built {
        steps.step("live tests", || match live_tests(filter)? {
            none if filter.is_none() && none.ran() == 0 => bail!("there is no live test"),
            some => Ok(some),
        });
    }
    if filter.is_none() && !args.short {
        steps.step("fuzzing", short_fuzz);
        steps.step("virtual machines", vm::short);
    }
    let total = steps.print();
    if let Some(filter) = filter.filter(|_| steps.tests() == 0) {
        bail!(
            "no test has `{filter}` in its name; `cargo test --workspace --exclude perf-ebpf -- --list` shows them"
        );
    }
    println!("{total}");
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What has run so far.
#[derive(Default)]
struct Steps(Vec<(&'static str, Tally, Duration)>);

impl Steps {
    /// Runs a step that counts as one; true if it passed.
    fn check(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) -> bool {
        self.step(name, || work().map(|()| Tally::PASSED))
    }

    /// Runs a step that knows how much it counts; an error is one failure.
    fn step(&mut self, name: &'static str, work: impl FnOnce() -> Result<Tally>) -> bool {
        println!("\n=== {name}");
        let start = Instant::now();
        let tally = work().unwrap_or_else(|error| {
            println!("FAILED {name}: {error:#}");
            Tally::failed(format!("{error:#}"))
        });
        let passed = tally.failed == 0;
        self.0.push((name, tally, start.elapsed()));
        passed
    }

    /// Prints what failed and the table, and returns the sum.
    fn print(&self) -> Tally {
        for (name, tally, _) in self.0.iter().filter(|(_, tally, _)| tally.failed > 0) {
            println!("\n=== failed in {name}");
            for line in &tally.failures {
                println!("{line}");
            }
        }
        println!("\n{:<26}{:>8}{:>8}{:>9}{:>10}", "step", "passed", "failed", "skipped", "seconds");
        let mut total = Tally::default();
        for (name, tally, took) in &self.0 {
            let Tally { passed, failed, skipped, .. } = tally;
            println!("{name:<26}{passed:>8}{failed:>8}{skipped:>9}{:>10.1}", took.as_secs_f64());
            total += tally.clone();
        }
        println!();
        total
    }

    /// How many tests proper ran, as opposed to setup and build.
    fn tests(&self) -> usize {
        self.0.iter().filter(|(name, ..)| name.ends_with("tests")).map(|(_, tally, _)| tally.ran()).sum()
    }
}

fn bpf_clippy() -> Result<Tally> {
    if lint::bpf_clippy()? {
        return Ok(Tally::PASSED);
    }
    println!("SKIPPED: {}", lint::NO_RUST_SRC);
    Ok(Tally::SKIPPED)
}

fn unit_tests(filter: Option<&str>) -> Result<Tally> {
    let packages = ["--workspace", "--exclude", "perf-ebpf", "--exclude", "live-tests"];
    let harness = harness();
    let arguments: &[&str] = match harness {
        Harness::Nextest => &["nextest", "run", "--no-fail-fast", "--no-tests=pass"],
        Harness::Cargo => &["test", "--no-fail-fast", "--bins", "--lib", "--tests"],
    };
    counted(harness, cargo(arguments).args(packages).args(filter))
}

fn doc_tests() -> Result<Tally> {
    counted(Harness::Cargo, &mut cargo(&["test", "--doc", "--package", "perf-common"]))
}

/// Against the running kernel, one at a time: each has an agent of its own, which sees what the others do.
fn live_tests(filter: Option<&str>) -> Result<Tally> {
    let harness = harness();
    let (before, after): (&[&str], &[&str]) = match harness {
        // Not capturing, it also runs them one by one.
        Harness::Nextest => (&["nextest", "run", "--no-fail-fast", "--no-tests=pass", "--no-capture"], &[]),
        Harness::Cargo => (&["test", "--no-fail-fast"], &["--", "--test-threads=1", "--nocapture"]),
    };
    let mut cargo = cargo(before);
    cargo.args(["--package", "live-tests"]).args(filter).args(after);
    counted(harness, cargo.env("PERF_AGENT", target().join("release/perf-agent")))
}

fn harness() -> Harness {
    if which("cargo-nextest").is_some() { Harness::Nextest } else { Harness::Cargo }
}

/// Runs the tests, shows what they say, and counts by what the harness sums up.
fn counted(harness: Harness, command: &mut Command) -> Result<Tally> {
    // One pipe for both, in order: nextest sums up on stderr, `cargo test` on stdout.
    let (reader, writer) = std::io::pipe().context("no pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().context("cargo cannot be started")?;
    // Else this end keeps the pipe open for ever.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (mut tally, mut failures, mut said) = (Tally::default(), Failures::default(), 0);
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        writeln!(std::io::stdout(), "{line}")?;
        said += usize::from(line.starts_with("SKIPPED "));
        tally += Tally::of_line(harness, &line);
        failures.line(&line);
    }
    tally.failures = failures.of(&tally);
    // A test that says it cannot run here has returned, and so the harness counts it as passed.
    tally.passed = tally.passed.saturating_sub(said);
    let status = child.wait().context("waiting for cargo")?;
    if !status.success() && tally.failed == 0 {
        // It did not compile, or a test took the harness down with it.
        bail!("cargo failed ({status}) without a failed test: see above");
    }
    Ok(tally)
}

/// `promtool` on every rule file and on every file of unit tests for rules, each counted as one.
fn alert_rules() -> Result<Tally> {
    let dir = root().join("deploy/alerts");
    let mut files = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
        files.push(entry?.path());
    }
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yml"));
    files.sort();
    if files.is_empty() {
        bail!("deploy/alerts holds no rules");
    }
    let mut tally = Tally::default();
    for file in &files {
        let what = if file.to_string_lossy().ends_with("_test.yml") { "test" } else { "check" };
        // Tests name their rule files relative to themselves.
        match output(command("promtool").current_dir(&dir).args([what, "rules"]).arg(file)) {
            Ok(_) => tally += Tally::PASSED,
            Err(error) => {
                println!("FAILED {}: {error:#}", file.display());
                tally += Tally::failed(format!("{}: {error:#}", file.display()));
            }
        }
    }
    Ok(tally)
}

/// Some seconds of each fuzz target: enough to notice one that no longer builds or fails at once.
fn short_fuzz() -> Result<Tally> {
    fuzz::setup_fuzzer()?;
    let mut tally = Tally::default();
    for name in fuzz::targets()? {
        fuzz::fuzz(&name, 10)?;
        tally += Tally::PASSED;
    }
    Ok(tally)
}
