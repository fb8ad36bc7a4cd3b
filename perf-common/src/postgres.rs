//! PostgreSQL's protocol 3 as it passes through socket calls: what a connection has to remember, and what a call's bytes mean.
//!
//! The shape is that of [`crate::http`]: [`Conn`] is one end of one connection, [`step`] moves it over the next part of a
//! call, [`message`] is the grammar. A query lasts from the first byte of what asks for it to `ReadyForQuery`; one of several
//! in a pipeline to its `CommandComplete`. `Sync` and the simple query make groups, each answered by one `ReadyForQuery`:
//! that is where pairing begins anew whatever was missed, and where an error ends that makes the server pass over the rest
//! of its group.

#[cfg(any(test, feature = "memory"))]
pub mod memory;
pub mod message;
mod settle;

use crate::bytes::opaque;
use crate::db::Error;
use crate::events::Reason;
use crate::l7::{Call, Direction, ROLE_CLIENT, ROLE_OPAQUE, ROLE_SERVER, ROLE_UNKNOWN};
use crate::sql::{self, OTHER};
use message::{
    ANSWER, ASKED, BAD, BIND, CALL, ENDED, EXECUTE, FAILED, Found, HEAD, Half, NOTHING, PARSE, QUERY, READY,
    SKIP, SQL, STARTUP, SYNC, may_be_request, startup, startup_prefix,
};
pub use settle::Settle;
use settle::{COMPLETE, EARLY_GROUP, GROUP, KEEP};

/// How many different requests may wait on one connection; equal ones that were sent together are one.
pub const DEPTH: usize = 16;
/// How many calls of a connection of unknown protocol are looked at.
const MAX_MISSES: u8 = 32;
/// After so many, only where the direction changes, as it does where a request begins.
const EAGER_MISSES: u8 = 4;
/// What broken framing counts for among them.
const BAD_COSTS: u8 = 8;
/// In [`Conn::last_direction`]: none yet.
const NO_DIRECTION: u8 = 2;

/// Keeps portals and statements of the same name apart.
const PORTAL: u64 = 0x706f_7274_616c_0000;

const REQUEST: usize = 0;
const RESPONSE: usize = 1;

/// In [`Pending::group`]: a request that is complete with its group, not with a `CommandComplete`.
const SIMPLE: u32 = 1 << 31;

/// Requests that wait for their responses: equal ones of one call are counted together.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Pending {
    /// `CLOCK_MONOTONIC` nanoseconds of the first byte.
    pub start: u64,
    pub fingerprint: u64,
    pub count: u32,
    /// The number of its group, and [`SIMPLE`].
    pub group: u32,
}

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
    /// The last byte of a response that was seen.
    pub last: u64,
    /// The fingerprints of the unnamed statement and portal.
    pub unnamed: u64,
    pub portal: u64,
    /// When the first waiting Execute was completed, if its group is not; it may be its group's last.
    pub completed: u64,
    /// When a group ended that had not been seen to begin: a client's reader can be faster than the return of its send.
    pub early: u64,
    pub half: [Half; 2],
    pub pending: [Pending; DEPTH],
    /// Groups that the client ended with a Sync or a query, and that the server did with `ReadyForQuery`.
    pub asked: u32,
    pub answered: u32,
    /// Ring indices into `pending`, as in [`crate::http::Conn`].
    pub head: u32,
    pub tail: u32,
    /// How many of the first waiting entry are done.
    pub done: u32,
    /// The group of the last request that found no room, plus one; 0 for none. Until it ends, all are dropped.
    pub overflow: u32,
    /// After an error what it was, until the group ends.
    pub failed: u32,
    pub early_failed: u32,
    pub role: u8,
    pub misses: u8,
    pub last_direction: u8,
    pub pad: [u8; 5],
}

crate::pod!(Conn: 64 + 2 * 32 + DEPTH * 24 + 32 + 8);

/// Requests with their outcome: all with the same beginning and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    pub fingerprint: u64,
    pub start: u64,
    pub end: u64,
    pub count: u32,
    pub error: Error,
}

