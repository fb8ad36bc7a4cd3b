//! What the sockets slice counts per workload: UDP and UNIX sockets. TCP has its bytes from the connections themselves.

/// The kinds of socket, in the order of their numbers.
pub const PROTOCOLS: [&str; 2] = ["udp", "unix"];
pub const UDP: u32 = 0;
pub const UNIX: u32 = 1;

/// The key of a [`SocketCell`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SocketKey {
    pub workload: u64,
    /// An index into [`PROTOCOLS`].
    pub protocol: u64,
}

crate::pod!(SocketKey: 16);

impl crate::cells::Key for SocketKey {
    #[inline(always)]
    fn hash(&self) -> u64 {
        self.workload ^ self.protocol
    }

    #[inline(always)]
    fn same(&self, other: &Self) -> bool {
        self.workload == other.workload && self.protocol == other.protocol
    }
}

/// Calls, or messages of a call that has many, and what they moved; by [`crate::l7::Direction`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SocketCell {
    pub operations: [u64; 2],
    pub bytes: [u64; 2],
}

crate::pod!(SocketCell: 32);

/// An element of the table of cells.
pub type SocketSlot = crate::cells::Slot<SocketKey, SocketCell>;
crate::pod!(SocketSlot: 48);
