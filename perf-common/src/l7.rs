//! What all protocols above TCP share: a socket call, whose it is, and which protocol a connection speaks.

/// The direction of a socket call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    Received = 0,
    Sent = 1,
}

/// Which end of the connection this socket is.
pub const ROLE_UNKNOWN: u8 = 0;
/// Requests are received.
pub const ROLE_SERVER: u8 = 1;
/// Requests are sent.
pub const ROLE_CLIENT: u8 = 2;
/// Not HTTP/1, or no longer: never looked at again.
pub const ROLE_OPAQUE: u8 = 3;

/// Which protocol a connection speaks; 0 as long as nobody knows.
pub const PROTOCOL_UNKNOWN: u8 = 0;
pub const HTTP: u8 = 1;
pub const POSTGRES: u8 = 2;
pub const REDIS: u8 = 3;
pub const MYSQL: u8 = 4;
/// Not told by what a connection's bytes are, but by its kind of socket and its ports.
pub const DNS: u8 = 5;
/// How many there are, unknown included; the length of the arrays of programs.
pub const PROTOCOLS: u32 = 6;

/// One socket call on its way through a protocol's `step`.
#[derive(Clone, Copy)]
pub struct Call {
    pub direction: Direction,
    /// Bytes that the call moved, and how many of them are done.
    pub total: u32,
    pub done: u32,
    /// When its first byte was there: the arrival of a packet, or the beginning of a send.
    pub begin: u64,
    /// When it ended.
    pub now: u64,
}
