//! The probes: which exist, which of them run on this kernel, and what they have measured.

mod db;
mod disk;
mod dns;
mod drops;
mod http;
mod irq;
mod l7;
mod mysql;
mod phases;
mod pools;
mod postgres;
mod process;
mod redis;
mod sampler;
mod sched;
mod sockets;
mod tcp;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::Ebpf;
use perf_common::clients::SETS;
use perf_common::events::{COUNTERS, DROPPED, REASONS, RECORDED, SEEN};
use perf_common::histogram::Histogram;
use perf_common::l7::{HTTP, MYSQL, POSTGRES, REDIS};
use perf_common::peer::{Peer, class_name};
use perf_common::request::Request;
use perf_common::workload::Workload;
use serde::Serialize;

use crate::config::{Buckets, Config};
use crate::identity::{Identity, Namer};
use crate::kernel::{Kernel, Missing};
use crate::maps::{MapReader, sent_up};
use crate::object::{Globals, Loader, missed_runs};
use crate::page::{FamilyWriter, Kind, Page};
use crate::requests::{Recent, What};

use sampler::{Feed, Late, Sampler};

/// Whether a hook of a probe works on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Loaded and attached, or (in `doctor`) loadable.
    Attached,
    /// This kernel or these privileges lack something the hook needs: not an error.
    Unsupported,
    /// It should have worked and did not.
    Failed,
    /// Switched off in the configuration.
    Disabled,
}

/// One hook of one probe, as `/probes`, `perf_agent_probe_up` and `doctor` show it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Status {
    /// The slice: `tcp`, `sched`, `l7`, `dns`, …
    pub(crate) probe: &'static str,
    /// The kernel hook, e.g. `tp_btf/sock_send_length`.
    pub(crate) hook: String,
    pub(crate) state: State,
    /// What is missing or went wrong; empty when attached.
    pub(crate) reason: String,
    /// What the operator can do about it; empty when attached.
    pub(crate) remedy: String,
}

/// A slice that runs.
trait Probe: Send {
    /// What it has in common with the others.
    fn common(&self) -> &Common;
    /// Learns more than workloads and peers.
    fn learn(&mut self) {}
    /// What cannot wait for the next scrape, a few times a second.
    fn tick(&mut self, _names: &mut Names) -> anyhow::Result<()> {
        Ok(())
    }
    /// Where requests come up one by one, if it has some that do.
    fn feed(&mut self) -> Option<&mut Feed> {
        None
    }
    /// What one of those asked for; only of a slice that has a feed.
    fn what(&self, _: &Request) -> What {
        What::default()
    }
    /// More of them, which it found itself since this was last called.
    fn late(&mut self) -> Late {
        Late::default()
    }
    /// What became of the events it saw, by protocol where it has several.
    fn accounts(&self) -> Vec<Account>;
    /// Reads the maps and writes the slice's families.
    fn collect(&mut self, names: &Names, page: &mut Page) -> anyhow::Result<()>;
}

/// What a slice's `start` gets.
struct Start<'a, 'k> {
    loader: &'a mut Loader<'k>,
    config: &'a Config,
    globals: Result<(), Missing>,
}

/// What it gives back: what became of its hooks, and the slice itself if any of them works.
type Started = (Vec<Status>, Option<Box<dyn Probe>>);
type StartFn = fn(Start<'_, '_>) -> Started;
/// What takes a series' labels.
type Write<'a> = &'a mut dyn FnMut(&[(&str, &str)]);

/// How often [`Probes::tick`] is to be called: what the kernel lets pass in the meantime is bounded by this.
pub(crate) const TICK: Duration = Duration::from_millis(250);

