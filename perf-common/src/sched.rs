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
    /// From being ready to run until running.
    pub latency: Histogram,
}

crate::pod!(SchedCell: 8 * (4 + CELLS));

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
