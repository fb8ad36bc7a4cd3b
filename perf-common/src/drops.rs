//! What the drops slice counts by.

/// Where a packet was dropped, and why.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DropKey {
    /// By the kernel's `skb_drop_reason`, or one of those below.
    pub reason: u32,
    /// Inode of the network namespace; 0 where the packet does not tell.
    pub netns: u32,
}

crate::pod!(DropKey: 8);

/// `SKB_NOT_DROPPED_YET`: 0 by its nature.
pub const NOT_DROPPED: u32 = 0;
/// This kernel tells no reasons.
pub const NO_REASON: u32 = u32::MAX;
/// For what finds no cell of its own.
pub const OTHER: DropKey = DropKey { reason: u32::MAX - 1, netns: 0 };

/// An element of the table of counts.
pub type DropSlot = crate::cells::Slot<DropKey, u64>;
crate::pod!(DropSlot: 16);

impl crate::cells::Key for DropKey {
    #[inline(always)]
    fn hash(&self) -> u64 {
        (u64::from(self.netns) << 32 | u64::from(self.reason)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
    }

    #[inline(always)]
    fn same(&self, other: &Self) -> bool {
        self.reason == other.reason && self.netns == other.netns
    }
}
