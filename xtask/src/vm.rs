//! The agent on other kernels: boots Debian's under qemu and checks there which hooks attach and that counts are exact.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::process::{cargo, root, run, which};
use crate::setup;
use crate::test::Tally;
use crate::vm::guest::{Report, boot};
use crate::vm::initrd::Contents;
use crate::vm::kernels::{Kernel, SERIES, Series, fetch};

mod guest;
mod initrd;
mod kernels;

/// Boot Debian kernels under qemu and check there which hooks attach and that counts are exact.
///
/// Each guest has the static agent, busybox, and a driver that makes a known number of HTTP requests over the loopback and
/// compares it with /metrics. Emulated (TCG), so it needs no /dev/kvm and says nothing about speed. Kernels are cached in
/// target/vm; delete target/vm/kernels and target/vm/apt to look for newer ones.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which kernel series to boot [default: all]
    #[arg(value_parser = SERIES.map(|series| series.name))]
    kernels: Vec<String>,
    /// A fifth of the traffic
    #[arg(long)]
    short: bool,
    /// Leave each guest's console, output and initrd in target/vm/<kernel>
    #[arg(long)]
    keep: bool,
    /// How the guest mounts cgroups: as current systems do, as old ones did, or both
    #[arg(long, default_value = "v2", value_parser = ["v1", "v2", "hybrid"])]
    cgroup: String,
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    setup::for_building()?;
    let tally = matrix(args)?;
    println!("{tally}");
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The form that `cargo xtask test` runs: every kernel, little traffic.
pub(crate) fn short() -> Result<Tally> {
    matrix(&Args { kernels: Vec::new(), short: true, keep: false, cgroup: "v2".to_owned() })
}

fn matrix(args: &Args) -> Result<Tally> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the guests are x86-64; remedy: run this on an x86-64 machine");
    }
    setup::programs(&["qemu-system-x86_64", "busybox"])?;
    let dir = root().join("target/vm");
    fs::create_dir_all(&dir)?;
    let (mut kernels, mut tally) = (VecDeque::new(), Tally::default());
    for series in wanted(&args.kernels) {
        match fetch(series, &dir) {
            Ok(kernel) => kernels.push_back(kernel),
            // Asked for by name it is an error; the suite as a whole goes on without, and says so.
            Err(error) if !args.kernels.is_empty() => return Err(error),
            Err(error) => {
                println!("vm: SKIPPED {}: {error:#}", series.name);
                tally.skipped += 1;
            }
        }
    }
    if kernels.is_empty() {
        bail!("no kernel could be had; remedy: see above");
    }
    let (agent, guest) = build_static(&dir)?;
    let busybox = which("busybox").context("busybox is not installed")?;
    let initrd =
        initrd::pack(&Contents { busybox: &busybox, agent: &agent, guest: &guest, cgroup: &args.cgroup })?;
    let mut reports = boot_all(kernels, &initrd, &dir, args)?;
    reports.sort_by_key(|report| SERIES.iter().position(|series| series.name == report.kernel.series));
    print_hooks(&reports);
    for report in &reports {
        tally += print_checks(report);
    }
    Ok(tally)
}

fn wanted(names: &[String]) -> impl Iterator<Item = &'static Series> {
    SERIES.iter().filter(move |series| names.is_empty() || names.iter().any(|name| name == series.name))
}

/// The agent and its driver without any shared library, so that the guest needs none.
fn build_static(dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let (target, build) = ("x86_64-unknown-linux-gnu", dir.join("build"));
    let mut cargo = cargo(&["build", "--release", "--target", target, "--target-dir"]);
    cargo.arg(&build).args(["--package", "perf-agent", "--package", "live-tests"]);
    cargo.args(["--bin", "perf-agent", "--bin", "vm-guest"]);
    run(cargo.env("RUSTFLAGS", "-Ctarget-feature=+crt-static"))
        .context("the static build for the guests failed")?;
    let bin = build.join(target).join("release");
    Ok((bin.join("perf-agent"), bin.join("vm-guest")))
}

