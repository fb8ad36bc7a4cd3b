//! Requests that come up one by one: how many may, and what they are called. See `perf-ebpf/src/requests.rs`.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{Array, MapData};
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported};
use perf_common::db::SYSTEMS;
use perf_common::dns::RCODES;
use perf_common::peer::Peer;
use perf_common::request::{self, DATABASES, DNS, FAILED, HTTP, NEVER, PROTOCOLS, Request, SERVER, Wanted};

use super::db::class;
use super::{Names, Probe, address};
use crate::clock;
use crate::config;
use crate::maps::{Counters, Ring};
use crate::page::{Kind, Page};
use crate::requests::{Entry, Recent, Side, What};

/// What the programs are to send up.
pub(super) fn wanted(config: &config::Requests) -> Wanted {
    let by_address = is_helper_supported(ProgramType::TracePoint, BpfHelper::BPF_FUNC_probe_read_kernel);
    let is_on = config.max_per_second.get() != 0;
    Wanted {
        slower_than: if is_on { config.slower_than.get().as_nanos() as u64 } else { NEVER },
        by_address: u64::from(by_address.unwrap_or(false)),
    }
}

/// Room for all that may be sent up at once, twice over.
pub(super) fn ring(config: &config::Requests) -> u32 {
    /// Of the ring's, before each record.
    const HEADER: usize = 8;
    let most = 2 * config.max_per_second.get() as usize * (size_of::<Request>() + HEADER);
    most.next_power_of_two().max(4096) as u32
}

/// Where the requests of one object come up.
pub(super) struct Feed {
    ring: Ring,
    granted: Array<MapData, u64>,
    taken: Array<MapData, u64>,
    unsampled: Counters,
    /// What the last two were when they were last looked at.
    seen: u64,
    allowed: u64,
}

impl Feed {
    /// Once its programs are loaded, which need the maps to be in the object.
    pub(super) fn take(object: &mut Ebpf) -> anyhow::Result<Self> {
        let ring = Ring::take(object, "REQUESTS")?;
        let mut map =
            |name: &str| object.take_map(name).with_context(|| format!("the object has no map {name}"));
        Ok(Self {
            ring,
            granted: Array::try_from(map("GRANTED")?)?,
            taken: Array::try_from(map("TAKEN")?)?,
            unsampled: Counters::take(object, "UNSAMPLED")?,
            seen: 0,
            allowed: 0,
        })
    }

    /// How many were sent up since this was last asked.
    fn used(&mut self) -> anyhow::Result<u64> {
        let taken = self.taken.get(&0, 0)?;
        let used = taken.saturating_sub(self.seen);
        self.seen = taken;
        Ok(used)
    }

    /// Lets so many more be sent up, whatever was granted before.
    fn grant(&mut self, share: u64) -> anyhow::Result<()> {
        let allowed = self.seen + share;
        if allowed != self.allowed {
            self.granted.set(0, allowed, 0)?;
            self.allowed = allowed;
        }
        Ok(())
    }

    fn drain(&mut self) -> Vec<Request> {
        let mut requests = Vec::new();
        while let Some(bytes) = self.ring.next() {
            requests.extend(read(&bytes));
        }
        requests
    }
}

fn read(bytes: &[u8]) -> Option<Request> {
    // SAFETY: long enough, and every bit pattern is a request.
    (bytes.len() >= size_of::<Request>())
        .then(|| unsafe { bytes.as_ptr().cast::<Request>().read_unaligned() })
}

/// Requests that user space itself found to have failed.
#[derive(Default)]
pub(super) struct Late {
    pub(super) requests: Vec<Request>,
    /// How many more there were than it keeps.
    pub(super) more: u64,
}

/// How many requests may be sent up: so many a second, and what a second leaves unused in one more. All objects have a share
/// in it, and what one of them leaves unused is the others' with the next round.
struct Budget {
    per_second: f64,
    /// Below zero after more was spent than there was.
    left: f64,
    at: Instant,
    /// Whose turn it is to have what cannot be shared evenly.
    turn: usize,
}

impl Budget {
    fn new(per_second: u32, now: Instant) -> Self {
        Self { per_second: per_second.into(), left: per_second.into(), at: now, turn: 0 }
    }

    fn accrue(&mut self, now: Instant) {
        let more = self.per_second * now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        // Two at least: where there is one in a second, it is to wait for the turn of the one who needs it.
        self.left = (self.left + more).min(self.per_second.max(2.0));
    }

    fn spend(&mut self, count: u64) {
        self.left -= count as f64;
    }