/// What [`step`] needs of the world.
pub trait Io {
    /// The call's bytes from its position on, up to eight, the first one lowest; 0 where they cannot be had.
    fn peek(&mut self, call: &Call) -> u64;
    /// Sees to it that the block holds what follows the call's position.
    fn fill(&mut self, call: &Call) -> bool;
    /// Whether the block is messages of a client from start to end.
    fn is_chain(&mut self, total: u32) -> bool;
    /// Runs a [`message::Pass`] over the block from the call's position on and changes `half` by it.
    fn parse(&mut self, half: &mut Half, is_request: bool) -> Found;
    /// Keeps a cut statement for the next call of its connection.
    fn save_statement(&mut self) -> bool;
    fn load_statement(&mut self) -> bool;
    /// The fingerprint of the statement that was just read; its text is for whoever names it.
    fn fingerprint(&mut self) -> u64;
    /// What a prepared statement or a portal is, and what it was said to be; [`OTHER`] where that is not known.
    fn define(&mut self, name: u64, fingerprint: u64);
    fn lookup(&mut self, name: u64) -> u64;
    /// Does what [`Conn::settle`] does: in the kernel in a function of its own.
    fn settle(&mut self, conn: &mut Conn, settle: &Settle);
    /// Counted as seen.
    fn seen(&mut self);
    fn record(&mut self, conn: &Conn, exchange: &Exchange);
    fn dropped(&mut self, reason: Reason, count: u32);
}

/// Whether a call of `total` bytes that begins with these eight may be the beginning of a connection, or a client's request.
#[inline(always)]
pub fn may_begin(head: u64, total: u32) -> bool {
    startup(head).is_some() || total < 8 && startup_prefix(head, total) || may_be_request(head, total)
}

