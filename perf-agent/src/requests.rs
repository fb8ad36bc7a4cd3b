//! The last requests that were worth a look: those that failed or were slow, a few a second of them.

mod filter;

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::config;

pub(crate) use filter::Filter;

/// How many are kept.
const KEPT: usize = 1000;

/// One of them, under the names that it has in the metrics. What does not apply is empty and left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Entry {
    /// Ascends by one from 1 on.
    pub(crate) sequence: u64,
    /// When it ended; RFC 3339.
    pub(crate) time: String,
    pub(crate) service: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) container: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) pod_uid: String,
    /// `http`, `dns` or a `db_system`.
    pub(crate) protocol: String,
    pub(crate) side: Side,
    #[serde(flatten)]
    pub(crate) what: What,
    /// A status code, a response code, `ok`, `error` or `timeout`.
    pub(crate) status: String,
    pub(crate) failed: bool,
    /// Of an error of a database that has such.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) sqlstate_class: String,
    pub(crate) duration_seconds: f64,
    /// Of a client, its `destination`; of a server, the address and port of its client.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) peer: String,
    /// How many equal ones it stands for: those of one call that were answered together.
    pub(crate) count: u32,
}

/// Whether the service answered it or sent it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    #[default]
    Server,
    Client,
}

/// What was asked for, by the labels of the protocol's metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct What {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) method: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) route: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) query_type: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) table: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) qtype: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) domain: String,
}

impl What {
    /// In one piece, for people.
    pub(crate) fn text(&self) -> String {
        let Self { method, route, query_type, table, qtype, domain } = self;
        let parts = [method, route, query_type, table, qtype, domain];
        let parts: Vec<&str> =
            parts.into_iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        parts.join(" ")
    }
}

/// The answer of `/requests`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// How many a second are sampled at the most; 0 where none are.
    pub(crate) max_per_second: u32,
    /// What took less than this is here only if it failed.
    pub(crate) slower_than_seconds: f64,
    /// How many failed or were slow and are not here, since the agent started.
    pub(crate) not_sampled: u64,
    /// That of the last one, whether it is among these or not; 0 before the first.
    pub(crate) sequence: u64,
    /// The last ones that were asked for, the newest last.
    pub(crate) requests: Vec<Entry>,
}

/// What is kept, for all who ask.
pub(crate) struct Recent {
    config: config::Requests,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    entries: VecDeque<Entry>,
    sequence: u64,
    not_sampled: u64,
}

impl Recent {
    pub(crate) fn new(config: &config::Requests) -> Self {
        Self { config: config.clone(), kept: Mutex::default() }
    }

    /// Keeps a request, which gets the next number.
    pub(crate) fn push(&self, mut entry: Entry) {
        let mut kept = self.kept();
        kept.sequence += 1;
        entry.sequence = kept.sequence;
        if kept.entries.len() >= KEPT {
            kept.entries.pop_front();
        }
        kept.entries.push_back(entry);
    }

    /// There are so many by now that were not sampled.
    pub(crate) fn set_not_sampled(&self, count: u64) {
        self.kept().not_sampled = count;
    }

    pub(crate) fn answer(&self, filter: &Filter) -> Answer {
        let kept = self.kept();
        Answer {
            max_per_second: self.config.max_per_second.get(),
            slower_than_seconds: self.config.slower_than.get().as_secs_f64(),
            not_sampled: kept.not_sampled,
            sequence: kept.sequence,
            requests: kept.entries.iter().filter(|entry| filter.wants(entry)).cloned().collect(),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_thousand_are_kept_and_numbered_from_one() {
        let recent = Recent::new(&config::Requests::default());
        for n in 0..KEPT + 10 {
            recent.push(Entry { duration_seconds: n as f64, ..Entry::default() });
        }
        recent.set_not_sampled(7);
        let answer = recent.answer(&Filter::default());
        let numbers: Vec<u64> = answer.requests.iter().map(|entry| entry.sequence).collect();
        assert_eq!(numbers, (11..=KEPT as u64 + 10).collect::<Vec<_>>());
        assert_eq!((answer.sequence, answer.not_sampled), (KEPT as u64 + 10, 7));
        let after = recent.answer(&Filter { after: KEPT as u64 + 8, ..Filter::default() });
        assert_eq!(after.requests.len(), 2);
    }

    #[test]
    fn what_does_not_apply_is_left_out_and_comes_back_empty() {
        let entry = Entry {
            service: "shop".to_owned(),
            what: What { query_type: "SELECT".to_owned(), table: "t".to_owned(), ..What::default() },
            side: Side::Client,
            ..Entry::default()
        };
        let json = serde_json::to_string(&entry).unwrap();
        assert!(json.contains(r#""side":"client","query_type":"SELECT","table":"t","status""#), "{json}");
        assert!(!json.contains("route"), "{json}");
        assert_eq!(serde_json::from_str::<Entry>(&json).unwrap(), entry);
        assert_eq!(entry.what.text(), "SELECT t");
    }
}