    /// Whole ones that are left.
    fn whole(&self) -> u64 {
        self.left.max(0.0) as u64
    }

    /// What each of so many may have.
    fn shares(&mut self, among: usize) -> Vec<u64> {
        let (all, count) = (self.whole(), among.max(1));
        let (each, odd) = (all / count as u64, all as usize % count);
        self.turn = (self.turn + 1) % count;
        (0..among).map(|at| each + u64::from((at + self.turn) % count < odd)).collect()
    }
}

/// Counts by protocol.
type Counts = [u64; PROTOCOLS];

/// Grants, drains and names.
pub(super) struct Sampler {
    is_on: bool,
    budget: Budget,
    sampled: Counts,
    /// Of [`Late`] ones, which the kernel does not know.
    unsampled: Counts,
    recent: Arc<Recent>,
}

impl Sampler {
    pub(super) fn new(config: &config::Requests) -> Self {
        Self {
            is_on: config.max_per_second.get() != 0,
            budget: Budget::new(config.max_per_second.get(), Instant::now()),
            sampled: [0; PROTOCOLS],
            unsampled: [0; PROTOCOLS],
            recent: Arc::new(Recent::new(config)),
        }
    }

    pub(super) fn recent(&self) -> Arc<Recent> {
        Arc::clone(&self.recent)
    }

