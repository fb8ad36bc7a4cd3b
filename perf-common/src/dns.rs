//! DNS as it passes through socket calls: what a message asks, and which lookups wait for their answers.
//!
//! [`Message`] reads the header and the question of a datagram; [`flight::Flight`] pairs queries with answers. Any datagram may
//! come here, so the reading is strict where it is cheap: what is no well-formed query with one question counts for nothing.
//! On other ports than 53 even a well-formed query counts only once its answer has come.

pub mod flight;
pub mod stream;

use crate::bytes::{Window, opaque};
use crate::workload::mix;

/// The header before the question.
pub const HEAD: usize = 12;
/// A name on the wire, with its root label.
pub const MAX_NAME: usize = 255;
/// As many bytes of a message as decide: its header and the longest question.
pub const NEED: usize = HEAD + MAX_NAME + 4;

/// What a datagram is.
pub const NONE: u8 = 0;
pub const QUERY: u8 = 1;
pub const ANSWER: u8 = 2;

/// The domain under which everything is counted that has no name of its own.
pub const OTHER: u64 = 0;

/// Types of questions that have a label of their own, in the order of [`type_index`].
pub const QTYPES: [&str; 12] =
    ["other", "A", "AAAA", "PTR", "SRV", "MX", "TXT", "CNAME", "NS", "SOA", "HTTPS", "ANY"];

/// Response codes that have a label of their own, in the order of [`rcode_index`].
pub const RCODES: [&str; 7] = ["other", "NOERROR", "NXDOMAIN", "SERVFAIL", "REFUSED", "FORMERR", "NOTIMP"];

/// In the place of a response code: no answer came in time.
pub const TIMEOUT: u8 = RCODES.len() as u8;
/// How many outcomes a lookup can have.
pub const OUTCOMES: usize = RCODES.len() + 1;

/// The position of a question's type in [`QTYPES`].
#[inline(always)]
pub const fn type_index(qtype: u16) -> u8 {
    match qtype {
        1 => 1,
        28 => 2,
        12 => 3,
        33 => 4,
        15 => 5,
        16 => 6,
        5 => 7,
        2 => 8,
        6 => 9,
        65 => 10,
        255 => 11,
        _ => 0,
    }
}

/// The position of a response code in [`RCODES`].
#[inline(always)]
pub const fn rcode_index(rcode: u8) -> u8 {
    match rcode {
        0 => 1,
        3 => 2,
        2 => 3,
        5 => 4,
        1 => 5,
        4 => 6,
        _ => 0,
    }
}

/// Whether this outcome tells that the lookup failed. That a name does not exist is an answer like any other.
#[inline(always)]
pub const fn is_failure(outcome: u8) -> bool {
    outcome == rcode_index(2) || outcome == rcode_index(5) || outcome == TIMEOUT
}

/// Zone transfers answer one query with many messages.
#[inline(always)]
pub const fn is_transfer(qtype: u16) -> bool {
    qtype == 251 || qtype == 252
}

/// Which end of a lookup a socket is.
pub const ROLE_CLIENT: u8 = 1;
pub const ROLE_SERVER: u8 = 2;

/// The key of a [`DnsCell`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DnsKey {
    pub workload: u64,
    /// [`Message::name`], or [`OTHER`].
    pub domain: u64,
    /// An index into [`QTYPES`].
    pub qtype: u8,
    /// An index into [`RCODES`], or [`TIMEOUT`].
    pub outcome: u8,
    /// [`ROLE_CLIENT`] or [`ROLE_SERVER`].
    pub role: u8,
    pub pad: [u8; 5],
}

crate::pod!(DnsKey: 24);

impl crate::cells::Key for DnsKey {
    #[inline(always)]
    fn hash(&self) -> u64 {
        let rest = u64::from(self.qtype) | u64::from(self.outcome) << 4 | u64::from(self.role) << 7;
        let all = self.workload ^ self.domain.rotate_left(32) ^ rest;
        all.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
    }

    #[inline(always)]
    fn same(&self, other: &Self) -> bool {
        self.workload == other.workload
            && self.domain == other.domain
            && self.qtype == other.qtype
            && self.outcome == other.outcome
            && self.role == other.role
    }
}

/// Lookups with one outcome.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DnsCell {
    /// Queries that were sent again before the answer came.
    pub retransmits: u64,
    /// From the first query to the answer.
    pub duration: crate::histogram::Histogram,
}

impl DnsCell {
    pub const EMPTY: Self = Self { retransmits: 0, duration: crate::histogram::Histogram::EMPTY };

    /// Adds another cell to this one.
    pub fn merge(&mut self, other: &Self) {
        self.retransmits += other.retransmits;
        self.duration.merge(&other.duration);
    }
}

crate::pod!(DnsCell: 8 + 8 * (1 + crate::histogram::CELLS));

/// An element of the table.
pub type DnsSlot = crate::cells::Slot<DnsKey, DnsCell>;

crate::pod!(DnsSlot: 24 + 8 + 8 * (1 + crate::histogram::CELLS));

/// The name that a new fingerprint stands for, as it is on the wire: the one thing that leaves the kernel, and only where
/// `probes.dns.domains` asks for it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NameSample {
    pub name: u64,
    pub len: u64,
    /// The first byte lowest in each word; zero behind its end.
    pub wire: [u64; 32],
}

crate::pod!(NameSample: 16 + 256);

/// Header and question of one message.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// A hash of the name in lower case.
    pub name: u64,
    /// The same with type and class; 0 in an answer that does not repeat the question.
    pub question: u64,
    pub txid: u16,
    pub qtype: u16,
    /// Bytes of the name on the wire, its root label included.
    pub name_len: u16,
    /// [`NONE`], [`QUERY`] or [`ANSWER`].
    pub kind: u8,
    pub rcode: u8,
    /// Whether there are as many bytes as the header makes expect and no reserved bit is set: what foreign protocols hardly
    /// ever are by chance.
    pub plausible: u8,
    pub has_question: u8,
    /// Whether records follow the question.
    pub has_more: u8,
    pub pad: u8,
    pub reserved: u32,
}

