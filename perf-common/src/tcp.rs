//! What the TCP slice counts per workload and destination.

use crate::histogram::Histogram;

/// How a connection attempt ended.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectResult {
    Ok = 0,
    Refused = 1,
    TimedOut = 2,
    Unreachable = 3,
    /// The program gave up before an answer came.
    Aborted = 4,
    Error = 5,
}

/// Every result with its label, in the order of its counter.
pub const CONNECT_RESULTS: [&str; 6] = ["ok", "refused", "timed_out", "unreachable", "aborted", "error"];

/// The key of a [`TcpCell`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TcpKey {
    pub workload: u64,
    /// [`crate::peer::Peer::id`] of the remote end.
    pub peer: u64,
}

crate::pod!(TcpKey: 16);

/// One workload's connections to one destination.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TcpCell {
    /// Ended connection attempts by [`ConnectResult`].
    pub connects: [u64; CONNECT_RESULTS.len()],
    pub accepts: u64,
    /// Connections that became established (or were found so at start) and ones that ceased to be.
    pub opened: u64,
    pub closed: u64,
    pub retransmits: u64,
    pub resets_sent: u64,
    pub resets_received: u64,
    /// From SYN to established.
    pub connect: Histogram,
    /// From established to closing.
    pub lifetime: Histogram,
}

crate::pod!(TcpCell: 8 * 12 + 2 * 8 * (1 + crate::histogram::CELLS));

/// An element of the table of cells.
pub type TcpSlot = crate::cells::Slot<TcpKey, TcpCell>;
crate::pod!(TcpSlot: 16 + size_of::<TcpCell>());

impl crate::cells::Key for TcpKey {
    #[inline(always)]
    fn hash(&self) -> u64 {
        (self.workload ^ self.peer.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
    }

    #[inline(always)]
    fn same(&self, other: &Self) -> bool {
        self.workload == other.workload && self.peer == other.peer
    }
}

/// What is kept per socket while it lives.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct TcpSocket {
    pub key: TcpKey,
    /// `CLOCK_MONOTONIC` nanoseconds of the SYN, then of being established; 0 where the agent came later.
    pub since: u64,
    /// One of the `PHASE_` constants.
    pub phase: u64,
}

crate::pod!(TcpSocket: 32);

/// A SYN is out.
pub const PHASE_CONNECTING: u64 = 1;
/// Counted in `opened`.
pub const PHASE_OPEN: u64 = 2;
/// Counted in `closed`.
pub const PHASE_CLOSED: u64 = 3;

/// Where a listening socket is found again when a connection arrives in interrupt context.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Listener {
    /// Inode of the network namespace.
    pub netns: u32,
    pub port: u32,
}

crate::pod!(Listener: 8);
