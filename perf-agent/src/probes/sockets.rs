//! UDP and UNIX sockets: messages, calls and bytes. See `perf-ebpf/src/bin/l7/sockets.rs`.

use aya::Ebpf;
use perf_common::cells::ByProtocol;
use perf_common::l7::Direction;
use perf_common::sockets::{PROTOCOLS, SocketCell};
use perf_common::workload::OTHER;

use super::{Account, Names, merged};
use crate::maps::{Counters, Table};
use crate::page::{Kind, Page};

pub(super) struct Sockets {
    table: Table,
    events: Counters,
}

const PREFIX: &str = "SO_";

impl Sockets {
    pub(super) fn prepare(object: &mut Ebpf) -> anyhow::Result<()> {
        let others = [0, 1].map(|protocol| ByProtocol { workload: OTHER, protocol });
        Table::prepare::<_, SocketCell>(object, PREFIX, &others)
    }

    pub(super) fn take(object: &mut Ebpf) -> anyhow::Result<Self> {
        Ok(Self { table: Table::take(object, PREFIX)?, events: Counters::take(object, "SO_EVENTS")? })
    }

    pub(super) fn account(&self) -> Account {
        Account { probe: "sockets", events: self.events.sums() }
    }

    pub(super) fn collect(&self, names: &Names, page: &mut Page) -> anyhow::Result<()> {
        let mut cells = Vec::new();
        self.table.each::<ByProtocol, SocketCell>(|_, key, cell| {
            if cell.operations == [0; 2] {
                return;
            }
            let protocol = PROTOCOLS.get(key.protocol as usize).copied().unwrap_or("other");
            cells.push(((names.identity(key.workload), protocol), *cell));
        })?;
        let cells = merged(cells, |into, SocketCell { operations, bytes }| {
            for at in 0..2 {
                into.operations[at] += operations[at];
                into.bytes[at] += bytes[at];
            }
        });
        let mut family = page.family(
            "socket_operations_total",
            "Messages sent and received through UDP sockets; calls that moved something through UNIX sockets.",
            Kind::Counter,
        );
        for ((identity, protocol), cell) in &cells {
            let [service, container, pod] = identity.labels();
            for (direction, count) in ["received", "sent"].into_iter().zip(cell.operations) {
                let labels = [service, container, pod, ("protocol", protocol), ("direction", direction)];
                family.sample(&labels, count as f64);
            }
        }
        for (name, help, direction) in [
            ("socket_sent_bytes_total", "Bytes sent through UDP and UNIX sockets.", Direction::Sent),
            (
                "socket_received_bytes_total",
                "Bytes received through UDP and UNIX sockets.",
                Direction::Received,
            ),
        ] {
            let mut family = page.family(name, help, Kind::Counter);
            for ((identity, protocol), cell) in &cells {
                let [service, container, pod] = identity.labels();
                family.sample(
                    &[service, container, pod, ("protocol", protocol)],
                    cell.bytes[direction as usize] as f64,
                );
            }
        }
        Ok(())
    }
}
