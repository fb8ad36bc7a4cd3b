//! Metrics that the user derives from requests. See `deploy/examples/booking.yaml`.

use std::collections::BTreeMap;

use perf_common::histogram::Histogram;
use perf_common::http::METHODS;

use super::Series;
use super::clients::Clients;
use crate::config::{Derived, LabelName, Match, Protocol, Type, Value};
use crate::identity::Identity;
use crate::page::{FamilyWriter, Kind, Page};

/// What stands for a segment that was folded, with others, into one.
const OTHER: &str = "other";

/// What a series of a derived metric has for labels: those of its workload, and the values of its own in the order of their names.
pub(super) type Labels = (Identity, Vec<String>);

/// Writes the counters.
pub(super) fn write_counters(all: &[Derived], server: &BTreeMap<Series, Histogram>, page: &mut Page) {
    for metric in all.iter().filter(|metric| metric.kind == Type::Counter) {
        let mut counts: BTreeMap<Labels, u64> = BTreeMap::new();
        for (series, histogram) in server {
            if let Some(labels) = labels(metric, series) {
                *counts.entry(labels).or_default() += histogram.count();
            }
        }
        let mut family = page.family(metric.name.as_str(), &metric.help, Kind::Counter);
        for (labels, count) in &counts {
            sample(&mut family, metric, labels, *count as f64);
        }
    }
}

/// Writes the numbers of clients; `now` is `CLOCK_MONOTONIC` in nanoseconds.
pub(super) fn write_clients(
    all: &[Derived],
    clients: &Clients,
    now: u64,
    page: &mut Page,
) -> anyhow::Result<()> {
    let counts = clients.counts(now)?;
    for (at, metric) in all.iter().enumerate() {
        let mut family = page.family(metric.name.as_str(), &metric.help, Kind::Gauge);
        for (_, labels, count) in counts.iter().filter(|(metric, ..)| *metric == at) {
            sample(&mut family, metric, labels, *count);
        }
    }
    Ok(())
}

fn sample(family: &mut FamilyWriter<'_>, metric: &Derived, (identity, values): &Labels, value: f64) {
    let own = metric.labels.keys().map(LabelName::as_str).zip(values.iter().map(String::as_str));
    let labels: Vec<_> = identity.labels().into_iter().chain(own).collect();
    family.sample(&labels, value);
}

/// The labels under which a series of requests counts for the metric, if it does.
pub(super) fn labels(metric: &Derived, series: &Series) -> Option<Labels> {
    let Match { protocol: Protocol::Http, service, method, route, status } = &metric.matches;
    let named = METHODS.get(usize::from(series.method)).copied().unwrap_or("_OTHER");
    let is = |wanted: &Option<String>, value: &str| wanted.as_ref().is_none_or(|wanted| wanted == value);
    if !is(service, &series.identity.service)
        || !is(method, named)
        || status.as_ref().is_some_and(|status| !status.contains(series.status))
    {
        return None;
    }
    let variables = match route {
        Some(route) => route.values(&series.route_or_destination)?,
        None => Vec::new(),
    };
    let value = |value: &Value| match value {
        Value::Constant(text) => text.clone(),
        Value::Method => named.to_owned(),
        Value::Status => series.status.to_string(),
        Value::Variable(name) => variables
            .iter()
            .find(|(variable, _)| variable == name)
            .filter(|(_, value)| !value.starts_with('{'))
            .map_or(OTHER, |(_, value)| value)
            .to_owned(),
    };
    Some((series.identity.clone(), metric.labels.values().map(value).collect()))
}
