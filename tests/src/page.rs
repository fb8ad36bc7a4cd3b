//! The page as Prometheus reads it, parsed without mercy.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};

/// One line with a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// Which samples are meant: those that have all of these.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Page {
    pub samples: Vec<Sample>,
    pub text: String,
}

impl Page {
    /// Reads the text format 0.0.4; what Prometheus would let pass but nobody should write is an error.
    pub fn parse(text: &str) -> Result<Self> {
        ensure!(text.ends_with('\n'), "the page does not end with a line feed");
        let mut page = Self { samples: Vec::new(), text: text.to_owned() };
        let mut family = Family::default();
        let mut families = BTreeSet::new();
        let mut series = BTreeSet::new();
        for (number, line) in text.lines().enumerate() {
            let at = || format!("line {}: {line}", number + 1);
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').with_context(at)?;
                ensure!(families.insert(name.to_owned()), "a second family {name}, {}", at());
                ensure!(!help.is_empty(), "no help, {}", at());
                family = Family { name: name.to_owned(), kind: String::new() };
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').with_context(at)?;
                ensure!(name == family.name && family.kind.is_empty(), "TYPE follows HELP, {}", at());
                ensure!(["counter", "gauge", "histogram"].contains(&kind), "which type? {}", at());
                kind.clone_into(&mut family.kind);
            } else {
                let sample = sample(line).with_context(at)?;
                ensure!(family.owns(&sample), "not of {family:?}: {}", at());
                ensure!(
                    series.insert(line.rsplit_once(' ').with_context(at)?.0.to_owned()),
                    "twice: {}",
                    at()
                );
                page.samples.push(sample);
            }
        }
        page.check_histograms()?;
        Ok(page)
    }

    /// The samples of a metric that have all these labels.
    pub fn select<'a>(&'a self, name: &'a str, labels: Labels<'a>) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| sample.name == name && sample.has(labels))
    }

    /// Their sum; 0 where there are none.
    pub fn sum(&self, name: &str, labels: Labels<'_>) -> f64 {
        // Not `sum()`, which makes -0 of nothing.
        self.select(name, labels).fold(0.0, |sum, sample| sum + sample.value)
    }

    /// What was counted since an earlier page; gauges make no sense in it.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let earlier: BTreeMap<_, f64> =
            before.samples.iter().map(|sample| ((&sample.name, &sample.labels), sample.value)).collect();
        let samples = self.samples.iter().map(|sample| {
            let before = earlier.get(&(&sample.name, &sample.labels)).copied().unwrap_or_default();
            Sample { value: sample.value - before, ..sample.clone() }
        });
        Self { samples: samples.collect(), text: self.text.clone() }
    }

    /// The upper bound of the bucket in which the `q`-quantile of a histogram lies.
    pub fn quantile(&self, histogram: &str, labels: Labels<'_>, q: f64) -> f64 {
        let mut buckets = BTreeMap::new();
        for sample in self.select(&format!("{histogram}_bucket"), labels) {
            let bound: f64 = sample.labels["le"].parse().unwrap();
            // All finite bounds are positive, and the bits of positive numbers sort as they do.
            *buckets.entry(bound.to_bits()).or_insert(0.0) += sample.value;
        }
        let all = buckets.values().next_back().copied().unwrap_or_default();
        assert!(all > 0.0, "{histogram} with {labels:?} is empty");
        let bound = buckets.iter().find(|(_, below)| **below >= q * all).unwrap().0;
        f64::from_bits(*bound)
    }

    /// How much of what a probe saw went missing without a word; where nothing else is in flight, nothing.
    pub fn unaccounted(&self, probe: &str) -> f64 {
        let of = |name| self.sum(name, &[("probe", probe)]);
        // The request for this page has been seen at both its ends and waits for the page.
        let in_flight = if probe == "http" { 2.0 } else { 0.0 };
        of("perf_agent_events_total")
            - of("perf_agent_events_recorded_total")
            - of("perf_agent_events_dropped_total")
            - in_flight
    }

    /// The counters of losses that are not zero, for a message.
    pub fn losses(&self) -> Vec<String> {
        let losses =
            self.samples.iter().filter(|s| s.name == "perf_agent_events_dropped_total" && s.value != 0.0);
        losses.map(|s| format!("{}/{} {}", s.labels["probe"], s.labels["reason"], s.value)).collect()
    }

    /// The same of one probe, where others may see traffic that is not the test's.
    pub fn losses_of(&self, probe: &str) -> Vec<String> {
        let mut losses = self.losses();
        losses.retain(|loss| loss.split('/').next() == Some(probe));
        losses
    }

    /// The lines that mention one of these, for a message.
    pub fn lines(&self, words: &[&str]) -> String {
        let lines = self
            .text
            .lines()
            .filter(|line| !line.contains("_bucket") && words.iter().all(|w| line.contains(w)));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn check_histograms(&self) -> Result<()> {
        let mut last: BTreeMap<(String, BTreeMap<String, String>), (f64, f64)> = BTreeMap::new();
        for sample in &self.samples {
            let Some(name) = sample.name.strip_suffix("_bucket") else { continue };
            let mut labels = sample.labels.clone();
            let bound: f64 = labels.remove("le").context("a bucket without le")?.parse()?;
            let (before, below) =
                last.insert((name.to_owned(), labels), (bound, sample.value)).unwrap_or((0.0, 0.0));
            ensure!(bound > before && sample.value >= below, "buckets do not ascend: {sample:?}");
        }
        for ((name, labels), (bound, all)) in last {
            let one = |suffix: &str| {
                let wanted = format!("{name}{suffix}");
                self.samples.iter().find(|s| s.name == wanted && s.labels == labels).map(|s| s.value)
            };
            ensure!(bound == f64::INFINITY, "{name} {labels:?} has no bucket +Inf");
            ensure!(one("_count") == Some(all), "{name} {labels:?}: _count is not the bucket +Inf");
            ensure!(one("_sum").is_some(), "{name} {labels:?} has no _sum");
        }
        Ok(())
    }
}

