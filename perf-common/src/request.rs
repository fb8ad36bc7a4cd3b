//! Requests that are worth a look of their own: a few a second of those that failed or were slow.

use crate::db::SYSTEMS;

/// The `protocol` of a [`Request`]; from [`DATABASES`] on those of [`SYSTEMS`], in their order.
pub const HTTP: u8 = 0;
pub const DNS: u8 = 1;
pub const DATABASES: u8 = 2;
/// How many there are.
pub const PROTOCOLS: usize = DATABASES as usize + SYSTEMS.len();

/// Flags: whoever answered it saw it, not whoever asked.
pub const SERVER: u8 = 1;
pub const FAILED: u8 = 2;
/// The remote end is to be asked of the socket, whose address stands in the place of the peer.
pub const BY_SOCKET: u8 = 4;

/// In the place of a threshold: nothing is sampled.
pub const NEVER: u64 = u64::MAX;

/// Which requests are sampled; fixed when the programs are loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Those that take so many nanoseconds, besides the failed ones; [`NEVER`] for none at all.
    pub slower_than: u64,
    /// Whether the kernel lets programs read its memory by address, as the remote end of a socket is read then. Lockdown
    /// for confidentiality forbids it.
    pub by_address: u64,
}

crate::pod!(Wanted: 16);

impl Default for Wanted {
    fn default() -> Self {
        Self { slower_than: NEVER, by_address: 0 }
    }
}

/// One request as it goes up: numbers alone, under which user space has names.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// `CLOCK_MONOTONIC` nanoseconds of when it was counted, which is when it ended, but for a moment.
    pub at: u64,
    /// Nanoseconds.
    pub took: u64,
    /// Whose it is ([`crate::workload::Workload::id`]).
    pub workload: u64,
    /// The route, the statement or verb, or the domain, as the keys of the cells have them; 0 at an HTTP client.
    pub what: u64,
    /// At a client, the remote end ([`crate::peer::Peer::id`]); else 0.
    pub peer: u64,
    /// The remote end itself, where the socket was asked: an address as [`crate::peer::Peer`] has it, and a port in host order,
    /// which is 0 where nothing is known.
    pub remote: [u32; 4],
    pub port: u16,
    /// The status code of HTTP, an index into [`crate::dns::RCODES`], or 1 for an error.
    pub status: u16,
    /// How many equal ones it stands for: those of one call that were answered together.
    pub count: u32,
    pub protocol: u8,
    pub flags: u8,
    /// The method of HTTP, or the type of a question.
    pub kind: u8,
    pub pad: [u8; 5],
}

crate::pod!(Request: 72);

/// The smaller parts of a [`Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Small {
    pub protocol: u8,
    pub flags: u8,
    pub status: u16,
    pub kind: u8,
    pub count: u32,
}

const MOST: u64 = (1 << 24) - 1;

impl Small {
    /// All of it in one number, because a function of a BPF program takes five. A count beyond 24 bits is cut off there.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        let count = self.count as u64;
        let count = if count > MOST { MOST } else { count };
        self.protocol as u64
            | (self.flags as u64) << 8
            | (self.status as u64) << 16
            | (self.kind as u64) << 32
            | count << 40
    }

    #[inline(always)]
    pub const fn unpack(packed: u64) -> Self {
        Self {
            protocol: packed as u8,
            flags: (packed >> 8) as u8,
            status: (packed >> 16) as u16,
            kind: (packed >> 32) as u8,
            count: (packed >> 40) as u32,
        }
    }
}

/// The flags of a request, as most protocols have them: a client knows its peer, a server has to look.
#[inline(always)]
pub const fn flags(is_server: bool, failed: bool) -> u8 {
    let failed = if failed { FAILED } else { 0 };
    if is_server { SERVER | BY_SOCKET | failed } else { failed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_out_again() {
        let small = Small { protocol: DATABASES + 1, flags: SERVER | FAILED, status: 503, kind: 9, count: 7 };
        assert_eq!(Small::unpack(small.pack()), small);
        let many = Small { count: u32::MAX, ..small };
        assert_eq!(Small::unpack(many.pack()), Small { count: MOST as u32, ..small });
    }
}
