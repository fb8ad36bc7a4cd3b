//! HTTP requests, server and client side. See `perf-ebpf/src/bin/l7/http.rs`.

use std::collections::HashMap;
use std::time::Instant;

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use perf_common::histogram::Histogram;
use perf_common::http::{HttpKey, METHODS, ROLE_SERVER, ROLE_UNKNOWN, RouteSample, SAMPLE};
use perf_common::route;
use perf_common::workload::OTHER;

use super::{Account, Names, Write, is_over, merged};
use crate::identity::Identity;
use crate::maps::{Counters, Table};
use crate::page::{Kind, Page};

/// HTTP's part of the slice.
pub(super) struct Http {
    table: Table,
    events: Counters,
    samples: RingBuf<MapData>,
    routes: Routes,
}

/// What a series counts under, whether seen from the server (route) or the client (destination).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    identity: Identity,
    route_or_destination: String,
    method: u8,
    status: u16,
}

impl Http {
    pub(super) fn prepare(object: &mut Ebpf) -> anyhow::Result<()> {
        Table::prepare::<_, Histogram>(object, "", HttpKey { workload: OTHER, ..HttpKey::default() })
    }

    /// Once its programs are loaded, which need the maps to be in the object.
    pub(super) fn take(object: &mut Ebpf) -> anyhow::Result<Self> {
        let samples = object.take_map("SAMPLES").context("the object has no map SAMPLES")?;
        Ok(Self {
            table: Table::take(object, "")?,
            events: Counters::take(object, "EVENTS")?,
            samples: RingBuf::try_from(samples)?,
            routes: Routes::default(),
        })
    }

    /// Names before counts: a fingerprint in a cell then has its sample in the ring or behind it.
    pub(super) fn learn(&mut self) {
        while let Some(sample) = self.samples.next() {
            self.routes.learn(&sample);
        }
    }

    pub(super) fn account(&self) -> Account {
        Account { probe: "http", events: self.events.sums() }
    }

    pub(super) fn collect(&mut self, names: &Names, page: &mut Page) -> anyhow::Result<()> {
        let Self { table, routes, .. } = self;
        let mut server = Vec::new();
        let mut client = Vec::new();
        table.each::<HttpKey, Histogram>(|_, key, histogram| {
            let HttpKey { workload, route_or_peer, status, method, role, pad: _ } = *key;
            if role == ROLE_UNKNOWN {
                // The table's first cell, which this slice has no use for: what finds no room is `other` per workload.
                return;
            }
            let is_server = role == ROLE_SERVER;
            let route_or_destination =
                if is_server { routes.name(route_or_peer) } else { Some(names.destination(route_or_peer)) };
            let Some(route_or_destination) = route_or_destination else { return };
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
    /// Fingerprints without a sample, and since when. One CPU can count a route while another is about to send its sample
    /// up, so they are held back for a while; then they are `other`, and stay it, so that `other` never falls.
    unnamed: HashMap<u64, Instant>,
}

/// As many as the kernel remembers to have sampled.
const MAX_ROUTES: usize = 16_384;

impl Routes {
    fn learn(&mut self, sample: &[u8]) {
        let Some(sample) = read_sample(sample) else { return };
        if self.names.len() >= MAX_ROUTES || self.unnamed.get(&sample.route).is_some_and(is_over) {
            return;
        }
        self.unnamed.remove(&sample.route);
        let mut bytes = [0; SAMPLE];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(sample.path) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        let path = &bytes[..(sample.len as usize).min(SAMPLE)];
        let mut text = Vec::new();
        route::describe(path, sample.collapsed, |part| text.extend_from_slice(part));
        if path.len() == SAMPLE {
            text.extend_from_slice("…".as_bytes());
        }
        self.names.insert(sample.route, String::from_utf8_lossy(&text).into_owned());
    }

    /// The text of a fingerprint; none as long as it may still come.
    fn name(&mut self, fingerprint: u64) -> Option<String> {
        if fingerprint != route::OTHER {
            if let Some(name) = self.names.get(&fingerprint) {
                return Some(name.clone());
            }
            if !is_over(self.unnamed.entry(fingerprint).or_insert_with(Instant::now)) {
                return None;
            }
        }
        Some("other".to_owned())
    }
}

fn read_sample(bytes: &[u8]) -> Option<RouteSample> {
    if bytes.len() < size_of::<RouteSample>() {
        return None;
    }
    // SAFETY: long enough, and every bit pattern is a sample.
    Some(unsafe { bytes.as_ptr().cast::<RouteSample>().read_unaligned() })
}
