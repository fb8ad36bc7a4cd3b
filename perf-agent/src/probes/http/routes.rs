//! The text of each fingerprint, and the rules that keep routes few.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{Array, HashMap as Map, MapData};
use perf_common::http::{RouteSample, SAMPLE};
use perf_common::route::rules::{State, Step, Summary};
use perf_common::route::{self, SEGMENTS, Segment, Segments, describe, each_segment};

use super::super::is_over;
use super::tree::{Counted, New, Rules};
use crate::config::Http;

/// As many as the kernel remembers to have sampled.
const MAX_ROUTES: usize = 16_384;

pub(super) struct Routes {
    known: HashMap<u64, Known>,
    /// Fingerprints without a sample, and since when. One CPU can count a route while another is about to send its sample
    /// up, so they are held back for a while; then they are `other`, and stay it, so that `other` never falls.
    unnamed: HashMap<u64, Instant>,
    /// What a workload's fingerprint is called on the page. Decided when it is first there, by the rules of that moment, and
    /// never again: a series that was exported goes on.
    shown: HashMap<(u64, u64), Arc<str>>,
    rules: Rules,
    maps: Maps,
    /// How many cells and names there were when rules were last made.
    seen: (usize, usize),
}

/// What is known of a fingerprint.
enum Known {
    Path(Path),
    Pattern(Arc<str>),
}

/// A path as the kernel sampled it, and what it says of the segments, those that did not fit included: the one that names a
/// folded fingerprint may be long, and its name is that of short ones too.
struct Path {
    bytes: Box<[u8]>,
    collapsed: u64,
    masked: u64,
    segments: usize,
}

/// The rules in the kernel.
struct Maps {
    summary: Array<MapData, Summary>,
    collapsed: Map<MapData, u64, u64>,
    kept: Map<MapData, u64, u64>,
}

fn map(object: &mut Ebpf, name: &str) -> anyhow::Result<aya::maps::Map> {
    object.take_map(name).with_context(|| format!("the object has no map {name}"))
}

impl Routes {
    /// With the user's patterns in force.
    pub(super) fn take(object: &mut Ebpf, config: &Http) -> anyhow::Result<Self> {
        let maps = Maps {
            summary: map(object, "RULES")?.try_into()?,
            collapsed: map(object, "COLLAPSED")?.try_into()?,
            kept: map(object, "KEPT")?.try_into()?,
        };
        // A fraction of all series, because each route has some: by method, by status, and for each workload.
        let rules = Rules::new(config.max_children.get(), config.max_series.get() as usize / 8);
        let mut routes = Self {
            known: HashMap::new(),
            unnamed: HashMap::new(),
            shown: HashMap::new(),
            rules,
            maps,
            seen: (0, 0),
        };
        routes.install_patterns(object, config)?;
        Ok(routes)
    }

    fn install_patterns(&mut self, object: &mut Ebpf, config: &Http) -> anyhow::Result<()> {
        let mut states: Array<_, State> = map(object, "STATES")?.try_into()?;
        let mut steps: Map<_, Step, u64> = map(object, "STEPS")?.try_into()?;
        let mut sampled: Map<_, u64, u64> = map(object, "ROUTES")?.try_into()?;
        let automaton = config.routes.automaton();
        for (at, state) in automaton.states.iter().enumerate() {
            states.set(at as u32, *state, 0).context("a state of the patterns cannot be written")?;
        }
        for (step, next) in &automaton.steps {
            steps.insert(step, next, 0).context("a step of the patterns cannot be written")?;
        }
        for (fingerprint, text) in config.routes.named() {
            // Known without a sample.
            sampled.insert(fingerprint, 1, 0).context("a pattern cannot be written")?;
            self.known.insert(fingerprint, Known::Pattern(text.into()));
        }
        self.rules.summary.patterns = automaton.states.len() as u64;
        self.maps.summary.set(0, self.rules.summary, 0).context("the rules cannot be written")
    }

