//! MySQL's and MariaDB's protocol as it passes through socket calls: what a connection has to remember, and what a call's bytes
//! mean.
//!
//! The shape is that of [`crate::postgres`]: [`Conn`] is one end of one connection, [`step`] moves it over the next part of a
//! call, [`message`] is the grammar. A command lasts from its packet's first byte to the last packet of its answer, all its
//! result sets included. A connection is recognised by the server's greeting; an old one by a statement in a packet with the
//! number 0, which counts for nothing before an answer with the number 1 has come.
//!
//! Encrypted and compressed connections are opaque, and so are those that replicate. The lexer takes a backslash to escape: the
//! statements of a connection whose server has not said so (in the status of any answer) count as `other`, lest a literal be
//! taken for a name.

#[cfg(any(test, feature = "memory"))]
pub mod memory;
pub mod message;

mod answer;

use crate::bytes::opaque;
use crate::db::Error;
use crate::events::Reason;
use crate::l7::{Call, Direction, ROLE_CLIENT, ROLE_OPAQUE, ROLE_SERVER, ROLE_UNKNOWN};
use crate::sql::OTHER;
use message::{
    ATTRIBUTES, BAD, BINLOG_DUMP, BINLOG_DUMP_GTID, BULK_EXECUTE, CLOSE, COMMAND, EXECUTE, FIRST, Found,
    GREETED, HEAD, Half, NOTHING, PREPARE, PROCESS_INFO, QUERY, QUIT, REPLY, SEND_LONG_DATA, SKIP, SQL,
    TABLE_DUMP,
};

/// How many commands may wait on one connection; clients rarely send one before the last one is answered. A power of two.
pub const DEPTH: usize = 8;
/// How many calls of a connection of unknown protocol are looked at.
const MAX_MISSES: u8 = 32;
/// After so many, only where the direction changes, as it does where a request begins.
const EAGER_MISSES: u8 = 4;
/// What broken framing counts for among them.
const BAD_COSTS: u8 = 8;
/// In [`Conn::last_direction`]: none yet.
const NO_DIRECTION: u8 = 2;

const REQUEST: usize = 0;
const RESPONSE: usize = 1;

/// How long a greeting may be.
const SHORTEST_GREETING: u32 = 40;
const LONGEST_GREETING: u32 = 600;

/// Capabilities in a client's answer to the greeting.
const COMPRESSES: u32 = 1 << 5;
const PROTOCOL_41: u32 = 1 << 9;
const ENCRYPTS: u32 = 1 << 11;
const COMPRESSES_BY_ZSTD: u32 = 1 << 26;

/// In [`Conn::escapes`].
const ESCAPES: u8 = 1;
const DOES_NOT_ESCAPE: u8 = 2;

/// What a prepared statement's name is made of, beside its number.
const PREPARED_NAME: u64 = 0x6d79_7371_0000_0000;
/// The number that stands for the last statement that was prepared.
const LAST_PREPARED: u32 = u32::MAX;

/// A command that waits for its answer.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Pending {
    /// `CLOCK_MONOTONIC` nanoseconds of the first byte.
    pub start: u64,
    pub fingerprint: u64,
}

/// One end of one connection.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Conn {
    /// Who owns the socket ([`crate::workload::Workload::id`]); 0 until known.
    pub workload: u64,
    /// Of a client, the remote end ([`crate::peer::Peer::id`]); of a server, its socket.
    pub peer: u64,
    /// The first byte of the client's packet being read.
    pub start: u64,
    /// The last byte of an answer that was seen.
    pub last: u64,
    /// When the last answer began that nothing waited for: a client's reader can be faster than the return of its send.
    pub early: u64,
    /// The fingerprint of the last statement that was prepared.
    pub prepared: u64,
    /// The first bytes of a cut packet of the server's.
    pub text: [u64; 3],
    pub half: [Half; 2],
    pub pending: [Pending; DEPTH],
    /// What each of them asks for.
    pub commands: [u8; DEPTH],
    /// Ring indices into `pending`, as in [`crate::http::Conn`].
    pub head: u32,
    pub tail: u32,
    pub role: u8,
    pub misses: u8,
    pub last_direction: u8,
    /// Commands of a connection that was not seen to begin, before its first answer: not counted yet.
    pub unconfirmed: u8,
    pub tentative: u8,
    /// Whether a backslash escapes in strings; 0 until known.
    pub escapes: u8,
    pub pad: [u8; 2],
}

