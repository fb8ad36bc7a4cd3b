//! What the sockets slice counts per workload: UDP and UNIX sockets. TCP has its bytes from the connections themselves.

/// The kinds of socket, in the order of their numbers.
pub const PROTOCOLS: [&str; 2] = ["udp", "unix"];
pub const UDP: u32 = 0;
pub const UNIX: u32 = 1;

/// Of one workload and an index into [`PROTOCOLS`]: calls, or messages of a call that has many, and what they moved; by [`crate::l7::Direction`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SocketCell {
    pub operations: [u64; 2],
    pub bytes: [u64; 2],
}

crate::pod!(SocketCell: 32);

/// An element of the table of cells.
pub type SocketSlot = crate::cells::Slot<crate::cells::ByProtocol, SocketCell>;
crate::pod!(SocketSlot: 48);
