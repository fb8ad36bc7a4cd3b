//! Where the time of servers' requests went. See `perf-ebpf/src/bin/l7/phases.rs`.

use aya::Ebpf;
use perf_common::cells::ByProtocol;
use perf_common::l7::{HTTP, MYSQL, POSTGRES, RECOGNISED, REDIS, recognised};
use perf_common::phases::{PHASES, PhaseCell};
use perf_common::workload::OTHER;

use super::{Names, merged};
use crate::maps::Table;
use crate::page::{Kind, Page};

pub(super) struct Phases(Table);

const PREFIX: &str = "PH_";

impl Phases {
    pub(super) fn prepare(object: &mut Ebpf) -> anyhow::Result<()> {
        let others = [HTTP, POSTGRES, REDIS, MYSQL]
            .map(|protocol| ByProtocol { workload: OTHER, protocol: protocol.into() });
        Table::prepare::<_, PhaseCell>(object, PREFIX, &others)
    }

    pub(super) fn take(object: &mut Ebpf) -> anyhow::Result<Self> {
        Ok(Self(Table::take(object, PREFIX)?))
    }

    pub(super) fn collect(&self, names: &Names, page: &mut Page) -> anyhow::Result<()> {
        let mut cells = Vec::new();
        self.0.each::<ByProtocol, PhaseCell>(|_, key, cell| {
            if cell.spent == [0; PHASES.len()] {
                return;
            }
            let protocol = RECOGNISED[recognised(key.protocol as u8) as usize];
            cells.push(((names.identity(key.workload), protocol), *cell));
        })?;
        let cells = merged(cells, |into, from| {
            for (into, from) in into.spent.iter_mut().zip(from.spent) {
                *into += from;
            }
        });
        let mut family = page.family(
            "request_phase_seconds_total",
            "Where the time of the requests went that a server answered, all of which adds up to their durations: in its socket until it was read (a thread that was woken for it and waited for a CPU is there, too), waiting for a CPU after that, on a CPU, or other (a downstream, a disk, a lock, sleep, another thread).",
            Kind::Counter,
        );
        for ((identity, protocol), cell) in &cells {
            let [service, container, pod] = identity.labels();
            for (phase, ns) in PHASES.iter().zip(cell.spent) {
                family.sample(
                    &[service, container, pod, ("protocol", protocol), ("phase", phase)],
                    ns as f64 / 1e9,
                );
            }
        }
        Ok(())
    }
}
