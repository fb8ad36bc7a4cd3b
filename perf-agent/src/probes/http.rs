//! HTTP requests, server and client side. See `perf-ebpf/src/bin/http.rs`.

use std::collections::{HashMap, HashSet};

use anyhow::Context as _;
use aya::maps::{Array, MapData, RingBuf};
use perf_common::histogram::Histogram;
use perf_common::http::{HttpKey, METHODS, ROLE_SERVER, ROLE_UNKNOWN, RouteSample, SAMPLE};
use perf_common::route;
use perf_common::workload::OTHER;

use super::{Common, Names, Probe, Start, Started, Write, merged, started};
use crate::identity::Identity;
use crate::maps::Table;
use crate::object::{self, Hook, HookKind};
use crate::page::{Kind, Page};

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

struct Http {
    common: Common,
    samples: RingBuf<MapData>,
    routes: Routes,
}

pub(super) fn start(Start { loader, config, globals }: Start<'_, '_>) -> Started {
    started("http", globals, || {
        let series = config.probes.http.max_series.get();
        // Room for the `other` cells of each workload beyond the limit.
        let by_socket = loader.has_tracepoint("sock_send_length");
        let cells = series + series / 4 + 64;
        let sizes = [
            ("CELLS", cells),
            ("INDEX", cells),
            ("FREE", cells),
            ("CONNS_BY_ADDR", if by_socket { 1 } else { CONNS_BY_ADDR }),
        ];
        let mut object = loader.load(object::HTTP, &sizes)?;
        let other = HttpKey { workload: OTHER, ..HttpKey::default() };
        Table::prepare::<_, Histogram>(&mut object, other)?;
        let mut status = loader.attach("http", &mut object, &SHARED);
        let calls: &[Hook] = if by_socket { &BY_SOCKET } else { &BY_DESCRIPTOR };
        status.extend(loader.attach("http", &mut object, calls));
        let armed = object.map_mut("ARMED").context("the object has no map ARMED")?;
        Array::<_, u32>::try_from(armed)?.set(0, 1, 0)?;
        let samples = object.take_map("SAMPLES").context("the object has no map SAMPLES")?;
        let samples = RingBuf::try_from(samples)?;
        let http = Http { common: Common::take(object)?, samples, routes: Routes::default() };
        Ok((status, Some(Box::new(http) as Box<dyn Probe>)))
    })
}

/// What a series counts under, whether seen from the server (route) or the client (destination).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    identity: Identity,
    route_or_destination: String,
    method: u8,
    status: u16,
}

impl Probe for Http {
    fn learn(&mut self) {
        // Names before counts: a fingerprint in a cell then has its sample in the ring or behind it.
        while let Some(sample) = self.samples.next() {
            self.routes.learn(&sample);
        }
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn collect(&mut self, names: &Names, page: &mut Page) -> anyhow::Result<()> {
        let Self { common, routes, .. } = self;
        let mut server = Vec::new();
        let mut client = Vec::new();
        common.cells.each::<HttpKey, Histogram>(|_, key, histogram| {
            let HttpKey { workload, route_or_peer, status, method, role, pad: _ } = *key;
            if role == ROLE_UNKNOWN {
                // The table's first cell, which this slice has no use for: what finds no room is `other` per workload.
                return;
            }
            let is_server = role == ROLE_SERVER;
            let route_or_destination =
                if is_server { routes.name(route_or_peer) } else { names.destination(route_or_peer) };
            let series = Series { identity: names.identity(workload), route_or_destination, method, status };
            if is_server { &mut server } else { &mut client }.push((series, *histogram));
        })?;
        let add = Histogram::merge;
        let sides = [
            Side {
                total: ("http_requests_total", "Requests answered by this workload."),
                duration: (
                    "http_request_duration_seconds",
                    "From the arrival of a request's first byte, the socket's queue included, until the last byte of its response was handed to the kernel.",
                ),
                label: "route",
                series: merged(server, add),
            },
            Side {
                total: (
                    "http_client_requests_total",
                    "Requests that this workload sent and that were answered.",
                ),
                duration: (
                    "http_client_request_duration_seconds",
                    "From sending a request's first byte until the last byte of its response was read.",
                ),
                label: "destination",
                series: merged(client, add),
            },
        ];
        for side in &sides {
            side.write(names, page);
        }
        Ok(())
    }
}

/// One end's families.
struct Side {
    total: (&'static str, &'static str),
    duration: (&'static str, &'static str),
    label: &'static str,
    series: std::collections::BTreeMap<Series, Histogram>,
}

impl Side {
    fn write(&self, names: &Names, page: &mut Page) {
        let labels = |series: &Series, status_label: &'static str, write: Write<'_>| {
            let [service, container, pod] = series.identity.labels();
            let method = METHODS.get(usize::from(series.method)).copied().unwrap_or("_OTHER");
            let status = series.status.to_string();
            write(&[
                service,
                container,
                pod,
                (self.label, &series.route_or_destination),
                ("method", method),
                (status_label, &status),
            ]);
        };
        let mut family = page.family(self.total.0, self.total.1, Kind::Counter);
        for (series, histogram) in &self.series {
            labels(series, "status", &mut |labels| family.sample(labels, histogram.count() as f64));
        }
        let mut family = page.family(self.duration.0, self.duration.1, Kind::Histogram);
        for (series, histogram) in &self.series {
            labels(series, "status_code", &mut |labels| names.histogram(&mut family, labels, histogram));
        }
    }
}

/// The text of each fingerprint.
#[derive(Default)]
struct Routes {
    names: HashMap<u64, String>,
    /// Fingerprints that were exported as `other` because no sample had come; they stay there, so that `other` never
    /// falls.
    unnamed: HashSet<u64>,
}

/// As many as the kernel remembers to have sampled.
const MAX_ROUTES: usize = 16_384;

impl Routes {
    fn learn(&mut self, sample: &[u8]) {
        let Some(sample) = read_sample(sample) else { return };
        if self.names.len() >= MAX_ROUTES || self.unnamed.contains(&sample.route) {
            return;
        }
        let mut bytes = [0; SAMPLE];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(sample.path) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        let path = &bytes[..(sample.len as usize).min(SAMPLE)];
        let mut text = Vec::new();
        route::describe(path, |part| text.extend_from_slice(part));
        if path.len() == SAMPLE {
            text.extend_from_slice("…".as_bytes());
        }
        self.names.insert(sample.route, String::from_utf8_lossy(&text).into_owned());
    }

    fn name(&mut self, fingerprint: u64) -> String {
        if fingerprint != route::OTHER {
            if let Some(name) = self.names.get(&fingerprint) {
                return name.clone();
            }
            self.unnamed.insert(fingerprint);
        }
        "other".to_owned()
    }
}

fn read_sample(bytes: &[u8]) -> Option<RouteSample> {
    if bytes.len() < size_of::<RouteSample>() {
        return None;
    }
    // SAFETY: long enough, and every bit pattern is a sample.
    Some(unsafe { bytes.as_ptr().cast::<RouteSample>().read_unaligned() })
}
