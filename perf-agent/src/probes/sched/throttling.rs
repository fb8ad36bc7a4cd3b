//! Control groups that used up their CPU quota and had to wait for the next period: the kernel counts that itself, and only where
//! there is a quota.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::Names;
use crate::identity::Identity;
use crate::page::{Kind, Page};

/// How long what was read is good: walking the tree costs some ten microseconds a group.
const GOOD_FOR: Duration = Duration::from_secs(5);
/// Groups below which nobody looks, and how many there may be in all.
const DEPTH: u32 = 16;
const MOST: usize = 16_384;

pub(super) struct Throttling {
    /// Where the controller for CPUs is mounted; `None` where it is not.
    root: Option<PathBuf>,
    read: Option<Instant>,
    /// What each group had when it was last read, and under which name it is counted.
    groups: HashMap<String, (Identity, Throttled)>,
    /// What all of one name have, those that are gone among them: their sum alone would fall when one goes.
    totals: BTreeMap<Identity, Throttled>,
}

/// As `cpu.stat` of a group has it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Throttled {
    periods: u64,
    throttled_periods: u64,
    seconds: f64,
}

impl Throttling {
    pub(super) fn new(sysfs: &Path) -> Self {
        let root = sysfs.join("fs/cgroup");
        let version_1 = ["cpu,cpuacct", "cpu"].map(|controller| root.join(controller));
        let unified = root.join("cgroup.controllers").exists().then_some(root);
        let root = version_1.into_iter().find(|dir| dir.is_dir()).or(unified);
        Self { root, read: None, groups: HashMap::new(), totals: BTreeMap::new() }
    }

    pub(super) fn write(&mut self, names: &Names, page: &mut Page) {
        if let Some(root) = &self.root
            && self.read.is_none_or(|read| read.elapsed() >= GOOD_FOR)
        {
            let mut found = Vec::new();
            walk(root, root, 0, &mut found);
            self.read = Some(Instant::now());
            self.add(names, found);
        }
        let families: [(&str, &str, Field); 3] = [
            (
                "sched_throttled_seconds_total",
                "Time for which a control group was kept off the CPUs because it had used up its quota; of all CPUs together.",
                |group| group.seconds,
            ),
            ("sched_throttled_periods_total", "Periods in which that happened.", |group| {
                group.throttled_periods as f64
            }),
            ("sched_quota_periods_total", "Periods in which a control group with a quota ran.", |group| {
                group.periods as f64
            }),
        ];
        for (name, help, value) in families {
            let mut family = page.family(name, help, Kind::Counter);
            for (identity, group) in &self.totals {
                family.sample(&Identity::labels(identity), value(group));
            }
        }
    }
}

impl Throttling {
    /// Adds what is new since the last time.
    fn add(&mut self, names: &Names, found: Vec<(String, Throttled)>) {
        let mut groups = HashMap::new();
        for (path, now) in found {
            let (identity, before) =
                self.groups.remove(&path).unwrap_or_else(|| (names.group(&path), Throttled::default()));
            let total = self.totals.entry(identity.clone()).or_default();
            // Fewer periods than before are another group's of the same path.
            let before = if before.periods <= now.periods { before } else { Throttled::default() };
            total.periods += now.periods - before.periods;
            total.throttled_periods += now.throttled_periods.saturating_sub(before.throttled_periods);
            total.seconds += (now.seconds - before.seconds).max(0.0);
            groups.insert(path, (identity, now));
        }
        self.groups = groups;
    }
}

/// One number of a group.
type Field = fn(&Throttled) -> f64;

/// Reads every group below `at` that has a quota.
fn walk(root: &Path, at: &Path, depth: u32, found: &mut Vec<(String, Throttled)>) {
    let throttled = fs::read_to_string(at.join("cpu.stat")).ok().map(|text| Throttled::parse(&text));
    if let (Some(throttled), Ok(path)) = (throttled, at.strip_prefix(root))
        && throttled.periods != 0
    {
        found.push((path.to_string_lossy().into_owned(), throttled));
    }
    if depth >= DEPTH {
        return;
    }
    for entry in at.read_dir().into_iter().flatten().flatten() {
        if found.len() < MOST && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(root, &entry.path(), depth + 1, found);
        }
    }
}

impl Throttled {
    /// Version 2 has microseconds, version 1 nanoseconds, each under a name of its own.
    fn parse(text: &str) -> Self {
        let mut throttled = Self::default();
        for line in text.lines() {
            let Some((name, value)) = line.split_once(' ') else { continue };
            let value: u64 = value.trim().parse().unwrap_or(0);
            match name {
                "nr_periods" => throttled.periods = value,
                "nr_throttled" => throttled.throttled_periods = value,
                "throttled_usec" => throttled.seconds = value as f64 / 1e6,
                "throttled_time" => throttled.seconds = value as f64 / 1e9,
                _ => {}
            }
        }
        throttled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read() {
        let v1 = Throttled::parse("nr_periods 20\nnr_throttled 19\nthrottled_time 1500000000\n");
        let v2 = Throttled::parse(
            "usage_usec 7\nuser_usec 3\nsystem_usec 4\nnr_periods 20\nnr_throttled 19\nthrottled_usec 1500000\nnr_bursts 0\n",
        );
        assert_eq!(v1, Throttled { periods: 20, throttled_periods: 19, seconds: 1.5 });
        assert_eq!(v1, v2);
        assert_eq!(Throttled::parse("usage_usec 7\n"), Throttled::default());
    }

    #[test]
    fn groups_without_a_quota_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a.slice/b.service")).unwrap();
        fs::write(dir.path().join("cpu.stat"), "nr_periods 0\nnr_throttled 0\n").unwrap();
        fs::write(dir.path().join("a.slice/b.service/cpu.stat"), "nr_periods 3\nnr_throttled 1\n").unwrap();
        let mut found = Vec::new();
        walk(dir.path(), dir.path(), 0, &mut found);
        let [(path, throttled)] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((path.as_str(), throttled.throttled_periods), ("a.slice/b.service", 1));
    }
}