    pub(super) fn learn(&mut self, sample: &[u8]) {
        let Some(sample) = read_sample(sample) else { return };
        if self.known.len() >= MAX_ROUTES || self.unnamed.get(&sample.route).is_some_and(is_over) {
            return;
        }
        self.unnamed.remove(&sample.route);
        let mut bytes = [0; SAMPLE];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(sample.path) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        let bytes = bytes.get(..sample.len as usize).unwrap_or(&bytes).into();
        let RouteSample { route, len: _, collapsed, segments, masked, path: _ } = sample;
        let path = Path { bytes, collapsed, masked, segments: (segments as usize).min(SEGMENTS) };
        self.known.insert(route, Known::Path(path));
    }

    /// How many fingerprints have a name.
    pub(super) fn names(&self) -> usize {
        self.known.len()
    }

    /// Whether rules are to be made of this many cells.
    pub(super) fn is_news(&self, cells: usize) -> bool {
        self.seen != (cells, self.names())
    }

    /// Makes rules from what a server's cells count: workload, route, requests. `cells` is how many there are of all kinds.
    pub(super) fn make_rules(&mut self, cells: usize, counts: impl Iterator<Item = (u64, u64, u64)>) {
        self.seen = (cells, self.names());
        let mut workloads: HashMap<u64, HashMap<u64, u64>> = HashMap::new();
        for (workload, route, count) in counts {
            *workloads.entry(workload).or_default().entry(route).or_default() += count;
        }
        for (workload, routes) in workloads {
            let counted: Vec<Counted> = routes
                .into_iter()
                .filter_map(|(route, count)| match self.known.get(&route)? {
                    Known::Path(path) => Some(Counted {
                        segments: path.segments(),
                        collapsed: path.collapsed,
                        cut: path.is_cut(),
                        count,
                    }),
                    Known::Pattern(_) => None,
                })
                .collect();
            for rule in self.rules.learn(workload, &counted) {
                tracing::debug!(workload, kept = rule.kept.len(), "a place with too many children is folded");
                if let Err(error) = self.maps.install(&rule, &self.rules.summary) {
                    tracing::warn!("a rule for routes cannot be written: {error:#}");
                }
            }
        }
    }

    /// What a workload's fingerprint is called now; not yet what it will be called on the page.
    pub(super) fn peek(&self, workload: u64, fingerprint: u64) -> Option<Arc<str>> {
        if let Some(shown) = self.shown.get(&(workload, fingerprint)) {
            return Some(Arc::clone(shown));
        }
        match self.known.get(&fingerprint)? {
            Known::Pattern(text) => Some(Arc::clone(text)),
            Known::Path(path) => {
                let collapsed = self.rules.collapsed(workload, &path.segments(), path.collapsed);
                Some(path.text(collapsed).into())
            }
        }
    }

    /// The text of a workload's fingerprint; none as long as it may still come.
    pub(super) fn name(&mut self, workload: u64, fingerprint: u64) -> Option<Arc<str>> {
        if let Some(shown) = self.shown.get(&(workload, fingerprint)) {
            return Some(Arc::clone(shown));
        }
        let text: Arc<str> = match self.known.get(&fingerprint) {
            Some(known) => self.text(workload, known),
            None if fingerprint != route::OTHER
                && !is_over(self.unnamed.entry(fingerprint).or_insert_with(Instant::now)) =>
            {
                return None;
            }
            None => "other".into(),
        };
        self.shown.insert((workload, fingerprint), Arc::clone(&text));
        Some(text)
    }

    /// What it would be called by now, without it being decided: one request is no reason for a series.
    pub(super) fn name_so_far(&self, workload: u64, fingerprint: u64) -> Arc<str> {
        if let Some(shown) = self.shown.get(&(workload, fingerprint)) {
            return Arc::clone(shown);
        }
        self.known.get(&fingerprint).map_or_else(|| "other".into(), |known| self.text(workload, known))
    }

