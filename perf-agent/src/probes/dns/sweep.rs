//! Lookups without an answer: the kernel notices them when the same socket and id come by again, and nobody else when they
//! do not. This thread goes through those that wait, once a second, whether anybody scrapes or not: what is not swept
//! would fill the map.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use aya::maps::{HashMap, MapData};
use aya::{Ebpf, Pod};
use perf_common::dns::flight::{Early, EarlyKey, Ended, Event, Flight, FlightKey, Ledger, SWEEP_NS};
use perf_common::dns::{DnsCell, DnsKey, OTHER, ROLE_SERVER};
use perf_common::events::Reason;

use crate::clock::monotonic;
use crate::maps::MapReader;
use crate::probes::sampler::{self, Late};

const PERIOD: Duration = Duration::from_secs(1);
/// Workloads that time out are few; whatever goes beyond counts under `other`.
const MAX_CELLS: usize = 4096;
/// As many as may be sampled in a second.
const MAX_LATE: usize = 1000;

/// What the sweeper has counted, to be added to the kernel's numbers.
#[derive(Default)]
pub(super) struct Swept {
    pub(super) cells: std::collections::HashMap<DnsKey, DnsCell>,
    /// Lookups in `cells`.
    pub(super) lookups: u64,
    /// Answers that nobody had asked for.
    pub(super) strays: u64,
    /// Lookups to be shown one by one.
    pub(super) late: Late,
}

/// The thread; it ends with this.
pub(super) struct Sweeper {
    swept: Arc<Mutex<Swept>>,
    /// Closed to end the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What it goes through.
struct Waiting {
    flights: Both<FlightKey, Flight>,
    early: Both<EarlyKey, Early>,
    /// Those that have a name.
    domains: HashMap<MapData, u64, u64>,
    /// Whether lookups are to be shown one by one.
    samples: bool,
}

/// A map to be read in batches and changed by the entry.
struct Both<K, V> {
    reader: MapReader,
    map: HashMap<MapData, K, V>,
}

impl<K: Pod, V: Pod> Both<K, V> {
    fn take(object: &mut Ebpf, name: &str) -> anyhow::Result<Self> {
        let map = object.take_map(name).with_context(|| format!("the object has no map {name}"))?;
        let reader = MapReader::of(&map).with_context(|| format!("{name} cannot be read whole"))??;
        Ok(Self { reader, map: HashMap::try_from(map)? })
    }

    /// The entries that are to go. One that is not there any more, the kernel has come across in this moment, and counted.
    fn drain(&mut self, is_old: impl Fn(&V) -> bool) -> anyhow::Result<Vec<(K, V)>> {
        let mut old = Vec::new();
        self.reader.each::<K, V>(|key, value| {
            if is_old(value) {
                old.push((*key, *value));
            }
        })?;
        old.retain(|(key, _)| self.map.remove(key).is_ok());
        Ok(old)
    }
}

impl Sweeper {
    pub(super) fn start(object: &mut Ebpf, samples: bool) -> anyhow::Result<Self> {
        let domains = object.take_map("DOMAINS").context("the object has no map DOMAINS")?;
        let mut waiting = Waiting {
            flights: Both::take(object, "FLIGHTS")?,
            early: Both::take(object, "EARLY")?,
            domains: HashMap::try_from(domains)?,
            samples,
        };
        let swept = Arc::<Mutex<Swept>>::default();
        let (stop, stopped) = channel();
        let shared = Arc::clone(&swept);
        let thread = std::thread::Builder::new().name("perf-agent-dns".to_owned()).spawn(move || {
            while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = waiting.sweep(&shared) {
                    tracing::warn!("lookups without an answer cannot be read: {error:#}");
                }
            }
        })?;
        Ok(Self { swept, stop: Some(stop), thread: Some(thread) })
    }

    pub(super) fn swept(&self) -> MutexGuard<'_, Swept> {
        lock(&self.swept)
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It does not panic; and if it did, the agent ends all the same.
            _ = thread.join();
        }
    }
}

fn lock(swept: &Mutex<Swept>) -> MutexGuard<'_, Swept> {
    swept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Waiting {
    fn sweep(&mut self, swept: &Mutex<Swept>) -> anyhow::Result<()> {
        // Before reading, so that nothing looks older than it is.
        let now = monotonic();
        let flights = self.flights.drain(|flight| flight.is_older(now, SWEEP_NS))?;
        let early = self.early.drain(|early| now.saturating_sub(early.at) > SWEEP_NS)?;
        let mut swept = lock(swept);
        swept.strays += early.iter().filter(|(_, early)| early.known != 0).count() as u64;
        for (key, mut flight) in flights {
            let mut books = Books {
                swept: &mut swept,
                domains: &self.domains,
                samples: self.samples,
                workload: flight.workload,
                role: key.role,
            };
            flight.expire(&mut books, now, SWEEP_NS);
        }
        Ok(())
    }
}

struct Books<'a> {
    swept: &'a mut Swept,
    domains: &'a HashMap<MapData, u64, u64>,
    samples: bool,
    workload: u64,
    role: u8,
}

impl Books<'_> {
    fn sample(&mut self, key: &DnsKey, took: u64) {
        let DnsKey { workload, domain, qtype, outcome: _, role, pad: _ } = *key;
        let late = &mut self.swept.late;
        if !self.samples {
        } else if late.requests.len() < MAX_LATE {
            late.requests.push(sampler::timeout(took, workload, domain, qtype, role == ROLE_SERVER));
        } else {
            late.more += 1;
        }
    }
}

impl Ledger for Books<'_> {
    /// Expiring sees nothing new.
    fn seen(&mut self) {}

    fn record(&mut self, ended: &Ended) {
        let mut key = DnsKey {
            workload: self.workload,
            domain: if self.domains.get(&ended.name, 0).is_ok() { ended.name } else { OTHER },
            qtype: ended.qtype,
            outcome: ended.outcome,
            role: self.role,
            pad: [0; 5],
        };
        self.sample(&key, ended.took);
        if self.swept.cells.len() >= MAX_CELLS && !self.swept.cells.contains_key(&key) {
            key.workload = perf_common::workload::OTHER;
            key.domain = OTHER;
        }
        let cell = self.swept.cells.entry(key).or_insert(DnsCell::EMPTY);
        cell.retransmits += u64::from(ended.retransmits);
        cell.duration.record(ended.took);
        self.swept.lookups += 1;
    }

    fn dropped(&mut self, _: Reason) {}

    fn post(&mut self, _: &Event<'_>) -> bool {
        false
    }

    fn claim(&mut self, _: &Event<'_>) -> Option<Early> {
        None
    }
}
