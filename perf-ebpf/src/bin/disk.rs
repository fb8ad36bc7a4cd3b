//! Block I/O: how long requests waited for the driver, how long the device took, how much they moved, and whose they were.
//!
//! Hooks: `tp_btf/block_rq_issue` and `tp_btf/block_rq_complete`. `tp_btf/block_rq_insert` tells who made a request that a
//! scheduler holds back: what then hands it to the driver is often a thread of the kernel's.
//! Maps: a table of [`DiskCell`] by workload, device and operation, `PENDING` (request → [`Pending`]).
//! Metrics: `block_io_duration_seconds`, `block_io_queue_duration_seconds`, `block_io_bytes_total`, `block_io_errors_total`.
//! Needs: nothing newer than 5.10.
#![no_std]
#![no_main]
#![allow(clippy::needless_pass_by_value, reason = "the tracepoint macro hands over the context")]

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::BtfTracePointContext;
use perf_common::disk::{DiskCell, DiskKey, MINOR_BITS, OTHER_OPERATION, Pending};
use perf_common::events::Reason;
use perf_common::kernel::{ABSENT, DiskOffsets};
use perf_common::workload::{OTHER, Workload};
use perf_ebpf::count::{Events, add, observe};
use perf_ebpf::kernel::Ptr;
use perf_ebpf::{get, unset, who};

perf_ebpf::program!();
perf_ebpf::slice!(DiskKey => DiskCell, 1024);

#[unsafe(no_mangle)]
static DISK: Global<DiskOffsets> = Global::new(unset());

/// Large enough for what devices can hold: a request is a tag of one of a device's queues.
#[map]
static PENDING: HashMap<u64, Pending> = HashMap::with_max_entries(16_384, 0);

/// The low byte of a request's flags, `REQ_OP_MASK`.
const OPERATION: u32 = 0xff;
/// The group that every hierarchy begins with: its id tells of nobody.
const ROOT_GROUP: u64 = 1;

#[btf_tracepoint(function = "block_rq_insert")]
fn inserted(ctx: BtfTracePointContext) -> i32 {
    let request = request(&ctx);
    let pending = Pending { key: key(request), issued: 0, queued: 0 };
    let _: Result<(), i32> = PENDING.insert(request.key(), pending, 0);
    0
}

#[btf_tracepoint(function = "block_rq_issue")]
fn issued(ctx: BtfTracePointContext) -> i32 {
    let at = get(&DISK);
    let request = request(&ctx);
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // Zero where the queue's owner has switched statistics off.
    let made: u64 = request.load(at.start_time);
    let queued = if made == 0 { 0 } else { now.saturating_sub(made) };
    if let Some(pending) = PENDING.get_ptr_mut(request.key()) {
        // SAFETY: a live entry.
        let pending = unsafe { &mut *pending };
        // One that was issued before and not completed had to be queued again.
        pending.issued = now;
        pending.queued = queued;
        return 0;
    }
    let pending = Pending { key: key(request), issued: now, queued };
    // What finds no room shows when it is complete, as one that nobody saw begin.
    let _: Result<(), i32> = PENDING.insert(request.key(), pending, 0);
    0
}

#[btf_tracepoint(function = "block_rq_complete")]
fn completed(ctx: BtfTracePointContext) -> i32 {
    let at = get(&DISK);
    let request = Ptr::new(ctx.arg::<*const c_void>(0), get(&TASK).direct != 0);
    // A status of one byte from 6.1 on, an error number of less than 256 before.
    let status = ctx.arg::<u64>(1) as u8;
    let done = ctx.arg::<u64>(2) as u32;
    let left: u32 = request.load(at.data_len);
    let failed = status != 0;
    if done < left && !failed {
        // The first part of it. The rest completes by itself.
        let Some(pending) = PENDING.get_ptr_mut(request.key()) else { return 0 };
        // SAFETY: a live entry.
        if let Some(cell) = TABLE.find(unsafe { &(*pending).key }) {
            // SAFETY: a field of the cell.
            add(unsafe { &raw mut (*cell.value).bytes }, done.into());
        }
        return 0;
    }
    let events = Events(&EVENTS);
    events.seen();
    let Some(pending) = PENDING.get_ptr_mut(request.key()) else {
        // Issued before the agent came, or while `PENDING` was full.
        events.dropped(Reason::NoRequest, 1);
        return 0;
    };
    // SAFETY: copied at once.
    let Pending { key, issued, queued } = unsafe { *pending };
    let _: Result<(), i32> = PENDING.remove(request.key());
    if issued == 0 {
        events.dropped(Reason::NoRequest, 1);
        return 0;
    }
    let other = DiskKey { workload: OTHER, device: 0, operation: OTHER_OPERATION };
    let Some(cell) = TABLE.find_or(&key, &other) else {
        events.dropped(Reason::MapFull, 1);
        return 0;
    };
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: fields of the cell.
    unsafe {
        if failed {
            add(&raw mut (*cell.value).errors, 1);
        } else {
            add(&raw mut (*cell.value).bytes, done.into());
        }
        observe(&raw mut (*cell.value).queue, queued);
        observe(&raw mut (*cell.value).device, now.saturating_sub(issued));
    }
    events.recorded();
    0
}

/// The tracepoint's request, which had the queue before it until 5.11.
#[inline(always)]
fn request(ctx: &BtfTracePointContext) -> Ptr {
    let direct = get(&TASK).direct != 0;
    if get(&DISK).queue_first != 0 {
        Ptr::new(ctx.arg::<*const c_void>(1), direct)
    } else {
        Ptr::new(ctx.arg::<*const c_void>(0), direct)
    }
}

#[inline(always)]
fn key(request: Ptr) -> DiskKey {
    let at = get(&DISK);
    let flags: u32 = request.load(at.cmd_flags);
    let operation = flags & OPERATION;
    let operation = if operation < OTHER_OPERATION { operation } else { OTHER_OPERATION };
    let disk = if at.request_disk == ABSENT {
        request.follow(at.request_queue).follow(at.queue_disk)
    } else {
        request.follow(at.request_disk)
    };
    let (major, minor): (u32, u32) = (disk.load(at.major), disk.load(at.first_minor));
    let workload = workload(request);
    let id = workload.id();
    who::announce(&WORKLOADS, id, &workload);
    DiskKey { workload: id, device: major << MINOR_BITS | minor & ((1 << MINOR_BITS) - 1), operation }
}

/// Who made a request: the current task, but for a thread of the kernel's that writes back what others wrote, where the
/// kernel remembers their control group (version 2).
#[inline(always)]
fn workload(request: Ptr) -> Workload {
    let at = get(&DISK);
    let workload = who::workload(who::current(get(&TASK)), get(&TASK));
    if workload.kernel_thread == 0 || at.bio_blkg == ABSENT {
        return workload;
    }
    let group =
        request.follow(at.request_bio).follow(at.bio_blkg).follow(at.blkg_blkcg).follow(at.blkcg_cgroup);
    let id: u64 = group.follow(get(&TASK).cgroup_kn).load(get(&TASK).kernfs_node_id);
    if id <= ROOT_GROUP || id == workload.cgroup {
        return workload;
    }
    Workload { cgroup: id, ..workload }
}
