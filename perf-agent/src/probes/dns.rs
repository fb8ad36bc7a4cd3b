//! DNS lookups, of clients and of servers. See `perf-ebpf/src/bin/dns.rs`.

mod domains;
mod sweep;

use anyhow::Context as _;
use aya::maps::Array;
use perf_common::dns::{DnsCell, DnsKey, OTHER, OUTCOMES, QTYPES, RCODES, ROLE_CLIENT, ROLE_SERVER, TIMEOUT};
use perf_common::events::{COUNTERS, DROPPED, RECORDED, Reason, SEEN};
use perf_common::request::Request;
use perf_common::{l7, workload};

use self::domains::Domains;
use self::sweep::Sweeper;
use super::sampler::{self, Feed, Late};
use super::{Account, Common, Names, Probe, Start, Started, Write, merged, started};
use crate::config::Config;
use crate::identity::Identity;
use crate::maps::{Counters, Ring, Table};
use crate::object::{self, Hook};
use crate::page::{Kind, Page};
use crate::requests::What;

const BY_SOCKET: [Hook; 2] =
    [Hook::tracepoint("sent", "sock_send_length"), Hook::tracepoint("received", "sock_recv_length")];

/// The same behind the programs of l7 that are there already.
const BEHIND_L7: [Hook; 2] = [
    Hook::tail("sent", "sock_send_length", "SENT_MORE", l7::DNS),
    Hook::tail("received", "sock_recv_length", "RECEIVED_MORE", l7::DNS),
];

/// Before 6.3.
const BY_DESCRIPTOR: [Hook; 1] = [Hook::tracepoint("returned", "sys_exit")];
const BEHIND_L7_BY_DESCRIPTOR: [Hook; 1] = [Hook::tail("returned", "sys_exit", "RETURNED_MORE", l7::DNS)];

/// Cells without domains: a handful for each workload that resolves names.
const CELLS: u32 = 2048;
/// More of them for each domain: both types of address by some workloads.
const CELLS_PER_DOMAIN: u32 = 16;

struct Dns {
    common: Common,
    table: Table,
    events: Counters,
    samples: Ring,
    domains: Domains,
    sweeper: Sweeper,
    feed: Feed,
}

/// How many domains the kernel is to tell apart.
pub(super) fn max_domains(config: &Config) -> u32 {
    if config.probes.dns.domains { config.probes.dns.max_domains.get() } else { 0 }
}

pub(super) fn start(Start { loader, config, globals }: Start<'_, '_>) -> Started {
    started("dns", globals, || {
        let domains = max_domains(config);
        let cells = CELLS + CELLS_PER_DOMAIN * domains;
        let sizes = [
            ("CELLS", cells),
            ("INDEX", cells),
            ("FREE", cells),
            ("DOMAINS", domains.max(1)),
            ("REQUESTS", sampler::ring(&config.requests)),
        ];
        let mut object = loader.load(object::DNS, &sizes)?;
        Table::prepare::<_, DnsCell>(&mut object, "", &others())?;
        let calls: &[Hook] = if loader.has_tracepoint("sock_send_length") {
            if loader.shares("SENT_MORE") { &BEHIND_L7 } else { &BY_SOCKET }
        } else if loader.shares("RETURNED_MORE") {
            &BEHIND_L7_BY_DESCRIPTOR
        } else {
            &BY_DESCRIPTOR
        };
        let status = loader.attach("dns", &mut object, calls);
        let armed = object.map_mut("ARMED").context("the object has no map ARMED")?;
        Array::<_, u32>::try_from(armed)?.set(0, 1, 0)?;
        let table = Table::take(&mut object, "")?;
        let events = Counters::take(&mut object, "EVENTS")?;
        let sweeper = Sweeper::start(&mut object, config.requests.max_per_second.get() != 0)?;
        let samples = Ring::take(&mut object, "SAMPLES")?;
        let domains = Domains::new(domains != 0);
        let feed = Feed::take(&mut object)?;
        let dns = Dns { common: Common::take(object)?, table, events, samples, domains, sweeper, feed };
        Ok((status, Some(Box::new(dns) as Box<dyn Probe>)))
    })
}

/// The cells that count what finds no room for one of its own: one for each mix of the labels that are bounded.
fn others() -> Vec<DnsKey> {
    let mut keys = Vec::new();
    for role in [ROLE_CLIENT, ROLE_SERVER] {
        for qtype in 0..QTYPES.len() as u8 {
            for outcome in 0..OUTCOMES as u8 {
                let workload = workload::OTHER;
                keys.push(DnsKey { workload, domain: OTHER, qtype, outcome, role, pad: [0; 5] });
            }
        }
    }
    keys
}

/// What a series counts under.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    identity: Identity,
    /// Empty where domains are not told apart.
    domain: String,
    qtype: u8,
    outcome: u8,
}

impl Probe for Dns {
    fn common(&self) -> &Common {
        &self.common
    }

    fn learn(&mut self) {
        // Names before counts: a fingerprint in a cell then has its sample in the ring or behind it.
        while let Some(sample) = self.samples.next() {
            self.domains.learn(&sample);
        }
    }

