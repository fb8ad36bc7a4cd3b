//! HTTP/1.x as it passes through socket calls: what a connection has to remember, and what a call's bytes mean.
//!
//! [`Conn`] is the state of one end of one connection. [`step`] moves it over the next part of one socket call and asks
//! an [`Io`] for payload only where it decides something: bodies are skipped by their length. A line that is cut by the
//! end of a call is carried over and read again whole, so the parser ([`parse`]) only ever sees whole lines, and the
//! answer cannot depend on where a program cuts its writes.

#[cfg(any(test, feature = "memory"))]
pub mod memory;
pub mod parse;

use crate::bytes::{WINDOW, opaque};
use crate::events::Reason;
pub use crate::l7::{Call, Direction, ROLE_CLIENT, ROLE_OPAQUE, ROLE_SERVER, ROLE_UNKNOWN};
use crate::l7::{HTTP, PROTOCOL_UNKNOWN};
use parse::{BAD, DONE, FOREIGN, HEAD, LINE, Parsed, State, TURNED};

/// How many requests may wait for their responses on one connection.
pub const DEPTH: usize = 8;
/// How many buffers in a row may be no HTTP before a connection of unknown protocol is left alone.
const MAX_MISSES: u8 = 200;
/// After so many, payload is only read when the direction changes, as it does where a request begins.
const EAGER_MISSES: u8 = 8;

const REQUEST: usize = 0;
const RESPONSE: usize = 1;

/// The request methods that have a name of their own in a metric.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Other = 0,
    Get = 1,
    Post = 2,
    Put = 3,
    Head = 4,
    Delete = 5,
    Patch = 6,
    Options = 7,
    Connect = 8,
    Trace = 9,
}

/// The label of each [`Method`], in its order; OpenTelemetry's `_OTHER` for what is not in RFC 9110.
pub const METHODS: [&str; 10] =
    ["_OTHER", "GET", "POST", "PUT", "HEAD", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE"];

/// How far one direction of a connection is read.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Half {
    /// Bytes of the body or chunk still to come.
    pub remaining: u64,
    /// One of [`State`].
    pub state: u8,
    /// What the headers of the message said: [`parse::CHUNKED`], [`parse::HAS_LENGTH`].
    pub framing: u8,
    /// How many bytes of a cut line are kept.
    pub carried: u16,
    /// The status code of a response; 0 until its first line was read.
    pub status: u32,
}

impl Half {
    pub const EMPTY: Self = Self { remaining: 0, state: 0, framing: 0, carried: 0, status: 0 };
}

/// A request that waits for its response.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Pending {
    /// `CLOCK_MONOTONIC` nanoseconds of its first byte.
    pub start: u64,
    pub route: u64,
    pub method: u64,
}

/// One end of one connection.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Conn {
    /// Who owns the socket ([`crate::workload::Workload::id`]); 0 until known.
    pub workload: u64,
    /// Of a client, the remote end ([`crate::peer::Peer::id`]); of a server, its socket.
    pub peer: u64,
    /// The first byte of the request being read.
    pub start: u64,
    /// The route of the request being read.
    pub route: u64,
    /// The last byte of the response that was seen.
    pub last: u64,
    /// Where a response was seen before its request: its end. A client's reader thread can be faster than the return
    /// of the send call.
    pub early: u64,
    pub half: [Half; 2],
    pub pending: [Pending; DEPTH],
    /// Requests beyond [`DEPTH`], which are dropped; their responses still have to be passed over.
    pub overflow: u32,
    /// Ring indices into `pending`: only the request half moves `tail`, only the response half `head`, because two
    /// threads may send and receive at once.
    pub head: u32,
    pub tail: u32,
    pub role: u8,
    pub misses: u8,
    pub last_direction: u8,
    pub method: u8,
    pub early_status: u32,
    /// 1 when the connection's end has been accounted for.
    pub finished: u8,
    /// One of the protocols in [`crate::l7`]. Of another one than HTTP only this, the role and `last` are kept here.
    pub protocol: u8,
    /// The protocol that was offered the first part of what may be its beginning and waits for more.
    pub offered: u8,
    /// 1 where sequence numbers do not tell what passed by unseen.
    pub unordered: u8,
    /// Where a client's connection to a database is among all of them, plus one; 0 for nowhere.
    pub pool: u32,
    /// The sequence number of the next call's first byte, by direction.
    pub next_seq: [u32; 2],
    pub pad: u32,
    pub turn: crate::phases::Turn,
}

