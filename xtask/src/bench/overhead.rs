//! Rates with the agent over rates without it, measured in turns.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use aya::programs::ProgramInfo;

use crate::bench::pairs::{Pair, Slot};
use crate::bench::report::Report;
use crate::bench::subject::{PROBES, Subject};
use crate::bench::workload::{Databases, Site, Workload, cpus};
use crate::bench::{cost, floor, kernel, report};
use crate::process::{fresh_dir, interrupted, target};
use crate::{build, setup};

/// Compare the rates of real loads with the agent and without it.
///
/// In one run and in turns: without, with, without, with, and so on. Each slot with the agent is compared with the mean of
/// the two neighbours without it, and the table shows the median of these ratios with the smallest and the largest. In the
/// slots without it the agent does not run and none of its BPF programs is loaded. The floor is measured in the same turns:
/// empty programs on the same hooks, which is what remains if the agent did nothing at all.
///
/// There are two ratios. `by rate` is of operations per second, as somebody at a saturated machine sees it; `by CPU` is of
/// operations per second of CPU time of the processes that carry the load. The two agree on a machine that does nothing else.
/// Where it does, only the second means something. The lines `noise` show what either says of nothing at all: of slots
/// without the agent, each by the one before. There is no pass and no fail.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Pairs of slots per load and subject
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    pairs: u32,
    /// Length of a slot of nginx and the databases; the loops in file and pipe run a quarter of it
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Measure this agent instead of building one
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// Also measure the agent with each probe alone
    #[arg(long)]
    split: bool,
    /// Also measure the agent by the hooks that it has on kernels before 6.3
    #[arg(long)]
    fallback: bool,
    /// Also write all of it, every slot included, to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The BPF object with empty programs, where it is not next to the agent
    #[arg(long, value_name = "PATH", hide = true)]
    floor: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask bench overhead                       some 5 minutes, on a quiet machine
  cargo xtask bench overhead --pairs 3             a first look, some 2 minutes
  cargo xtask bench overhead --split --json FILE   which probe costs what, for comparing later
  cargo xtask bench overhead --agent ./perf-agent  an agent that was built elsewhere";

/// What needs no root.
pub(super) fn prepare(args: &Args) -> Result<()> {
    if args.agent.is_none() {
        setup::for_building()?;
        build::agent(false)?;
    }
    setup::programs(&["nginx", "wrk", "redis-server", "pg_ctlcluster", "losetup"])
}

