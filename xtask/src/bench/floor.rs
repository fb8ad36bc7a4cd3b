//! The floor object: empty programs on the agent's hooks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf};

/// Each program of perf-ebpf/src/bin/floor.rs with its tracepoint.
const HOOKS: [(&str, &str); 9] = [
    ("floor_sent", "sock_send_length"),
    ("floor_received", "sock_recv_length"),
    ("floor_arrived", "tcp_rcv_space_adjust"),
    ("floor_closing", "inet_sock_set_state"),
    ("floor_state", "inet_sock_set_state"),
    ("floor_retrans", "tcp_retransmit_skb"),
    ("floor_rst_sent", "tcp_send_reset"),
    ("floor_rst_recv", "tcp_receive_reset"),
    ("floor_switch", "sched_switch"),
];

/// Loads and attaches it; all of it is gone when the value is dropped.
///
/// Strict on purpose: without one of its hooks it would be no floor of an agent that has them.
pub(super) fn attach(path: &Path) -> Result<Ebpf> {
    let btf = Btf::from_sys_fs().context("the kernel's BTF cannot be read")?;
    let mut object = Ebpf::load_file(path).with_context(|| format!("loading {}", path.display()))?;
    for (name, tracepoint) in HOOKS {
        let program = object.program_mut(name).with_context(|| format!("the floor has no program {name}"))?;
        let program: &mut BtfTracePoint = program.try_into()?;
        program
            .load(tracepoint, &btf)
            .and_then(|()| program.attach())
            .with_context(|| format!("this kernel does not take a program on {tracepoint}"))?;
    }
    Ok(object)
}

/// The newest floor object that building the agent left next to it.
pub(super) fn find(agent: &Path) -> Option<PathBuf> {
    let build = fs::read_dir(agent.parent()?.join("build")).ok()?;
    build
        .filter_map(Result::ok)
        .map(|package| package.path().join("out/floor"))
        .filter_map(|floor| Some((floor.metadata().ok()?.modified().ok()?, floor)))
        .max()
        .map(|(_, floor)| floor)
}
