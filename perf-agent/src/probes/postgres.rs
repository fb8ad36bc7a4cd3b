//! PostgreSQL queries, server and client side. See `perf-ebpf/src/bin/postgres.rs`.

mod naming;

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{Array, MapData, RingBuf};
use perf_common::events::COUNTERS;
use perf_common::histogram::Histogram;
use perf_common::http::ROLE_SERVER;
use perf_common::postgres::DbKey;
use perf_common::sql::{self, SqlSample, TEXT};

use super::{Common, Names, Probe, Start, Started, Write, merged, started};
use crate::identity::Identity;
use crate::object::{self, Hook, HookKind};
use crate::page::{Kind, Page};
use naming::Name;

/// What both ways share: the end of connections and the arrival of requests.
const SHARED: [Hook; 2] =
    [Hook::tracepoint("closing", "inet_sock_set_state"), Hook::tracepoint("arrived", "tcp_rcv_space_adjust")];

const BY_SOCKET: [Hook; 4] = [
    Hook { program: "sent_more", target: "sock_send_length", kind: HookKind::Tail { array: "SENT_MORE" } },
    Hook {
        program: "received_more",
        target: "sock_recv_length",
        kind: HookKind::Tail { array: "RECEIVED_MORE" },
    },
    Hook::tracepoint("received", "sock_recv_length"),
    Hook::tracepoint("sent", "sock_send_length"),
];

/// Before 6.3.
const BY_DESCRIPTOR: [Hook; 2] = [
    Hook { program: "returned_more", target: "sys_exit", kind: HookKind::Tail { array: "RETURNED_MORE" } },
    Hook::tracepoint("returned", "sys_exit"),
];

/// Connections that are remembered where they are known by their socket's address only.
const CONNS_BY_ADDR: u32 = 32_768;

struct Postgres {
    /// Holds the programs and with them the links.
    _object: Ebpf,
    maps: Common,
    samples: RingBuf<MapData>,
    statements: Statements,
}

pub(super) fn start(Start { loader, config, globals }: Start<'_, '_>) -> Started {
    started("postgres", globals, || {
        let series = config.probes.postgres.max_series.get();
        // Room for the `other` cells of each workload beyond the limit.
        let by_socket = loader.has_tracepoint("sock_send_length");
        let sizes = [
            ("CELLS", series + series / 4 + 64),
            ("CONNS_BY_ADDR", if by_socket { 1 } else { CONNS_BY_ADDR }),
        ];
        let mut object = loader.load(object::POSTGRES, &sizes)?;
        let mut status = loader.attach("postgres", &mut object, &SHARED);
        let calls: &[Hook] = if by_socket { &BY_SOCKET } else { &BY_DESCRIPTOR };
        status.extend(loader.attach("postgres", &mut object, calls));
        let armed = object.map_mut("ARMED").context("the object has no map ARMED")?;
        Array::<_, u32>::try_from(armed)?.set(0, 1, 0)?;
        let maps = Common::take(&mut object)?;
        let samples = object.take_map("SAMPLES").context("the object has no map SAMPLES")?;
        let samples = RingBuf::try_from(samples)?;
        let postgres = Postgres { _object: object, maps, samples, statements: Statements::default() };
        Ok((status, Some(Box::new(postgres) as Box<dyn Probe>)))
    })
}

/// What a series counts under.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    identity: Identity,
    name: Name,
    /// `None` on the server's side.
    destination: Option<String>,
    failed: bool,
}

impl Probe for Postgres {
    fn learn(&mut self, names: &mut Names) {
        // Names before counts: a fingerprint in a cell then has its sample in the ring or behind it.
        while let Some(sample) = self.samples.next() {
            self.statements.learn(&sample);
        }
        self.maps.learn(names);
    }

    fn events(&self) -> [u64; COUNTERS as usize] {
        self.maps.events.sums()
    }

