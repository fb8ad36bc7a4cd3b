//! Run-queue latency, time on CPU and context switches, per workload.
//!
//! Hooks: `tp_btf/sched_switch`, alone: `sched_info.last_queued` of the next task and its run queue's clock tell how long
//! it waited, so no hook at wake-up is needed.
//! Maps: a table of [`SchedCell`] by workload, `RUNNING` (what each CPU runs now).
//! Metrics: `sched_run_queue_latency_seconds`, `sched_cpu_seconds_total`, `sched_context_switches_total`.
//! Needs: `sched_info` (SCHEDSTATS or delay accounting on 5.10), group scheduling (`sched_entity.cfs_rq`).
#![no_std]
#![no_main]
#![allow(clippy::needless_pass_by_value, reason = "the tracepoint macro hands over the context")]

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::BtfTracePointContext;
use perf_common::events::Reason;
use perf_common::kernel::SchedOffsets;
use perf_common::sched::{Running, SchedCell};
use perf_common::workload::OTHER;
use perf_ebpf::count::{Events, add, observe};
use perf_ebpf::kernel::Ptr;
use perf_ebpf::{get, unset, who};

perf_ebpf::program!();
perf_ebpf::slice!(u64 => SchedCell, 4096);

#[unsafe(no_mangle)]
static SCHED: Global<SchedOffsets> = Global::new(unset());

#[map]
static RUNNING: PerCpuArray<Running> = PerCpuArray::with_max_entries(1, 0);

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
    if queued != 0 {
        let clock: u64 = next.follow(sched_at.cfs_rq).follow(sched_at.rq).load(sched_at.rq_clock);
        // SAFETY: a live map value.
        observe(unsafe { &raw mut (*cell.value).latency }, clock.saturating_sub(queued));
    }
    0
}
