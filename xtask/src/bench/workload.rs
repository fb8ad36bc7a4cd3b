//! The loads whose rates are compared.

mod db;
mod loops;
mod web;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::bench::pairs::Slot;
use crate::process::Background;

pub(super) use db::Databases;
pub(super) use loops::{cpus, echo};
pub(super) use web::Site;

pub(super) enum Workload<'s> {
    /// nginx under wrk, connections kept alive.
    Web(&'s Site),
    /// redis-benchmark without pipelines.
    Redis(&'s Databases),
    /// pgbench, only its SELECT.
    Postgres(&'s Databases),
    /// pwrite and pread of 4 KiB of a file in memory: system calls that the agent has no hook on.
    File { cpu: usize },
    /// Reads of 4 KiB past the page cache, of a block device over a file in memory: nothing but block I/O.
    Disk { cpu: usize },
    /// Connections over loopback, opened, accepted and closed, without a byte.
    Connections { cpu: usize },
    /// One byte to another process and back: nothing but switches.
    Pipe { cpu: usize, peer: usize },
}

impl Workload<'_> {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Web(_) => "nginx + wrk, keep-alive",
            Self::Redis(_) => "redis-benchmark, GET",
            Self::Postgres(_) => "pgbench, SELECT only",
            Self::File { .. } => "file write + read, 4 KiB",
            Self::Disk { .. } => "block device read, 4 KiB",
            Self::Connections { .. } => "connect, accept, close",
            Self::Pipe { cpu, peer } if cpu == peer => "pipe round trip, one CPU",
            Self::Pipe { .. } => "pipe round trip, two CPUs",
        }
    }

    /// What design and capacity planning ask for, as a ratio.
    pub(super) fn target(&self) -> f64 {
        match self {
            Self::Web(_) | Self::Pipe { .. } | Self::Connections { .. } => 0.95,
            Self::Redis(_) | Self::Postgres(_) => 0.97,
            Self::Disk { .. } => 0.98,
            Self::File { .. } => 0.99,
        }
    }

    /// The load over a slot. The loops do the same at each turn and settle in a quarter of the time.
    pub(super) fn run(&self, slot: Duration, stop: &AtomicBool) -> Result<Slot> {
        match self {
            Self::Web(site) => site.keep_alive(slot, stop),
            Self::Redis(databases) => databases.redis(slot, stop),
            Self::Postgres(databases) => databases.postgres(slot, stop),
            Self::File { cpu } => loops::file(*cpu, slot / 4),
            Self::Disk { cpu } => loops::disk(*cpu, slot / 4),
            Self::Connections { cpu } => loops::connections(*cpu, slot / 4),
            Self::Pipe { cpu, peer } => loops::pipe(*cpu, *peer, slot / 4),
        }
    }
}

/// What a load may take longer than it should.
const SPARE: Duration = Duration::from_secs(10);

/// Runs the program of a load to its end, `most` at the longest; what it says, by way of a file in `dir`.
fn load(
    name: &'static str,
    command: &mut Command,
    dir: &Path,
    most: Duration,
    stop: &AtomicBool,
) -> Result<String> {
    let output = dir.join("load.txt");
    let file = File::create(&output)?;
    let mut load = Background::start(name, command.stdout(file.try_clone()?).stderr(file))?;
    let status = load.wait(stop, most)?;
    if stop.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    let text = fs::read_to_string(&output)?;
    match status {
        Some(status) if status.success() => Ok(text),
        Some(status) => bail!("{name} failed ({status}): {text}"),
        None => bail!("{name} did not end in time"),
    }
}