crate::pod!(Conn: 48 + 2 * 16 + DEPTH * 24 + 40 + 32);

/// A request and its response, complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    pub method: u8,
    pub route: u64,
    pub status: u16,
    pub start: u64,
    pub end: u64,
}

/// The key of a cell.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HttpKey {
    pub workload: u64,
    /// The route on the server's side, the peer on the client's.
    pub route_or_peer: u64,
    pub status: u16,
    pub method: u8,
    /// [`ROLE_SERVER`] or [`ROLE_CLIENT`].
    pub role: u8,
    pub pad: u32,
}

crate::pod!(HttpKey: 24);

/// An element of the table of cells.
pub type HttpSlot = crate::cells::Slot<HttpKey, crate::histogram::Histogram>;
crate::pod!(HttpSlot: 24 + 8 * (1 + crate::histogram::CELLS));

impl crate::cells::Key for HttpKey {
    #[inline(always)]
    fn hash(&self) -> u64 {
        let rest = u64::from(self.status) << 8 | u64::from(self.method) << 2 | u64::from(self.role);
        let all = self.workload ^ self.route_or_peer.rotate_left(32) ^ rest;
        all.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
    }

    #[inline(always)]
    fn same(&self, other: &Self) -> bool {
        self.workload == other.workload
            && self.route_or_peer == other.route_or_peer
            && self.status == other.status
            && self.method == other.method
            && self.role == other.role
    }
}

/// How much of a path goes up as the sample that names its route.
pub const SAMPLE: usize = 128;

/// The one thing that leaves the kernel: the path (never the query) of the first request with a new fingerprint.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RouteSample {
    pub route: u64,
    pub len: u64,
    /// Which of its segments a rule folded; see [`crate::route::rules::Outcome`].
    pub collapsed: u64,
    /// How many segments it has, beyond what fits in here too, and a bit for each that is masked.
    pub segments: u64,
    pub masked: u64,
    /// The path's bytes, the first one lowest in each word; zero behind its end.
    pub path: [u64; SAMPLE / 8],
}

crate::pod!(RouteSample: 40 + SAMPLE);

/// What [`step`] needs of the world: payload, a place for half a line, and somewhere to put what it finds.
pub trait Io {
    /// Runs a [`parse::Pass`] over the window and changes `half` by it.
    fn parse(&mut self, half: &mut Half, is_request: bool, answered: u8, len: usize, reach: u32) -> Parsed;
    /// Reads up to `most` bytes of the call's payload from `offset` on into the window at `at`; how many there are in one
    /// piece, or 0 where the payload cannot be had.
    fn read(&mut self, offset: u32, at: usize, most: usize) -> usize;
    /// Puts the carried bytes of this direction at the start of the window.
    fn load_carry(&mut self, direction: Direction, len: usize) -> bool;
    /// Keeps the window's first `len` bytes for the next call of this direction.
    fn save_carry(&mut self, direction: Direction, len: usize) -> bool;
    /// A request head was read: counted as seen.
    fn seen(&mut self);
    /// A server's request line was read; `at` and `len` say where in the window its path stands. What it counts as: `route`,
    /// unless rules say otherwise or it cannot be named.
    fn route(&mut self, conn: &mut Conn, route: u64, at: usize, len: usize) -> u64;
    fn record(&mut self, conn: &Conn, exchange: &Exchange);
    fn dropped(&mut self, reason: Reason, count: u32);
}

