//! What the scheduler slice counts per workload.

use crate::histogram::{CELLS, Histogram};

/// Everything one workload's tasks did on the CPUs. One cell, so that a switch costs one look-up per side.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SchedCell {
    /// Nanoseconds on a CPU.
    pub cpu: u64,
    /// Switches because the task had to wait for something.
    pub voluntary: u64,
    /// Switches because something else was to run.
    pub involuntary: u64,
    /// Nanoseconds from leaving a CPU to being ready to run again, by [`OFF_CPU`].
    pub off_cpu: [u64; OFF_CPU.len()],
    /// From being ready to run until running.
    pub latency: Histogram,
}

crate::pod!(SchedCell: 8 * (3 + OFF_CPU.len() + 1 + CELLS));

/// An element of the table of cells, by workload.
pub type SchedSlot = crate::cells::Slot<u64, SchedCell>;
crate::pod!(SchedSlot: 8 + size_of::<SchedCell>());

/// What is running on a CPU now: a task that is never switched out is counted by the reader from this.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Running {
    /// One more than where its workload's cell is in the table; 0 while idle.
    pub cell: u64,
    /// `CLOCK_MONOTONIC` nanoseconds since which it runs.
    pub since: u64,
}

crate::pod!(Running: 16);

/// What a task that is not ready to run waits for, in the order of the numbers below.
pub const OFF_CPU: [&str; 3] = ["io", "lock", "sleep"];
/// A block device, as the kernel accounts it.
pub const IO: u32 = 0;
/// A futex, or a lock inside of the kernel.
pub const LOCK: u32 = 1;
/// Anything else: a timer, a socket, a pipe, a child.
pub const SLEEP: u32 = 2;

/// A task that waits, found by the low bits of its thread id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Sleeper {
    /// `CLOCK_MONOTONIC` nanoseconds of when it left its CPU; 0 where nobody waits.
    pub since: u64,
    /// Which task it is, because another may have the same low bits.
    pub pid: u32,
    /// Where its workload's cell is in the table, above [`KIND_BITS`] bits of what it waits for.
    pub cell_and_kind: u32,
}

crate::pod!(Sleeper: 16);

pub const KIND_BITS: u32 = 2;

impl Sleeper {
    #[inline(always)]
    pub const fn cell(&self) -> u32 {
        self.cell_and_kind >> KIND_BITS
    }

    #[inline(always)]
    pub const fn kind(&self) -> u32 {
        self.cell_and_kind & ((1 << KIND_BITS) - 1)
    }
}
