//! Run-queue latency, time on and off CPU and context switches, per workload.
//!
//! Hooks: `tp_btf/sched_switch`, alone: `sched_info.last_queued` of the next task and its run queue's clock tell how long
//! it waited, so no hook at wake-up is needed.
//! Maps: a table of [`SchedCell`] by workload, `RUNNING` (what each CPU runs now), `SLEEPERS` (who waits, since when and what for).
//! Metrics: `sched_run_queue_latency_seconds`, `sched_cpu_seconds_total`, `sched_off_cpu_seconds_total`,
//! `sched_context_switches_total`.
//! Needs: `sched_info` (SCHEDSTATS or delay accounting on 5.10), group scheduling (`sched_entity.cfs_rq`).
#![no_std]
#![no_main]
#![allow(clippy::needless_pass_by_value, reason = "the tracepoint macro hands over the context")]

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{Array, PerCpuArray};
use aya_ebpf::programs::BtfTracePointContext;
use perf_common::bytes::opaque;
use perf_common::events::Reason;
use perf_common::kernel::{RegOffsets, SchedOffsets};
use perf_common::sched::{IO, KIND_BITS, LOCK, OFF_CPU, Running, SLEEP, SchedCell, Sleeper};
use perf_common::workload::OTHER;
use perf_ebpf::count::{Events, add, observe};
use perf_ebpf::kernel::Ptr;
use perf_ebpf::{get, syscall, unset, who};

perf_ebpf::program!();
perf_ebpf::slice!(u64 => SchedCell, 4096);

#[unsafe(no_mangle)]
static SCHED: Global<SchedOffsets> = Global::new(unset());

#[unsafe(no_mangle)]
static REGS: Global<RegOffsets> = Global::new(unset());

/// Read by user space in place: a task that waits for an hour shows at each scrape.
#[map]
static SLEEPERS: Array<Sleeper> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static RUNNING: PerCpuArray<Running> = PerCpuArray::with_max_entries(1, 0);

/// States of a task, which `/proc/PID/stat` and core dumps tell as well: asleep until a signal, asleep whatever comes, not
/// counted as load while it is (idle threads of the kernel), and never to run again.
const INTERRUPTIBLE: u64 = 0x01;
const UNINTERRUPTIBLE: u64 = 0x02;
const NO_LOAD: u64 = 0x400;
const DEAD: u64 = 0x80;

#[btf_tracepoint(function = "sched_switch")]
fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let task_at = get(&TASK);
    let sched_at = get(&SCHED);
    let direct = task_at.direct != 0;
    let preempted = ctx.arg::<u64>(0) & 1 != 0;
    let prev = Ptr::new(ctx.arg::<*const core::ffi::c_void>(1), direct);
    let next = Ptr::new(ctx.arg::<*const core::ffi::c_void>(2), direct);

    let Some(running) = RUNNING.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's element, and interrupts are off in a switch.
    let running = unsafe { &mut *running };
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };

    if running.cell != 0
        && let Some(cell) = TABLE.at((running.cell - 1) as u32)
    {
        let state: u64 =
            if sched_at.has_prev_state != 0 { ctx.arg::<u64>(3) } else { prev.load::<u64>(sched_at.state) }
                & 0xffff_ffff;
        // SAFETY: a live map value.
        unsafe {
            add(&raw mut (*cell).cpu, now.wrapping_sub(running.since));
            let counter = if preempted || state == 0 {
                &raw mut (*cell).involuntary
            } else {
                if state & DEAD == 0 {
                    falls_asleep(prev, state, (running.cell - 1) as u32, now);
                }
                &raw mut (*cell).voluntary
            };
            add(counter, 1);
        }
    }

    running.since = now;
    running.cell = 0;
    let pid: u32 = next.load(task_at.pid);
    if pid == 0 {
        return 0;
    }
    let events = Events(&EVENTS);
    events.seen_alone();
    let workload = who::workload(next, task_at);
    let id = workload.id();
    let Some(cell) = TABLE.find_or(&id, &OTHER) else {
        events.dropped(Reason::MapFull, 1);
        return 0;
    };
    if cell.new {
        who::announce(&WORKLOADS, id, &workload);
    }
    running.cell = u64::from(cell.at) + 1;
    events.recorded_alone();
    let queued: u64 = next.load(sched_at.last_queued);
    let mut waited = 0;
    if queued != 0 {
        let clock: u64 = next.follow(sched_at.cfs_rq).follow(sched_at.rq).load(sched_at.rq_clock);
        waited = clock.saturating_sub(queued);
        // SAFETY: a live map value.
        observe(unsafe { &raw mut (*cell.value).latency }, waited);
    }
    wakes_up(pid, cell.value, now.saturating_sub(waited));
    0
}

/// Remembers since when a task waits, and what for.
#[inline(always)]
fn falls_asleep(task: Ptr, state: u64, cell: u32, now: u64) {
    let Some(sleeper) = sleeper(task.load(get(&TASK).pid)) else { return };
    let at = get(&SCHED);
    let kind = if u32::from(task.load::<u8>(at.in_iowait)) & at.in_iowait_mask != 0 {
        IO
    } else if state & (UNINTERRUPTIBLE | NO_LOAD) == UNINTERRUPTIBLE
        || state & INTERRUPTIBLE != 0 && syscall::is_futex(syscall::registers(task, get(&REGS)), get(&REGS))
    {
        LOCK
    } else {
        SLEEP
    };
    // SAFETY: a live element, which only the CPU writes that the task is on.
    unsafe {
        (*sleeper).pid = task.load(get(&TASK).pid);
        (*sleeper).cell_and_kind = cell << KIND_BITS | kind;
        (*sleeper).since = now;
    }
}

/// Counts how long a task waited that runs again.
#[inline(always)]
fn wakes_up(pid: u32, cell: *mut SchedCell, woken: u64) {
    let Some(sleeper) = sleeper(pid) else { return };
    // SAFETY: as above.
    unsafe {
        if (*sleeper).pid != pid || (*sleeper).since == 0 {
            return;
        }
        let kind = opaque(u64::from((*sleeper).kind()));
        if kind < OFF_CPU.len() as u64 {
            let counter = (&raw mut (*cell).off_cpu).cast::<u64>().add(kind as usize);
            add(counter, woken.saturating_sub((*sleeper).since));
        }
        (*sleeper).since = 0;
    }
}

#[inline(always)]
fn sleeper(pid: u32) -> Option<*mut Sleeper> {
    SLEEPERS.get_ptr_mut(pid & get(&SCHED).sleepers_mask)
}