crate::pod!(Conn: 48 + 24 + 2 * 32 + DEPTH * 17 + 16);

/// A command with its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Of a statement; or below 256, the command that is none: [`command_name`].
    pub fingerprint: u64,
    pub start: u64,
    pub end: u64,
    pub error: Error,
}

/// The label of a command that is no statement, by what stands in the place of a fingerprint.
#[must_use]
pub const fn command_name(fingerprint: u64) -> Option<&'static str> {
    Some(match fingerprint {
        0x02 => "USE",
        0x04 => "FIELD_LIST",
        0x05 => "CREATE_DB",
        0x06 => "DROP_DB",
        0x07 => "REFRESH",
        0x08 => "SHUTDOWN",
        0x09 => "STATISTICS",
        0x0a => "PROCESS_INFO",
        0x0c => "PROCESS_KILL",
        0x0d => "DEBUG",
        0x0e => "PING",
        0x11 => "CHANGE_USER",
        0x15 => "REGISTER_REPLICA",
        0x16 => "PREPARE",
        0x1a => "STMT_RESET",
        0x1b => "SET_OPTION",
        0x1c => "FETCH",
        0x1f => "RESET_CONNECTION",
        1..256 => "other",
        _ => return None,
    })
}

/// What [`step`] needs of the world.
pub trait Io {
    /// The call's bytes from its position on, up to eight, the first one lowest; 0 where they cannot be had.
    fn peek(&mut self, call: &Call) -> u64;
    /// Sees to it that the block holds what follows the call's position.
    fn fill(&mut self, call: &Call) -> bool;
    /// Runs a [`message::Pass`] over the block from the call's position on and changes `half` and `text` by it.
    fn parse(&mut self, half: &mut Half, text: &mut [u64; 3], is_request: bool) -> Found;
    /// Keeps a cut statement for the next call of its connection.
    fn save_statement(&mut self) -> bool;
    fn load_statement(&mut self) -> bool;
    /// The fingerprint of the statement that was just read; its text is for whoever names it.
    fn fingerprint(&mut self) -> u64;
    /// What a prepared statement is, and what it was said to be; [`OTHER`] where that is not known.
    fn define(&mut self, name: u64, fingerprint: u64);
    fn lookup(&mut self, name: u64) -> u64;
    /// So many were seen.
    fn seen(&mut self, count: u32);
    fn record(&mut self, conn: &Conn, exchange: &Exchange);
    fn dropped(&mut self, reason: Reason, count: u32);
}

/// How much of a statement there has to be where a call does not bring all of it.
const MUCH: u32 = 512;

/// Whether a call of `total` bytes that begins with these eight may be a server's greeting or a client's statement, or the
/// header of one in a call of its own.
#[inline(always)]
pub fn may_begin(head: u64, total: u32) -> bool {
    let whole = (head & 0x00ff_ffff) as u32 + 4;
    let fits = total == whole || total < whole && total >= MUCH;
    let alone = total == 4 && whole > total;
    (head >> 24) as u8 == 0 && (alone || fits && is_beginning((head >> 32) as u8))
}

/// Whether the body of a connection's first packet that is seen can begin with this.
#[inline(always)]
fn is_beginning(first: u8) -> bool {
    matches!(first, QUERY | PREPARE | EXECUTE | PROCESS_INFO)
}

