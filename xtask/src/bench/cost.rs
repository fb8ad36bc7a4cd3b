//! The agent's own account under load: time per run of each BPF program, CPU time, memory.
//!
//! In a slot of its own, because the kernel's statistics cost some 33 ns a run themselves; nothing is subtracted for that.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aya::sys::{Stats, enable_stats};

use crate::bench::cpu::Clock;
use crate::bench::kernel;
use crate::bench::subject::Agent;
use crate::bench::workload::Site;
use crate::scrape;

pub(super) struct Cost {
    /// Those that take most come first.
    pub(super) programs: Vec<Program>,
    /// Requests per second while the statistics were on.
    pub(super) requests: f64,
    /// In all programs together, per request over a kept connection; both ends of it are on this machine.
    pub(super) ns_per_request: f64,
    /// CPU time of the process per second, without and with load.
    pub(super) cpu_idle: f64,
    pub(super) cpu_loaded: f64,
    pub(super) scrape: Scrape,
    pub(super) resident_bytes: u64,
    pub(super) map_bytes: u64,
    pub(super) maps: usize,
}

pub(super) struct Program {
    pub(super) name: String,
    pub(super) runs: u64,
    pub(super) time: Duration,
    pub(super) instructions: u32,
}

/// Means of some scrapes of `/metrics`.
pub(super) struct Scrape {
    pub(super) series: usize,
    pub(super) cpu: Duration,
    pub(super) wall: Duration,
}

pub(super) fn measure(binary: &Path, site: &Site, slot: Duration, stop: &AtomicBool) -> Result<Cost> {
    let mut agent = Agent::start(binary, &[], stop)?;
    let own = kernel::program_ids_of(agent.process.pid())?;
    let clock = Clock::of_process(agent.process.pid())?;

    let begun = clock.now()?;
    sleep(slot);
    let cpu_idle = clock.now()?.saturating_sub(begun).as_secs_f64() / slot.as_secs_f64();

    // Off again when the descriptor closes, however this program ends; the sysctl would stay on.
    let statistics = enable_stats(Stats::RunTime).context("the kernel keeps no statistics of programs")?;
    let (begun, start) = (clock.now()?, Instant::now());
    let requests = site.keep_alive(slot, stop)?;
    let (used, lasted) = (clock.now()?.saturating_sub(begun), start.elapsed());
    let in_programs: Duration = programs(&own)?.values().map(|program| program.time).sum();
    // The hooks on connections have hardly run so far.
    site.connections(slot / 2, stop)?;
    drop(statistics);

    let mut programs: Vec<Program> = programs(&own)?.into_values().collect();
    programs.sort_by_key(|program| std::cmp::Reverse(program.time));
    let scrape = scrapes(&agent.address, clock)?;
    let resident_bytes = resident(agent.process.pid())?;
    let maps = kernel::maps_of(&own)?;
    agent.process.stop()?;
    Ok(Cost {
        programs,
        requests: requests.per_second(),
        ns_per_request: in_programs.as_nanos() as f64 / requests.operations,
        cpu_idle,
        cpu_loaded: used.as_secs_f64() / lasted.as_secs_f64(),
        scrape,
        resident_bytes,
        map_bytes: maps.values().sum(),
        maps: maps.len(),
    })
}

/// What these programs have cost, by id.
fn programs(own: &BTreeSet<u32>) -> Result<BTreeMap<u32, Program>> {
    let mine = kernel::programs()?.into_iter().filter(|(id, _)| own.contains(id));
    let cost = mine.map(|(id, info)| {
        let program = Program {
            name: info.name_as_str().unwrap_or("?").to_owned(),
            runs: info.run_count(),
            time: info.run_time(),
            instructions: info.verified_instruction_count().unwrap_or(0),
        };
        (id, program)
    });
    Ok(cost.collect())
}

fn scrapes(address: &str, clock: Clock) -> Result<Scrape> {
    const TIMES: u32 = 10;
    let series = scrape::samples(&scrape::get(address, "/metrics")?).count();
    let (begun, start) = (clock.now()?, Instant::now());
    for _ in 0..TIMES {
        scrape::get(address, "/metrics")?;
    }
    Ok(Scrape { series, cpu: clock.now()?.saturating_sub(begun) / TIMES, wall: start.elapsed() / TIMES })
}

fn resident(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = kib.and_then(|kib| kib.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("{path} tells no VmRSS"))? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_memory_of_a_process() {
        assert!(resident(std::process::id()).unwrap() > 100_000);
        assert!(resident(u32::MAX).is_err());
    }
}
