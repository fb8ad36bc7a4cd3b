//! Time in interrupts: softirqs by vector, and the handlers of devices' interrupts in all.
//!
//! Hooks: `tp_btf/softirq_entry`, `tp_btf/softirq_exit`, `tp_btf/irq_handler_entry`, `tp_btf/irq_handler_exit`.
//! Maps: `CPU`, an [`IrqCpu`] for each. No keys, nothing shared, nothing atomic: these fire tens of thousands of times a second.
//! Metrics: `irq_seconds_total`, `irqs_total`.
//! Needs: nothing newer than 5.10. The local timer and what CPUs tell each other have vectors without a handler: they are in
//! no count, and where they interrupt a softirq their time is its.
//! Cost: 74 ns for each end of a softirq by the kernel's statistics, of which an empty program takes 39; the clock is 15 of
//! the rest (6.18, two-core virtual machine).
#![no_std]
#![no_main]
#![allow(clippy::needless_pass_by_value, reason = "the tracepoint macro hands over the context")]

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::BtfTracePointContext;
use perf_common::bytes::opaque;
use perf_common::irq::{IrqCpu, IrqSum, VECTORS};

perf_ebpf::program!();

#[map]
static CPU: PerCpuArray<IrqCpu> = PerCpuArray::with_max_entries(1, 0);

#[btf_tracepoint(function = "softirq_entry")]
fn soft_entry(ctx: BtfTracePointContext) -> i32 {
    let Some(cpu) = CPU.get_ptr_mut(0) else { return 0 };
    let Some(soft) = vector(cpu, &ctx) else { return 0 };
    // SAFETY: this CPU's element, of which softirqs, which do not interrupt each other, write their part.
    unsafe {
        (*soft).count += 1;
        (*cpu).soft_hard_ns = (&raw const (*cpu).hard.ns).read_volatile();
        (*cpu).soft_since = bpf_ktime_get_ns();
    }
    0
}

#[btf_tracepoint(function = "softirq_exit")]
fn soft_exit(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(cpu) = CPU.get_ptr_mut(0) else { return 0 };
    let Some(soft) = vector(cpu, &ctx) else { return 0 };
    // SAFETY: as above.
    unsafe {
        if (*cpu).soft_since == 0 {
            (*cpu).soft_unbegun += 1;
            return 0;
        }
        // Between reading the clock and reading this an interrupt can come, a matter of a few nanoseconds in each softirq:
        // its time would be lost or be counted twice.
        let interrupted = (&raw const (*cpu).hard.ns).read_volatile().wrapping_sub((*cpu).soft_hard_ns);
        (*soft).ns += now.wrapping_sub((*cpu).soft_since).saturating_sub(interrupted);
        (*cpu).soft_since = 0;
        (*cpu).soft_ended += 1;
    }
    0
}

/// The sum of the vector that is a tracepoint's argument.
#[inline(always)]
fn vector(cpu: *mut IrqCpu, ctx: &BtfTracePointContext) -> Option<*mut IrqSum> {
    let vector = opaque(ctx.arg::<u64>(0) & 0xffff_ffff);
    if vector >= VECTORS as u64 {
        return None;
    }
    // SAFETY: bounded just above.
    Some(unsafe { (&raw mut (*cpu).soft).cast::<IrqSum>().add(vector as usize) })
}

#[btf_tracepoint(function = "irq_handler_entry")]
fn hard_entry(_: BtfTracePointContext) -> i32 {
    let Some(cpu) = CPU.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's element, and handlers run with interrupts off.
    unsafe {
        (*cpu).hard.count += 1;
        (*cpu).hard_since = bpf_ktime_get_ns();
    }
    0
}

#[btf_tracepoint(function = "irq_handler_exit")]
fn hard_exit(_: BtfTracePointContext) -> i32 {
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(cpu) = CPU.get_ptr_mut(0) else { return 0 };
    // SAFETY: as above.
    unsafe {
        if (*cpu).hard_since == 0 {
            (*cpu).hard_unbegun += 1;
            return 0;
        }
        (*cpu).hard.ns += now.wrapping_sub((*cpu).hard_since);
        (*cpu).hard_since = 0;
        (*cpu).hard_ended += 1;
    }
    0
}
