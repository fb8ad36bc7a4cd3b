//! What the kernel says about the BPF programs and maps that are loaded, whoever loaded them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result};
use aya::maps::MapInfo;
use aya::programs::{ProgramInfo, ProgramType, loaded_programs};

/// Program types that run on what other programs do. systemd's cgroup filters, which many hosts have, do not count.
const TRACING: [ProgramType; 6] = [
    ProgramType::KProbe,
    ProgramType::TracePoint,
    ProgramType::PerfEvent,
    ProgramType::RawTracePoint,
    ProgramType::RawTracePointWritable,
    ProgramType::Tracing,
];

/// The loaded tracing programs, by id.
pub(super) fn programs() -> Result<BTreeMap<u32, ProgramInfo>> {
    let mut all = loaded_programs().peekable();
    // Who may not list them gets one error and nothing else; a single error is a program that went away meanwhile.
    let alone = all.next_if(Result::is_err);
    if let (Some(Err(error)), None) = (alone, all.peek()) {
        return Err(error).context("the loaded BPF programs cannot be listed; remedy: run as root");
    }
    let tracing = |info: &ProgramInfo| TRACING.iter().any(|kind| info.program_type() == (*kind).into());
    Ok(all.filter_map(Result::ok).filter(tracing).map(|info| (info.id(), info)).collect())
}

/// Just the ids.
pub(super) fn program_ids() -> Result<BTreeSet<u32>> {
    Ok(programs()?.into_keys().collect())
}

/// The programs that a process holds, itself or by their attachments.
pub(super) fn program_ids_of(pid: u32) -> Result<BTreeSet<u32>> {
    let dir = format!("/proc/{pid}/fdinfo");
    let mut ids = BTreeSet::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("reading {dir}"))? {
        // It may have been closed meanwhile.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        ids.extend(text.lines().filter_map(|line| line.strip_prefix("prog_id:")?.trim().parse::<u32>().ok()));
    }
    Ok(ids)
}

/// The maps that some programs use, with their bytes as the kernel accounts for them, by id.
pub(super) fn maps_of(programs: &BTreeSet<u32>) -> Result<BTreeMap<u32, u64>> {
    let mut used = BTreeSet::new();
    for (_, info) in self::programs()?.into_iter().filter(|(id, _)| programs.contains(id)) {
        used.extend(info.map_ids()?.unwrap_or_default());
    }
    let mut maps = BTreeMap::new();
    for id in used {
        let map = MapInfo::from_id(id)?.fd()?;
        let path = format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd());
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:"));
        let bytes = bytes.and_then(|bytes| bytes.trim().parse().ok());
        maps.insert(id, bytes.with_context(|| format!("{path} tells no memlock"))?);
    }
    Ok(maps)
}
