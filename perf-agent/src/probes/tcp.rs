//! Connections: opened, accepted, failed, closed, reset, what they moved and what was sent twice. See `perf-ebpf/src/bin/tcp.rs`.

mod listeners;

use std::collections::BTreeMap;

use perf_common::peer::CLASS_OTHER;
use perf_common::tcp::{CONNECT_RESULTS, RETRANSMITS, STATES, TcpCell, TcpKey};
use perf_common::workload::OTHER;

use super::{Account, Common, Names, Probe, Start, Started, State, Write, merged, started};
use listeners::Listeners;

use crate::identity::Identity;
use crate::maps::{Counters, Table};
use crate::object::{self, Hook, HookKind};
use crate::page::{Kind, Page};

const HOOKS: [Hook; 6] = [
    Hook::tracepoint("state", "inet_sock_set_state"),
    Hook::again("state_again", "inet_sock_set_state"),
    Hook::tracepoint("retransmit", "tcp_retransmit_skb"),
    Hook::tracepoint("reset_sent", "tcp_send_reset"),
    Hook::tracepoint("reset_received", "tcp_receive_reset"),
    // Listeners first, then connections, which are told from outgoing ones by them. Last, so that no connection falls
    // between the walk and the tracepoints.
    Hook { program: "seed", target: "task_file", kind: HookKind::Iterator { passes: 2 } },
];

/// The same walk at each scrape.
const LOOK: Hook = Hook { program: "look", target: "task_file", kind: HookKind::Iterator { passes: 0 } };

/// Sockets that are remembered where they cannot carry their state themselves (5.10).
const SOCKETS_BY_ADDR: u32 = 65_536;

struct Tcp {
    common: Common,
    table: Table,
    events: Counters,
    listeners: Listeners,
    /// Whether walks are possible.
    looks: bool,
}

pub(super) fn start(Start { loader, config: _, globals }: Start<'_, '_>) -> Started {
    started("tcp", globals, || {
        let by_address = if loader.has_socket_storage() { 1 } else { SOCKETS_BY_ADDR };
        let mut object = loader.load(object::TCP, &[("SOCKETS_BY_ADDR", by_address)])?;
        let other = TcpKey { workload: OTHER, peer: u64::from(CLASS_OTHER) };
        Table::prepare::<_, TcpCell>(&mut object, "", &[other])?;
        let mut status = loader.attach("tcp", &mut object, &HOOKS);
        let look = loader.attach("tcp", &mut object, &[LOOK]);
        let looks = look.iter().all(|hook| hook.state == State::Attached);
        if !looks {
            // One hook, shown once.
            status.retain(|hook| hook.hook != LOOK.name());
            status.extend(look);
        }
        let table = Table::take(&mut object, "")?;
        let events = Counters::take(&mut object, "EVENTS")?;
        let listeners = Listeners::take(&mut object)?;
        let tcp = Tcp { table, events, listeners, looks, common: Common::take(object)? };
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
        let Self { common, table, events: _, listeners, looks } = self;
        let listening = if *looks { listeners.walk(&mut common.object) } else { Ok(Vec::new()) };
        let mut cells = Vec::new();
        table.each::<TcpKey, TcpCell>(|_, key, cell| {
            let mut cell = *cell;
            if cell.zero_window_pass != listeners.passes() {
                cell.zero_window = 0;
            }
            cells.push(((names.identity(key.workload), names.destination(key.peer)), cell));
        })?;
        let cells = merged(cells, merge);

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
        let mut family = page.family(
            "tcp_rtt_seconds",
            "Smoothed round-trip time of connections: once when an end is closed, and at each scrape for those that moved bytes since the last one.",
            Kind::Histogram,
        );
        for (key, cell) in cells.iter().filter(|(_, cell)| cell.rtt.count() != 0) {
            series(key, &mut |labels| names.histogram(&mut family, labels, &cell.rtt));
        }
        let mut family = page.family(
            "tcp_retransmits_total",
            "Segments sent again: after a timeout, because acknowledgements told of a loss (fast), or to find out whether the last one arrived (probe).",
            Kind::Counter,
        );
        for (key, cell) in &cells {
            for (kind, count) in RETRANSMITS.iter().zip(cell.retransmits) {
                if count != 0 {
                    series(key, &mut |labels| {
                        family.sample(&[labels, &[("kind", kind)]].concat(), count as f64);
                    });
                }
            }
        }
        let counters: [(&str, &str, Field); 3] = [
            ("tcp_accepts_total", "Connections that a listening socket received.", |cell| cell.accepts),
            ("tcp_sent_bytes_total", "Bytes of payload sent and acknowledged by the peer.", |cell| cell.sent),
            ("tcp_received_bytes_total", "Bytes of payload received.", |cell| cell.received),
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
        write_states(page, &cells);
        let mut family = page.family(
            "tcp_zero_window_connections",
            "Open connections whose peer takes no more data now: its receive window is closed.",
            Kind::Gauge,
        );
        for (key, cell) in cells.iter().filter(|(_, cell)| cell.zero_window != 0) {
            series(key, &mut |labels| family.sample(labels, cell.zero_window as f64));
        }
        match listening {
            Ok(listening) => listeners.write(names, page, &listening),
            // All else is there.
            Err(error) => tracing::warn!(probe = "tcp", "open sockets cannot be walked: {error:#}"),
        }
        Ok(())
    }
}

/// The labels of a cell's series.
fn series((identity, destination): &(Identity, String), write: Write<'_>) {
    let [service, container, pod] = identity.labels();
    write(&[service, container, pod, ("destination", destination)]);
}

fn write_states(page: &mut Page, cells: &BTreeMap<(Identity, String), TcpCell>) {
    let mut family = page.family(
        "tcp_connections",
        "Connections that there are now, by state: established and close_wait are open, the others are opening or closing.",
        Kind::Gauge,
    );
    for (key, cell) in cells {
        let ever = |state: &str| state == "established" && (cell.accepts != 0 || cell.connects[0] != 0);
        for (state, count) in STATES.iter().zip(cell.states) {
            let Some(state) = state.filter(|state| count != 0 || ever(state)) else { continue };
            // Read while both ends of a step move: one can be ahead for a moment.
            let count = count.cast_signed().max(0);
            series(key, &mut |labels| {
                family.sample(&[labels, &[("state", state)]].concat(), count as f64);
            });
        }
    }
}

/// One counter of a cell.
type Field = fn(&TcpCell) -> u64;

fn merge(into: &mut TcpCell, from: &TcpCell) {
    let TcpCell {
        connects,
        accepts,
        states,
        retransmits,
        resets_sent,
        resets_received,
        zero_window,
        zero_window_pass: _,
        sent,
        received,
        connect,
        lifetime,
        rtt,
    } = from;
    for (sum, count) in into.connects.iter_mut().zip(connects) {
        *sum += count;
    }
    for (sum, count) in into.states.iter_mut().zip(states) {
        *sum = sum.wrapping_add(*count);
    }
    for (sum, count) in into.retransmits.iter_mut().zip(retransmits) {
        *sum += count;
    }
    into.accepts += accepts;
    into.zero_window += zero_window;
    into.sent += sent;
    into.received += received;
    into.resets_sent += resets_sent;
    into.resets_received += resets_received;
    into.connect.merge(connect);
    into.lifetime.merge(lifetime);
    into.rtt.merge(rtt);
}
