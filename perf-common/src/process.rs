//! What the process slice counts per workload.

/// The largest number of a signal.
pub const SIGNALS: usize = 64;

/// How one workload's processes ended.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ProcessCell {
    /// With exit code 0.
    pub ok: u64,
    /// With another exit code.
    pub errors: u64,
    /// By a signal; the first element is that of signal 1.
    pub signals: [u64; SIGNALS],
    /// Those killed because memory ran out; they are among `signals` as well.
    pub oom_kills: u64,
}

crate::pod!(ProcessCell: 8 * (3 + SIGNALS));

impl ProcessCell {
    /// How many there were in all.
    pub fn ends(&self) -> u64 {
        self.ok + self.errors + self.signals.iter().sum::<u64>()
    }
}

/// An element of the table of cells, by workload.
pub type ProcessSlot = crate::cells::Slot<u64, ProcessCell>;
crate::pod!(ProcessSlot: 8 + size_of::<ProcessCell>());

/// A process that has ended, for kernels that do not say which of its threads was the last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ended {
    pub tgid: u64,
    /// When it was started, by the kernel's clock: numbers of processes are reused.
    pub start: u64,
}

crate::pod!(Ended: 16);
