//! Run-queue latency, CPU time and context switches. See `perf-ebpf/src/bin/sched.rs`.

use std::collections::BTreeMap;

use anyhow::Context as _;
use aya::maps::{MapData, PerCpuArray};
use perf_common::sched::{Running, SchedCell};
use perf_common::workload::OTHER;

use super::{Account, Common, Names, Probe, Start, Started, merged, started};
use crate::clock::monotonic;
use crate::identity::Identity;
use crate::maps::{Counters, Table};
use crate::object::{self, Hook};
use crate::page::{Kind, Page};

const HOOKS: [Hook; 1] = [Hook::tracepoint("sched_switch", "sched_switch")];

struct Sched {
    common: Common,
    table: Table,
    events: Counters,
    running: PerCpuArray<MapData, Running>,
    /// CPU seconds as last exported: what is still running is estimated, and an estimate must not make a counter fall.
    exported: BTreeMap<Identity, u64>,
}

pub(super) fn start(Start { loader, config: _, globals }: Start<'_, '_>) -> Started {
    started("sched", globals, || {
        let mut object = loader.load(object::SCHED, &[])?;
        Table::prepare::<_, SchedCell>(&mut object, "", &[OTHER])?;
        let status = loader.attach("sched", &mut object, &HOOKS);
        let running = object.take_map("RUNNING").context("the object has no map RUNNING")?;
        let running = PerCpuArray::try_from(running)?;
        let table = Table::take(&mut object, "")?;
        let events = Counters::take(&mut object, "EVENTS")?;
        let sched =
            Sched { table, events, common: Common::take(object)?, running, exported: BTreeMap::new() };
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
        self.table.each::<u64, SchedCell>(|at, workload, cell| {
            let mut cell = *cell;
            // What is on a CPU now: a task alone on its CPU may not be switched out for minutes.
            for running in running.iter().filter(|running| running.cell == u64::from(at) + 1) {
                cell.cpu += now.saturating_sub(running.since);
            }
            cells.push((names.identity(*workload), cell));
        })?;
        let mut cells = merged(cells, |into, SchedCell { cpu, voluntary, involuntary, latency }| {
            into.cpu += cpu;
            into.voluntary += voluntary;
            into.involuntary += involuntary;
            into.latency.merge(latency);
        });
        for (identity, cell) in &mut cells {
            let before = self.exported.entry(identity.clone()).or_default();
            *before = cell.cpu.max(*before);
            cell.cpu = *before;
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
        Ok(())
    }
}