    fn collect(&mut self, names: &Names, page: &mut Page) -> anyhow::Result<()> {
        let Self { maps, statements, .. } = self;
        let mut server = Vec::new();
        let mut client = Vec::new();
        maps.cells.each::<DbKey, Histogram>(|key, histogram| {
            let DbKey { workload, fingerprint, peer, role, failed, pad: _ } = *key;
            let is_server = role == ROLE_SERVER;
            let series = Series {
                identity: names.identity(workload),
                name: statements.name(fingerprint),
                destination: (!is_server).then(|| names.destination(peer)),
                failed: failed != 0,
            };
            if is_server { &mut server } else { &mut client }.push((series, *histogram));
        })?;
        write(
            names,
            page,
            "db_query_duration_seconds",
            "From sending a query's first byte until the server was ready for the next, or until it had completed one of several that were sent together.",
            &merged(client, Histogram::merge),
        );
        write(
            names,
            page,
            "db_server_query_duration_seconds",
            "From the arrival of a query's first byte, the socket's queue included, until the end of its answer was handed to the kernel.",
            &merged(server, Histogram::merge),
        );
        Ok(())
    }
}

fn write(names: &Names, page: &mut Page, family: &str, help: &str, series: &BTreeMap<Series, Histogram>) {
    let with_labels = |series: &Series, write: Write<'_>| {
        let [service, container, pod] = series.identity.labels();
        let status = if series.failed { "error" } else { "ok" };
        let all = [
            service,
            container,
            pod,
            ("db_system", "postgresql"),
            ("query_type", &series.name.query_type),
            ("table", &series.name.table),
            ("status", status),
            ("destination", series.destination.as_deref().unwrap_or_default()),
        ];
        write(if series.destination.is_some() { &all } else { &all[..all.len() - 1] });
    };
    let mut family = page.family(family, help, Kind::Histogram);
    for (series, histogram) in series {
        with_labels(series, &mut |labels| names.histogram(&mut family, labels, histogram));
    }
}

/// The name of each fingerprint.
#[derive(Default)]
struct Statements {
    names: HashMap<u64, Name>,
    /// The different ones among them.
    distinct: HashSet<Name>,
    /// Fingerprints that were exported as `other` because no sample had come; they stay there, so that `other` never
    /// falls.
    unnamed: HashSet<u64>,
}

/// As many as the kernel remembers to have sampled.
const MAX_STATEMENTS: usize = 16_384;
/// Tables come and go (partitions, temporary ones); beyond so many names the rest is `other`.
const MAX_NAMES: usize = 1024;

impl Statements {
    fn learn(&mut self, sample: &[u8]) {
        let Some(SqlSample { fingerprint, len, text }) = read_sample(sample) else { return };
        if self.names.len() >= MAX_STATEMENTS || self.unnamed.contains(&fingerprint) {
            return;
        }
        let mut bytes = [0; TEXT];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(text) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        let text = bytes.get(..len as usize).unwrap_or(&bytes);
        let name = Name::of(&String::from_utf8_lossy(text), sql::is_full(text.len()));
        let name = if self.distinct.contains(&name) || self.distinct.len() < MAX_NAMES {
            self.distinct.insert(name.clone());
            name
        } else {
            Name::other()
        };
        self.names.insert(fingerprint, name);
    }

    fn name(&mut self, fingerprint: u64) -> Name {
        if fingerprint != sql::OTHER {
            if let Some(name) = self.names.get(&fingerprint) {
                return name.clone();
            }
            self.unnamed.insert(fingerprint);
        }
        Name::other()
    }
}

fn read_sample(bytes: &[u8]) -> Option<SqlSample> {
    if bytes.len() < size_of::<SqlSample>() {
        return None;
    }
    // SAFETY: long enough, and every bit pattern is a sample.
    Some(unsafe { bytes.as_ptr().cast::<SqlSample>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(fingerprint: u64, text: &str) -> Vec<u8> {
        let mut bytes = fingerprint.to_le_bytes().to_vec();
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.resize(size_of::<SqlSample>(), 0);
        bytes
    }

    #[test]
    fn a_statement_is_named_by_its_sample_and_names_are_bounded() {
        let mut statements = Statements::default();
        assert_eq!(statements.name(7), Name::other());
        // Too late: it was exported as `other`.
        statements.learn(&sample(7, "select x from t"));
        assert_eq!(statements.name(7), Name::other());
        for n in 0..2 * MAX_NAMES as u64 {
            statements.learn(&sample(100 + n, &format!("select x from t{n}")));
        }
        assert_eq!(statements.name(100).table, "t0");
        assert_eq!(statements.name(100 + 2 * MAX_NAMES as u64 - 1), Name::other());
        assert_eq!(statements.distinct.len(), MAX_NAMES);
        statements.learn(&sample(99, "select y from t0"));
        assert_eq!(statements.name(99).table, "t0");
        statements.learn(b"short");
    }
}
