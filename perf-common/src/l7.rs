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
/// What connections are counted by when they are recognised: the protocols above that are told by their content, in their order
/// and without the unknown one, and what is not looked at any further.
pub const RECOGNISED: [&str; 7] = ["http", "postgresql", "redis", "mysql", "tls", "http2", "opaque"];
pub const TLS: u32 = 4;
pub const HTTP2: u32 = 5;
pub const OPAQUE: u32 = 6;

/// The place of a protocol in [`RECOGNISED`].
#[inline(always)]
pub const fn recognised(protocol: u8) -> u32 {
    protocol as u32 - 1
}

/// The place in [`RECOGNISED`] of what begins with these bytes, the first one lowest, and is none of the protocols above.
#[inline(always)]
pub fn foreign(head: u64) -> u32 {
    const PRI: u64 = u64::from_le_bytes(*b"PRI * HT");
    if is_tls(head) {
        TLS
    } else if head == PRI {
        HTTP2
    } else {
        OPAQUE
    }
}

/// A TLS handshake record of any version: `16 03 01` to `16 03 04`. With a third byte of 0 it would be the length of a
/// `MySQL` packet.
#[inline(always)]
pub const fn is_tls(word: u64) -> bool {
    let version = word >> 16 & 0xff;
    word & 0xffff == 0x0316 && version >= 1 && version <= 4
}

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
