//! Redis' protocol, RESP2 and RESP3, as it passes through socket calls: what a connection has to remember, and what a call's
//! bytes mean.
//!
//! The shape is that of [`crate::postgres`]: [`Conn`] is one end of one connection, [`step`] moves it over the next part of a
//! call, [`message`] is the grammar, [`verb`] the commands. A command lasts from the first byte of its request to the last byte
//! of its reply. Replies come in the order of requests, one for each; nothing says which is whose. A connection that was picked
//! up while replies were under way is therefore off by so many until nothing waits on it any more, at which the surplus shows
//! and is forgotten.
//!
//! Pushes (RESP3) answer nothing. Where that order ends, counting does: `SUBSCRIBE` and its kin on RESP2, `MONITOR`, `SYNC` and
//! `CLIENT REPLY` make the connection opaque once what waited before them has its replies. None of these counts as a command.

#[cfg(any(test, feature = "memory"))]
pub mod memory;
pub mod message;
mod settle;
pub mod verb;

use crate::bytes::{low, opaque};
use crate::events::Reason;
use crate::l7::{Call, Direction, ROLE_CLIENT, ROLE_OPAQUE, ROLE_SERVER, ROLE_UNKNOWN};
use message::{BAD, BODY, Found, Half, is_letter};
pub use settle::Settle;
use settle::{COMPLETE, KEEP};
use verb::{COMMON, GREETS, OTHER, STREAMS, SUBSCRIBES, Text};

/// How many runs of requests may wait on one connection: equal ones of one call are one run. The last place is for a gap, so
/// that one run less is remembered. A power of two.
pub const DEPTH: usize = 32;
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

/// A run of requests that wait: how many (10 bits), which verb (8 bits), and since when (46 bits of nanoseconds: of a command
/// that waits longer than 19 hours the rest counts). In a gap, which stands for requests that found no place, the upper 46
/// bits are how many those are.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Pending(pub u64);

crate::pod!(Pending: 8);

const COUNT: u64 = 1023;
const VERB_AT: u32 = 10;
const START_AT: u32 = 18;
const START: u64 = (1 << 46) - 1;
/// The verb of a gap.
const GAP: u8 = 255;

impl Pending {
    #[inline(always)]
    const fn new(start: u64, verb: u8, count: u32) -> Self {
        Self(start << START_AT | (verb as u64) << VERB_AT | count as u64 & COUNT)
    }

    #[inline(always)]
    const fn gap(count: u32) -> Self {
        Self((count as u64) << START_AT | (GAP as u64) << VERB_AT)
    }

    #[inline(always)]
    const fn verb(self) -> u8 {
        (self.0 >> VERB_AT) as u8
    }

    #[inline(always)]
    const fn count(self) -> u32 {
        if self.verb() == GAP { (self.0 >> START_AT) as u32 } else { (self.0 & COUNT) as u32 }
    }

    /// When it began, of something that ended at `end`.
    #[inline(always)]
    const fn start(self, end: u64) -> u64 {
        let lasted = end.wrapping_sub(self.0 >> START_AT) & START;
        // Two clocks: what seems to begin after its end took no time.
        if lasted > START / 2 { end } else { end.wrapping_sub(lasted) }
    }
}

/// In [`Conn::tentative`]: no, until a reply comes, until one comes that answers PING.
const NO: u8 = 0;
const IF_REPLY: u8 = 1;
const IF_PONG: u8 = 2;

/// One end of one connection.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Conn {
    /// Who owns the socket ([`crate::workload::Workload::id`]); 0 until known.
    pub workload: u64,
    /// Of a client, the remote end ([`crate::peer::Peer::id`]); of a server, its socket.
    pub peer: u64,
    /// The first byte of the request being read; 0 between requests.
    pub start: u64,
    /// The last byte of a reply that was seen.
    pub last: u64,
    /// When the last replies came that nothing waited for: a client's reader can be faster than the return of its send.
    pub early: u64,
    /// The cut verb.
    pub text: Text,
    pub pending: [Pending; DEPTH],
    pub half: [Half; 2],
    /// How many those early ones were.
    pub early_count: u32,
    /// Ring indices into `pending`, as in [`crate::http::Conn`].
    pub head: u32,
    pub tail: u32,
    /// How many of the first run are answered.
    pub done: u32,
    /// Requests of a tentative connection, which are not counted before it is none.
    pub unconfirmed: u32,
    pub early_failed: u8,
    pub role: u8,
    pub misses: u8,
    pub last_direction: u8,
    /// 1 once the connection speaks RESP3.
    pub is_new: u8,
    /// 1 when it is opaque as soon as nothing waits any more.
    pub drains: u8,
    /// One of the constants above: before its first reply, a connection that began without an array may be another protocol's.
    pub tentative: u8,
    pub pad: [u8; 5],
}