    fn text(&self, workload: u64, known: &Known) -> Arc<str> {
        match known {
            Known::Pattern(text) => Arc::clone(text),
            Known::Path(path) => {
                path.text(self.rules.collapsed(workload, &path.segments(), path.collapsed)).into()
            }
        }
    }
}

impl Maps {
    /// What is kept comes first, so that it is never folded.
    fn install(&mut self, New { parent, kept }: &New, summary: &Summary) -> anyhow::Result<()> {
        for child in kept {
            self.kept.insert(child, 1, 0)?;
        }
        self.collapsed.insert(parent, 1, 0)?;
        Ok(self.summary.set(0, summary, 0)?)
    }
}

impl Path {
    /// Whether it goes on behind its sample, or may do so.
    fn is_cut(&self) -> bool {
        self.bytes.len() == SAMPLE
    }

    fn segments(&self) -> Segments {
        let mut segments: Vec<Segment> = Vec::new();
        each_segment(&self.bytes, |_, _, segment| segments.push(segment));
        Segments::of(&segments)
    }

    /// The route, where these segments are folded.
    fn text(&self, collapsed: u64) -> String {
        let mut text = Vec::new();
        if !self.is_cut() {
            describe(&self.bytes, collapsed, |part| text.extend_from_slice(part));
            if text.is_empty() {
                // The absolute form of a target need not have a path.
                text.push(b'/');
            }
            return String::from_utf8_lossy(&text).into_owned();
        }
        let mut parts: Vec<&[u8]> = self.bytes.split(|byte| *byte == b'/').collect();
        let whole = parts.len() - 1;
        parts.resize(self.segments.max(whole + 1), b"");
        for (at, part) in parts.into_iter().take(SEGMENTS).enumerate() {
            if at != 0 {
                text.push(b'/');
            }
            if collapsed >> at & 1 != 0 {
                text.extend_from_slice(b"{*}");
            } else if self.masked >> at & 1 != 0 {
                text.extend_from_slice(b"{id}");
            } else {
                text.extend_from_slice(part);
                if at >= whole {
                    // From here on nobody knows.
                    text.extend_from_slice("…".as_bytes());
                    break;
                }
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

fn read_sample(bytes: &[u8]) -> Option<RouteSample> {
    if bytes.len() < size_of::<RouteSample>() {
        return None;
    }
    // SAFETY: long enough, and every bit pattern is a sample.
    Some(unsafe { bytes.as_ptr().cast::<RouteSample>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel samples it.
    fn path(text: &str, collapsed: u64) -> Path {
        let mut masked = 0;
        let mut segments = 0;
        each_segment(text.as_bytes(), |at, _, segment| {
            masked |= u64::from(segment.is_masked()) << at;
            segments = at + 1;
        });
        let bytes = &text.as_bytes()[..text.len().min(SAMPLE)];
        Path { bytes: bytes.into(), collapsed, masked, segments }
    }

    #[test]
    fn a_long_path_has_the_name_of_a_short_one_where_it_can() {
        let (long, token) = ("x".repeat(150), "x1".repeat(75));
        for (text, collapsed, expected) in [
            ("/a/b".to_owned(), 0, "/a/b".to_owned()),
            ("/a/17".to_owned(), 0b10, "/{*}/{id}".to_owned()),
            (format!("/a/{token}"), 0, "/a/{id}".to_owned()),
            (format!("/a/{token}/17"), 0, "/a/{id}/{id}".to_owned()),
            (format!("/a/{token}/b/17"), 0, "/a/{id}/…".to_owned()),
            (format!("/{long}/b/17"), 0b110, "/{*}/{*}/{id}".to_owned()),
            (format!("/{long}/b"), 0b10, "/{*}/…".to_owned()),
            (format!("/{long}/b"), 0, format!("/{}…", "x".repeat(127))),
            (format!("/{}/b", "x".repeat(126)), 0, format!("/{}/…", "x".repeat(126))),
            (format!("/{}", "x".repeat(127)), 0b10, "/{*}".to_owned()),
        ] {
            assert_eq!(path(&text, 0).text(collapsed), expected, "{text}");
        }
    }
}
