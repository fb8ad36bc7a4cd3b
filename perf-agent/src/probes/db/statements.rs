//! What statements are called: each new one's text comes once from the kernel.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use aya::Ebpf;
use perf_common::sql::{self, SqlSample, TEXT};

use super::{Name, language};
use crate::maps::Ring;
use crate::probes::is_over;

/// The names of statements, whatever their language.
pub(super) struct Statements {
    samples: Ring,
    names: Names,
}

impl Statements {
    /// Once the programs are loaded, which need the map to be in the object.
    pub(super) fn take(object: &mut Ebpf) -> anyhow::Result<Self> {
        Ok(Self { samples: Ring::take(object, "SQL_SAMPLES")?, names: Names::default() })
    }

    /// Names before counts: a fingerprint in a cell then has its sample in the ring or behind it.
    pub(super) fn learn(&mut self) {
        while let Some(sample) = self.samples.next() {
            self.names.learn(&sample);
        }
    }

    /// The name of a system's statement; none as long as it may still come.
    pub(super) fn name(&mut self, system: u8, fingerprint: u64) -> Option<Name> {
        self.names.of(system, fingerprint)
    }

    /// What it is called by now.
    pub(super) fn name_so_far(&self, system: u8, fingerprint: u64) -> Option<Name> {
        self.names.names.get(&(system, fingerprint)).cloned()
    }
}

/// By system and fingerprint.
type Key = (u8, u64);

#[derive(Default)]
struct Names {
    names: HashMap<Key, Name>,
    /// The different ones among them.
    distinct: HashSet<Name>,
    /// As of routes: without a sample, and since when.
    unnamed: HashMap<Key, Instant>,
}

/// As many as the kernel remembers to have sampled.
const MAX_STATEMENTS: usize = 16_384;
/// Tables come and go (partitions, temporary ones); beyond so many names the rest is `other`.
const MAX_NAMES: usize = 1024;

impl Names {
    fn learn(&mut self, sample: &[u8]) {
        let Some(SqlSample { fingerprint, len, system, text }) = read_sample(sample) else { return };
        let key = (system as u8, fingerprint);
        if self.names.len() >= MAX_STATEMENTS || self.unnamed.get(&key).is_some_and(is_over) {
            return;
        }
        self.unnamed.remove(&key);
        let mut bytes = [0; TEXT];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(text) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        let text = bytes.get(..len as usize).unwrap_or(&bytes);
        let name = Name::of(&String::from_utf8_lossy(text), sql::is_full(text.len()), language(system as u8));
        let name = if self.distinct.contains(&name) || self.distinct.len() < MAX_NAMES {
            self.distinct.insert(name.clone());
            name
        } else {
            Name::other()
        };
        self.names.insert(key, name);
    }

    fn of(&mut self, system: u8, fingerprint: u64) -> Option<Name> {
        let key = (system, fingerprint);
        if fingerprint != sql::OTHER {
            if let Some(name) = self.names.get(&key) {
                return Some(name.clone());
            }
            if !is_over(self.unnamed.entry(key).or_insert_with(Instant::now)) {
                return None;
            }
        }
        Some(Name::other())
    }
}

fn read_sample(bytes: &[u8]) -> Option<SqlSample> {
    if bytes.len() < size_of::<SqlSample>() {
        return None;
    }
    // SAFETY: long enough, and every bit pattern is a sample.
    Some(unsafe { bytes.as_ptr().cast::<SqlSample>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use perf_common::db::{MYSQL, POSTGRESQL};

    use super::*;
    use crate::probes::ON_ITS_WAY;

    fn sample(system: u8, fingerprint: u64, text: &str) -> Vec<u8> {
        let mut bytes = fingerprint.to_le_bytes().to_vec();
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(u32::from(system).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.resize(size_of::<SqlSample>(), 0);
        bytes
    }

    #[test]
    fn a_statement_is_named_by_its_sample_and_names_are_bounded() {
        let mut names = Names::default();
        let learn = |names: &mut Names, n, text: &str| names.learn(&sample(POSTGRESQL, n, text));
        assert_eq!(names.of(POSTGRESQL, 7), None);
        learn(&mut names, 7, "select x from t");
        assert_eq!(names.of(POSTGRESQL, 7).unwrap().table, "t");
        let long_ago = Instant::now().checked_sub(2 * ON_ITS_WAY).unwrap();
        names.unnamed.insert((POSTGRESQL, 8), long_ago);
        assert_eq!(names.of(POSTGRESQL, 8), Some(Name::other()));
        // Too late: it was exported as `other`.
        learn(&mut names, 8, "select x from t");
        assert_eq!(names.of(POSTGRESQL, 8), Some(Name::other()));
        for n in 0..2 * MAX_NAMES as u64 {
            learn(&mut names, 100 + n, &format!("select x from t{n}"));
        }
        assert_eq!(names.of(POSTGRESQL, 100).unwrap().table, "t0");
        assert_eq!(names.of(POSTGRESQL, 100 + 2 * MAX_NAMES as u64 - 1), Some(Name::other()));
        assert_eq!(names.distinct.len(), MAX_NAMES);
        learn(&mut names, 99, "select y from t0");
        assert_eq!(names.of(POSTGRESQL, 99).unwrap().table, "t0");
        names.learn(b"short");
    }

    #[test]
    fn one_text_is_another_statement_in_another_language() {
        let mut names = Names::default();
        names.learn(&sample(MYSQL, 7, "replace into`a b`values(?)"));
        assert_eq!(names.of(POSTGRESQL, 7), None);
        let name = names.of(MYSQL, 7).unwrap();
        assert_eq!((name.query_type.as_str(), name.table.as_str()), ("REPLACE", "a b"));
    }
}
