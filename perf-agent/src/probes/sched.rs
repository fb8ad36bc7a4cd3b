//! Run-queue latency, time on and off CPU and context switches. See `perf-ebpf/src/bin/sched.rs`.

mod throttling;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use aya::maps::{MapData, PerCpuArray};
use perf_common::sched::{OFF_CPU, Running, SchedCell, Sleeper};
use perf_common::workload::OTHER;

use super::{Account, Common, Names, Probe, Start, Started, merged, started};
use throttling::Throttling;

use crate::clock::monotonic;
use crate::identity::Identity;
use crate::maps::{Counters, Mapped, Table};
use crate::object::{self, Hook};
use crate::page::{Kind, Page};

const HOOKS: [Hook; 1] = [Hook::tracepoint("sched_switch", "sched_switch")];

struct Sched {
    common: Common,
    table: Table,
    events: Counters,
    running: PerCpuArray<MapData, Running>,
    sleepers: Mapped<Sleeper>,
    /// Nanoseconds as last exported: what is still running or waiting is estimated, and an estimate must not make a counter
    /// fall.
    exported: BTreeMap<Identity, Spent>,
    throttling: Throttling,
    procfs: PathBuf,
}

/// On a CPU, and off it by [`OFF_CPU`].
#[derive(Clone, Copy, Default)]
struct Spent {
    cpu: u64,
    off_cpu: [u64; OFF_CPU.len()],
}

pub(super) fn start(Start { loader, config, globals }: Start<'_, '_>) -> Started {
    started("sched", globals, || {
        let mut object = loader.load(object::SCHED, &[("SLEEPERS", loader.sleepers())])?;
        Table::prepare::<_, SchedCell>(&mut object, "", &[OTHER])?;
        let status = loader.attach("sched", &mut object, &HOOKS);
        let running = object.take_map("RUNNING").context("the object has no map RUNNING")?;
        let running = PerCpuArray::try_from(running)?;
        let table = Table::take(&mut object, "")?;
        let events = Counters::take(&mut object, "EVENTS")?;
        let sleepers = Mapped::take(&mut object, "SLEEPERS")?;
        let sched = Sched {
            table,
            events,
            common: Common::take(object)?,
            running,
            sleepers,
            exported: BTreeMap::new(),
            throttling: Throttling::new(&config.paths.sysfs),
            procfs: config.paths.procfs.clone(),
        };
        Ok((status, Some(Box::new(sched) as Box<dyn Probe>)))
    })
}

impl Probe for Sched {
    fn common(&self) -> &Common {
        &self.common
    }

    fn accounts(&self) -> Vec<Account> {
        vec![Account { probe: "sched", events: self.events.sums() }]
    }

    fn collect(&mut self, names: &Names, page: &mut Page) -> anyhow::Result<()> {
        let running = self.running.get(&0, 0).map(|cpus| cpus.to_vec()).unwrap_or_default();
        let now = monotonic();
        let mut cells = Vec::new();
        // By where they are in the table.
        let mut places = HashMap::new();
        self.table.each::<u64, SchedCell>(|at, workload, cell| {
            let mut cell = *cell;
            // What is on a CPU now: a task alone on its CPU may not be switched out for minutes.
            for running in running.iter().filter(|running| running.cell == u64::from(at) + 1) {
                cell.cpu += now.saturating_sub(running.since);
            }
            places.insert(at, cells.len());
            cells.push((names.identity(*workload), cell));
        })?;
        // After the cells: who wakes up in between is missing in both for once, and not counted twice.
        let now = monotonic();
        for sleeper in self.sleepers.each().filter(|sleeper| sleeper.since != 0) {
            if let Some((_, cell)) = places.get(&sleeper.cell()).and_then(|at| cells.get_mut(*at))
                && let Some(off_cpu) = cell.off_cpu.get_mut(sleeper.kind() as usize)
            {
                *off_cpu += now.saturating_sub(sleeper.since);
            }
        }
        let mut cells = merged(cells, |into, SchedCell { cpu, voluntary, involuntary, off_cpu, latency }| {
            into.cpu += cpu;
            for (into, from) in into.off_cpu.iter_mut().zip(off_cpu) {
                *into += from;
            }
            into.voluntary += voluntary;
            into.involuntary += involuntary;
            into.latency.merge(latency);
        });
        for (identity, cell) in &mut cells {
            let before = self.exported.entry(identity.clone()).or_default();
            before.cpu = cell.cpu.max(before.cpu);
            cell.cpu = before.cpu;
            for (now, before) in cell.off_cpu.iter_mut().zip(&mut before.off_cpu) {
                *before = (*now).max(*before);
                *now = *before;
            }
        }

        let mut family = page.family(
            "sched_run_queue_latency_seconds",
            "How long tasks that could run waited for a CPU.",
            Kind::Histogram,
        );
        for (identity, cell) in cells.iter().filter(|(_, cell)| cell.latency.count() != 0) {
            names.histogram(&mut family, &identity.labels(), &cell.latency);
        }
        let mut family = page.family("sched_cpu_seconds_total", "Time on a CPU.", Kind::Counter);
        for (identity, cell) in &cells {
            family.sample(&identity.labels(), cell.cpu as f64 / 1e9);
        }
        let mut family = page.family(
            "sched_off_cpu_seconds_total",
            "Time of tasks off the CPUs: waiting for block I/O, for a lock (a futex, or one inside of the kernel), for a CPU, or asleep for anything else. Threads that wait at the same time add up.",
            Kind::Counter,
        );
        for (identity, cell) in &cells {
            let [service, container, pod] = identity.labels();
            let waiting = OFF_CPU.iter().copied().zip(cell.off_cpu);
            for (kind, ns) in waiting.chain([("run_queue", cell.latency.sum)]) {
                family.sample(&[service, container, pod, ("kind", kind)], ns as f64 / 1e9);
            }
        }
        let mut family = page.family(
            "sched_context_switches_total",
            "Switches away from a task: voluntary to wait for something, involuntary for another task to run.",
            Kind::Counter,
        );
        for (identity, cell) in &cells {
            let [service, container, pod] = identity.labels();
            for (kind, count) in [("involuntary", cell.involuntary), ("voluntary", cell.voluntary)] {
                family.sample(&[service, container, pod, ("kind", kind)], count as f64);
            }
        }
        self.throttling.write(names, page);
        write_runnable(page, &self.procfs);
        Ok(())
    }
}

/// The kernel's own count, of this moment.
fn write_runnable(page: &mut Page, procfs: &Path) {
    let stat = std::fs::read_to_string(procfs.join("stat")).unwrap_or_default();
    let running =
        stat.lines().find_map(|line| line.strip_prefix("procs_running ")?.trim().parse::<f64>().ok());
    let mut family =
        page.family("sched_runnable_tasks", "Tasks that are on a CPU or wait for one now.", Kind::Gauge);
    if let Some(running) = running {
        family.sample(&[], running);
    }
}