/// Moves the connection over the next part of a call. Call it until `call.done` reaches `call.total`; each time makes
/// progress.
#[inline(always)]
pub fn step<I: Io>(conn: &mut Conn, io: &mut I, call: &mut Call) {
    let rest = call.total - call.done;
    if conn.role == ROLE_OPAQUE {
        call.done = call.total;
        return;
    }
    conn.forget_other_direction(call.direction);
    let is_request = conn.is_request(call.direction);
    let half = conn.half_mut(is_request);

    if half.state >= State::FirstWithoutPayload as u8 {
        let skipped = parse::skip(half, rest);
        call.done += skipped.bytes;
        if !is_request {
            conn.last = call.now;
            if skipped.message_done {
                conn.response_done(io, call);
            }
        }
        return;
    }

    let carried = half.carried as usize;
    if carried != 0 && !io.load_carry(call.direction, carried) {
        conn.lose(call);
        return;
    }
    let space = WINDOW - carried;
    let most = if rest as usize > space { space } else { rest as usize };
    let fresh = io.read(call.done, carried, most);
    if fresh == 0 {
        conn.lose(call);
        return;
    }
    let len = carried + fresh;
    let half = conn.half_mut(is_request);
    let at_start = half.state == State::Start as u8;
    if at_start && carried == 0 && is_request {
        conn.start = call.begin;
    }

    // What the parser may pass over includes the carried bytes that stand before this call's.
    let reach = rest.saturating_add(carried as u32);
    let answered = conn.answered_method();
    let half = conn.half_mut(is_request);
    let parsed = io.parse(half, is_request, answered, len, reach);
    if parsed.consumed == 0 {
        // A cut line: kept until the rest of it comes.
        half.carried = len as u16;
        call.done += fresh as u32;
        if !io.save_carry(call.direction, len) {
            conn.lose(call);
        }
        return;
    }
    half.carried = 0;
    call.done += parsed.consumed.saturating_sub(carried as u32);
    conn.react(io, call, is_request, parsed);
}

impl Conn {
    /// Whether bytes of this direction belong to requests. On a connection of unknown role everything is tried as one.
    #[inline(always)]
    fn is_request(&self, direction: Direction) -> bool {
        match self.role {
            ROLE_SERVER => direction as u8 == Direction::Received as u8,
            ROLE_CLIENT => direction as u8 == Direction::Sent as u8,
            _ => true,
        }
    }

    #[inline(always)]
    fn half_mut(&mut self, is_request: bool) -> &mut Half {
        if is_request { &mut self.half[REQUEST] } else { &mut self.half[RESPONSE] }
    }

    /// On a connection of unknown role a cut line is only continued by its own direction.
    #[inline(always)]
    fn forget_other_direction(&mut self, direction: Direction) {
        if self.role == ROLE_UNKNOWN {
            if self.last_direction != direction as u8 {
                self.half[REQUEST].carried = 0;
            }
            self.last_direction = direction as u8;
        }
    }

    /// How many requests wait.
    #[inline(always)]
    fn waiting(&self) -> u32 {
        self.tail.wrapping_sub(self.head)
    }

    #[inline(always)]
    fn pending(&self, at: u32) -> &Pending {
        // SAFETY: masked to the ring's eight entries.
        unsafe { &*self.pending.as_ptr().add((opaque(u64::from(at)) & (DEPTH as u64 - 1)) as usize) }
    }

    /// The method of the request that the next response answers: it decides whether there is a body.
    #[inline(always)]
    fn answered_method(&self) -> u8 {
        if self.waiting() == 0 { Method::Other as u8 } else { self.pending(self.head).method as u8 }
    }

    /// Whether a call of this direction needs no look at its bytes: the fast way out for foreign protocols.
    #[inline(always)]
    pub fn ignores(&mut self, direction: Direction) -> bool {
        if self.role == ROLE_OPAQUE {
            return true;
        }
        if self.role != ROLE_UNKNOWN || self.misses < EAGER_MISSES || self.offered != PROTOCOL_UNKNOWN {
            return false;
        }
        let same = self.last_direction == direction as u8;
        self.forget_other_direction(direction);
        same
    }

    /// Whether the payload of a call of `total` bytes counts for nothing but its length: all of it is inside a body.
    #[inline(always)]
    pub fn skips(&self, direction: Direction, total: u32) -> bool {
        if self.role == ROLE_UNKNOWN {
            return false;
        }
        let half = if self.is_request(direction) { &self.half[REQUEST] } else { &self.half[RESPONSE] };
        half.state >= State::UntilClose as u8
            || half.state >= State::FirstWithoutPayload as u8 && half.remaining >= u64::from(total)
    }

    /// How many bytes of this direction passed by unseen before a call of `length` bytes: of calls that the kernel ran no program
    /// for, or that no hook tells of. `seq` is the sequence number where a direction stands behind this call.
    #[inline(always)]
    pub fn unseen(&mut self, direction: Direction, length: u32, seq: impl Fn(Direction) -> u32) -> u32 {
        if self.role != ROLE_SERVER && self.role != ROLE_CLIENT {
            // Not every call of an unknown connection comes by here.
            self.next_seq = [seq(Direction::Received), seq(Direction::Sent)];
            return 0;
        }
        let seq = seq(direction);
        let next = &mut self.next_seq[usize::from(direction as u8 == Direction::Sent as u8)];
        let gap = seq.wrapping_sub(length).wrapping_sub(*next);
        *next = seq;
        // The end of the stream counts for one byte in the call that came upon it.
        if gap <= 1 {
            return 0;
        }
        // Two threads that send at once, or data that never went through this socket's sequence.
        self.unordered |= u8::from(gap > u32::MAX / 2);
        if self.unordered == 0 { gap } else { 0 }
    }

