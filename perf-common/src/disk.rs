//! What the disk slice counts per workload, block device and operation.

use crate::histogram::{CELLS, Histogram};

/// The operations with a label of their own, in the order of their numbers.
pub const OPERATIONS: [&str; 5] = ["read", "write", "flush", "discard", "other"];
/// The last of them: writing of zeros, secure erasure, zone commands, and whatever a driver sends itself.
pub const OTHER_OPERATION: u32 = 4;

/// The key of a [`DiskCell`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DiskKey {
    pub workload: u64,
    /// As the kernel has it inside: the major number above [`MINOR_BITS`] bits of the minor one.
    pub device: u32,
    /// An index into [`OPERATIONS`].
    pub operation: u32,
}

crate::pod!(DiskKey: 16);

/// `MINORBITS` of the kernel's `dev_t`.
pub const MINOR_BITS: u32 = 20;

/// One workload's requests of one kind to one device.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DiskCell {
    /// Bytes of completed requests, errors left out.
    pub bytes: u64,
    pub errors: u64,
    /// From the request's making until the driver gets it: merging, the scheduler, a full device.
    pub queue: Histogram,
    /// From then until it is complete.
    pub device: Histogram,
}

crate::pod!(DiskCell: 16 + 2 * 8 * (1 + CELLS));

/// An element of the table of cells.
pub type DiskSlot = crate::cells::Slot<DiskKey, DiskCell>;
crate::pod!(DiskSlot: 16 + size_of::<DiskCell>());

impl crate::cells::Key for DiskKey {
    #[inline(always)]
    fn hash(&self) -> u64 {
        let rest = u64::from(self.device) << 3 | u64::from(self.operation);
        (self.workload ^ rest.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
    }

    #[inline(always)]
    fn same(&self, other: &Self) -> bool {
        self.workload == other.workload && self.device == other.device && self.operation == other.operation
    }
}

/// A request that is not complete yet, or one that was: its place in memory is used again, and so is this.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Pending {
    /// `CLOCK_MONOTONIC` nanoseconds of when the driver got it; 0 while it waits for that, and when it is complete.
    pub issued: u64,
    /// How long it had waited by then, in nanoseconds.
    pub queued: u64,
    /// Where its cell is in the table, plus one; 0 for nowhere, and when it is complete.
    pub cell: u64,
}

crate::pod!(Pending: 24);
