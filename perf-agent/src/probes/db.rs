//! Queries to databases, server and client side, whatever the protocol: one table of cells.

mod naming;
mod statements;

use std::collections::BTreeMap;

use aya::Ebpf;
use perf_common::db::{DbKey, Error, MYSQL, REDIS, SYSTEMS, sqlstate_class};
use perf_common::histogram::Histogram;
use perf_common::l7::{ROLE_SERVER, ROLE_UNKNOWN};
use perf_common::request::{DATABASES, Request};
use perf_common::workload::OTHER;

pub(super) use self::naming::Language;
use self::statements::Statements;
use super::{Account, Names, Write, merged, mysql, postgres, redis};
use crate::config::Config;
use crate::identity::Identity;
use crate::maps::{Counters, Table};
use crate::page::{Kind, Page};
use crate::requests::What;

/// The databases' part of the slice.
pub(super) struct Db {
    table: Table,
    statements: Statements,
    /// What became of the events of each protocol that is switched on.
    events: Vec<(&'static str, Counters)>,
}

/// The language of a system's statements.
fn language(system: u8) -> &'static Language {
    if system == MYSQL { &mysql::LANGUAGE } else { &postgres::LANGUAGE }
}

/// What a query is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Name {
    pub(crate) query_type: String,
    pub(crate) table: String,
    /// It waits for something to happen, so that its duration says nothing about the server.
    pub(crate) is_blocking: bool,
}

/// What a series counts under.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    identity: Identity,
    system: u8,
    name: Name,
    /// `None` on the server's side.
    destination: Option<String>,
    error: Error,
}

/// The class of an error's SQLSTATE; empty where there is none.
pub(super) fn class(error: Error) -> String {
    sqlstate_class(error).map(|class| String::from_utf8_lossy(&class).into_owned()).unwrap_or_default()
}

/// The name of what is no statement: it has one from the start.
fn settled(system: u8, fingerprint: u64) -> Option<Name> {
    match system {
        REDIS => Some(redis::name(fingerprint)),
        MYSQL => mysql::command(fingerprint),
        _ => None,
    }
}

impl Db {
    pub(super) fn prepare(object: &mut Ebpf) -> anyhow::Result<()> {
        Table::prepare::<_, Histogram>(object, "DB_", &[DbKey { workload: OTHER, ..DbKey::default() }])
    }

    /// Once its programs are loaded, which need the maps to be in the object.
    pub(super) fn take(object: &mut Ebpf, config: &Config) -> anyhow::Result<Self> {
        let probes = &config.probes;
        let protocols = [
            ("postgres", probes.postgres.enabled, "PG_EVENTS"),
            ("redis", probes.redis.enabled, "RD_EVENTS"),
            ("mysql", probes.mysql.enabled, "MY_EVENTS"),
        ];
        let on = protocols.into_iter().filter(|(_, enabled, _)| *enabled);
        let events = on.map(|(probe, _, events)| Ok((probe, Counters::take(object, events)?)));
        Ok(Self {
            events: events.collect::<anyhow::Result<_>>()?,
            table: Table::take(object, "DB_")?,
            statements: Statements::take(object)?,
        })
    }

    pub(super) fn learn(&mut self) {
        self.statements.learn();
    }

    /// What a request asked for.
    pub(super) fn what(&self, request: &Request) -> What {
        let system = request.protocol.saturating_sub(DATABASES);
        let name = settled(system, request.what)
            .or_else(|| self.statements.name_so_far(system, request.what))
            .unwrap_or_else(Name::other);
        What { query_type: name.query_type, table: name.table, ..What::default() }
    }

    pub(super) fn accounts(&self) -> impl Iterator<Item = Account> {
        self.events.iter().map(|(probe, events)| Account { probe, events: events.sums() })
    }

    pub(super) fn collect(&mut self, names: &Names, page: &mut Page) -> anyhow::Result<()> {
        let Self { table, statements, events: _ } = self;
        let mut server = Vec::new();
        let mut client = Vec::new();
        table.each::<DbKey, Histogram>(|_, key, histogram| {
            let DbKey { workload, fingerprint, peer, role, system, error, pad: _ } = *key;
            if role == ROLE_UNKNOWN || histogram.count() == 0 {
                // The table's first cell, which has no use here: what finds no room is `other` per workload.
                return;
            }
            let name = settled(system, fingerprint).or_else(|| statements.name(system, fingerprint));
            let Some(name) = name else { return };
            let is_server = role == ROLE_SERVER;
            let series = Series {
                identity: names.identity(workload),
                system,
                name,
                destination: (!is_server).then(|| names.destination(peer)),
                error,
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
        let status = if series.error == 0 { "ok" } else { "error" };
        let class = class(series.error);
        let mut all = vec![
            service,
            container,
            pod,
            ("db_system", SYSTEMS.get(usize::from(series.system)).copied().unwrap_or("other")),
            ("query_type", &series.name.query_type),
            ("table", &series.name.table),
            ("status", status),
        ];
        if !class.is_empty() {
            all.push(("sqlstate_class", &class));
        }
        if series.name.is_blocking {
            all.push(("blocking", "true"));
        }
        if let Some(destination) = &series.destination {
            all.push(("destination", destination));
        }
        write(&all);
    };
    let mut family = page.family(family, help, Kind::Histogram);
    for (series, histogram) in series {
        with_labels(series, &mut |labels| names.histogram(&mut family, labels, histogram));
    }
}
