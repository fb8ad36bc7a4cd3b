//! Connections: opened, accepted, failed, closed, reset, and what was sent twice. See `perf-ebpf/src/bin/tcp.rs`.

use perf_common::peer::CLASS_OTHER;
use perf_common::tcp::{CONNECT_RESULTS, TcpCell, TcpKey};
use perf_common::workload::OTHER;

use super::{Account, Common, Names, Probe, Start, Started, Write, merged, started};
use crate::identity::Identity;
use crate::maps::{Counters, Table};
use crate::object::{self, Hook, HookKind};
use crate::page::{Kind, Page};

const HOOKS: [Hook; 5] = [
    Hook::tracepoint("state", "inet_sock_set_state"),
    Hook::tracepoint("retransmit", "tcp_retransmit_skb"),
    Hook::tracepoint("reset_sent", "tcp_send_reset"),
    Hook::tracepoint("reset_received", "tcp_receive_reset"),
    // Listeners first, then connections, which are told from outgoing ones by them. Last, so that no connection falls
    // between the walk and the tracepoints.
    Hook { program: "seed", target: "task_file", kind: HookKind::Iterator { passes: 2 } },
];

/// Sockets that are remembered where they cannot carry their state themselves (5.10).
const SOCKETS_BY_ADDR: u32 = 65_536;

struct Tcp {
    common: Common,
    table: Table,
    events: Counters,
}

pub(super) fn start(Start { loader, config: _, globals }: Start<'_, '_>) -> Started {
    started("tcp", globals, || {
        let by_address = if loader.has_socket_storage() { 1 } else { SOCKETS_BY_ADDR };
        let mut object = loader.load(object::TCP, &[("SOCKETS_BY_ADDR", by_address)])?;
        let other = TcpKey { workload: OTHER, peer: u64::from(CLASS_OTHER) };
        Table::prepare::<_, TcpCell>(&mut object, "", &[other])?;
        let status = loader.attach("tcp", &mut object, &HOOKS);
        let table = Table::take(&mut object, "")?;
        let events = Counters::take(&mut object, "EVENTS")?;
        let tcp = Tcp { table, events, common: Common::take(object)? };
        Ok((status, Some(Box::new(tcp) as Box<dyn Probe>)))
    })
}

impl Probe for Tcp {
    fn common(&self) -> &Common {
        &self.common
    }

    fn accounts(&self) -> Vec<Account> {
        vec![Account { probe: "tcp", events: self.events.sums() }]
    }

    fn collect(&mut self, names: &Names, page: &mut Page) -> anyhow::Result<()> {
        let mut cells = Vec::new();
        self.table.each::<TcpKey, TcpCell>(|_, key, cell| {
            cells.push(((names.identity(key.workload), names.destination(key.peer)), *cell));
        })?;
        let cells = merged(cells, merge);

        let series = |(identity, destination): &(Identity, String), write: Write<'_>| {
            let [service, container, pod] = identity.labels();
            write(&[service, container, pod, ("destination", destination)]);
        };
        let mut family = page.family(
            "tcp_connects_total",
            "Attempts to open a connection that ended, by result.",
            Kind::Counter,
        );
        for (key, cell) in &cells {
            for (result, count) in CONNECT_RESULTS.iter().zip(cell.connects) {
                if count != 0 {
                    series(key, &mut |labels| {
                        family.sample(&[labels, &[("result", result)]].concat(), count as f64);
                    });
                }
            }
        }
        let mut family = page.family(
            "tcp_connect_duration_seconds",
            "From the SYN until the connection was established, on the connecting side.",
            Kind::Histogram,
        );
        for (key, cell) in cells.iter().filter(|(_, cell)| cell.connect.count() != 0) {
            series(key, &mut |labels| names.histogram(&mut family, labels, &cell.connect));
        }
        let mut family = page.family(
            "tcp_connection_duration_seconds",
            "From being established until either end closed, on both sides; connections older than the agent are left out.",
            Kind::Histogram,
        );
        for (key, cell) in cells.iter().filter(|(_, cell)| cell.lifetime.count() != 0) {
            series(key, &mut |labels| names.histogram(&mut family, labels, &cell.lifetime));
        }
        let counters: [(&str, &str, Field); 2] = [
            ("tcp_accepts_total", "Connections that a listening socket received.", |cell| cell.accepts),
            ("tcp_retransmits_total", "Segments sent again.", |cell| cell.retransmits),
        ];
        for (name, help, value) in counters {
            let mut family = page.family(name, help, Kind::Counter);
            for (key, cell) in cells.iter().filter(|(_, cell)| value(cell) != 0) {
                series(key, &mut |labels| family.sample(labels, value(cell) as f64));
            }
        }
        let mut family =
            page.family("tcp_resets_total", "Connections reset, by who sent the reset.", Kind::Counter);
        for (key, cell) in &cells {
            for (direction, count) in [("received", cell.resets_received), ("sent", cell.resets_sent)] {
                if count != 0 {
                    series(key, &mut |labels| {
                        family.sample(&[labels, &[("direction", direction)]].concat(), count as f64);
                    });
                }
            }
        }
        let mut family = page.family(
            "tcp_connections",
            "Connections that are open now: established, or closed by the peer only.",
            Kind::Gauge,
        );
        for (key, cell) in cells.iter().filter(|(_, cell)| cell.opened != 0) {
            // Read while both move: the second can be ahead for the length of a batch.
            series(key, &mut |labels| family.sample(labels, cell.opened.saturating_sub(cell.closed) as f64));
        }
        Ok(())
    }
}

/// One counter of a cell.
type Field = fn(&TcpCell) -> u64;

fn merge(into: &mut TcpCell, from: &TcpCell) {
    let TcpCell {
        connects,
        accepts,
        opened,
        closed,
        retransmits,
        resets_sent,
        resets_received,
        connect,
        lifetime,
    } = from;
    for (sum, count) in into.connects.iter_mut().zip(connects) {
        *sum += count;
    }
    into.accepts += accepts;
    into.opened += opened;
    into.closed += closed;
    into.retransmits += retransmits;
    into.resets_sent += resets_sent;
    into.resets_received += resets_received;
    into.connect.merge(connect);
    into.lifetime.merge(lifetime);
}
