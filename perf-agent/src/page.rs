//! One page of metrics as Prometheus reads it: the text format 0.0.4, or OpenMetrics 1.0.
//!
//! Everything is written once, straight into the bytes that go out. A page of ten thousand series is built at every
//! scrape, so no sample allocates: label sets of a histogram are rendered once and copied, `le` values are kept.

mod number;
#[cfg(test)]
mod tests;

use prometheus::Registry;
use prometheus::proto::MetricType;

/// The labels of one series, in the order in which they appear. Those with an empty value are left out, which is what
/// an empty value means to Prometheus.
pub(crate) type Labels<'a> = [(&'a str, &'a str)];

/// How the page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Prometheus text 0.0.4, which every scraper reads.
    Text,
    /// OpenMetrics 1.0, which Prometheus prefers when it is offered.
    OpenMetrics,
}

impl Format {
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Collects families. Each name must be asked for once: Prometheus wants all samples of a family in one place.
pub(crate) struct Page {
    format: Format,
    out: Vec<u8>,
    /// The rendered labels of the series that is being written, without braces.
    labels: Vec<u8>,
    /// The `le` values of the last histogram by position; nearly every histogram of a page has the same ones.
    le: Vec<(f64, String)>,
    #[cfg(debug_assertions)]
    names: std::collections::HashSet<String>,
}

impl Page {
    pub(crate) fn new(format: Format) -> Self {
        Self {
            format,
            out: Vec::with_capacity(64 << 10),
            labels: Vec::with_capacity(256),
            le: Vec::new(),
            #[cfg(debug_assertions)]
            names: std::collections::HashSet::new(),
        }
    }

    /// Starts a family. Its header appears with its first sample, and never without one.
    ///
    /// A counter's name ends in `_total`, in OpenMetrics by force.
    pub(crate) fn family<'p>(&'p mut self, name: &'p str, help: &'p str, kind: Kind) -> FamilyWriter<'p> {
        #[cfg(debug_assertions)]
        debug_assert!(self.names.insert(name.to_owned()), "the family {name} is on the page already");
        debug_assert!(is_name(name), "{name:?} is no metric name");
        let base = match (self.format, kind) {
            (Format::OpenMetrics, Kind::Counter) => name.strip_suffix("_total").unwrap_or(name),
            _ => name,
        };
        FamilyWriter { page: self, name: base, help, kind, has_header: false }
    }

    /// Adds the families of a registry, which is where the agent's own counters live.
    pub(crate) fn registry(&mut self, registry: &Registry) {
        for family in registry.gather() {
            let kind = match family.get_field_type() {
                MetricType::COUNTER => Kind::Counter,
                MetricType::GAUGE => Kind::Gauge,
                MetricType::HISTOGRAM => Kind::Histogram,
                // The crate can name these and offers no way to make one.
                MetricType::SUMMARY | MetricType::UNTYPED => continue,
            };
            let mut writer = self.family(family.name(), family.help(), kind);
            for metric in family.get_metric() {
                let labels: Vec<_> =
                    metric.get_label().iter().map(|label| (label.name(), label.value())).collect();
                match kind {
                    Kind::Counter => writer.sample(&labels, metric.get_counter().get_value()),
                    Kind::Gauge => writer.sample(&labels, metric.get_gauge().get_value()),
                    Kind::Histogram => {
                        let histogram = metric.get_histogram();
                        let buckets: Vec<_> = histogram
                            .get_bucket()
                            .iter()
                            .filter(|bucket| bucket.upper_bound().is_finite())
                            .map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()))
                            .collect();
                        let (count, sum) = (histogram.get_sample_count(), histogram.get_sample_sum());
                        writer.histogram(&labels, &buckets, count, sum);
                    }
                }
            }
        }
    }

    /// The page as it goes out.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        if self.format == Format::OpenMetrics {
            self.out.extend_from_slice(b"# EOF\n");
        }
        self.out
    }

    /// Renders the labels of a series once, for however many lines it has.
    fn render(&mut self, labels: &Labels) {
        self.labels.clear();
        for (name, value) in labels {
            if value.is_empty() {
                continue;
            }
            debug_assert!(is_name(name) && !name.contains(':'), "{name:?} is no label name");
            if !self.labels.is_empty() {
                self.labels.push(b',');
            }
            self.labels.extend_from_slice(name.as_bytes());
            self.labels.extend_from_slice(b"=\"");
            escape(&mut self.labels, value, true);
            self.labels.push(b'"');
        }
    }

    /// Everything of a line that stands before its value.
    fn start_line(&mut self, name: &str, suffix: &str, le: Option<&str>) {
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(suffix.as_bytes());
        if !self.labels.is_empty() || le.is_some() {
            self.out.push(b'{');
            self.out.extend_from_slice(&self.labels);
            if let Some(le) = le {
                self.out.extend_from_slice(if self.labels.is_empty() { b"le=\"" } else { b",le=\"" });
                self.out.extend_from_slice(le.as_bytes());
                self.out.push(b'"');
            }
            self.out.push(b'}');
        }
        self.out.push(b' ');
    }

    /// Takes the text of a bound out of the page; `keep_le` puts it back.
    fn take_le(&mut self, position: usize, bound: f64) -> String {
        match self.le.get_mut(position) {
            #[expect(clippy::float_cmp, reason = "the same bound, not a near one")]
            Some((known, text)) if *known == bound => std::mem::take(text),
            _ => number::bound(bound, self.format),
        }
    }

    fn keep_le(&mut self, position: usize, bound: f64, text: String) {
        match self.le.get_mut(position) {
            Some(slot) => *slot = (bound, text),
            None => self.le.push((bound, text)),
        }
    }
}