    fn feed(&mut self) -> Option<&mut Feed> {
        Some(&mut self.feed)
    }

    fn what(&self, request: &Request) -> What {
        What {
            qtype: qtype(request.kind).to_owned(),
            domain: self.domains.name_so_far(request.what),
            ..What::default()
        }
    }

    fn late(&mut self) -> Late {
        std::mem::take(&mut self.sweeper.swept().late)
    }

    fn accounts(&self) -> Vec<Account> {
        let mut sums: [u64; COUNTERS as usize] = self.events.sums();
        let swept = self.sweeper.swept();
        sums[SEEN as usize] += swept.strays;
        sums[RECORDED as usize] += swept.lookups;
        sums[(DROPPED + Reason::NoRequest as u32) as usize] += swept.strays;
        vec![Account { probe: "dns", events: sums }]
    }

    fn collect(&mut self, names: &Names, page: &mut Page) -> anyhow::Result<()> {
        let Self { table, domains, sweeper, .. } = self;
        let mut client = Vec::new();
        let mut server = Vec::new();
        let mut sort = |key: &DnsKey, cell: &DnsCell| {
            let DnsKey { workload, domain, qtype, outcome, role, pad: _ } = *key;
            let Some(domain) = domains.name(domain) else { return };
            let series = Series { identity: names.identity(workload), domain, qtype, outcome };
            if role == ROLE_SERVER { &mut server } else { &mut client }.push((series, *cell));
        };
        table.each::<DnsKey, DnsCell>(|_, key, cell| {
            if cell.duration.count() != 0 {
                sort(key, cell);
            }
        })?;
        for (key, cell) in &sweeper.swept().cells {
            sort(key, cell);
        }
        for side in [
            Side {
                total: (
                    "dns_lookups_total",
                    "Lookups of this workload that were answered, over UDP or TCP, by response code.",
                ),
                duration: (
                    "dns_lookup_duration_seconds",
                    "From sending a query, the first time, until its answer was read.",
                ),
                unanswered: ("dns_lookup_timeouts_total", "Lookups that had no answer within five seconds."),
                again: Some((
                    "dns_lookup_retransmits_total",
                    "Queries that were sent again on the same socket while they waited, counted when their lookup ended.",
                )),
                series: merged(client, DnsCell::merge),
            },
            Side {
                total: (
                    "dns_server_queries_total",
                    "Queries that this workload answered, by the response code it gave.",
                ),
                duration: (
                    "dns_server_query_duration_seconds",
                    "From reading a query until its answer was handed to the kernel.",
                ),
                unanswered: (
                    "dns_server_unanswered_total",
                    "Queries that this workload did not answer within five seconds.",
                ),
                again: None,
                series: merged(server, DnsCell::merge),
            },
        ] {
            side.write(names, page);
        }
        Ok(())
    }
}

fn qtype(index: u8) -> &'static str {
    QTYPES.get(usize::from(index)).copied().unwrap_or("other")
}

type Family = (&'static str, &'static str);

/// One end's families.
struct Side {
    total: Family,
    duration: Family,
    unanswered: Family,
    again: Option<Family>,
    series: std::collections::BTreeMap<Series, DnsCell>,
}

impl Side {
    fn write(&self, names: &Names, page: &mut Page) {
        let answered = || self.series.iter().filter(|(series, _)| series.outcome != TIMEOUT);
        let mut family = page.family(self.total.0, self.total.1, Kind::Counter);
        for (series, cell) in answered() {
            series.with_rcode(&mut |labels| family.sample(labels, cell.duration.count() as f64));
        }
        let mut family = page.family(self.duration.0, self.duration.1, Kind::Histogram);
        for (series, cell) in answered() {
            series.with_rcode(&mut |labels| names.histogram(&mut family, labels, &cell.duration));
        }
        let mut family = page.family(self.unanswered.0, self.unanswered.1, Kind::Counter);
        for (series, cell) in self.series.iter().filter(|(series, _)| series.outcome == TIMEOUT) {
            series.without_rcode(&mut |labels| family.sample(labels, cell.duration.count() as f64));
        }
        let Some(again) = self.again else { return };
        let mut family = page.family(again.0, again.1, Kind::Counter);
        // Whatever came of them in the end.
        let all = self.series.iter().filter(|(_, cell)| cell.retransmits != 0);
        let all = all.map(|(series, cell)| (Series { outcome: TIMEOUT, ..series.clone() }, cell.retransmits));
        for (series, retransmits) in merged(all, |sum, more| *sum += more) {
            series.without_rcode(&mut |labels| family.sample(labels, retransmits as f64));
        }
    }
}

impl Series {
    fn with_rcode(&self, write: Write<'_>) {
        let rcode = RCODES.get(usize::from(self.outcome)).copied().unwrap_or("other");
        self.without_rcode(&mut |labels| write(&[labels, &[("rcode", rcode)]].concat()));
    }

    fn without_rcode(&self, write: Write<'_>) {
        let [service, container, pod] = self.identity.labels();
        // An empty label is none.
        write(&[service, container, pod, ("domain", &self.domain), ("qtype", qtype(self.qtype))]);
    }
}
