//! Sums over the samples of a metrics page.

use std::fmt::Write as _;

/// A metrics page, as far as counts need it.
pub(crate) struct Page {
    samples: Vec<Sample>,
}

struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
    line: String,
}

impl Page {
    pub(crate) fn read(text: &str) -> Self {
        Self {
            samples: text.lines().filter(|line| !line.starts_with('#')).filter_map(Sample::read).collect(),
        }
    }

    /// The sum of a metric over all series with these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let matching = self.samples.iter().filter(|sample| sample.name == name && sample.has(labels));
        // From +0.0: the sum of nothing would be -0.0, which prints so.
        matching.fold(0.0, |sum, sample| sum + sample.value)
    }

    /// The values of a label of a metric, each once.
    pub(crate) fn values(&self, name: &str, label: &str) -> Vec<&str> {
        let labels =
            self.samples.iter().filter(|sample| sample.name == name).flat_map(|sample| &sample.labels);
        let mut values: Vec<&str> =
            labels.filter(|(key, _)| key == label).map(|(_, value)| value.as_str()).collect();
        values.sort_unstable();
        values.dedup();
        values
    }

    /// The lines about these services, without buckets, for people.
    pub(crate) fn about(&self, services: &[&str]) -> String {
        let mut out = String::new();
        for sample in self.samples.iter().filter(|sample| !sample.name.ends_with("_bucket")) {
            if services.iter().any(|service| sample.has(&[("service", service)])) {
                writeln!(out, "{}", sample.line).ok();
            }
        }
        out
    }
}

impl Sample {
    /// Reads a line; label values with escaped quotes do not occur in a guest.
    fn read(line: &str) -> Option<Self> {
        // The last brace: a route such as `/api/{id}` has some of its own.
        let (series, rest) = match line.rsplit_once('}') {
            Some(parts) => parts,
            None => line.split_once(' ')?,
        };
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels = labels.split("\",").filter_map(|label| {
            let (key, value) = label.split_once("=\"")?;
            Some((key.to_owned(), value.trim_end_matches('"').to_owned()))
        });
        let value = rest.split_whitespace().next()?.parse().ok()?;
        Some(Self { name: name.to_owned(), labels: labels.collect(), value, line: line.to_owned() })
    }

    fn has(&self, wanted: &[(&str, &str)]) -> bool {
        wanted.iter().all(|(key, value)| self.labels.iter().any(|(k, v)| k == key && v == value))
    }
}

/// A count that the traffic determines.
pub(crate) struct Expected {
    metric: &'static str,
    labels: Vec<(&'static str, &'static str)>,
    pub(crate) expected: f64,
    /// How many of it a run that the kernel skips can take along.
    pub(crate) at_stake: f64,
}

impl Expected {
    pub(crate) fn of(metric: &'static str, labels: &[(&'static str, &'static str)], expected: f64) -> Self {
        Self { metric, labels: labels.to_vec(), expected, at_stake: 1.0 }
    }

    /// Where one call has many, or what comes after it is read by it.
    pub(crate) fn at_stake(self, at_stake: f64) -> Self {
        Self { at_stake, ..self }
    }

    pub(crate) fn got(&self, before: &Page, after: &Page) -> f64 {
        after.sum(self.metric, &self.labels) - before.sum(self.metric, &self.labels)
    }

    /// The slices whose programs make this count.
    pub(crate) fn probes(&self) -> &'static [&'static str] {
        probes_of(self.metric.split('_').next().unwrap_or_default())
    }

    pub(crate) fn name(&self) -> String {
        let labels: Vec<String> =
            self.labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        format!("{}{{{}}}", self.metric, labels.join(","))
    }
}

/// The slices whose programs see what a metric's first word, or the name of a probe, tells. DNS comes by way of `l7`.
pub(crate) fn probes_of(word: &str) -> &'static [&'static str] {
    match word {
        "tcp" => &["tcp"],
        "sched" => &["sched"],
        "block" | "disk" => &["disk"],
        "dns" => &["l7", "dns"],
        "process" => &["process"],
        "network" | "drops" => &["drops"],
        "irq" | "irqs" => &["irq"],
        _ => &["l7"],
    }
}