/// Two at a time: an emulated guest keeps one CPU busy.
fn boot_all(kernels: VecDeque<Kernel>, initrd: &[u8], dir: &Path, args: &Args) -> Result<Vec<Report>> {
    // TCG on a busy machine takes minutes where it else takes seconds.
    let limit = Duration::from_secs(if args.short { 240 } else { 480 });
    let (kernels, reports) = (Mutex::new(kernels), Mutex::new(Vec::new()));
    let next = || kernels.lock().ok()?.pop_front();
    let worker = || -> Result<()> {
        while let Some(kernel) = next() {
            let place = dir.join(kernel.series);
            let report = boot(kernel, initrd, &place, args.short, limit)?;
            if !args.keep {
                fs::remove_dir_all(&place).ok();
            }
            if let Ok(mut reports) = reports.lock() {
                reports.push(report);
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers = [scope.spawn(worker), scope.spawn(worker)];
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(result) => result,
            Err(_) => bail!("a thread that watched a guest panicked"),
        })
    })?;
    reports.into_inner().map_err(|_| anyhow::anyhow!("a thread that watched a guest panicked"))
}

/// Hook × kernel.
fn print_hooks(reports: &[Report]) {
    let mut table: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for (column, report) in reports.iter().enumerate() {
        for hook in &report.hooks {
            let row = table.entry((&hook.probe, &hook.name)).or_default();
            row.resize(column, "-");
            row.push(&hook.state);
        }
    }
    print!("\n{:<8}{:<34}", "probe", "hook");
    for report in reports {
        print!("{:<13}", report.kernel.series);
    }
    println!();
    for ((probe, hook), mut row) in table {
        row.resize(reports.len(), "-");
        print!("{probe:<8}{hook:<34}");
        for state in row {
            print!("{state:<13}");
        }
        println!();
    }
    for report in reports {
        for hook in report.hooks.iter().filter(|hook| !hook.reason.is_empty()) {
            println!(
                "  {:<5} {} {}: {} ({})",
                report.kernel.series, hook.probe, hook.name, hook.state, hook.reason
            );
        }
    }
}

/// One kernel's checks, each counted like a test.
fn print_checks(report: &Report) -> Tally {
    let mut tally = Tally::default();
    let (kernel, seconds) = (&report.kernel, report.took.as_secs_f64());
    println!("\n{} ({}), {seconds:.1} s", kernel.series, kernel.version);
    let mut check = |good: bool, what: &str| {
        println!("  {} {what}", if good { "ok    " } else { "FAILED" });
        tally += if good { Tally::PASSED } else { Tally::failed(format!("{}: {what}", kernel.series)) };
    };
    check(
        report.exit == Some(0),
        &match report.exit {
            Some(0) => "the driver ran to its end and the agent stopped cleanly".to_owned(),
            Some(code) => format!("the driver ended with {code}; its messages stand below"),
            None => "the guest died or hung; its console's end stands below".to_owned(),
        },
    );
    let failed: Vec<&str> =
        report.hooks.iter().filter(|h| h.state == "failed").map(|h| h.name.as_str()).collect();
    check(
        failed.is_empty() && !report.hooks.is_empty(),
        &match (report.hooks.len(), failed.len()) {
            (0, _) => "no hook was reported at all".to_owned(),
            (all, 0) => format!("none of {all} hooks failed"),
            (all, n) => format!("{n} of {all} hooks failed: {}", failed.join(", ")),
        },
    );
    // On every kernel all of them: a hook that one lacks has another in its place.
    for count in &report.counts {
        let missed = match count.missed {
            0 => String::new(),
            missed => {
                format!(" (the kernel says that it skipped {missed} runs: at most so many may be amiss)")
            }
        };
        check(
            count.holds(),
            &format!("{}: expected {}, got {}{missed}", count.name, count.expected, count.got),
        );
    }
    if tally.failed > 0 {
        println!("--- the driver's and the agent's last lines\n{}", report.output_tail);
        println!("--- the console's last lines\n{}", report.console_tail);
    }
    tally
}
