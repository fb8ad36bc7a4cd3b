//! Listening sockets: who waits to be accepted, and who was turned away.

use std::collections::{BTreeMap, HashMap};

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{Array, MapData};
use perf_common::tcp::Backlog;

use super::super::{Names, merged};
use super::LOOK;
use crate::identity::Identity;
use crate::object;
use crate::page::{Kind, Page};

/// As many as the map holds: while it changes, a walk by keys need not end.
const MOST: usize = 4096;

/// A service and its port: several sockets at one are one series.
type Key = (Identity, String);

pub(super) struct Listeners {
    /// By the sockets' addresses.
    backlogs: aya::maps::HashMap<MapData, u64, Backlog>,
    /// The number of the walk over all sockets that is under way.
    pass: Array<MapData, u64>,
    passes: u64,
    /// What each socket had turned away when it was last seen.
    seen: HashMap<u64, u32>,
    /// What all of a service's have, those that are gone among them: their sum alone would fall when one goes.
    drops: BTreeMap<Key, u64>,
}

impl Listeners {
    pub(super) fn take(object: &mut Ebpf) -> anyhow::Result<Self> {
        let mut take = |name| object.take_map(name).with_context(|| format!("the object has no map {name}"));
        let (backlogs, pass) = (take("BACKLOGS")?.try_into()?, take("PASS")?.try_into()?);
        Ok(Self { backlogs, pass, passes: 0, seen: HashMap::new(), drops: BTreeMap::new() })
    }

    /// The number of the last walk.
    pub(super) fn passes(&self) -> u64 {
        self.passes
    }

    /// Has every open socket's bytes and round-trip time counted up to now, and finds the listening ones.
    pub(super) fn walk(&mut self, object: &mut Ebpf) -> anyhow::Result<Vec<(u64, Backlog)>> {
        self.passes += 1;
        self.pass.set(0, self.passes, 0)?;
        object::iterate(object, &LOOK)?;
        let (found, gone): (Vec<_>, Vec<_>) = self
            .backlogs
            .iter()
            .filter_map(Result::ok)
            .take(MOST)
            .partition(|(_, backlog)| backlog.pass == self.passes);
        for (socket, _) in gone {
            self.backlogs.remove(&socket).ok();
        }
        Ok(found)
    }

    pub(super) fn write(&mut self, names: &Names, page: &mut Page, found: &[(u64, Backlog)]) {
        let key = |backlog: &Backlog| (names.identity(backlog.workload), backlog.port.to_string());
        let mut seen = HashMap::new();
        for (socket, backlog) in found {
            // One that has fewer is another socket at the same address.
            let before = self.seen.get(socket).copied().filter(|before| *before <= backlog.drops);
            let more = backlog.drops - before.unwrap_or(0);
            *self.drops.entry(key(backlog)).or_default() += u64::from(more);
            seen.insert(*socket, backlog.drops);
        }
        self.seen = seen;

        let queues = merged(found.iter().map(|(_, backlog)| (key(backlog), *backlog)), |into, from| {
            into.waiting += from.waiting;
            into.limit = into.limit.saturating_add(from.limit);
        });
        let families: [(&str, &str, Field); 2] = [
            ("tcp_listen_backlog", "Connections that wait to be accepted.", |queue| queue.waiting),
            (
                "tcp_listen_backlog_max",
                "Connections that may wait to be accepted: the argument of listen(2), or net.core.somaxconn where that is less.",
                |queue| queue.limit,
            ),
        ];
        for (name, help, value) in families {
            let mut family = page.family(name, help, Kind::Gauge);
            for ((identity, port), queue) in &queues {
                let [service, container, pod] = identity.labels();
                family.sample(&[service, container, pod, ("port", port)], value(queue).into());
            }
        }
        let mut family = page.family(
            "tcp_listen_drops_total",
            "Attempts to connect that a listening socket turned away, mostly because the queue of those that wait to be accepted, or of SYNs, was full.",
            Kind::Counter,
        );
        for ((identity, port), drops) in &self.drops {
            let [service, container, pod] = identity.labels();
            family.sample(&[service, container, pod, ("port", port)], *drops as f64);
        }
    }
}

/// One number of a listener.
type Field = fn(&Backlog) -> u32;
