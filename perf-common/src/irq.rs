//! What each CPU keeps of its interrupts.

/// Room for the vectors of softirqs; kernels have ten.
pub const VECTORS: usize = 16;

/// One CPU's interrupts. The programs on softirqs write what begins with `soft`, those on hard interrupts the rest: these come
/// in between those, on the same CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct IrqCpu {
    /// By vector.
    pub soft: [IrqSum; VECTORS],
    /// `CLOCK_MONOTONIC` nanoseconds since which a softirq runs; 0 outside of one.
    pub soft_since: u64,
    /// `hard.ns` at that moment.
    pub soft_hard_ns: u64,
    pub soft_ended: u64,
    /// Ends without a beginning, as there are when the programs are attached.
    pub soft_unbegun: u64,
    pub hard: IrqSum,
    pub hard_since: u64,
    pub hard_ended: u64,
    pub hard_unbegun: u64,
}

crate::pod!(IrqCpu: 16 * VECTORS + 8 * 9);

/// Interrupts of one kind.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct IrqSum {
    /// Those that have begun.
    pub count: u64,
    /// What those took that have ended.
    pub ns: u64,
}

crate::pod!(IrqSum: 16);
