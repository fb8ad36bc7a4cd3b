//! What is measured: the agent in some configuration, or the floor.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;

use crate::bench::cpu::Clock;
use crate::bench::overhead::Own;
use crate::bench::{floor, kernel};
use crate::process::{Background, command, tail, target};
use crate::run::LISTEN;
use crate::scrape;

pub(super) struct Subject {
    pub(super) name: String,
    kind: Kind,
}

enum Kind {
    Agent { binary: PathBuf, flags: Vec<OsString> },
    Floor { object: PathBuf },
}

impl Subject {
    /// The agent as it comes.
    pub(super) fn agent(binary: &Path) -> Self {
        Self { name: "agent".to_owned(), kind: Kind::Agent { binary: binary.into(), flags: Vec::new() } }
    }

    /// The agent as it is on kernels before 6.3, where it goes by the return of every system call.
    pub(super) fn fallback(binary: &Path) -> Self {
        let flags = vec!["--hide-tracepoint".into(), "sock_send_length".into()];
        Self { name: "fallback".to_owned(), kind: Kind::Agent { binary: binary.into(), flags } }
    }

    /// The agent with a single probe; `dir` takes its configuration.
    pub(super) fn only(probe: &str, binary: &Path, dir: &Path) -> Result<Self> {
        let name = format!("only {probe}");
        let config = dir.join(format!("only-{probe}.yaml"));
        let off = PROBES.iter().filter(|other| **other != probe);
        let lines: Vec<String> = off.map(|other| format!("  {other}: {{enabled: false}}\n")).collect();
        fs::write(&config, format!("probes:\n{}", lines.concat()))?;
        let flags = vec!["--config".into(), config.into()];
        Ok(Self { name, kind: Kind::Agent { binary: binary.into(), flags } })
    }

    pub(super) fn floor(object: PathBuf) -> Self {
        Self { name: "floor".to_owned(), kind: Kind::Floor { object } }
    }

    /// The design's goals are for the agent as it comes.
    pub(super) fn has_target(&self) -> bool {
        matches!(&self.kind, Kind::Agent { flags, .. } if flags.is_empty())
    }

    /// Starts it and returns when its programs are attached.
    pub(super) fn start(&self, stop: &AtomicBool) -> Result<Running> {
        match &self.kind {
            Kind::Floor { object } => floor::attach(object).map(Running::Floor),
            Kind::Agent { binary, flags } => Agent::start(binary, flags, stop).map(Running::Agent),
        }
    }
}

/// The probes that `--split` takes apart.
pub(super) const PROBES: [&str; 11] =
    ["tcp", "sched", "disk", "http", "postgres", "redis", "mysql", "dns", "process", "drops", "irq"];

/// Ends when dropped; [`Running::stop`] also tells if it ended badly.
pub(super) enum Running {
    Agent(Agent),
    Floor(#[expect(dead_code, reason = "keeps its programs attached")] Ebpf),
}

impl Running {
    /// The BPF programs that are its own.
    pub(super) fn programs(&self) -> Result<BTreeSet<u32>> {
        kernel::program_ids_of(match self {
            Self::Agent(agent) => agent.process.pid(),
            Self::Floor(_) => std::process::id(),
        })
    }

    /// What an agent has done itself so far. The scrape that tells it is paid for outside of the slot between two of these.
    pub(super) fn own(&self, slot_is_over: bool) -> Result<Option<Own>> {
        let Self::Agent(agent) = self else { return Ok(None) };
        let clock = Clock::of_process(agent.process.pid())?;
        let before = clock.now()?;
        let page = scrape::get(&agent.address, "/metrics")?;
        let cpu = if slot_is_over { before } else { clock.now()? };
        let sample = scrape::samples(&page).find(|sample| sample.name == "perf_agent_samples_bytes_total");
        let sample = sample.context("this agent tells no perf_agent_samples_bytes_total")?;
        Ok(Some(Own { cpu_seconds: cpu.as_secs_f64(), sample_bytes: sample.value }))
    }

    pub(super) fn stop(self) -> Result<()> {
        if let Self::Agent(mut agent) = self {
            let status = agent.process.stop()?;
            if !status.success() {
                bail!("perf-agent ended with {status}; target/bench/agent.log says why");
            }
        }
        Ok(())
    }
}

/// An agent on a free port, ready to be asked. Its log goes to a file: a run starts dozens of agents.
pub(super) struct Agent {
    pub(super) address: String,
    pub(super) process: Background,
}

impl Agent {
    pub(super) fn start(binary: &Path, flags: &[OsString], stop: &AtomicBool) -> Result<Self> {
        let log = target().join("bench/agent.log");
        let address = free_address()?;
        let mut start = command(binary);
        start.args([LISTEN, &address]).args(flags).stderr(File::create(&log)?);
        let mut process = Background::start("perf-agent", &mut start)?;
        let begun = Instant::now();
        while scrape::get(&address, "/readyz").is_err() {
            if stop.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            let ended = process.ended()?;
            if ended.is_some() || begun.elapsed() > READY_WITHIN {
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!("perf-agent did not get ready ({ended:?}); the end of its log:\n{}", tail(&said, 10));
            }
            sleep(Duration::from_millis(50));
        }
        Ok(Self { address, process })
    }
}

/// Ten times what the design allows: a machine that compiles at the same time is slow.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// A port on the loopback that nothing has.
pub(super) fn free_address() -> Result<String> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("no free port on the loopback")?;
    Ok(listener.local_addr()?.to_string())
}
