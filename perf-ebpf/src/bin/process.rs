//! How processes end: by themselves, well or not, by a signal, or because memory ran out.
//!
//! Hooks: `tp_btf/sched_process_exit`, alone. It fires for each thread; the last one of a process counts.
//! Maps: a table of [`ProcessCell`] by workload, `ENDED` (processes that were counted, where the kernel does not say which
//! thread was the last).
//! Metrics: `process_exits_total`, `process_oom_kills_total`.
//! Needs: nothing newer than 5.10.
//! Cost: 84 ns for a thread that is not the last, 750 ns for a process (6.18, two-core virtual machine).
#![no_std]
#![no_main]
#![allow(clippy::needless_pass_by_value, reason = "the tracepoint macro hands over the context")]

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::BtfTracePointContext;
use perf_common::bytes::opaque;
use perf_common::events::Reason;
use perf_common::kernel::ExitOffsets;
use perf_common::process::{Ended, ProcessCell, SIGNALS};
use perf_common::workload::OTHER;
use perf_ebpf::count::{Events, add};
use perf_ebpf::kernel::Ptr;
use perf_ebpf::{get, unset, who};

perf_ebpf::program!();
perf_ebpf::slice!(u64 => ProcessCell, 4096);

#[unsafe(no_mangle)]
static EXIT: Global<ExitOffsets> = Global::new(unset());

/// As many as may be between their last two threads' exits at once, and far more.
#[map]
static ENDED: LruHashMap<Ended, u32> = LruHashMap::with_max_entries(4096, 0);

/// `SIGNAL_GROUP_EXIT` of `signal_struct.flags`: whether the group's exit code is set. A macro, which BTF does not have; the
/// same on every kernel since 2.6.
const SIGNAL_GROUP_EXIT: u32 = 4;
const SIGKILL: u32 = 9;

#[btf_tracepoint(function = "sched_process_exit")]
fn process_exit(ctx: BtfTracePointContext) -> i32 {
    let task_at = get(&TASK);
    let at = get(&EXIT);
    let task = Ptr::new(ctx.arg::<*const c_void>(0), task_at.direct != 0);
    let signal = task.follow(at.signal);
    let last =
        if at.has_group_dead != 0 { ctx.arg::<u64>(1) & 0xff != 0 } else { signal.load::<u32>(at.live) == 0 };
    if !last || who::is_kernel_thread(task, task_at) {
        return 0;
    }
    let leader = task.follow(task_at.group_leader);
    if at.has_group_dead == 0 {
        // The count of live threads is taken down before the tracepoint, so that the last two can both find it at zero.
        let ended = Ended { tgid: task.load::<u32>(task_at.tgid).into(), start: leader.load(at.start_time) };
        if ENDED.insert(ended, 0, u64::from(BPF_NOEXIST)).is_err() {
            return 0;
        }
    }

    let events = Events(&EVENTS);
    events.seen();
    let workload = who::workload(task, task_at);
    let id = workload.id();
    let Some(cell) = TABLE.find_or(&id, &OTHER) else {
        events.dropped(Reason::MapFull, 1);
        return 0;
    };
    if cell.new {
        who::announce(&WORKLOADS, id, &workload);
    }
    // As `wait` tells the parent.
    let code: u32 = if signal.load::<u32>(at.flags) & SIGNAL_GROUP_EXIT != 0 {
        signal.load(at.group_exit_code)
    } else {
        leader.load(at.exit_code)
    };
    let killed_by = code & 0x7f;
    let index = opaque(u64::from(killed_by).wrapping_sub(1));
    // SAFETY: fields of a live map value, and the index is below the array's length.
    unsafe {
        let counter = if index < SIGNALS as u64 {
            (&raw mut (*cell.value).signals).cast::<u64>().add(index as usize)
        } else if code == 0 {
            &raw mut (*cell.value).ok
        } else {
            &raw mut (*cell.value).errors
        };
        add(counter, 1);
        // One that was leaving anyway is marked as well, so that its memory comes free; it was not killed for that.
        if killed_by == SIGKILL && !signal.follow(at.oom_mm).is_null() {
            add(&raw mut (*cell.value).oom_kills, 1);
        }
    }
    events.recorded();
    0
}
