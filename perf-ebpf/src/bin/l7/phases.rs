//! Where the time of a server's requests goes: in its socket, waiting for a CPU, on one, or elsewhere.
//!
//! Maps: a table of [`PhaseCell`] by workload and protocol; `SERVING` (the send call that is under way on a CPU).
//! Metrics: `request_phase_seconds_total`.
//! Needs: what the scheduler slice needs.

use aya_ebpf::Global;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use perf_common::cells::ByProtocol;
use perf_common::http::Conn;
use perf_common::kernel::SchedOffsets;
use perf_common::l7::{ROLE_CLIENT, ROLE_SERVER};
use perf_common::phases::{PhaseCell, Progress, Serving};
use perf_common::workload::OTHER;
use perf_ebpf::count::add;
use perf_ebpf::kernel::Ptr;
use perf_ebpf::{get, unset, who};

use super::TASK;

perf_ebpf::table!(ByProtocol => PhaseCell, 2048, PH_INDEX, PH_CELLS, PH_FREE, PH_RECENT);

/// All zero where the kernel lacks something.
#[unsafe(no_mangle)]
static SCHED: Global<SchedOffsets> = Global::new(unset());

#[map]
static SERVING: PerCpuArray<Serving> = PerCpuArray::with_max_entries(1, 0);

/// A connection was read from.
#[inline(always)]
pub(super) fn read(conn: &mut Conn, now: u64) {
    if conn.role == ROLE_CLIENT || conn.turn.open != 0 || get(&SCHED).has_progress == 0 {
        return;
    }
    let task = who::current(get(&TASK));
    conn.turn.begin(now, task.load(get(&TASK).pid), progress(task, now));
}

/// A server writes to a connection.
#[inline(always)]
pub(super) fn written(conn: &mut Conn, now: u64) {
    if conn.role != ROLE_SERVER || get(&SCHED).has_progress == 0 {
        return;
    }
    let Some(serving) = SERVING.get_ptr_mut(0) else { return };
    let task = who::current(get(&TASK));
    let now_serving = conn.turn.serving(now, task.load(get(&TASK).pid), progress(task, now));
    // SAFETY: this CPU's element. Where tasks are preempted in here, another may take it: those who read it look whether it is theirs.
    unsafe { *serving = now_serving };
}

/// What a running task has done so far.
#[inline(always)]
fn progress(task: Ptr, now: u64) -> Progress {
    let at = get(&SCHED);
    let rq = task.follow(at.cfs_rq).follow(at.rq);
    let (clock, task_clock): (u64, u64) = (rq.load(at.rq_clock), rq.load(at.rq_clock_task));
    let (ran, counted): (u64, u64) = (task.load(at.sum_exec), task.load(at.exec_start));
    // What it has run is counted up to `exec_start`, by a clock that leaves out interrupts; from there on it is running now. What
    // that clock and this one differ by falls out of the difference of two.
    let since = now.wrapping_sub(counted.wrapping_add(clock.wrapping_sub(task_clock)));
    Progress { ran: ran.wrapping_add(since), waited: task.load(at.run_delay) }
}

/// Adds the time of `count` requests that a server answered; `rest` is their protocol and, above 32 bits, how many.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn note_phases(workload: u64, rest: u64, start: u64, end: u64) -> u64 {
    let Some(serving) = SERVING.get_ptr(0) else { return 0 };
    // SAFETY: this CPU's element.
    let split = unsafe { (*serving).split(start, end) };
    let key = ByProtocol { workload, protocol: rest & 0xffff_ffff };
    let other = ByProtocol { workload: OTHER, ..key };
    let Some(cell) = TABLE.find_or(&key, &other) else { return 0 };
    for (i, part) in split.into_iter().enumerate() {
        // SAFETY: a field of the cell.
        add(unsafe { (&raw mut (*cell.value).spent).cast::<u64>().add(i) }, part * (rest >> 32));
    }
    1
}

/// The same for one end of a connection, which need not be a server's.
#[inline(always)]
pub(super) fn note(role: u8, workload: u64, protocol: u8, count: u32, (start, end): (u64, u64)) {
    if role == ROLE_SERVER {
        note_phases(workload, u64::from(protocol) | u64::from(count) << 32, start, end);
    }
}
