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

/// Why a segment was sent again.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retransmit {
    /// Nothing came back in time, a SYN's answer included.
    Timeout = 0,
    /// Acknowledgements told that it is missing.
    Fast = 1,
    /// To find out whether the last one sent arrived.
    Probe = 2,
}

/// Every kind with its label, in the order of its counter.
pub const RETRANSMITS: [&str; 3] = ["timeout", "fast", "probe"];

/// The states of a socket that are counted, by the kernel's number for them.
pub const STATES: [Option<&str>; 12] = [
    None,
    Some("established"),
    Some("syn_sent"),
    None,
    Some("fin_wait1"),
    Some("fin_wait2"),
    None,
    None,
    Some("close_wait"),
    Some("last_ack"),
    None,
    Some("closing"),
];

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
    /// Sockets that are in a state now, by its number. One that comes and goes at the same time leaves the sum right, so that a
    /// single element is less than nothing for a moment.
    pub states: [u64; STATES.len()],
    /// By [`Retransmit`].
    pub retransmits: [u64; RETRANSMITS.len()],
    pub resets_sent: u64,
    pub resets_received: u64,
    /// Bytes of payload that the peer has acknowledged, and that it has sent.
    pub sent: u64,
    pub received: u64,
    /// Connections whose peer took nothing at the walk of this number; only the walk writes them.
    pub zero_window: u64,
    pub zero_window_pass: u64,
    /// From SYN to established.
    pub connect: Histogram,
    /// From established to closing.
    pub lifetime: Histogram,
    /// The smoothed round-trip time of connections that moved bytes.
    pub rtt: Histogram,
}

crate::pod!(
    TcpCell: 8 * (CONNECT_RESULTS.len() + STATES.len() + RETRANSMITS.len() + 7) + 3 * 8 * (1 + crate::histogram::CELLS)
);

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
    pub phase: u32,
    /// The state in which it is counted; 0 for none.
    pub state: u32,
    /// How much of its bytes is in its cell already.
    pub sent: u64,
    pub received: u64,
    /// 1 where its own SYN is among what was acknowledged.
    pub syn: u32,
    /// How many of its segments that were sent again are in its cell.
    pub retransmits: u32,
    /// The walk that counted it as one whose peer takes nothing: it comes by once for each descriptor.
    pub window_pass: u64,
}

crate::pod!(TcpSocket: 64);

/// A SYN is out.
pub const PHASE_CONNECTING: u32 = 1;
/// Established, or closed by the peer only.
pub const PHASE_OPEN: u32 = 2;
/// Closed by this end as well, or never opened.
pub const PHASE_CLOSED: u32 = 3;

/// Where a listening socket is found again when a connection arrives in interrupt context.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Listener {
    /// Inode of the network namespace.
    pub netns: u32,
    pub port: u32,
}

crate::pod!(Listener: 8);

/// A listening socket, as the last walk over all of them found it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Backlog {
    pub workload: u64,
    /// Which walk that was.
    pub pass: u64,
    pub port: u32,
    /// Connections that wait to be accepted, and how many may.
    pub waiting: u32,
    pub limit: u32,
    /// Attempts that were turned away because one of its queues was full.
    pub drops: u32,
}

crate::pod!(Backlog: 32);
