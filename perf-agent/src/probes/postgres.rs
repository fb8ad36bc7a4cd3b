//! PostgreSQL's part of [`super::db`]: what its statements are called. See `perf-ebpf/src/bin/l7/postgres.rs`.

mod naming;

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use perf_common::sql::{self, SqlSample, TEXT};

use super::db::Name;
use super::{Account, is_over};
use crate::maps::Counters;

pub(super) struct Postgres {
    events: Counters,
    samples: RingBuf<MapData>,
    statements: Statements,
}

impl Postgres {
    /// Once its programs are loaded, which need the maps to be in the object.
    pub(super) fn take(object: &mut Ebpf) -> anyhow::Result<Self> {
        let samples = object.take_map("SQL_SAMPLES").context("the object has no map SQL_SAMPLES")?;
        Ok(Self {
            events: Counters::take(object, "PG_EVENTS")?,
            samples: RingBuf::try_from(samples)?,
            statements: Statements::default(),
        })
    }

    /// Names before counts: a fingerprint in a cell then has its sample in the ring or behind it.
    pub(super) fn learn(&mut self) {
        while let Some(sample) = self.samples.next() {
            self.statements.learn(&sample);
        }
    }

    /// The name of a fingerprint; none as long as it may still come.
    pub(super) fn name(&mut self, fingerprint: u64) -> Option<Name> {
        self.statements.name(fingerprint)
    }

    /// What it is called by now.
    pub(super) fn name_so_far(&self, fingerprint: u64) -> Name {
        self.statements.names.get(&fingerprint).cloned().unwrap_or_else(Name::other)
    }

    pub(super) fn account(&self) -> Account {
        Account { probe: "postgres", events: self.events.sums() }
    }
}

/// The name of each fingerprint.
#[derive(Default)]
struct Statements {
    names: HashMap<u64, Name>,
    /// The different ones among them.
    distinct: HashSet<Name>,
    /// As of routes: without a sample, and since when.
    unnamed: HashMap<u64, Instant>,
}

/// As many as the kernel remembers to have sampled.
const MAX_STATEMENTS: usize = 16_384;
/// Tables come and go (partitions, temporary ones); beyond so many names the rest is `other`.
const MAX_NAMES: usize = 1024;

impl Statements {
    fn learn(&mut self, sample: &[u8]) {
        let Some(SqlSample { fingerprint, len, text }) = read_sample(sample) else { return };
        if self.names.len() >= MAX_STATEMENTS || self.unnamed.get(&fingerprint).is_some_and(is_over) {
            return;
        }
        self.unnamed.remove(&fingerprint);
        let mut bytes = [0; TEXT];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(text) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        let text = bytes.get(..len as usize).unwrap_or(&bytes);
        let name = Name::of(&String::from_utf8_lossy(text), sql::is_full(text.len()));
        let name = if self.distinct.contains(&name) || self.distinct.len() < MAX_NAMES {
            self.distinct.insert(name.clone());
            name
        } else {
            Name::other()
        };
        self.names.insert(fingerprint, name);
    }

    /// The name of a fingerprint; none as long as it may still come.
    fn name(&mut self, fingerprint: u64) -> Option<Name> {
        if fingerprint != sql::OTHER {
            if let Some(name) = self.names.get(&fingerprint) {
                return Some(name.clone());
            }
            if !is_over(self.unnamed.entry(fingerprint).or_insert_with(Instant::now)) {
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
    use super::*;

    fn sample(fingerprint: u64, text: &str) -> Vec<u8> {
        let mut bytes = fingerprint.to_le_bytes().to_vec();
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.resize(size_of::<SqlSample>(), 0);
        bytes
    }

    #[test]
    fn a_statement_is_named_by_its_sample_and_names_are_bounded() {
        let mut statements = Statements::default();
        assert_eq!(statements.name(7), None);
        statements.learn(&sample(7, "select x from t"));
        assert_eq!(statements.name(7).unwrap().table, "t");
        let long_ago = Instant::now().checked_sub(2 * super::super::ON_ITS_WAY).unwrap();
        statements.unnamed.insert(8, long_ago);
        assert_eq!(statements.name(8), Some(Name::other()));
        // Too late: it was exported as `other`.
        statements.learn(&sample(8, "select x from t"));
        assert_eq!(statements.name(8), Some(Name::other()));
        for n in 0..2 * MAX_NAMES as u64 {
            statements.learn(&sample(100 + n, &format!("select x from t{n}")));
        }
        assert_eq!(statements.name(100).unwrap().table, "t0");
        assert_eq!(statements.name(100 + 2 * MAX_NAMES as u64 - 1), Some(Name::other()));
        assert_eq!(statements.distinct.len(), MAX_NAMES);
        statements.learn(&sample(99, "select y from t0"));
        assert_eq!(statements.name(99).unwrap().table, "t0");
        statements.learn(b"short");
    }
}