/// Moves the connection over the next part of a call. Call it until `call.done` reaches `call.total`; each time makes
/// progress.
#[inline(always)]
pub fn step<I: Io>(conn: &mut Conn, io: &mut I, call: &mut Call) {
    if conn.role == ROLE_UNKNOWN && call.done == 0 {
        conn.detect(io, call);
    }
    if conn.role == ROLE_OPAQUE || conn.role == ROLE_UNKNOWN {
        call.done = call.total;
        return;
    }
    let is_request = conn.is_request(call.direction);
    if !is_request {
        conn.last = call.now;
    }
    let rest = call.total - call.done;
    let half = conn.half_mut(is_request);
    if half.phase == SKIP && half.left >= rest {
        half.left -= rest;
        if half.left == 0 {
            half.phase = HEAD;
        }
        call.done = call.total;
        return;
    }
    let mut found = Found::EMPTY;
    let mut lost = half.phase == SQL && call.done == 0 && !io.load_statement();
    if !lost {
        if !io.fill(call) {
            return conn.lose(io, call);
        }
        found = io.parse(half, is_request);
        call.done += found.consumed;
        lost = half.phase == SQL && call.done >= call.total && !io.save_statement();
    }
    if lost {
        // Forgotten among too many: where its literals are cannot be known any more. It still counts.
        half.phase = SKIP;
        found.event = half.kind;
        found.name = half.first_name;
    }
    let settle = if is_request { conn.asked(io, call, &found, lost) } else { conn.answered(call, &found) };
    if settle.what != KEEP && !conn.settle_one(io, &settle) {
        io.settle(conn, &settle);
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

    #[inline(always)]
    fn half_mut(&mut self, is_request: bool) -> &mut Half {
        if is_request { &mut self.half[REQUEST] } else { &mut self.half[RESPONSE] }
    }

    /// Whether the first bytes of what may be a connection's first packet are kept, and more are needed to tell.
    #[inline(always)]
    pub fn has_beginning(&self) -> bool {
        self.role == ROLE_UNKNOWN && self.half[REQUEST].have != 0
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
        self.last_direction = direction as u8;
        same
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

    /// Finds out who is who by what a call begins with: a connection's first packet, or messages that only clients send.
    #[inline(always)]
    fn detect<I: Io>(&mut self, io: &mut I, call: &Call) {
        let half = &mut self.half[REQUEST];
        if self.last_direction != call.direction as u8 {
            *half = Half::EMPTY;
        }
        self.last_direction = call.direction as u8;
        let have = u32::from(half.have & 7);
        let mut head = io.peek(call);
        let fresh = if call.total < 8 - have { call.total } else { 8 - have };
        head = half.head | head << (8 * have);
        let cut = have + fresh < 8;
        if cut && startup_prefix(head, have + fresh) {
            half.head = head;
            half.have = (have + fresh) as u8;
            self.start = 0;
            return;
        }
        let begins = if !cut && startup(head).is_some() {
            half.phase = STARTUP;
            true
        } else {
            half.have = 0;
            half.head = 0;
            may_be_request(head, call.total) && io.fill(call) && io.is_chain(call.total)
        };
        if begins {
            let received = call.direction as u8 == Direction::Received as u8;
            self.role = if received { ROLE_SERVER } else { ROLE_CLIENT };
            self.half[RESPONSE] = Half::EMPTY;
            return;
        }
        self.missed(1);
    }

    #[inline(always)]
    fn missed(&mut self, cost: u8) {
        self.misses = self.misses.saturating_add(cost);
        if self.misses >= MAX_MISSES {
            self.role = ROLE_OPAQUE;
        }
    }

    /// What a pass found in the client's direction; `lost` where the statement's text is not there.
    #[inline(always)]
    fn asked<I: Io>(&mut self, io: &mut I, call: &Call, found: &Found, lost: bool) -> Settle {
        if found.begins != 0 && self.start == 0 {
            self.start = call.begin;
        }
        let event = found.event;
        if event >= ENDED {
            return self.asked_something_else(event);
        }
        let mut fingerprint = OTHER;
        if (event == QUERY || event == PARSE) && !lost {
            fingerprint = io.fingerprint();
        }
        if event == BIND || event == EXECUTE {
            fingerprint = if found.second_name != sql::NAME {
                io.lookup(if event == BIND { found.second_name } else { found.second_name ^ PORTAL })
            } else if event == BIND {
                self.unnamed
            } else {
                self.portal
            };
        }
        if event == PARSE || event == BIND {
            if found.name != sql::NAME {
                io.define(if event == PARSE { found.name } else { found.name ^ PORTAL }, fingerprint);
            } else if event == PARSE {
                self.unnamed = fingerprint;
            } else {
                self.portal = fingerprint;
            }
        }
        if event == QUERY || event == EXECUTE || event == CALL {
            self.push(io, fingerprint, if event == EXECUTE { 0 } else { SIMPLE });
            self.start = 0;
        }
        if event == QUERY || event == SYNC || event == CALL {
            self.group_asked(call)
        } else {
            Settle::new(KEEP, 0)
        }
    }

    #[inline(always)]
    fn asked_something_else(&mut self, event: u8) -> Settle {
        if event == ASKED {
            self.half[REQUEST].phase = STARTUP;
            self.half[RESPONSE].phase = ANSWER;
            return Settle::new(KEEP, 0);
        }
        self.end(event)
    }

    /// How many entries wait.
    #[inline(always)]
    pub fn waiting(&self) -> u32 {
        self.tail.wrapping_sub(self.head)
    }

    #[inline(always)]
    fn entry(&mut self, at: u32) -> &mut Pending {
        // SAFETY: masked to the ring's entries.
        unsafe { &mut *self.pending.as_mut_ptr().add((opaque(u64::from(at)) & (DEPTH as u64 - 1)) as usize) }
    }

    /// A request waits for its response from now on.
    #[inline(always)]
    fn push<I: Io>(&mut self, io: &mut I, fingerprint: u64, simple: u32) {
        io.seen();
        let group = self.asked & !SIMPLE | simple;
        let start = self.start;
        let waiting = self.waiting();
        if waiting != 0 && simple == 0 && self.overflow == 0 {
            let last = self.entry(self.tail.wrapping_sub(1));
            if last.fingerprint == fingerprint && last.start == start && last.group == group {
                last.count += 1;
                return;
            }
        }
        if self.overflow != 0 || waiting >= DEPTH as u32 {
            self.overflow = (self.asked & !SIMPLE) + 1;
            return io.dropped(Reason::PipelineDepth, 1);
        }
        *self.entry(self.tail) = Pending { start, fingerprint, count: 1, group };
        self.tail = self.tail.wrapping_add(1);
    }

    /// The client ended a group.
    #[inline(always)]
    fn group_asked(&mut self, call: &Call) -> Settle {
        self.start = 0;
        self.asked = self.asked.wrapping_add(1);
        let early = self.early;
        self.early = 0;
        // A group that ended before this one did was another one.
        if early == 0 || early < call.begin {
            return Settle::new(KEEP, 0);
        }
        self.failed = self.early_failed;
        Settle::new(EARLY_GROUP, early)
    }

    /// What a pass found in the server's direction.
    #[inline(always)]
    fn answered(&mut self, call: &Call, found: &Found) -> Settle {
        // After an error the server passes over the rest of the group.
        let completed = if self.failed != 0 { 0 } else { found.completed };
        match found.event {
            NOTHING if completed != 0 => Settle { most: completed, ..Settle::new(COMPLETE, call.now) },
            READY if self.asked == self.answered => {
                // Of the startup, of a request that was not seen, or of one whose sending is still under way.
                if self.role == ROLE_CLIENT {
                    self.early = call.now;
                    self.early_failed = self.failed;
                }
                self.failed = 0;
                let what = if completed == 0 { KEEP } else { COMPLETE };
                Settle { most: completed, ..Settle::new(what, call.now) }
            }
            READY => Settle { most: completed, ..Settle::new(GROUP, call.now) },
            FAILED => self.fail(found.error),
            ENDED | BAD => self.end(found.event),
            _ => Settle::new(KEEP, 0),
        }
    }

    /// Nothing that follows is a query; or it is no message of this protocol, and the next request gets another look.
    #[inline(always)]
    fn end(&mut self, event: u8) -> Settle {
        if event != BAD {
            self.role = ROLE_OPAQUE;
            return Settle::give_up(Reason::Opaque);
        }
        self.half = [Half::EMPTY; 2];
        self.start = 0;
        self.answered = self.asked;
        self.role = ROLE_UNKNOWN;
        // The next call may begin with a request, whatever its direction.
        self.last_direction = NO_DIRECTION;
        self.missed(BAD_COSTS);
        Settle::give_up(Reason::Desync)
    }

    /// So many bytes passed by unseen before this call, of a connection whose role is known. Inside a message that counts for
    /// nothing they are passed over; else nobody knows what becomes of what waits.
    #[inline(always)]
    pub fn pass_over<I: Io>(&mut self, io: &mut I, call: &Call, unseen: u32) {
        let is_request = self.is_request(call.direction);
        let half = self.half_mut(is_request);
        if half.phase == SKIP && half.left > unseen {
            half.left -= unseen;
            return;
        }
        *half = Half::EMPTY;
        if is_request {
            self.start = 0;
        }
        self.answered = self.asked;
        io.settle(self, &Settle::give_up(Reason::Desync));
    }

    /// The payload of the rest of this call cannot be had.
    #[inline(always)]
    pub fn lose<I: Io>(&mut self, io: &mut I, call: &mut Call) {
        call.done = call.total;
        if self.role != ROLE_UNKNOWN && self.role != ROLE_OPAQUE {
            let settle = self.end(BAD);
            io.settle(self, &settle);
        }
    }

    /// The bytes of a client's connection ended; a server may still answer after this.
    #[inline(always)]
    pub fn end_of_stream<I: Io>(&mut self, io: &mut I) {
        if self.role == ROLE_CLIENT {
            self.finish(io);
        }
    }

    /// The peer closed, or this end did: what waits gets no response any more. A server that ends a connection by an error
    /// has answered the group with it.
    #[inline(always)]
    pub fn finish<I: Io>(&mut self, io: &mut I) {
        if self.failed != 0 && self.asked != self.answered {
            self.settle(io, &Settle::new(GROUP, self.last));
        }
        self.settle(io, &Settle::give_up(Reason::NoResponse));
    }
}

#[cfg(test)]
mod tests;
