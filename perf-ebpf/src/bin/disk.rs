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
use aya_ebpf::maps::LruHashMap;
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

/// Large enough for what devices can hold: a request is a tag of one of a device's queues, whose memory stays where it is. Those of
/// devices that are gone go first.
#[map]
static PENDING: LruHashMap<u64, Pending> = LruHashMap::with_max_entries(16_384, 0);

/// The low byte of a request's flags, `REQ_OP_MASK`.
const OPERATION: u32 = 0xff;
/// The group that every hierarchy begins with: its id tells of nobody.
const ROOT_GROUP: u64 = 1;

#[btf_tracepoint(function = "block_rq_insert")]
fn inserted(ctx: BtfTracePointContext) -> i32 {
    let request = request(&ctx);
    if let Some(pending) = PENDING.get_ptr(request.key()) {
        // SAFETY: a live entry.
        if unsafe { (*pending).cell != 0 && (*pending).issued != 0 } {
            // The driver gave it back, and a thread of the kernel's queues it again: whose it is, is known.
            return 0;
        }
    }
    begin(request, 0, 0);
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
        if pending.cell != 0 {
            // It was inserted; or issued before and had to be queued again.
            pending.issued = now;
            pending.queued = queued;
            return 0;
        }
    }
    begin(request, now, queued);
    0
}

/// Remembers a request.
#[inline(always)]
fn begin(request: Ptr, issued: u64, queued: u64) {
    let (key, workload) = key(request);
    let other = DiskKey { workload: OTHER, device: 0, operation: key.operation };
    let mut at = 0;
    if let Some(cell) = TABLE.find_or(&key, &other) {
        if cell.new {
            who::announce(&WORKLOADS, key.workload, &workload);
        }
        at = u64::from(cell.at) + 1;
    }
    let pending = Pending { issued, queued, cell: at };
    if let Some(known) = PENDING.get_ptr_mut(request.key()) {
        // In place: a fraction of what taking it out and putting it in would cost.
        // SAFETY: a live entry.
        unsafe { *known = pending };
        return;
    }
    // What finds no room shows when it is complete, as one that nobody saw begin.
    let _: Result<(), i32> = PENDING.insert(request.key(), pending, 0);
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
    let pending = PENDING.get_ptr_mut(request.key());
    // SAFETY: copied at once.
    let Pending { issued, queued, cell } = pending.map_or(Pending::default(), |pending| unsafe { *pending });
    let value = if cell == 0 { None } else { TABLE.at((cell - 1) as u32) };
    if done < left && !failed {
        // The first part of it. The rest completes by itself.
        if let Some(value) = value {
            // SAFETY: a field of the cell.
            add(unsafe { &raw mut (*value).bytes }, done.into());
        }
        return 0;
    }
    if left == 0 && cell == 0 && issued == 0 {
        // A flush that others share was the request that the driver got; this one only waited for it.
        return 0;
    }
    let events = Events(&EVENTS);
    events.seen();
    if let Some(pending) = pending {
        // SAFETY: a live entry.
        unsafe { *pending = Pending::default() };
    }
    let Some(value) = value else {
        // Issued before the agent came, or the table is full.
        let reason = if issued == 0 { Reason::NoRequest } else { Reason::MapFull };
        events.dropped(reason, 1);
        return 0;
    };
    if issued == 0 {
        events.dropped(Reason::NoRequest, 1);
        return 0;
    }
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: fields of the cell.
    unsafe {
        if failed {
            add(&raw mut (*value).errors, 1);
        } else {
            add(&raw mut (*value).bytes, done.into());
        }
        observe(&raw mut (*value).queue, queued);
        observe(&raw mut (*value).device, now.saturating_sub(issued));
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
fn key(request: Ptr) -> (DiskKey, Workload) {
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
    let device = major << MINOR_BITS | minor & ((1 << MINOR_BITS) - 1);
    (DiskKey { workload: workload.id(), device, operation }, workload)
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