const PRIME: u64 = 0x0000_0100_0000_01b3;
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;

const RESPONSE: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const AUTHORITATIVE: u16 = 0x0400;
const TRUNCATED: u16 = 0x0200;
const AVAILABLE: u16 = 0x0080;
const RESERVED: u16 = 0x0040;
const RCODE: u16 = 0x000f;

impl Message {
    pub const EMPTY: Self = Self {
        name: 0,
        question: 0,
        txid: 0,
        qtype: 0,
        name_len: 0,
        kind: NONE,
        rcode: 0,
        plausible: 0,
        has_question: 0,
        has_more: 0,
        pad: 0,
        reserved: 0,
    };

    /// Reads the message at the start of the window, of which `len` bytes are there and `total` were sent.
    #[inline(always)]
    pub fn read(&mut self, window: &Window, len: usize, total: usize) {
        self.head(window, len);
        if self.has_question != 0 {
            self.question(window, len, total);
        }
    }

    /// The header; what it cannot be is [`NONE`].
    #[inline(always)]
    pub fn head(&mut self, window: &Window, len: usize) {
        *self = Self::EMPTY;
        if len < HEAD {
            return;
        }
        let (first, second) = (window.word(0), window.word(8));
        let field = |word: u64, at: u32| ((word >> (16 * at)) as u16).swap_bytes();
        let flags = field(first, 1);
        let (questions, answers) = (field(first, 2), field(first, 3));
        let (authorities, additional) = (field(second, 0), field(second, 1));
        self.txid = field(first, 0);
        self.rcode = (flags & RCODE) as u8;
        self.has_more = u8::from(answers | authorities | additional != 0);
        if flags & OPCODE != 0 {
            return;
        }
        if flags & RESPONSE != 0 {
            self.plausible = u8::from(flags & RESERVED == 0);
            // A server that understood nothing repeats no question, but then says so.
            if questions == 1 || questions == 0 && self.rcode != 0 {
                self.kind = ANSWER;
                self.has_question = questions as u8;
            }
        } else if flags & (TRUNCATED | RCODE) == 0
            && questions == 1
            && answers == 0
            && authorities <= 1
            && additional <= 4
        {
            self.plausible = u8::from(flags & (AUTHORITATIVE | AVAILABLE | RESERVED) == 0);
            self.kind = QUERY;
            self.has_question = 1;
        }
    }

    /// The one question; a name that is none (a pointer, a label or name too long, an end before its end) makes the message
    /// [`NONE`].
    #[inline(always)]
    pub fn question(&mut self, window: &Window, len: usize, total: usize) {
        // Position and what is left of the label in one number: one trip through memory a byte.
        let mut state = window.forget(HEAD as u64);
        let mut hash = BASIS;
        let mut last = u64::MAX;
        for _ in 0..MAX_NAME {
            let pos = state & 0xffff_ffff;
            let left = state >> 32;
            let byte = u64::from(window.byte(pos as usize));
            // Branch-free, because each branch here would be walked in all of 255 rounds.
            let is_length = less(left, 1);
            if is_length & (less(byte, 1) | less(63, byte)) != 0 {
                last = byte;
                break;
            }
            let is_capital = less(64, byte) & less(byte, 91);
            hash = (hash ^ (byte | is_capital << 5)).wrapping_mul(PRIME);
            let within = is_length.wrapping_neg() & byte | is_length.wrapping_sub(1) & left.wrapping_sub(1);
            state = window.forget(within << 32 | (pos + 1));
        }
        let last = window.forget(last);
        let end = window.forget(state & 0xffff_ffff) as usize + 1;
        if last != 0 || end + 4 > len {
            self.kind = NONE;
            return;
        }
        let rest = window.word(end);
        self.qtype = (rest as u16).swap_bytes();
        self.name = hash | u64::from(hash == OTHER);
        let question = mix(hash ^ (rest & 0xffff_ffff) << 16);
        self.question = question | u64::from(question == 0);
        self.name_len = (end - HEAD) as u16;
        let ends = u8::from(total == end + 4);
        self.plausible &= ends ^ self.has_more;
    }
}

/// 1 if `a` is less than `b`, without a branch; both are small.
#[inline(always)]
fn less(a: u64, b: u64) -> u64 {
    opaque(a.wrapping_sub(b)) >> 63
}

/// Writes a name on the wire as people write it, in lower case: labels with dots between them, and `\DDD` for bytes that are
/// not printable, as in zone files.
pub fn describe(wire: &[u8], mut out: impl FnMut(&[u8])) {
    let mut rest = wire;
    let mut begun = false;
    while let Some((&length, behind)) = rest.split_first() {
        let label = behind.get(..length as usize).unwrap_or(behind);
        if length == 0 || label.is_empty() {
            break;
        }
        if begun {
            out(b".");
        }
        begun = true;
        for &byte in label {
            match byte.to_ascii_lowercase() {
                byte @ (b'.' | b'\\') => out(&[b'\\', byte]),
                byte @ b'!'..=b'~' => out(&[byte]),
                byte => out(&[b'\\', b'0' + byte / 100, b'0' + byte / 10 % 10, b'0' + byte % 10]),
            }
        }
        rest = behind.get(length as usize..).unwrap_or_default();
    }
    if !begun {
        out(b".");
    }
}

#[cfg(any(test, feature = "memory"))]
pub mod memory;
#[cfg(test)]
mod tests;