/// Writes the samples of one family.
pub(crate) struct FamilyWriter<'p> {
    page: &'p mut Page,
    /// Without the suffix that OpenMetrics keeps out of a counter's header.
    name: &'p str,
    help: &'p str,
    kind: Kind,
    has_header: bool,
}

impl FamilyWriter<'_> {
    /// One series of a counter or a gauge.
    pub(crate) fn sample(&mut self, labels: &Labels, value: f64) {
        debug_assert!(self.kind != Kind::Histogram, "{} is a histogram", self.name);
        self.header();
        let suffix = match (self.page.format, self.kind) {
            (Format::OpenMetrics, Kind::Counter) => "_total",
            _ => "",
        };
        self.page.render(labels);
        self.page.start_line(self.name, suffix, None);
        number::float(&mut self.page.out, value);
        self.page.out.push(b'\n');
    }

    /// One series of a histogram. `cumulative` holds the finite bounds in ascending order, each with the number of
    /// observations at or below it; `count` is that of the bucket `+Inf`.
    pub(crate) fn histogram(
        &mut self,
        labels: &Labels,
        cumulative: &[(f64, u64)],
        count: u64,
        sum_seconds: f64,
    ) {
        debug_assert!(self.kind == Kind::Histogram, "{} is no histogram", self.name);
        debug_assert!(cumulative.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "buckets of {}", self.name);
        self.header();
        let Self { page, name, .. } = self;
        page.render(labels);
        for (position, &(bound, below)) in cumulative.iter().enumerate() {
            let le = page.take_le(position, bound);
            page.start_line(name, "_bucket", Some(&le));
            page.keep_le(position, bound, le);
            number::integer(&mut page.out, below);
            page.out.push(b'\n');
        }
        page.start_line(name, "_bucket", Some("+Inf"));
        number::integer(&mut page.out, count);
        page.out.push(b'\n');
        page.start_line(name, "_sum", None);
        number::float(&mut page.out, sum_seconds);
        page.out.push(b'\n');
        page.start_line(name, "_count", None);
        number::integer(&mut page.out, count);
        page.out.push(b'\n');
    }

    fn header(&mut self) {
        if self.has_header {
            return;
        }
        self.has_header = true;
        let Self { page: Page { out, format, .. }, name, help, kind, .. } = self;
        out.extend_from_slice(b"# HELP ");
        out.extend_from_slice(name.as_bytes());
        out.push(b' ');
        // A quote in a help text is escaped by OpenMetrics alone.
        escape(out, help, *format == Format::OpenMetrics);
        out.extend_from_slice(b"\n# TYPE ");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(match kind {
            Kind::Counter => b" counter\n",
            Kind::Gauge => b" gauge\n",
            Kind::Histogram => b" histogram\n",
        });
    }
}

fn escape(out: &mut Vec<u8>, text: &str, quotes: bool) {
    let mut rest = text.as_bytes();
    // Nearly every value is clean; one pass finds out, and the clean stretches are copied whole.
    while let Some(at) =
        rest.iter().position(|byte| matches!(byte, b'\\' | b'\n') || (quotes && *byte == b'"'))
    {
        let (clean, special) = rest.split_at(at);
        out.extend_from_slice(clean);
        out.extend_from_slice(match special.first() {
            Some(b'\n') => b"\\n",
            Some(b'"') => b"\\\"",
            _ => b"\\\\",
        });
        rest = special.get(1..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
}

fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_' || first == ':')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}
