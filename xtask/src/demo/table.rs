//! Requests per second and quantiles per route, from two readings of the agent's own histograms.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::scrape::samples;

/// The cumulative buckets of `http_request_duration_seconds`, per series.
#[derive(Default)]
pub(super) struct Latencies(BTreeMap<Series, Vec<Bucket>>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    service: String,
    method: String,
    route: String,
    status: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Bucket {
    edge: f64,
    count: f64,
}

impl Latencies {
    pub(super) fn read(page: &str) -> Self {
        let mut all = Self::default();
        for sample in samples(page).filter(|sample| sample.name == "http_request_duration_seconds_bucket") {
            let label = |name| sample.label(name).unwrap_or("-").to_owned();
            let series = Series {
                service: label("service"),
                method: label("method"),
                route: label("route"),
                status: label("status_code"),
            };
            let edge = sample.label("le").and_then(|le| le.parse().ok()).unwrap_or(f64::INFINITY);
            all.0.entry(series).or_default().push(Bucket { edge, count: sample.value });
        }
        all
    }

    /// What happened after an earlier reading.
    pub(super) fn since(&self, before: &Self) -> Self {
        let less = |series: &Series, buckets: &[Bucket]| {
            let old = before.0.get(series);
            let count = |edge: f64| {
                old.and_then(|old| old.iter().find(|bucket| bucket.edge.total_cmp(&edge).is_eq()))
            };
            let less = |bucket: &Bucket| bucket.count - count(bucket.edge).map_or(0.0, |old| old.count);
            buckets.iter().map(|bucket| Bucket { edge: bucket.edge, count: less(bucket) }).collect()
        };
        Self(self.0.iter().map(|(series, buckets)| (series.clone(), less(series, buckets))).collect())
    }

    /// Prints the busiest series of these seconds; false if there was none.
    pub(super) fn print(&self, at: Duration, seconds: Duration) -> bool {
        let mut rows: Vec<_> =
            self.0.iter().map(|(series, buckets)| (total(buckets), series, buckets)).collect();
        rows.retain(|(count, ..)| *count > 0.0);
        rows.sort_by(|a, b| b.0.total_cmp(&a.0));
        println!(
            "{:>4.0} s  {:<12} {:<6} {:<24} {:>6} {:>10} {:>9} {:>9}",
            at.as_secs_f64(),
            "service",
            "method",
            "route",
            "status",
            "requests/s",
            "p50",
            "p99"
        );
        for (count, series, buckets) in rows.iter().take(10) {
            println!(
                "        {:<12} {:<6} {:<24} {:>6} {:>10.0} {:>9} {:>9}",
                series.service,
                series.method,
                series.route,
                series.status,
                count / seconds.as_secs_f64(),
                shown(quantile(buckets, 0.5)),
                shown(quantile(buckets, 0.99)),
            );
        }
        if rows.is_empty() {
            println!("        no request was measured");
        }
        !rows.is_empty()
    }
}

fn total(buckets: &[Bucket]) -> f64 {
    buckets.last().map_or(0.0, |bucket| bucket.count)
}

/// As Prometheus does it: linear within the bucket that holds the rank.
fn quantile(buckets: &[Bucket], q: f64) -> Option<f64> {
    let rank = q * total(buckets);
    let at = buckets.iter().position(|bucket| bucket.count >= rank)?;
    let above = buckets.get(at)?;
    let below =
        at.checked_sub(1).and_then(|at| buckets.get(at)).copied().unwrap_or(Bucket { edge: 0.0, count: 0.0 });
    if above.edge.is_infinite() {
        return Some(below.edge);
    }
    let share = (rank - below.count) / (above.count - below.count).max(f64::MIN_POSITIVE);
    Some(below.edge + (above.edge - below.edge) * share)
}

fn shown(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(s) if s < 0.001 => format!("{:.0} µs", s * 1e6),
        Some(s) if s < 1.0 => format!("{:.2} ms", s * 1e3),
        Some(s) => format!("{s:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_time_between() {
        let page = |a, b, c| {
            format!(
                "http_request_duration_seconds_bucket{{service=\"s\",route=\"/\",le=\"0.1\"}} {a}\n\
                 http_request_duration_seconds_bucket{{service=\"s\",route=\"/\",le=\"0.2\"}} {b}\n\
                 http_request_duration_seconds_bucket{{service=\"s\",route=\"/\",le=\"+Inf\"}} {c}\n"
            )
        };
        let between = Latencies::read(&page(1, 11, 12)).since(&Latencies::read(&page(1, 1, 1)));
        let buckets = between.0.values().next().unwrap();
        assert_eq!(total(buckets).to_bits(), 11.0_f64.to_bits());
        // Rank 5.5 of the ten between 0.1 and 0.2.
        assert!((quantile(buckets, 0.5).unwrap() - 0.155).abs() < 1e-9);
        assert_eq!(quantile(buckets, 0.99), Some(0.2));
    }
}