pub(super) fn main(args: &Args) -> Result<()> {
    let stop = interrupted()?;
    let dir = target().join("bench");
    fresh_dir(&dir)?;
    let agent = match &args.agent {
        Some(agent) => agent.canonicalize().with_context(|| format!("no agent at {}", agent.display()))?,
        None => target().join("release/perf-agent"),
    };
    let subjects = subjects(args, &agent, &dir)?;
    let load_before = report::load_average()?;
    let others = settled(&stop)?;
    let bench = Bench {
        pairs: args.pairs,
        slot: Duration::from_secs(args.seconds),
        others: others.keys().copied().collect(),
        stop: &stop,
    };
    let site = Site::start(&dir)?;
    // Caches, the CPU's clock, nginx's first connections.
    site.connections(Duration::from_secs(1), &stop)?;
    let databases = Databases::start(&dir, &stop)?;

    let mut all = Vec::new();
    for workload in workloads(&site, &databases) {
        all.push(bench.measure(&workload, &subjects)?);
    }
    bench.quiet(&BTreeSet::new())?;
    eprintln!("statistics of the BPF programs");
    let cost = cost::measure(&agent, &site, bench.slot, &stop)?;
    let report = Report {
        agent,
        others: others.values().map(|info| info.name_as_str().unwrap_or("?").to_owned()).collect(),
        load_before,
        load_after: report::load_average()?,
        measured: all,
        cost,
    };
    report.print();
    if let Some(path) = &args.json {
        std::fs::write(path, report.json()).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn subjects(args: &Args, agent: &Path, dir: &Path) -> Result<Vec<Subject>> {
    let mut subjects = vec![Subject::agent(agent)];
    match args.floor.clone().or_else(|| floor::find(agent)) {
        Some(object) => subjects.push(Subject::floor(object)),
        None => eprintln!("no floor: its object is only there next to an agent that was built here"),
    }
    if args.fallback {
        subjects.push(Subject::fallback(agent));
    }
    if args.split {
        for probe in PROBES {
            subjects.push(Subject::only(probe, agent, dir)?);
        }
    }
    Ok(subjects)
}

fn workloads<'s>(site: &'s Site, databases: &'s Databases) -> Vec<Workload<'s>> {
    let cpus = cpus();
    let (Some(first), Some(last)) = (cpus.first().copied(), cpus.last().copied()) else { return Vec::new() };
    let mut all = vec![
        Workload::Web(site),
        Workload::Redis(databases),
        Workload::Postgres(databases),
        Workload::File { cpu: last },
        Workload::Disk { cpu: last },
        Workload::Connections { cpu: last },
        Workload::Pipe { cpu: last, peer: last },
    ];
    if first != last {
        all.push(Workload::Pipe { cpu: first, peer: last });
    }
    all
}

/// The rates of one load.
pub(super) struct Measured {
    pub(super) workload: &'static str,
    pub(super) target: f64,
    /// All slots without a subject, in their order.
    pub(super) without: Vec<Slot>,
    pub(super) series: Vec<Series>,
    /// Slots that had BPF programs of others, each time they were tried.
    pub(super) disturbed: u32,
}

/// The pairs of one subject.
pub(super) struct Series {
    pub(super) subject: String,
    pub(super) has_target: bool,
    pub(super) pairs: Vec<Pair>,
    /// Of each slot with an agent, what its process did for an operation.
    pub(super) own: Vec<Own>,
}

/// What an agent's process does itself.
#[derive(Clone, Copy)]
pub(super) struct Own {
    pub(super) cpu_seconds: f64,
    /// That its BPF programs sent up one by one.
    pub(super) sample_bytes: f64,
}

impl Own {
    fn since(self, before: Self) -> Self {
        Self {
            cpu_seconds: self.cpu_seconds - before.cpu_seconds,
            sample_bytes: self.sample_bytes - before.sample_bytes,
        }
    }

    fn per_operation(self, slot: Slot) -> Self {
        Self {
            cpu_seconds: self.cpu_seconds / slot.operations,
            sample_bytes: self.sample_bytes / slot.operations,
        }
    }
}

struct Bench<'s> {
    pairs: u32,
    slot: Duration,
    /// Tracing programs that were there before, and that every slot has.
    others: BTreeSet<u32>,
    stop: &'s AtomicBool,
}

impl Bench<'_> {
    fn measure(&self, workload: &Workload<'_>, subjects: &[Subject]) -> Result<Measured> {
        let mut measured = Measured {
            workload: workload.name(),
            target: workload.target(),
            without: Vec::new(),
            series: subjects.iter().map(Series::new).collect(),
            disturbed: 0,
        };
        let mut before = self.without(workload, &mut measured)?;
        for turn in 1..=self.pairs {
            for (index, subject) in subjects.iter().enumerate() {
                let running = subject.start(self.stop)?;
                let before_it = running.own(false)?;
                let with = self.slot(workload, &running.programs()?, &mut measured)?;
                let own = running.own(true)?.zip(before_it).map(|(after, before)| after.since(before));
                running.stop()?;
                let after = self.without(workload, &mut measured)?;
                let pair = Pair { before, with, after };
                eprintln!(
                    "{} {turn}/{}: {} {:.3}",
                    workload.name(),
                    self.pairs,
                    subject.name,
                    pair.cpu_ratio()
                );
                if let Some(series) = measured.series.get_mut(index) {
                    series.pairs.push(pair);
                    series.own.extend(own.map(|own| own.per_operation(with)));
                }
                before = after;
            }
        }
        Ok(measured)
    }

    fn without(&self, workload: &Workload<'_>, measured: &mut Measured) -> Result<Slot> {
        let slot = self.slot(workload, &BTreeSet::new(), measured)?;
        measured.without.push(slot);
        Ok(slot)
    }

    /// One slot; anew if there were BPF programs of others in it, but a busy machine gets its numbers as well.
    fn slot(&self, workload: &Workload<'_>, own: &BTreeSet<u32>, measured: &mut Measured) -> Result<Slot> {
        const TRIES: u32 = 5;
        let mut tries = 1;
        loop {
            let quiet = self.quiet(own)?;
            let before = kernel::program_ids()?;
            let slot = workload.run(self.slot, self.stop)?;
            if quiet && kernel::program_ids()? == before {
                return Ok(slot);
            }
            measured.disturbed += 1;
            if tries == TRIES || !quiet {
                return Ok(slot);
            }
            tries += 1;
        }
    }

    /// Waits until no program is loaded but `own` and those of the start; false if that takes too long. A moment is always
    /// needed: the kernel frees programs a little after their end.
    fn quiet(&self, own: &BTreeSet<u32>) -> Result<bool> {
        let start = Instant::now();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            let expected = |id: &u32| own.contains(id) || self.others.contains(id);
            if kernel::program_ids()?.iter().all(expected) {
                return Ok(true);
            }
            if start.elapsed() > PATIENCE {
                return Ok(false);
            }
            sleep(Duration::from_millis(20));
        }
    }
}

impl Series {
    fn new(subject: &Subject) -> Self {
        Self {
            subject: subject.name.clone(),
            has_target: subject.has_target(),
            pairs: Vec::new(),
            own: Vec::new(),
        }
    }
}

/// How long to wait for others to unload their BPF programs.
const PATIENCE: Duration = Duration::from_mins(1);

/// The tracing programs of others that stay for as long as one cares to wait; at best there are none.
fn settled(stop: &AtomicBool) -> Result<BTreeMap<u32, ProgramInfo>> {
    let start = Instant::now();
    let mut staying = kernel::programs()?;
    if !staying.is_empty() {
        eprintln!("waiting for others to unload their BPF programs, a minute at most");
    }
    while !staying.is_empty() && start.elapsed() < PATIENCE && !stop.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(100));
        // Those that have come meanwhile are waited for before each slot.
        let now = kernel::program_ids()?;
        staying.retain(|id, _| now.contains(id));
    }
    Ok(staying)
}