crate::pod!(Conn: 64 + 8 * DEPTH + 2 * 20 + 32);

/// Commands with their outcome: all with the same beginning and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Its number in [`verb::VERBS`].
    pub verb: u8,
    pub failed: bool,
    pub count: u32,
    pub start: u64,
    pub end: u64,
}

/// What [`step`] needs of the world.
pub trait Io {
    /// The call's bytes from its position on, up to eight, the first one lowest; 0 where they cannot be had.
    fn peek(&mut self, call: &Call) -> u64;
    /// Sees to it that the block holds what follows the call's position.
    fn fill(&mut self, call: &Call) -> bool;
    /// Runs a [`message::Pass`] over the block from the call's position on and changes `half` and `text` by it.
    fn parse(&mut self, half: &mut Half, text: &mut Text, is_request: bool) -> Found;
    /// Does what [`Conn::settle`] does: in the kernel in a function of its own.
    fn settle(&mut self, conn: &mut Conn, settle: &Settle);
    /// So many were seen.
    fn seen(&mut self, count: u32);
    fn record(&mut self, conn: &Conn, exchange: &Exchange);
    fn dropped(&mut self, reason: Reason, count: u32);
}

/// Whether a call of `total` bytes that begins with these eight may be a client's request.
#[inline(always)]
pub fn may_begin(head: u64, total: u32) -> bool {
    let (one, two) = ((head & 255) as u8, (head >> 8 & 255) as u8);
    let alone = total == 1;
    let digit = two.wrapping_sub(b'1') < 9;
    one == b'*' && (alone || digit) || is_letter(one) && (alone || is_letter(two))
}