    /// So many bytes passed by unseen before this call. Inside a body they are passed over; else it is not known any more what
    /// the responses answer that are still to come, but where one has to come the last request is what the client waits for.
    #[inline(always)]
    pub fn pass_over<I: Io>(&mut self, io: &mut I, call: &Call, unseen: u32) {
        let is_request = self.is_request(call.direction);
        if self.skips(call.direction, unseen) {
            let half = self.half_mut(is_request);
            half.remaining = half.remaining.saturating_sub(u64::from(unseen));
            if !is_request && half.remaining == 0 && half.state == State::FirstWithoutPayload as u8 {
                // When it ended nobody knows; what was seen of it last is nearer than what comes now.
                half.state = State::Start as u8;
                let status = half.status as u16;
                if self.waiting() != 0 {
                    self.record_first(io, status, self.last);
                }
            }
            // What else ends there is at its end as soon as the call is looked at.
            return;
        }
        *self.half_mut(is_request) = Half::EMPTY;
        let waiting = self.waiting();
        let kept = u32::from(!is_request && waiting != 0);
        if waiting != kept {
            io.dropped(Reason::Desync, waiting - kept);
            self.head = self.tail.wrapping_sub(kept);
        }
        self.overflow = 0;
    }

    /// The peer closed, or this end did: what waits gets no response any more.
    #[inline(always)]
    pub fn finish<I: Io>(&mut self, io: &mut I) {
        self.finished = 1;
        self.response_without_end(io);
        self.give_up(io, Reason::NoResponse);
        if self.early != 0 {
            self.early = 0;
            io.seen();
            io.dropped(Reason::NoRequest, 1);
        }
    }

    /// The bytes of a client's connection ended; a server may still answer after this.
    #[inline(always)]
    pub fn end_of_stream<I: Io>(&mut self, io: &mut I) {
        if self.role == ROLE_CLIENT {
            self.finish(io);
        }
    }

    /// What a pass over a window found changes the connection.
    #[inline(always)]
    fn react<I: Io>(&mut self, io: &mut I, call: &Call, is_request: bool, parsed: Parsed) {
        if parsed.found & BAD != 0 {
            return self.bad(io, call, is_request, parsed.found);
        }
        if is_request {
            if parsed.found & LINE != 0 {
                self.method = parsed.method;
                self.route = parsed.route;
                self.misses = 0;
                if self.role == ROLE_UNKNOWN {
                    let received = call.direction as u8 == Direction::Received as u8;
                    self.role = if received { ROLE_SERVER } else { ROLE_CLIENT };
                    self.protocol = HTTP;
                }
                if self.role == ROLE_SERVER {
                    self.route =
                        io.route(self, parsed.route, parsed.path_at as usize, parsed.path_len as usize);
                }
            }
            if parsed.found & HEAD != 0 {
                self.request_head(io);
            }
            return;
        }
        self.last = call.now;
        if parsed.found & DONE != 0 {
            self.response_done(io, call);
        }
    }

    /// A request is waiting for its response from now on.
    #[inline(always)]
    fn request_head<I: Io>(&mut self, io: &mut I) {
        io.seen();
        // A response whose end nothing told ended before its client asked again.
        self.response_without_end(io);
        let pending = Pending { start: self.start, route: self.route, method: u64::from(self.method) };
        let early = self.early;
        self.early = 0;
        if early >= self.start && early != 0 {
            let exchange = Exchange {
                method: self.method,
                route: self.route,
                status: self.early_status as u16,
                start: self.start,
                end: early,
            };
            return io.record(self, &exchange);
        }
        if early != 0 {
            // It was there before this request was: of one that was not seen.
            io.seen();
            io.dropped(Reason::NoRequest, 1);
        }
        if self.overflow != 0 || self.waiting() >= DEPTH as u32 {
            self.overflow += 1;
            return io.dropped(Reason::PipelineDepth, 1);
        }
        let at = (opaque(u64::from(self.tail)) & (DEPTH as u64 - 1)) as usize;
        // SAFETY: masked to the ring's eight entries.
        unsafe { *self.pending.as_mut_ptr().add(at) = pending };
        self.tail = self.tail.wrapping_add(1);
    }