/// Moves the connection over the next part of a call. Call it until `call.done` reaches `call.total`; each time makes
/// progress.
#[inline(always)]
pub fn step<I: Io>(conn: &mut Conn, io: &mut I, call: &mut Call) {
    let unknown = conn.role == ROLE_UNKNOWN;
    if conn.role == ROLE_OPAQUE || unknown && call.done == 0 && !conn.may_begin(io, call) {
        call.done = call.total;
        return;
    }
    let is_request = unknown || conn.is_request(call.direction);
    if !is_request {
        conn.last = call.now;
    }
    let rest = call.total - call.done;
    let half = if is_request { &mut conn.half[REQUEST] } else { &mut conn.half[RESPONSE] };
    if half.phase == SKIP && half.left >= rest {
        half.left -= rest;
        if half.left == 0 {
            half.phase = HEAD;
        }
        call.done = call.total;
        return;
    }
    let mut found = Found::EMPTY;
    let reading = |phase: u8| phase == SQL || phase == ATTRIBUTES;
    let mut lost = reading(half.phase) && call.done == 0 && !io.load_statement();
    if !lost {
        if !io.fill(call) {
            return conn.lose(io, call);
        }
        found = io.parse(half, &mut conn.text, is_request);
        call.done += found.consumed;
        lost = reading(half.phase) && call.done >= call.total && !io.save_statement();
    }
    if lost {
        // Forgotten among too many: where its literals are cannot be known any more. It still counts.
        half.phase = SKIP;
        found.event = COMMAND;
        found.hidden = 1;
    }
    if unknown && !conn.attach(call, found) {
        return;
    }
    if is_request {
        conn.asked(io, call, found);
    } else {
        conn.answered(io, call, found);
    }
    if conn.role == ROLE_UNKNOWN || conn.role == ROLE_OPAQUE {
        call.done = call.total;
    }
}

impl Conn {
    /// Whether bytes of this direction belong to requests, on a connection whose role is known.
    #[inline(always)]
    pub fn is_request(&self, direction: Direction) -> bool {
        (self.role == ROLE_SERVER) == (direction as u8 == Direction::Received as u8)
    }

    /// Whether what may be a greeting or a statement was cut, and more is needed to tell.
    #[inline(always)]
    pub fn has_beginning(&self) -> bool {
        let half = &self.half[REQUEST];
        self.role == ROLE_UNKNOWN && (half.phase != HEAD || half.have != 0)
    }

    /// Whether a call of this direction needs no look at its bytes: the fast way out for foreign protocols.
    #[inline(always)]
    pub fn ignores(&mut self, direction: Direction) -> bool {
        if self.role == ROLE_OPAQUE {
            return true;
        }
        if self.role != ROLE_UNKNOWN || self.misses < EAGER_MISSES {
            return false;
        }
        let same = self.last_direction == direction as u8;
        let reading = self.half[REQUEST].phase != HEAD || self.half[REQUEST].have != 0;
        self.last_direction = direction as u8;
        if !same {
            self.half[REQUEST] = Half::EMPTY;
        }
        same && !reading
    }

    /// Whether the payload of a call of `total` bytes counts for nothing but its length: all of it is inside a body.
    #[inline(always)]
    pub fn skips(&self, direction: Direction, total: u32) -> bool {
        if self.role == ROLE_UNKNOWN {
            return false;
        }
        let half = if self.is_request(direction) { &self.half[REQUEST] } else { &self.half[RESPONSE] };
        half.phase == SKIP && half.left >= total
    }

    /// Whether a call on a connection of unknown protocol may be a greeting or a statement, or what follows a cut one. Servers
    /// read a header in a call of its own.
    #[inline(always)]
    fn may_begin<I: Io>(&mut self, io: &mut I, call: &Call) -> bool {
        let half = &mut self.half[REQUEST];
        if self.last_direction != call.direction as u8 {
            *half = Half::EMPTY;
        }
        self.last_direction = call.direction as u8;
        if half.phase != HEAD || half.have != 0 {
            return true;
        }
        let head = io.peek(call);
        let length = (head & 0x00ff_ffff) as u32;
        let begins = is_beginning((head >> 32) as u8);
        let fits = length > 1 && (head >> 24) as u8 == 0 && call.total <= length + 4;
        if call.total < 4 || fits && (call.total == 4 || begins) {
            return true;
        }
        self.missed(1);
        false
    }