impl Sample {
    pub fn has(&self, labels: Labels<'_>) -> bool {
        labels.iter().all(|(key, value)| self.labels.get(*key).is_some_and(|have| have == value))
    }
}

#[derive(Debug, Default)]
struct Family {
    name: String,
    kind: String,
}

impl Family {
    fn owns(&self, sample: &Sample) -> bool {
        match (sample.name.strip_prefix(&self.name), self.kind.as_str()) {
            (Some(""), "counter" | "gauge") | (Some("_sum" | "_count"), "histogram") => true,
            (Some("_bucket"), "histogram") => sample.labels.contains_key("le"),
            _ => false,
        }
    }
}

fn sample(line: &str) -> Result<Sample> {
    let name_end = line.find(['{', ' ']).context("a name and nothing else")?;
    let (name, mut rest) = line.split_at(name_end);
    ensure!(is_name(name), "{name:?} is no name");
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while let Some((key, value)) = rest.split_once("=\"") {
            ensure!(is_name(key), "{key:?} is no label");
            let (value, behind) = quoted(value)?;
            ensure!(labels.insert(key.to_owned(), value).is_none(), "{key} twice");
            rest = behind.strip_prefix(',').unwrap_or(behind);
            if behind.starts_with('}') {
                break;
            }
        }
        rest = rest.strip_prefix('}').context("labels without end")?;
    }
    let value = rest.strip_prefix(' ').context("no value")?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        value => value.parse().with_context(|| format!("{value:?} is no number"))?,
    };
    ensure!(!value.is_nan(), "not a number");
    Ok(Sample { name: name.to_owned(), labels, value })
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
}

/// A label's value and what stands behind its closing quote.
fn quoted(text: &str) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, text.get(at + 1..).unwrap_or_default())),
            '\\' => value.push(match chars.next() {
                Some((_, 'n')) => '\n',
                Some((_, c @ ('"' | '\\'))) => c,
                other => bail!("no such escape: {other:?}"),
            }),
            c => value.push(c),
        }
    }
    bail!("a label without a closing quote")
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "small whole numbers and halves are exact")]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP a_total Help.\n# TYPE a_total counter\na_total{x=\"1\",y=\"q\\\"\\\\\\n}\"} 3\na_total{x=\"2\"} 4\n\
        # HELP h Help.\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 3.5\nh_count 2\n";

    #[test]
    fn reads_what_is_right() {
        let page = Page::parse(GOOD).unwrap();
        assert_eq!(page.sum("a_total", &[]), 7.0);
        assert_eq!(page.sum("a_total", &[("x", "1"), ("y", "q\"\\\n}")]), 3.0);
        assert_eq!(page.quantile("h", &[], 0.5), 1.0);
        assert_eq!(page.quantile("h", &[], 0.9), f64::INFINITY);
    }

    #[test]
    fn refuses_what_is_wrong() {
        for (from, to) in [
            ("h_count 2\n", "h_count 2"),
            ("h_count 2", "h_count 3"),
            ("h_sum 3.5\n", ""),
            ("h_bucket{le=\"1\"} 1", "h_bucket{le=\"1\"} 5"),
            ("h_bucket{le=\"+Inf\"} 2\n", ""),
            ("x=\"2\"", "x=\"2"),
            ("x=\"2\"} 4", "x=\"1\",y=\"q\\\"\\\\\\n}\"} 4"),
            ("} 3", "} 3 extra"),
            ("# TYPE a_total counter\n", ""),
            ("# HELP h Help.", "# HELP a_total Help."),
            ("\\n}", "\\t}"),
            ("a_total{x=\"2\"}", "b_total{x=\"2\"}"),
        ] {
            let wrong = GOOD.replacen(from, to, 1);
            assert_ne!(wrong, GOOD);
            assert!(Page::parse(&wrong).is_err(), "{wrong}");
        }
    }
}