    /// A response is complete.
    #[inline(always)]
    fn response_done<I: Io>(&mut self, io: &mut I, call: &Call) {
        let status = self.half[RESPONSE].status as u16;
        let mut method = Method::Other as u8;
        if self.waiting() != 0 {
            method = self.pending(self.head).method as u8;
            self.record_first(io, status, call.now);
        } else if self.overflow != 0 {
            self.overflow -= 1;
        } else if self.finished != 0 {
            // On loopback a reset can arrive while the response is being sent: its request is dropped already.
        } else if self.role == ROLE_CLIENT && self.early == 0 {
            self.early = call.now;
            self.early_status = u32::from(status);
        } else {
            io.seen();
            io.dropped(Reason::NoRequest, 1);
        }
        if status == 101 || method == Method::Connect as u8 && status / 100 == 2 {
            self.give_up(io, Reason::Opaque);
            self.role = ROLE_OPAQUE;
        } else if self.half[REQUEST].state == State::Lost as u8 && self.waiting() == 0 {
            self.half[REQUEST].state = State::Start as u8;
        }
    }

    #[inline(always)]
    fn record_first<I: Io>(&mut self, io: &mut I, status: u16, end: u64) {
        let Pending { start, route, method } = *self.pending(self.head);
        self.head = self.head.wrapping_add(1);
        io.record(self, &Exchange { method: method as u8, route, status, start, end });
    }

    /// Ends a response that only the connection's end or the next request ends.
    #[inline(always)]
    fn response_without_end<I: Io>(&mut self, io: &mut I) {
        if self.half[RESPONSE].state < State::UntilClose as u8 {
            return;
        }
        self.half[RESPONSE].state = State::Start as u8;
        let status = self.half[RESPONSE].status as u16;
        if self.waiting() != 0 && status != 0 {
            self.record_first(io, status, self.last);
        }
        self.give_up(io, Reason::Desync);
    }

    /// Drops whatever waits.
    #[inline(always)]
    fn give_up<I: Io>(&mut self, io: &mut I, reason: Reason) {
        let waiting = self.waiting();
        if waiting != 0 {
            io.dropped(reason, waiting);
            self.head = self.tail;
        }
        self.overflow = 0;
    }

    /// What stood there was not what had to come.
    #[inline(always)]
    fn bad<I: Io>(&mut self, io: &mut I, call: &Call, is_request: bool, found: u8) {
        if self.role == ROLE_UNKNOWN {
            self.misses = self.misses.saturating_add(1);
            if found & FOREIGN != 0 || self.misses >= MAX_MISSES {
                self.role = ROLE_OPAQUE;
            }
            return;
        }
        if found & TURNED != 0 {
            // A body that looked like a request told the wrong role: this direction carries responses.
            self.give_up(io, Reason::Desync);
            self.role = ROLE_UNKNOWN;
            self.protocol = PROTOCOL_UNKNOWN;
            // Whoever owns it is asked again: a client has a remote end to be named.
            self.workload = 0;
            self.half = [Half::default(); 2];
            return;
        }
        self.lose_framing(call, is_request);
    }

    /// The payload of the rest of this call cannot be had.
    #[inline(always)]
    pub fn lose(&mut self, call: &mut Call) {
        let is_request = self.is_request(call.direction);
        call.done = call.total;
        self.half_mut(is_request).carried = 0;
        if self.role != ROLE_UNKNOWN {
            self.lose_framing(call, is_request);
        }
    }

    #[inline(always)]
    fn lose_framing(&mut self, call: &Call, is_request: bool) {
        if is_request {
            let half = &mut self.half[REQUEST];
            // Between requests there is nothing to lose: the next call may begin one. In a body the response tells
            // when to look again.
            half.state = if half.state == State::Chunk as u8 { State::Lost } else { State::Start } as u8;
            return;
        }
        self.last = call.now;
        let lost = self.waiting() != 0;
        let half = &mut self.half[RESPONSE];
        if half.state == State::Start as u8 {
            half.status = 0;
        }
        half.state = if lost { State::Lost } else { State::Start } as u8;
    }
}

#[cfg(test)]
mod tests;
