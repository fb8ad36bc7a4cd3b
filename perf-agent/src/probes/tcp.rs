//! Connections: opened, accepted, failed, closed, reset, what they moved and what was sent twice. See `perf-ebpf/src/bin/tcp.rs`.

use std::collections::BTreeMap;

use anyhow::Context as _;
use aya::maps::{Array, MapData};
use perf_common::peer::CLASS_OTHER;
use perf_common::tcp::{Backlog, CONNECT_RESULTS, RETRANSMITS, STATES, TcpCell, TcpKey};
use perf_common::workload::OTHER;

use super::{Account, Common, Names, Probe, Start, Started, State, Write, merged, started};
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
    /// Listening sockets, by address.
    backlogs: aya::maps::HashMap<MapData, u64, Backlog>,
    /// The number of the walk over all sockets that is under way.
    pass: Array<MapData, u64>,
    passes: u64,
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
        let mut take = |name| object.take_map(name).with_context(|| format!("the object has no map {name}"));
        let backlogs = take("BACKLOGS")?.try_into()?;
        let pass = take("PASS")?.try_into()?;
        let tcp = Tcp { table, events, backlogs, pass, passes: 0, looks, common: Common::take(object)? };
        Ok((status, Some(Box::new(tcp) as Box<dyn Probe>)))
    })
}

impl Tcp {
    /// Has every open socket's bytes and round-trip time counted up to now, and finds the listening ones.
    fn look(&mut self) -> anyhow::Result<Vec<Backlog>> {
        if !self.looks {
            return Ok(Vec::new());
        }
        self.passes += 1;
        self.pass.set(0, self.passes, 0)?;
        object::iterate(&mut self.common.object, &LOOK)?;
        let (found, gone): (Vec<_>, Vec<_>) = self
            .backlogs
            .iter()
            .filter_map(Result::ok)
            .take(MAX_BACKLOGS)
            .partition(|(_, backlog)| backlog.pass == self.passes);
        for (socket, _) in gone {
            self.backlogs.remove(&socket).ok();
        }
        Ok(found.into_iter().map(|(_, backlog)| backlog).collect())
    }
}

/// As many as the map holds: while it changes, a walk by keys need not end.
const MAX_BACKLOGS: usize = 4096;

impl Probe for Tcp {
    fn common(&self) -> &Common {
        &self.common
    }

    fn accounts(&self) -> Vec<Account> {
        vec![Account { probe: "tcp", events: self.events.sums() }]
    }

    fn collect(&mut self, names: &Names, page: &mut Page) -> anyhow::Result<()> {
        let backlogs = self.look()?;
        let mut cells = Vec::new();
        self.table.each::<TcpKey, TcpCell>(|_, key, cell| {
            let mut cell = *cell;
            if cell.zero_window_pass != self.passes {
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
        write_backlogs(page, names, &backlogs);
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
        let ever =
            |state: &str| matches!(state, "established") && (cell.accepts != 0 || cell.connects[0] != 0);
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

/// Several sockets at one port of one service are one series.
fn write_backlogs(page: &mut Page, names: &Names, backlogs: &[Backlog]) {
    let listeners = backlogs
        .iter()
        .map(|backlog| ((names.identity(backlog.workload), backlog.port.to_string()), *backlog));
    let listeners = merged(listeners, |into, from| {
        into.waiting += from.waiting;
        into.limit = into.limit.saturating_add(from.limit);
        into.drops = into.drops.wrapping_add(from.drops);
    });
    let families: [(&str, &str, Kind, ListenerField); 3] = [
        ("tcp_listen_backlog", "Connections that wait to be accepted.", Kind::Gauge, |listener| {
            listener.waiting
        }),
        (
            "tcp_listen_backlog_max",
            "Connections that may wait to be accepted: the argument of listen(2), or net.core.somaxconn where that is less.",
            Kind::Gauge,
            |listener| listener.limit,
        ),
        (
            "tcp_listen_drops_total",
            "Attempts to connect that a listening socket turned away, mostly because the queue of those that wait to be accepted, or of SYNs, was full.",
            Kind::Counter,
            |listener| listener.drops,
        ),
    ];
    for (name, help, kind, value) in families {
        let mut family = page.family(name, help, kind);
        for ((identity, port), listener) in &listeners {
            let [service, container, pod] = identity.labels();
            family.sample(&[service, container, pod, ("port", port)], value(listener).into());
        }
    }
}

/// One number of a listener.
type ListenerField = fn(&Backlog) -> u32;

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
