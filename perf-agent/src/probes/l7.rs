//! Requests of the protocols above TCP: one object for all of them. See `perf-ebpf/src/bin/l7.rs`.

use anyhow::Context as _;
use aya::maps::Array;
use perf_common::l7::{HTTP, MYSQL, POSTGRES, RECOGNISED, REDIS};
use perf_common::request::{self, Request};

use super::db::Db;
use super::http::{self, Http};
use super::phases::Phases;
use super::pools::Pools;
use super::sampler::{self, Feed};
use super::sockets::Sockets;
use super::{Account, Common, Names, Probe, Start, Started, State, Status, started};
use crate::maps::Counters;
use crate::object::{self, Hook};
use crate::page::{Kind, Page};
use crate::requests::What;

/// What both ways share: the end of connections and the arrival of requests.
const SHARED: [Hook; 3] = [
    Hook::tracepoint("closing", "inet_sock_set_state"),
    Hook::again("closing_again", "inet_sock_set_state"),
    Hook::tracepoint("arrived", "tcp_rcv_space_adjust"),
];

/// From 6.3 on. What is called comes before what calls it.
const BY_SOCKET: [Hook; 10] = [
    Hook::tail("my_sent", "sock_send_length", "SENT_MORE", MYSQL),
    Hook::tail("my_received", "sock_recv_length", "RECEIVED_MORE", MYSQL),
    Hook::tail("rd_sent", "sock_send_length", "SENT_MORE", REDIS),
    Hook::tail("rd_received", "sock_recv_length", "RECEIVED_MORE", REDIS),
    Hook::tail("pg_sent", "sock_send_length", "SENT_MORE", POSTGRES),
    Hook::tail("pg_received", "sock_recv_length", "RECEIVED_MORE", POSTGRES),
    Hook::tail("sent_more", "sock_send_length", "SENT_MORE", HTTP),
    Hook::tail("received_more", "sock_recv_length", "RECEIVED_MORE", HTTP),
    Hook::tracepoint("received", "sock_recv_length"),
    Hook::tracepoint("sent", "sock_send_length"),
];

/// Before 6.3.
const BY_DESCRIPTOR: [Hook; 5] = [
    Hook::tail("my_returned", "sys_exit", "RETURNED_MORE", MYSQL),
    Hook::tail("rd_returned", "sys_exit", "RETURNED_MORE", REDIS),
    Hook::tail("pg_returned", "sys_exit", "RETURNED_MORE", POSTGRES),
    Hook::tail("returned_more", "sys_exit", "RETURNED_MORE", HTTP),
    Hook::tracepoint("returned", "sys_exit"),
];

/// Connections that are remembered where they are known by their socket's address only.
const CONNS_BY_ADDR: u32 = 32_768;
const DB_BY_ADDR: u32 = 8192;

struct L7 {
    common: Common,
    /// If it is switched on.
    http: Option<Http>,
    db: Db,
    pools: Pools,
    phases: Phases,
    /// If it is switched on.
    sockets: Option<Sockets>,
    feed: Feed,
    recognised: Counters,
}

/// Room for so many series and for the `other` cells of each workload beyond them.
const fn cells(series: u32) -> u32 {
    series + series / 4 + 64
}