    /// Takes what came up since the last round, and says how much may until the next.
    pub(super) fn round(
        &mut self,
        running: &mut [(&'static str, Box<dyn Probe>)],
        names: &mut Names,
    ) -> anyhow::Result<()> {
        if !self.is_on {
            return Ok(());
        }
        self.budget.accrue(Instant::now());
        let mut entries = Vec::new();
        let mut feeds = 0;
        for (_, slice) in running.iter_mut() {
            let Some(feed) = slice.feed() else { continue };
            feeds += 1;
            self.budget.spend(feed.used()?);
            let mut requests = feed.drain();
            requests.extend(self.admit(slice.late()));
            if requests.is_empty() {
                continue;
            }
            // Behind them: what one of them is called was sent up before it was.
            slice.learn();
            slice.common().learn(names);
            for request in requests {
                if let Some(count) = self.sampled.get_mut(usize::from(request.protocol)) {
                    *count += u64::from(request.count);
                }
                entries.push((request.at, entry(&request, names, slice.what(&request))));
            }
        }
        entries.sort_by_key(|(at, _)| *at);
        for (_, entry) in entries {
            self.recent.push(entry);
        }
        let shares = self.budget.shares(feeds);
        let feeds = running.iter_mut().filter_map(|(_, slice)| slice.feed());
        for (feed, share) in feeds.zip(shares) {
            feed.grant(share)?;
        }
        self.recent.set_not_sampled(self.not_sampled(running).iter().sum());
        Ok(())
    }

    /// As many of them as may be.
    fn admit(&mut self, late: Late) -> Vec<Request> {
        let Late { mut requests, more } = late;
        let admitted = requests.len().min(self.budget.whole() as usize);
        self.budget.spend(admitted as u64);
        let left = requests.len() - admitted;
        self.unsampled[usize::from(DNS)] += left as u64 + more;
        requests.truncate(admitted);
        requests
    }

    fn not_sampled(&self, running: &mut [(&'static str, Box<dyn Probe>)]) -> Counts {
        let feeds = running.iter_mut().filter_map(|(_, slice)| slice.feed());
        feeds.fold(self.unsampled, |mut all, feed| {
            for (sum, more) in all.iter_mut().zip(feed.unsampled.sums::<PROTOCOLS>()) {
                *sum += more;
            }
            all
        })
    }

    pub(super) fn write(&self, page: &mut Page, running: &mut [(&'static str, Box<dyn Probe>)]) {
        if !self.is_on {
            return;
        }
        let not_sampled = self.not_sampled(running);
        for (name, help, counts) in [
            (
                "perf_agent_requests_sampled_total",
                "Failed and slow requests that /requests showed one by one.",
                &self.sampled,
            ),
            (
                "perf_agent_requests_not_sampled_total",
                "Failed and slow requests that were too many to be shown one by one; in all other metrics they are counted.",
                &not_sampled,
            ),
        ] {
            let mut family = page.family(name, help, Kind::Counter);
            for (at, count) in counts.iter().enumerate() {
                family.sample(&[("protocol", protocol(at as u8))], *count as f64);
            }
        }
    }
}

/// A request under its names.
fn entry(request: &Request, names: &Names, what: What) -> Entry {
    let Request {
        at, took, workload, what: _, peer, remote, port, status, count, protocol: of, flags, ..
    } = *request;
    let identity = names.identity(workload);
    let peer = match (port, peer) {
        (0, 0) => String::new(),
        (0, peer) => names.destination(peer),
        (port, _) => address(&Peer::v6(remote, port)),
    };
    Entry {
        sequence: 0,
        time: clock::rfc3339(clock::wall(at)),
        service: identity.service,
        container: identity.container,
        pod_uid: identity.pod_uid,
        protocol: protocol(of).to_owned(),
        side: if flags & SERVER != 0 { Side::Server } else { Side::Client },
        what,
        status: status_text(of, status),
        failed: flags & FAILED != 0,
        sqlstate_class: if of >= DATABASES { class(status) } else { String::new() },
        duration_seconds: took as f64 / 1e9,
        peer,
        count,
    }
}

fn protocol(number: u8) -> &'static str {
    match number {
        HTTP => "http",
        DNS => "dns",
        database => SYSTEMS.get(usize::from(database - DATABASES)).copied().unwrap_or("other"),
    }
}

fn status_text(protocol: u8, status: u16) -> String {
    match (protocol, status) {
        (HTTP, status) => status.to_string(),
        (DNS, rcode) if rcode == u16::from(perf_common::dns::TIMEOUT) => "timeout".to_owned(),
        (DNS, rcode) => RCODES.get(usize::from(rcode)).copied().unwrap_or("other").to_owned(),
        (_, 0) => "ok".to_owned(),
        _ => "error".to_owned(),
    }
}

/// What is told of a lookup that timed out, seen by nobody in the kernel.
pub(super) fn timeout(took: u64, workload: u64, domain: u64, qtype: u8, is_server: bool) -> Request {
    Request {
        at: clock::monotonic(),
        took,
        workload,
        what: domain,
        status: perf_common::dns::TIMEOUT.into(),
        count: 1,
        protocol: DNS,
        flags: if is_server { SERVER | request::FAILED } else { request::FAILED },
        kind: qtype,
        ..Request::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Two objects spend what they want of what they get, ten times a second; how many that were in each second.
    fn spent(per_second: u32, wants: [u64; 2], seconds: usize) -> Vec<u64> {
        let mut now = Instant::now();
        let mut budget = Budget::new(per_second, now);
        let mut second = || {
            (0..4).fold(0, |sum, _| {
                let shares = budget.shares(2);
                let used: u64 = shares.iter().zip(wants).map(|(share, want)| want.min(*share)).sum();
                now += Duration::from_millis(250);
                budget.accrue(now);
                budget.spend(used);
                sum + used
            })
        };
        (0..seconds).map(|_| second()).collect()
    }

    #[test]
    fn a_flood_gets_its_rate_and_one_second_more_whoever_floods() {
        for per_second in [1, 2, 3, 10, 1000] {
            for wants in [[u64::MAX, 0], [0, u64::MAX], [u64::MAX, u64::MAX]] {
                let spent = spent(per_second, wants, 20);
                let (all, most) = (spent.iter().sum::<u64>(), u64::from(per_second));
                assert!(all <= 20 * most + most.max(2), "{per_second} {wants:?}: {spent:?}");
                assert!(all >= 19 * most, "{per_second} {wants:?}: {spent:?}");
                assert!(
                    spent[2..].iter().all(|second| *second <= most + 2),
                    "{per_second} {wants:?}: {spent:?}"
                );
            }
        }
        assert_eq!(spent(10, [1, 0], 20), [4; 20], "what is below the rate goes through");
    }

    #[test]
    fn what_was_overdrawn_is_made_up_for() {
        let now = Instant::now();
        let mut budget = Budget::new(10, now);
        budget.spend(15);
        assert_eq!(budget.shares(2), [0, 0]);
        budget.accrue(now + Duration::from_millis(600));
        assert_eq!(budget.whole(), 1);
        budget.accrue(now + Duration::from_secs(100));
        assert_eq!(budget.whole(), 10);
    }

    #[test]
    fn a_status_is_what_the_metrics_call_it() {
        for (protocol, status, expected) in [
            (HTTP, 503, "503"),
            (DNS, 3, "SERVFAIL"),
            (DNS, u16::from(perf_common::dns::TIMEOUT), "timeout"),
            (DATABASES, 0, "ok"),
            (DATABASES + 1, 1, "error"),
        ] {
            assert_eq!(status_text(protocol, status), expected);
        }
        assert_eq!(protocol(DATABASES), "postgresql");
        assert_eq!(protocol(u8::MAX), "other");
    }
}