/// Everything attached to the kernel; dropping it detaches.
pub(crate) struct Probes {
    status: Vec<Status>,
    running: Vec<(&'static str, Box<dyn Probe>)>,
    names: Names,
    sampler: Sampler,
}

impl Probes {
    /// Loads and attaches every enabled probe. A probe that cannot run is a [`Status`], never an error.
    pub(crate) fn start(config: &Config) -> anyhow::Result<Self> {
        let kernel = match Kernel::read(config) {
            Ok(kernel) => kernel,
            Err(error) => return Ok(Self::without_btf(config, &error)),
        };
        // Every slice needs tasks; what only one needs is that one's to refuse.
        let (task, sock, sched, disk) = (kernel.task(), kernel.sock(), kernel.sched(), kernel.disk());
        let (regs, files) = (kernel.regs(), kernel.files());
        let (exit, drop_at) = (kernel.exit(), kernel.drop());
        let globals = Globals {
            task: task.clone().unwrap_or_default(),
            sock: sock.clone().unwrap_or_default(),
            sched: sched.clone().unwrap_or_default(),
            disk: disk.clone().unwrap_or_default(),
            exit: exit.clone().unwrap_or_default(),
            drop: drop_at.clone().unwrap_or_default(),
            regs: regs.clone().unwrap_or_default(),
            files: files.clone().unwrap_or_default(),
            protocols_on: u64::from(config.probes.http.enabled) << HTTP
                | u64::from(config.probes.postgres.enabled) << POSTGRES
                | u64::from(config.probes.redis.enabled) << REDIS
                | u64::from(config.probes.mysql.enabled) << MYSQL,
            sockets_on: config.probes.sockets.enabled.into(),
            max_cells: config.probes.http.max_series.get().into(),
            max_db_cells: config.probes.max_db_series.get().into(),
            max_domains: dns::max_domains(config).into(),
            client_sets: if config.derived_metrics.has_clients() { SETS.into() } else { 0 },
            wanted: sampler::wanted(&config.requests),
        };
        let mut loader = Loader::new(&kernel, &globals)?;
        let needs_tcp = task.clone().map(drop).and(sock.map(drop));
        let needs_sched = task.clone().map(drop).and(sched.map(drop)).and(regs.clone().map(drop));
        let needs_exit = task.clone().map(drop).and(exit.map(drop));
        let needs_disk = task.map(drop).and(disk.map(drop));
        let needs_calls = needs_tcp.clone().and(regs.map(drop)).and(files.map(drop));

        // In the order in which they are shown. tcp is first because its start walks all open sockets.
        let slices: [(&'static str, StartFn, Result<(), Missing>); 8] = [
            ("tcp", tcp::start, needs_tcp),
            ("sched", sched::start, needs_sched),
            ("disk", disk::start, needs_disk),
            ("l7", l7::start, needs_calls.clone()),
            // Behind l7, which passes on to it what is not TCP.
            ("dns", dns::start, needs_calls),
            ("process", process::start, needs_exit),
            ("drops", drops::start, drop_at.map(drop)),
            ("irq", irq::start, Ok(())),
        ];
        let mut status = Vec::new();
        let mut running = Vec::new();
        for ((probe, start, globals), (_, enabled)) in slices.into_iter().zip(config.probes.enabled()) {
            if !enabled {
                status.push(Status::disabled(probe));
                continue;
            }
            let (hooks, slice) = start(Start { loader: &mut loader, config, globals });
            status.extend(hooks);
            running.extend(slice.map(|slice| (probe, slice)));
        }
        let names = Names::new(
            Namer::new(config.paths.procfs.clone(), kernel.cgroup_root.clone()),
            config.histogram.buckets.clone(),
        );
        let mut probes = Self { status, running, names, sampler: Sampler::new(&config.requests) };
        // The first failed request need not wait for anything.
        probes.tick();
        Ok(probes)
    }

    /// A kernel that does not say where things are: every probe is unsupported, the rest of the agent runs.
    fn without_btf(config: &Config, error: &dyn std::error::Error) -> Self {
        let status = config.probes.enabled().map(|(probe, enabled)| {
            if !enabled {
                return Status::disabled(probe);
            }
            Status {
                probe,
                hook: "/sys/kernel/btf/vmlinux".to_owned(),
                state: State::Unsupported,
                reason: format!("the kernel's type information cannot be read: {error}"),
                remedy:
                    "use a kernel built with CONFIG_DEBUG_INFO_BTF, as Debian 11+, Ubuntu 20.10+, Fedora 31+ \
                         and RHEL 8.2+ ship; in a container, mount the host's /sys"
                        .to_owned(),
            }
        });
        let names = Names::new(
            Namer::new(config.paths.procfs.clone(), config.paths.sysfs.join("fs/cgroup")),
            config.histogram.buckets.clone(),
        );
        let sampler = Sampler::new(&config.requests);
        Self { status: status.into(), running: Vec::new(), names, sampler }
    }

    pub(crate) fn status(&self) -> &[Status] {
        &self.status
    }

    /// The last requests that came up one by one, as of the last [`Self::tick`].
    pub(crate) fn recent(&self) -> Arc<Recent> {
        self.sampler.recent()
    }

    /// What cannot wait for the next scrape: call it each [`TICK`]. Blocking; microseconds where nothing is new.
    pub(crate) fn tick(&mut self) {
        let Self { status: _, running, names, sampler } = self;
        for (probe, slice) in running.iter_mut() {
            if let Err(error) = slice.tick(names) {
                tracing::debug!(probe, "a map cannot be read: {error:#}");
            }
        }
        if let Err(error) = sampler.round(running, names) {
            tracing::debug!("a map of requests cannot be read: {error:#}");
        }
    }

    /// Reads the kernel's maps and adds every probe's families to the page. Blocking; milliseconds.
    pub(crate) fn collect(&mut self, page: &mut Page) {
        let Self { status: _, running, names, sampler } = self;
        for (_, slice) in running.iter_mut() {
            slice.learn();
            slice.common().learn(names);
        }
        for (probe, slice) in running.iter_mut() {
            if let Err(error) = slice.collect(names, page) {
                tracing::warn!(probe, "a map cannot be read: {error:#}");
            }
        }
        write_events(page, running);
        sampler.write(page, running);
    }
}

/// What `doctor` prints: each hook tried (loaded, attached, dropped again) on this kernel with these privileges.
pub(crate) fn survey(config: &Config) -> anyhow::Result<Vec<Status>> {
    Ok(Probes::start(config)?.status)
}

impl Status {
    /// What became of an attempt.
    pub(crate) fn of(probe: &'static str, hook: String, outcome: anyhow::Result<()>) -> Self {
        let Err(error) = outcome else {
            return Self {
                probe,
                hook,
                state: State::Attached,
                reason: String::new(),
                remedy: String::new(),
            };
        };
        let denied = error
            .chain()
            .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
            .any(|cause| cause.raw_os_error() == Some(libc::EPERM));
        let missing = error.downcast_ref::<Missing>().is_some();
        let (state, remedy) = if missing {
            (State::Unsupported, "a newer kernel has it; the other probes are not affected")
        } else if denied {
            (State::Unsupported, "run as root, or with the capabilities BPF and PERFMON")
        } else {
            (State::Failed, "please report this with the kernel's release and the log at --log.level=debug")
        };
        // The verifier's log is thousands of lines; its end says what is wrong.
        let text = format!("{error:#}");
        tracing::debug!(probe, hook, "{text}");
        let reason = if text.len() > 400 { tail(&text, 400) } else { text };
        Self { probe, hook, state, reason, remedy: remedy.to_owned() }
    }

