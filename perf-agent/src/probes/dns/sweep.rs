//! Lookups without an answer: the kernel notices them when the same socket and id come by again, and nobody else when they
//! do not. This thread goes through those that wait, once a second, whether anybody scrapes or not: what is not swept
//! would fill the map.

use std::collections::HashMap;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::MapData;
use perf_common::dns::flight::{Ended, Flight, FlightKey, Ledger, SWEEP_NS};
use perf_common::dns::{DnsCell, DnsKey, OTHER};
use perf_common::events::Reason;

use crate::maps::HashReader;

const PERIOD: Duration = Duration::from_secs(1);
/// Workloads that time out are few; whatever goes beyond counts under `other`.
const MAX_CELLS: usize = 4096;

/// What the sweeper has counted, to be added to the kernel's numbers.
#[derive(Default)]
pub(super) struct Swept {
    pub(super) cells: HashMap<DnsKey, DnsCell>,
    /// Lookups in `cells`.
    pub(super) lookups: u64,
    /// Answers that nobody had asked for.
    pub(super) strays: u64,
}

/// The thread; it ends with this.
pub(super) struct Sweeper {
    swept: Arc<Mutex<Swept>>,
    /// Closed to end the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sweeper {
    pub(super) fn start(object: &mut Ebpf) -> anyhow::Result<Self> {
        let map = object.take_map("FLIGHTS").context("the object has no map FLIGHTS")?;
        let reader = HashReader::of(&map).context("FLIGHTS is no hash map")??;
        let mut flights = aya::maps::HashMap::try_from(map)?;
        let domains = object.take_map("DOMAINS").context("the object has no map DOMAINS")?;
        let domains = aya::maps::HashMap::try_from(domains)?;
        let swept = Arc::<Mutex<Swept>>::default();
        let (stop, stopped) = channel();
        let shared = Arc::clone(&swept);
        let thread = std::thread::Builder::new().name("perf-agent-dns".to_owned()).spawn(move || {
            while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = sweep(&reader, &mut flights, &domains, &shared) {
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

fn sweep(
    reader: &HashReader,
    flights: &mut aya::maps::HashMap<MapData, FlightKey, Flight>,
    domains: &aya::maps::HashMap<MapData, u64, u64>,
    swept: &Mutex<Swept>,
) -> anyhow::Result<()> {
    let mut old = Vec::new();
    // Before reading, so that nothing looks older than it is.
    let now = monotonic();
    reader.each::<FlightKey, Flight>(|key, flight| {
        if flight.is_older(now, SWEEP_NS) {
            old.push((*key, *flight));
        }
    })?;
    let mut swept = lock(swept);
    for (key, mut flight) in old {
        // Not there any more: the kernel has come across it in this moment, and counted it.
        if flights.remove(&key).is_ok() {
            let mut books = Books { swept: &mut swept, domains, workload: flight.workload, role: key.role };
            flight.expire(&mut books, now, SWEEP_NS);
        }
    }
    Ok(())
}

/// `CLOCK_MONOTONIC` nanoseconds, as the kernel's programs have them.
fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live struct.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

struct Books<'a> {
    swept: &'a mut Swept,
    /// Those that have a name.
    domains: &'a aya::maps::HashMap<MapData, u64, u64>,
    workload: u64,
    role: u8,
}

impl Ledger for Books<'_> {
    /// Counted with the reason it is dropped for.
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
        if self.swept.cells.len() >= MAX_CELLS && !self.swept.cells.contains_key(&key) {
            key.workload = perf_common::workload::OTHER;
            key.domain = OTHER;
        }
        let cell = self.swept.cells.entry(key).or_insert(DnsCell::EMPTY);
        cell.retransmits += u64::from(ended.retransmits);
        cell.duration.record(ended.took);
        self.swept.lookups += 1;
    }

    fn dropped(&mut self, _: Reason) {
        self.swept.strays += 1;
    }
}