    /// What the passes over a connection of unknown protocol say: whether it is a greeting or a statement.
    #[inline(always)]
    fn attach(&mut self, call: &mut Call, found: Found) -> bool {
        let half = self.half[REQUEST];
        if found.begins != 0 {
            self.start = call.begin;
        }
        let cut = half.phase == HEAD && half.have != 0 || half.phase == message::START;
        if found.event == NOTHING && cut {
            return false;
        }
        let known = found.event == COMMAND || half.phase == ATTRIBUTES || half.phase == SQL;
        let command = half.command();
        let received = call.direction as u8 == Direction::Received as u8;
        let greets =
            command == PROCESS_INFO && half.length >= SHORTEST_GREETING && half.length <= LONGEST_GREETING;
        if known && greets {
            self.role = if received { ROLE_CLIENT } else { ROLE_SERVER };
            self.half[RESPONSE] = half;
            self.half[REQUEST] = Half { expect: GREETED, ..Half::EMPTY };
            self.tentative = 0;
            return false;
        }
        if !known || !matches!(command, QUERY | PREPARE | EXECUTE) {
            self.half[REQUEST] = Half::EMPTY;
            self.missed(1);
            call.done = call.total;
            return false;
        }
        self.role = if received { ROLE_SERVER } else { ROLE_CLIENT };
        self.half[RESPONSE] = Half::EMPTY;
        self.tentative = 1;
        self.unconfirmed = 0;
        self.escapes = 0;
        true
    }

    #[inline(always)]
    fn missed(&mut self, cost: u8) {
        self.misses = self.misses.saturating_add(cost);
        if self.misses >= MAX_MISSES {
            self.role = ROLE_OPAQUE;
        }
    }

    /// What a pass found in the client's direction.
    #[inline(always)]
    fn asked<I: Io>(&mut self, io: &mut I, call: &Call, found: Found) {
        if found.begins != 0 {
            self.start = call.begin;
        }
        match found.event {
            BAD => self.end(io),
            REPLY if self.half[REQUEST].expect == GREETED => self.agreed(io),
            COMMAND => self.command(io, call, found),
            _ => {}
        }
    }

    /// The client answered the greeting.
    #[inline(always)]
    fn agreed<I: Io>(&mut self, io: &mut I) {
        let half = &mut self.half[REQUEST];
        half.expect = FIRST;
        let capabilities = half.head as u32;
        if half.seq != 1 || half.length < 4 {
            return self.end(io);
        }
        let asks = capabilities & ENCRYPTS != 0 && half.length == 32;
        if asks || capabilities & (COMPRESSES | COMPRESSES_BY_ZSTD) != 0 || capabilities & PROTOCOL_41 == 0 {
            self.role = ROLE_OPAQUE;
        }
    }

    #[inline(always)]
    fn command<I: Io>(&mut self, io: &mut I, call: &Call, found: Found) {
        let half = self.half[REQUEST];
        let command = half.command();
        if matches!(command, QUIT | CLOSE | SEND_LONG_DATA) {
            // Nobody answers these.
            return;
        }
        if matches!(command, BINLOG_DUMP | BINLOG_DUMP_GTID | TABLE_DUMP) {
            self.role = ROLE_OPAQUE;
            return self.give_up(io, Reason::Opaque);
        }
        let mut fingerprint = u64::from(command);
        if command == QUERY || command == PREPARE {
            let readable = self.escapes == ESCAPES && found.hidden == 0;
            fingerprint = if readable { io.fingerprint() } else { OTHER };
        }
        if command == PREPARE {
            self.prepared = fingerprint;
        }
        if command == EXECUTE || command == BULK_EXECUTE {
            let number = half.statement();
            fingerprint = if number == LAST_PREPARED {
                self.prepared
            } else {
                io.lookup(PREPARED_NAME | u64::from(number))
            };
        }
        let early = self.early;
        self.early = 0;
        let start = self.start;
        if self.tentative != 0 {
            self.unconfirmed = self.unconfirmed.saturating_add(1);
        } else {
            io.seen(1);
        }
        if early != 0 && early >= call.begin {
            // Its answer was passed over: what it answered was not known yet.
            return io.dropped(Reason::Desync, 1);
        }
        if self.waiting() >= DEPTH as u32 {
            if self.tentative == 0 {
                io.dropped(Reason::PipelineDepth, 1);
            }
            // Answers have to be read by what they answer.
            return self.end(io);
        }
        *self.entry(self.tail) = Pending { start, fingerprint };
        *self.command_at(self.tail) = command;
        self.tail = self.tail.wrapping_add(1);
    }