    fn disabled(probe: &'static str) -> Self {
        Self {
            probe,
            hook: String::new(),
            state: State::Disabled,
            reason: "switched off in the configuration".to_owned(),
            remedy: match probe {
                "l7" => "set enabled to true for one of probes.http, probes.postgres, probes.redis, probes.mysql and probes.sockets"
                    .to_owned(),
                _ => format!("set probes.{probe}.enabled to true"),
            },
        }
    }
}

fn tail(text: &str, bytes: usize) -> String {
    let from = (text.len() - bytes..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    format!("… {}", text[from..].trim())
}

/// Names for the numbers in keys, shared by all slices, and the buckets to export.
struct Names {
    namer: Namer,
    peers: HashMap<u64, String>,
    buckets: Buckets,
}

impl Names {
    fn new(namer: Namer, buckets: Buckets) -> Self {
        Self { namer, peers: HashMap::new(), buckets }
    }

    fn learn(&mut self, workloads: &MapReader, peers: Option<&MapReader>) -> std::io::Result<()> {
        workloads.each::<u64, Workload>(|id, workload| self.namer.learn(*id, workload))?;
        let Some(peers) = peers else { return Ok(()) };
        peers.each::<u64, Peer>(|id, peer| {
            self.peers.entry(*id).or_insert_with(|| address(peer));
        })
    }

    fn identity(&self, workload: u64) -> Identity {
        self.namer.identity(workload)
    }

    /// Of a control group.
    fn group(&self, path: &str) -> Identity {
        self.namer.group_identity(path)
    }

    fn destination(&self, peer: u64) -> String {
        match self.peers.get(&peer) {
            Some(name) => name.clone(),
            None => class_name(u32::try_from(peer).unwrap_or(0)).to_owned(),
        }
    }

    /// Writes one series of a histogram, cumulated to the configured bounds.
    fn histogram(&self, family: &mut FamilyWriter<'_>, labels: &[(&str, &str)], histogram: &Histogram) {
        let mut below = 0;
        let mut cell = 0;
        let cumulative: Vec<(f64, u64)> = self
            .buckets
            .bounds()
            .iter()
            .map(|bound| {
                below += histogram.cells[cell..=bound.cell()].iter().sum::<u64>();
                cell = bound.cell() + 1;
                (bound.seconds(), below)
            })
            .collect();
        family.histogram(labels, &cumulative, histogram.count(), histogram.sum as f64 / 1e9);
    }
}

/// `ip:port`, with brackets around IPv6.
fn address(peer: &Peer) -> String {
    let mut octets = [0; 16];
    for (bytes, word) in octets.chunks_exact_mut(4).zip(peer.address) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    let ip = std::net::Ipv6Addr::from(octets).to_canonical();
    std::net::SocketAddr::new(ip, peer.port as u16).to_string()
}

/// Sums what several kernel cells count under the same labels, in the labels' order.
fn merged<K: Ord, V>(cells: impl IntoIterator<Item = (K, V)>, merge: impl Fn(&mut V, &V)) -> BTreeMap<K, V> {
    let mut out = BTreeMap::new();
    for (key, value) in cells {
        match out.entry(key) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(value);
            }
            std::collections::btree_map::Entry::Occupied(mut entry) => merge(entry.get_mut(), &value),
        }
    }
    out
}

/// How long a sample can be on its way at the most: a CPU of a virtual machine may stand still for that long.
const ON_ITS_WAY: Duration = Duration::from_secs(5);

fn is_over(since: &Instant) -> bool {
    since.elapsed() >= ON_ITS_WAY
}

/// The contract of loss, for every probe: seen = recorded + dropped + in flight.
fn write_events(page: &mut Page, running: &[(&'static str, Box<dyn Probe>)]) {
    let accounts: Vec<Account> = running.iter().flat_map(|(_, slice)| slice.accounts()).collect();
    let totals = [
        (
            "perf_agent_events_total",
            "Events that a probe saw; what is neither recorded nor dropped is in flight.",
            SEEN,
        ),
        ("perf_agent_events_recorded_total", "Events that a probe counted in a series.", RECORDED),
    ];
    for (name, help, counter) in totals {
        let mut family = page.family(name, help, Kind::Counter);
        for Account { probe, events } in &accounts {
            family.sample(&[("probe", probe)], events[counter as usize] as f64);
        }
    }
    let mut family = page.family(
        "perf_agent_events_dropped_total",
        "Events that a probe saw and could not count, by reason.",
        Kind::Counter,
    );
    for Account { probe, events } in &accounts {
        for (reason, label) in REASONS {
            let dropped = events[(DROPPED + reason as u32) as usize];
            family.sample(&[("probe", probe), ("reason", label)], dropped as f64);
        }
    }
    let mut family = page.family(
        "perf_agent_missed_runs_total",
        "Runs of a probe's BPF programs that the kernel skipped, because the program was under way on that CPU already: what they would have seen is not in the events.",
        Kind::Counter,
    );
    for (probe, slice) in running {
        family.sample(&[("probe", probe)], missed_runs(&slice.common().object) as f64);
    }
    page.family(
        "perf_agent_samples_bytes_total",
        "Bytes that BPF programs sent up one by one: the first request of each new name, and sampled requests. All else is counted where it happens.",
        Kind::Counter,
    )
    .sample(&[], sent_up() as f64);
}

/// What became of the events that one kind of measurement saw, by [`perf_common::events`].
struct Account {
    probe: &'static str,
    events: [u64; COUNTERS as usize],
}

/// What every slice has.
struct Common {
    /// Holds the programs and with them the links.
    object: Ebpf,
    /// Where it names what it counts by.
    workloads: Option<MapReader>,
    peers: Option<MapReader>,
}

impl Common {
    fn take(mut object: Ebpf) -> anyhow::Result<Self> {
        let has_workloads = object.map("WORKLOADS").is_some();
        Ok(Self {
            workloads: has_workloads.then(|| MapReader::take(&mut object, "WORKLOADS")).transpose()?,
            peers: MapReader::take(&mut object, "PEERS").ok(),
            object,
        })
    }

    fn learn(&self, names: &mut Names) {
        let Some(workloads) = &self.workloads else { return };
        if let Err(error) = names.learn(workloads, self.peers.as_ref()) {
            tracing::warn!("the kernel's names cannot be read: {error}");
        }
    }
}

/// Turns a slice's fallible start into what [`Probes::start`] wants.
fn started(
    probe: &'static str,
    globals: Result<(), Missing>,
    start: impl FnOnce() -> anyhow::Result<Started>,
) -> Started {
    match globals.map_err(anyhow::Error::from).and_then(|()| start()) {
        Ok(started) => started,
        Err(error) => (vec![Status::of(probe, "object".to_owned(), Err(error))], None),
    }
}
