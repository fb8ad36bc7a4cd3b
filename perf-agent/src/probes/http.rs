//! HTTP requests, server and client side. See `perf-ebpf/src/bin/l7/http.rs`.

mod clients;
mod derived;
mod routes;
mod tree;

use std::sync::Arc;

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{Array, MapData};
use perf_common::histogram::Histogram;
use perf_common::http::{HttpKey, METHODS, ROLE_SERVER, ROLE_UNKNOWN};
use perf_common::request::{Request, SERVER};
use perf_common::workload::OTHER;

use self::clients::Clients;
use self::routes::Routes;
use super::{Account, Names, Write, merged};
use crate::clock::monotonic;
use crate::config::{Config, Derived, Type};
use crate::identity::Identity;
use crate::maps::{Counters, Ring, Table};
use crate::page::{Kind, Page};
use crate::requests::What;

/// HTTP's part of the slice.
pub(super) struct Http {
    table: Table,
    events: Counters,
    samples: Ring,
    cells_used: Array<MapData, u64>,
    /// How many routes were named since the last look; the kernel stops at some.
    new_routes: Array<MapData, u64>,
    routes: Routes,
    counters: Vec<Derived>,
    /// Those that tell numbers of clients, and the clients; where there is any.
    gauges: Vec<Derived>,
    clients: Option<Clients>,
}

/// The sizes of the maps for distinct clients, with so many cells.
pub(super) const fn client_sizes(cells: u32) -> [(&'static str, u32); 2] {
    Clients::sizes(cells)
}

/// What a series counts under, whether seen from the server (route) or the client (destination).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    identity: Identity,
    route_or_destination: Arc<str>,
    method: u8,
    status: u16,
}

impl Http {
    pub(super) fn prepare(object: &mut Ebpf) -> anyhow::Result<()> {
        Table::prepare::<_, Histogram>(object, "", &[HttpKey { workload: OTHER, ..HttpKey::default() }])
    }

    /// Once its programs are loaded, which need the maps to be in the object.
    pub(super) fn take(object: &mut Ebpf, config: &Config) -> anyhow::Result<Self> {
        let (counters, gauges) =
            config.derived_metrics.iter().cloned().partition(|metric| metric.kind == Type::Counter);
        let mut map =
            |name: &str| object.take_map(name).with_context(|| format!("the object has no map {name}"));
        let (cells_used, new_routes) = (map("CELLS_USED")?, map("NEW_ROUTES")?);
        Ok(Self {
            table: Table::take(object, "")?,
            events: Counters::take(object, "EVENTS")?,
            samples: Ring::take(object, "SAMPLES")?,
            cells_used: Array::try_from(cells_used)?,
            new_routes: Array::try_from(new_routes)?,
            routes: Routes::take(object, &config.probes.http)?,
            clients: config.derived_metrics.has_clients().then(|| Clients::take(object)).transpose()?,
            counters,
            gauges,
        })
    }

    /// Between scrapes: what is new is to have its rules before it has used up the cells.
    pub(super) fn tick(&mut self, names: &Names) -> anyhow::Result<()> {
        self.learn();
        let used = self.cells_used.get(&0, 0)? as usize;
        if self.routes.is_news(used) {
            let mut counts = Vec::new();
            self.table.each::<HttpKey, Histogram>(|_, key, histogram| {
                if key.role == ROLE_SERVER {
                    counts.push((key.workload, key.route_or_peer, histogram.count()));
                }
            })?;
            self.routes.make_rules(used, counts.into_iter());
        }
        self.new_routes.set(0, 0, 0)?;
        self.decide(names)
    }

    /// Says of which clients there is a number, for cells that are new.
    fn decide(&mut self, names: &Names) -> anyhow::Result<()> {
        let Self { table, routes, gauges, clients: Some(clients), .. } = self else { return Ok(()) };
        let undecided = clients.undecided()?;
        if undecided.is_empty() {
            return Ok(());
        }
        let mut keys = Vec::new();
        table.each::<HttpKey, Histogram>(|at, key, _| {
            keys.extend(undecided.get(&at).map(|marks| (at, *key, marks)));
        })?;
        for (at, HttpKey { workload, route_or_peer, status, method, .. }, marks) in keys {
            // Without a name it is looked at again.
            let Some(route) = routes.peek(workload, route_or_peer) else { continue };
            let identity = names.identity(workload);
            let series = Series { identity, route_or_destination: route, method, status };
            let sets = gauges.iter().enumerate();
            let sets = sets.filter_map(|(at, metric)| Some((at, derived::labels(metric, &series)?)));
            clients.decide(at, marks, sets)?;
        }
        Ok(())
    }

    /// Whether clients wait for a decision, for which workloads have to have their names.
    pub(super) fn has_undecided(&self) -> bool {
        self.clients.as_ref().is_some_and(Clients::has_undecided)
    }

    /// Names before counts: a fingerprint in a cell then has its sample in the ring or behind it.
    pub(super) fn learn(&mut self) {
        while let Some(sample) = self.samples.next() {
            self.routes.learn(&sample);
        }
    }

    /// What a request asked for; a client's has no route, as in the metrics.
    pub(super) fn what(&self, request: &Request) -> What {
        let is_server = request.flags & SERVER != 0;
        let route = is_server.then(|| self.routes.name_so_far(request.workload, request.what));
        What {
            method: method(request.kind).to_owned(),
            route: route.as_deref().unwrap_or_default().to_owned(),
            ..What::default()
        }
    }

    pub(super) fn account(&self) -> Account {
        Account { probe: "http", events: self.events.sums() }
    }

    pub(super) fn collect(&mut self, names: &Names, page: &mut Page) -> anyhow::Result<()> {
        // What is new on this page already has the names that its rules give it.
        self.tick(names)?;
        let Self { table, routes, counters, gauges, clients, .. } = self;
        let mut server = Vec::new();
        let mut client = Vec::new();
        table.each::<HttpKey, Histogram>(|_, key, histogram| {
            let HttpKey { workload, route_or_peer, status, method, role, pad: _ } = *key;
            if role == ROLE_UNKNOWN || histogram.count() == 0 {
                // The table's first cell, which this slice has no use for: what finds no room is `other` per workload.
                return;
            }
            let is_server = role == ROLE_SERVER;
            let route_or_destination = if is_server {
                routes.name(workload, route_or_peer)
            } else {
                Some(names.destination(route_or_peer).into())
            };
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
        let [Side { series: server, .. }, _] = &sides;
        derived::write_counters(counters, server, page);
        if let Some(clients) = clients {
            derived::write_clients(gauges, clients, monotonic(), page)?;
        }
        Ok(())
    }
}

fn method(number: u8) -> &'static str {
    METHODS.get(usize::from(number)).copied().unwrap_or("_OTHER")
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
            let status = series.status.to_string();
            write(&[
                service,
                container,
                pod,
                (self.label, &series.route_or_destination),
                ("method", method(series.method)),
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