    /// How many commands wait.
    #[inline(always)]
    pub fn waiting(&self) -> u32 {
        self.tail.wrapping_sub(self.head)
    }

    #[inline(always)]
    fn entry(&mut self, at: u32) -> &mut Pending {
        // SAFETY: masked to the ring's entries.
        unsafe { &mut *self.pending.as_mut_ptr().add((opaque(u64::from(at)) & (DEPTH as u64 - 1)) as usize) }
    }

    #[inline(always)]
    fn command_at(&mut self, at: u32) -> &mut u8 {
        // SAFETY: masked to the ring's entries.
        unsafe { &mut *self.commands.as_mut_ptr().add((opaque(u64::from(at)) & (DEPTH as u64 - 1)) as usize) }
    }

    #[inline(always)]
    fn give_up<I: Io>(&mut self, io: &mut I, reason: Reason) {
        let waiting = self.waiting();
        self.head = self.tail;
        if waiting != 0 && self.tentative == 0 {
            io.dropped(reason, waiting);
        }
        self.tentative = 0;
        self.unconfirmed = 0;
    }

    /// It is not this protocol, or its framing was lost: the next statement gets another look.
    #[inline(always)]
    fn end<I: Io>(&mut self, io: &mut I) {
        self.half = [Half::EMPTY; 2];
        self.early = 0;
        self.role = ROLE_UNKNOWN;
        // The next call may begin with a request, whatever its direction.
        self.last_direction = NO_DIRECTION;
        self.missed(BAD_COSTS);
        self.give_up(io, Reason::Desync);
    }

    /// So many bytes passed by unseen before this call, of a connection whose role is known. Inside a packet that counts for
    /// nothing they are passed over; else all that is known of what waits is that a client waits for its last command.
    #[inline(always)]
    pub fn pass_over<I: Io>(&mut self, io: &mut I, call: &Call, unseen: u32) {
        let is_request = self.is_request(call.direction);
        let half = if is_request { &mut self.half[REQUEST] } else { &mut self.half[RESPONSE] };
        if half.phase == SKIP && half.left > unseen {
            half.left -= unseen;
            return;
        }
        *half = Half::EMPTY;
        let waiting = self.waiting();
        let kept = u32::from(!is_request && waiting != 0);
        self.head = self.tail.wrapping_sub(kept);
        if waiting != kept && self.tentative == 0 {
            io.dropped(Reason::Desync, waiting - kept);
        }
        if self.tentative != 0 {
            self.unconfirmed = kept as u8;
        }
    }

    /// The payload of the rest of this call cannot be had.
    #[inline(always)]
    pub fn lose<I: Io>(&mut self, io: &mut I, call: &mut Call) {
        call.done = call.total;
        if self.role != ROLE_UNKNOWN && self.role != ROLE_OPAQUE {
            self.end(io);
        }
        self.half = [Half::EMPTY; 2];
    }

    /// The bytes of a client's connection ended; a server may still answer after this.
    #[inline(always)]
    pub fn end_of_stream<I: Io>(&mut self, io: &mut I) {
        if self.role == ROLE_CLIENT {
            self.finish(io);
        }
    }

    /// The peer closed, or this end did: what waits gets no answer any more.
    #[inline(always)]
    pub fn finish<I: Io>(&mut self, io: &mut I) {
        self.give_up(io, Reason::NoResponse);
    }
}

#[cfg(test)]
mod tests;