/// Whether the first reply of a connection that is tentative can begin with these bytes. Servers of other protocols answer
/// with `+OK` or `-ERR` as well, but not to what is a verb here.
#[inline(always)]
fn may_answer(head: u64, total: u32, to_ping: bool) -> bool {
    /// The first byte lowest.
    const PONG: u64 = u64::from_le_bytes(*b"+PONG\r\n\0");
    let (one, two) = ((head & 255) as u8, (head >> 8 & 255) as u8);
    let alone = total == 1;
    let number = alone || two == b'-' || two.wrapping_sub(b'0') <= 9;
    let word = alone || two.wrapping_sub(b'A') < 26;
    match one {
        b'+' if to_ping => (head ^ PONG) & low(if total < 7 { total } else { 7 }) == 0,
        b'+' | b'-' => word,
        b':' | b'$' | b'*' | b'%' | b'~' | b'(' | b',' | b'=' => number,
        b'_' | b'#' => alone || matches!(two, b'\r' | b't' | b'f'),
        _ => false,
    }
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
    } else if conn.drains != 0 {
        call.done = call.total;
        return;
    }
    let is_strange = !is_request
        && conn.tentative != NO
        && call.done == 0
        && !may_answer(io.peek(call), call.total, conn.tentative == IF_PONG);
    let half = if is_request { &mut conn.half[REQUEST] } else { &mut conn.half[RESPONSE] };
    let mut found = if half.phase == BODY {
        half.pass_over(call.total - call.done, is_request)
    } else {
        if !io.fill(call) {
            return conn.lose(io, call);
        }
        io.parse(half, &mut conn.text, is_request)
    };
    call.done += found.consumed;
    if is_strange {
        found.event = BAD;
    }
    if unknown && !conn.attach(call, &found) {
        return;
    }
    let settle = if is_request { conn.asked(io, call, &found) } else { conn.answered(io, call, &found) };
    if settle.what != KEEP && !conn.settle_one(io, &settle) {
        io.settle(conn, &settle);
    }
    if conn.drains != 0 && conn.waiting() == 0 {
        conn.role = ROLE_OPAQUE;
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

    /// Whether what may be a first request was cut, and more is needed to tell.
    #[inline(always)]
    pub fn has_beginning(&self) -> bool {
        self.role == ROLE_UNKNOWN && !self.half[REQUEST].is_between()
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
        let reading = !self.half[REQUEST].is_between();
        self.last_direction = direction as u8;
        if !same {
            self.half[REQUEST] = Half::EMPTY;
        }
        same && !reading
    }

    /// Whether the payload of a call of `total` bytes counts for nothing but its length: all of it is inside a string.
    #[inline(always)]
    pub fn skips(&self, direction: Direction, total: u32) -> bool {
        if self.role == ROLE_UNKNOWN {
            return false;
        }
        let half = if self.is_request(direction) { &self.half[REQUEST] } else { &self.half[RESPONSE] };
        half.phase == BODY && half.left >= total
    }

    /// Whether a call on a connection of unknown protocol may be a request, or what follows a cut one.
    #[inline(always)]
    fn may_begin<I: Io>(&mut self, io: &mut I, call: &Call) -> bool {
        let half = &mut self.half[REQUEST];
        if self.last_direction != call.direction as u8 {
            *half = Half::EMPTY;
        }
        self.last_direction = call.direction as u8;
        if !half.is_between() {
            return true;
        }
        self.start = 0;
        let head = io.peek(call);
        if may_begin(head, call.total) {
            return true;
        }
        self.missed(1);
        false
    }

    /// What the first pass over a connection of unknown protocol says: whether it is a request with a known verb.
    #[inline(always)]
    fn attach(&mut self, call: &mut Call, found: &Found) -> bool {
        let half = &self.half[REQUEST];
        let inline = half.phase == message::REST;
        if found.event != BAD && found.count == 0 && half.index == 0 && half.phase != BODY && !inline {
            // Its verb is still to come.
            if self.start == 0 {
                self.start = call.begin;
            }
            return false;
        }
        let verb = if found.count == 0 { half.verb } else { found.verb };
        if found.event == BAD || verb == OTHER || inline && verb::class(verb) & COMMON != 0 {
            self.half[REQUEST] = Half::EMPTY;
            self.start = 0;
            self.missed(1);
            call.done = call.total;
            return false;
        }
        let received = call.direction as u8 == Direction::Received as u8;
        self.role = if received { ROLE_SERVER } else { ROLE_CLIENT };
        self.half[RESPONSE] = Half::EMPTY;
        self.tentative = match (inline, verb) {
            (false, _) => NO,
            (true, verb::PING) => IF_PONG,
            _ => IF_REPLY,
        };
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
    fn asked<I: Io>(&mut self, io: &mut I, call: &Call, found: &Found) -> Settle {
        if found.event == BAD || self.tentative != 0 && found.count != 0 && found.verb == OTHER {
            return self.end();
        }
        if found.count == 0 {
            if self.start == 0 && !self.half[REQUEST].is_between() {
                self.start = call.begin;
            }
            return Settle::NOTHING;
        }
        let class = verb::class(found.verb);
        let first = if self.start == 0 { call.begin } else { self.start };
        self.start = if self.half[REQUEST].is_between() { 0 } else { call.begin };
        if class & STREAMS != 0 || class & SUBSCRIBES != 0 && self.is_new == 0 {
            self.drains = 1;
        }
        if class & (STREAMS | SUBSCRIBES) != 0 {
            // Those before it in this pass are of the same verb: there are none.
            return Settle::NOTHING;
        }
        if class & GREETS != 0 {
            self.is_new = 0;
        }
        // The first of them may have begun in an earlier call.
        if first != call.begin {
            self.push(io, call, first, found.verb, 1);
        }
        let rest = found.count - u32::from(first != call.begin);
        if rest != 0 {
            self.push(io, call, call.begin, found.verb, rest);
        }
        Settle::NOTHING
    }

    /// How many runs wait.
    #[inline(always)]
    pub fn waiting(&self) -> u32 {
        self.tail.wrapping_sub(self.head)
    }

    #[inline(always)]
    fn entry(&mut self, at: u32) -> &mut Pending {
        // SAFETY: masked to the ring's entries.
        unsafe { &mut *self.pending.as_mut_ptr().add((opaque(u64::from(at)) & (DEPTH as u64 - 1)) as usize) }
    }

    /// Requests wait for their replies from now on.
    #[inline(always)]
    fn push<I: Io>(&mut self, io: &mut I, call: &Call, start: u64, verb: u8, count: u32) {
        let mut count = count;
        if self.tentative == 0 {
            io.seen(count);
        } else {
            self.unconfirmed += count;
        }
        if self.early_count != 0 {
            // Replies that came before this call began were another one's.
            let early = if self.early < call.begin { 0 } else { self.early_count };
            let taken = if early < count { early } else { count };
            self.early_count = early - taken;
            count -= taken;
            if taken != 0 {
                let failed = self.early_failed != 0;
                io.record(self, &Exchange { verb, failed, count: taken, start, end: self.early });
            }
            if count == 0 {
                return;
            }
        }
        let waiting = self.waiting();
        let last = self.entry(self.tail.wrapping_sub(1));
        let Pending(word) = *last;
        if waiting != 0 {
            let same = word >> VERB_AT == Pending::new(start, verb, 0).0 >> VERB_AT;
            let is_gap = waiting >= DEPTH as u32 - 1 && last.verb() == GAP;
            if same && u64::from(last.count() + count) <= COUNT {
                *last = Pending(word + u64::from(count));
                return;
            }
            if is_gap {
                *last = Pending(word.wrapping_add(u64::from(count) << START_AT));
                return self.no_room(io, count);
            }
        }
        // A pass looks at fewer than an entry can count.
        let next =
            if waiting >= DEPTH as u32 - 1 { Pending::gap(count) } else { Pending::new(start, verb, count) };
        *self.entry(self.tail) = next;
        self.tail = self.tail.wrapping_add(1);
        if next.verb() == GAP {
            self.no_room(io, count);
        }
    }

    #[inline(always)]
    fn no_room<I: Io>(&mut self, io: &mut I, count: u32) {
        if self.tentative != 0 {
            // Not even seen.
            self.unconfirmed -= count;
        } else {
            io.dropped(Reason::PipelineDepth, count);
        }
    }

    /// What a pass found in the server's direction.
    #[inline(always)]
    fn answered<I: Io>(&mut self, io: &mut I, call: &Call, found: &Found) -> Settle {
        if found.event == BAD {
            return self.end();
        }
        if self.tentative != 0 && found.consumed != 0 {
            self.tentative = 0;
            io.seen(self.unconfirmed);
            self.unconfirmed = 0;
        }
        if found.is_new != 0 {
            self.is_new = 1;
        }
        if found.count == 0 {
            return Settle::NOTHING;
        }
        Settle { what: COMPLETE, failed: found.failed, count: found.count, end: call.now, ..Settle::NOTHING }
    }

    /// It is not this protocol, or its framing was lost: the next request gets another look.
    #[inline(always)]
    fn end(&mut self) -> Settle {
        self.half = [Half::EMPTY; 2];
        self.start = 0;
        self.early_count = 0;
        self.is_new = 0;
        self.role = ROLE_UNKNOWN;
        // The next call may begin with a request, whatever its direction.
        self.last_direction = NO_DIRECTION;
        self.missed(BAD_COSTS);
        Settle::give_up(Reason::Desync)
    }

    /// So many bytes passed by unseen before this call, of a connection whose role is known. Inside a string that goes on behind
    /// them they are passed over; else nobody knows which replies are whose.
    #[inline(always)]
    pub fn pass_over<I: Io>(&mut self, io: &mut I, call: &Call, unseen: u32) {
        let is_request = self.is_request(call.direction);
        let half = if is_request { &mut self.half[REQUEST] } else { &mut self.half[RESPONSE] };
        if half.phase == BODY && half.left > unseen {
            half.left -= unseen;
            return;
        }
        if is_request {
            self.start = 0;
        }
        *half = Half::EMPTY;
        self.early_count = 0;
        io.settle(self, &Settle::give_up(Reason::Desync));
    }

    /// The payload of the rest of this call cannot be had.
    #[inline(always)]
    pub fn lose<I: Io>(&mut self, io: &mut I, call: &mut Call) {
        call.done = call.total;
        if self.role != ROLE_UNKNOWN && self.role != ROLE_OPAQUE {
            let settle = self.end();
            io.settle(self, &settle);
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

    /// The peer closed, or this end did: what waits gets no reply any more.
    #[inline(always)]
    pub fn finish<I: Io>(&mut self, io: &mut I) {
        self.settle(io, &Settle::give_up(Reason::NoResponse));
    }
}

#[cfg(test)]
mod tests;