pub(super) fn start(Start { loader, config, globals }: Start<'_, '_>) -> Started {
    started("l7", globals, || {
        let (http_cells, db_cells) =
            (cells(config.probes.http.max_series.get()), cells(config.probes.max_db_series.get()));
        let by_socket = loader.has_tracepoint("sock_send_length");
        let mut sizes = vec![
            ("CELLS", http_cells),
            ("INDEX", http_cells),
            ("FREE", http_cells),
            ("DB_CELLS", db_cells),
            ("DB_INDEX", db_cells),
            ("DB_FREE", db_cells),
            ("REQUESTS", sampler::ring(&config.requests)),
            ("CONNS_BY_ADDR", if by_socket { 1 } else { CONNS_BY_ADDR }),
            ("PG_BY_ADDR", if by_socket { 1 } else { DB_BY_ADDR }),
            ("RD_BY_ADDR", if by_socket { 1 } else { DB_BY_ADDR }),
            ("MY_BY_ADDR", if by_socket { 1 } else { DB_BY_ADDR }),
        ];
        if config.derived_metrics.has_clients() {
            sizes.extend(http::client_sizes(http_cells));
        }
        let mut object = loader.load(object::L7, &sizes)?;
        Http::prepare(&mut object)?;
        Db::prepare(&mut object)?;
        Pools::prepare(&mut object)?;
        Phases::prepare(&mut object)?;
        Sockets::prepare(&mut object)?;
        let mut status = loader.attach("l7", &mut object, &SHARED);
        let (calls, arrays): (&[Hook], &[_]) = if by_socket {
            (&BY_SOCKET, &["SENT_MORE", "RECEIVED_MORE"])
        } else {
            (&BY_DESCRIPTOR, &["RETURNED_MORE"])
        };
        let calls = loader.attach("l7", &mut object, calls);
        if calls.iter().all(|hook| hook.state == State::Attached) {
            // For slices that need not have hooks of their own then.
            arrays.iter().try_for_each(|array| loader.share(&object, array))?;
        }
        status.extend(calls);
        let on = [
            ("http", config.probes.http.enabled),
            ("postgres", config.probes.postgres.enabled),
            ("redis", config.probes.redis.enabled),
            ("mysql", config.probes.mysql.enabled),
            ("sockets", config.probes.sockets.enabled),
        ];
        status.extend(
            on.iter().filter(|(_, enabled)| !enabled).map(|(protocol, _)| Status::disabled(protocol)),
        );
        let armed = object.map_mut("ARMED").context("the object has no map ARMED")?;
        Array::<_, u32>::try_from(armed)?.set(0, 1, 0)?;
        let http = config.probes.http.enabled.then(|| Http::take(&mut object, config)).transpose()?;
        let db = Db::take(&mut object, config)?;
        let pools = Pools::take(&mut object, config.probes.connection_pools.max_sizes.clone())?;
        let phases = Phases::take(&mut object)?;
        let sockets = config.probes.sockets.enabled.then(|| Sockets::take(&mut object)).transpose()?;
        let feed = Feed::take(&mut object)?;
        let recognised = Counters::take(&mut object, "RECOGNISED")?;
        let l7 = L7 { common: Common::take(object)?, http, db, pools, phases, sockets, feed, recognised };
        Ok((status, Some(Box::new(l7) as Box<dyn Probe>)))
    })
}

fn write_recognised(page: &mut Page, counts: &[u64; RECOGNISED.len()]) {
    let mut family = page.family(
        "perf_agent_connections_recognised_total",
        "Ends of TCP connections on this node by the protocol that they were found to speak, again after their framing was lost. What is tls, http2 or opaque (encrypted later on, compressed, replicating, or nothing that is known here) is not looked at any further.",
        Kind::Counter,
    );
    for (protocol, count) in RECOGNISED.iter().zip(counts) {
        family.sample(&[("protocol", protocol)], *count as f64);
    }
}

impl Probe for L7 {
    fn common(&self) -> &Common {
        &self.common
    }

    fn learn(&mut self) {
        let Self { common: _, http, db, pools: _, phases: _, sockets: _, feed: _, recognised: _ } = self;
        http.iter_mut().for_each(Http::learn);
        db.learn();
    }

    fn tick(&mut self, names: &mut Names) -> anyhow::Result<()> {
        if self.http.as_ref().is_some_and(Http::has_undecided) {
            self.common.learn(names);
        }
        self.http.iter_mut().try_for_each(|http| http.tick(names))?;
        // Samples are not to wait for a scrape, which need not come at all, while their ring fills up.
        self.db.learn();
        self.pools.tick()
    }

    fn feed(&mut self) -> Option<&mut Feed> {
        Some(&mut self.feed)
    }

    fn what(&self, request: &Request) -> What {
        if request.protocol == request::HTTP {
            return self.http.as_ref().map_or_else(What::default, |http| http.what(request));
        }
        self.db.what(request)
    }

    fn accounts(&self) -> Vec<Account> {
        let Self { common: _, http, db, pools: _, phases: _, sockets, feed: _, recognised: _ } = self;
        let own = http.iter().map(Http::account).chain(sockets.iter().map(Sockets::account));
        own.chain(db.accounts()).collect()
    }

    fn collect(&mut self, names: &Names, page: &mut Page) -> anyhow::Result<()> {
        let Self { common: _, http, db, pools, phases, sockets, feed: _, recognised } = self;
        write_recognised(page, &recognised.sums());
        http.iter_mut().try_for_each(|http| http.collect(names, page))?;
        db.collect(names, page)?;
        pools.collect(names, page)?;
        phases.collect(names, page)?;
        sockets.iter().try_for_each(|sockets| sockets.collect(names, page))
    }
}
