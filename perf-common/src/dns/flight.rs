//! Lookups on their way: which queries wait for their answers.
//!
//! Everything on one socket with one transaction id is one [`Flight`]. Ids collide, on a server's socket above all, so it has
//! room for several questions, told apart by what they ask.

use super::{Message, QUERY, ROLE_CLIENT, ROLE_SERVER, TIMEOUT, is_transfer, rcode_index, type_index};
use crate::bytes::{Window, opaque};
use crate::events::Reason;

/// How many lookups may have one id on one socket.
pub const SLOTS: usize = 4;
/// Without an answer for so long, a lookup has timed out; nanoseconds.
pub const TIMEOUT_NS: u64 = 5_000_000_000;
/// User space collects timeouts that no later message brought to light. Later than the kernel, which then is out of the way:
/// resolvers that try again do so after five seconds by their own clock.
pub const SWEEP_NS: u64 = 6_000_000_000;

const FREE: u8 = 0;
const WAITING: u8 = 1;

/// Where a lookup is found again.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlightKey {
    /// The socket's address; its port as well, because addresses are used again at once.
    pub sk: u64,
    pub txid: u16,
    pub port: u16,
    /// [`ROLE_CLIENT`] or [`ROLE_SERVER`].
    pub role: u8,
    pub pad: [u8; 3],
}

crate::pod!(FlightKey: 16);

/// Where an answer is found whose query is still to come: another thread read it before the call returned that sent the
/// query. Apart from the flights, so that the two threads, which are at it at the same time, write to different places.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EarlyKey {
    pub flight: FlightKey,
    /// [`Message::question`].
    pub question: u64,
}

crate::pod!(EarlyKey: 24);

/// Such an answer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Early {
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub at: u64,
    /// An index into [`super::RCODES`].
    pub rcode: u32,
    /// Whether the port said that this is DNS, so that an answer to nothing counts.
    pub known: u32,
}

crate::pod!(Early: 16);

/// One lookup.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// `CLOCK_MONOTONIC` nanoseconds of the first query.
    pub start: u64,
    /// [`Message::question`].
    pub question: u64,
    /// [`Message::name`].
    pub name: u64,
    pub retransmits: u32,
    state: u8,
    /// An index into [`super::QTYPES`].
    pub qtype: u8,
    /// Whether the port said that this is DNS, so that it counts without an answer as well.
    known: u8,
    pad: u8,
}

/// The lookups of one id on one socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flight {
    /// Who asked, or whose server was asked.
    pub workload: u64,
    pub slots: [Slot; SLOTS],
}

crate::pod!(Flight: 8 + SLOTS * 32);

/// What a lookup came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub name: u64,
    pub qtype: u8,
    /// An index into [`super::RCODES`], or [`TIMEOUT`].
    pub outcome: u8,
    pub retransmits: u32,
    /// Nanoseconds.
    pub took: u64,
}

/// Where findings go.
pub trait Ledger {
    fn seen(&mut self);
    /// Counts a lookup's end.
    fn record(&mut self, ended: &Ended);
    fn dropped(&mut self, reason: Reason);
    /// Keeps the answer of this event until its query comes; false where there is no room.
    fn post(&mut self, event: &Event<'_>) -> bool;
    /// Takes back such an answer, for the one who was first to ask for it. Whoever has just written something the
    /// other thread looks for sees here what that one has written before.
    fn claim(&mut self, event: &Event<'_>) -> Option<Early>;
}

/// When a server on this host read a query, kept for its client, whose call may return later than that. On loopback the
/// server can be done before.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// [`Heard::tag`] of the query.
    pub tag: u64,
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub at: u64,
}

/// How many are kept, in a table without chains: what is overwritten costs precision, nothing else.
pub const HEARD: u32 = 1024;
/// No call takes longer to return, nanoseconds.
const MAX_CALL_NS: u64 = 10_000_000;

impl Heard {
    /// What stands for a query; its low bits are its place in the table.
    #[inline(always)]
    pub const fn tag(message: &Message) -> u64 {
        crate::workload::mix(message.question ^ message.txid as u64)
    }

    /// When a query with this tag was sent at the latest, whose call returned just `now`.
    #[inline(always)]
    pub const fn begin(&self, tag: u64, now: u64) -> u64 {
        if self.tag == tag && now.wrapping_sub(self.at) < MAX_CALL_NS { self.at } else { now }
    }
}

/// What a message meant to its flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// Nothing that was waited for.
    Stray = 0,
    /// A query that waits from now on, or an answer whose query is still to come.
    Pending = 1,
    /// A lookup is complete.
    Matched = 2,
}

/// A message in its circumstances.
#[derive(Clone, Copy)]
pub struct Event<'a> {
    pub message: &'a Message,
    pub role: u8,
    /// Whether the port says that this is DNS.
    pub known: bool,
    /// `CLOCK_MONOTONIC` nanoseconds; when the message passed, which can be a while before its call returned.
    pub begin: u64,
    pub now: u64,
    /// For the verifier; see [`Window::forget`].
    pub window: &'a Window,
}

impl Flight {
    pub const EMPTY: Self = Self {
        workload: 0,
        slots: [Slot {
            start: 0,
            question: 0,
            name: 0,
            retransmits: 0,
            state: FREE,
            qtype: 0,
            known: 0,
            pad: 0,
        }; SLOTS],
    };

    /// A query was sent (by a client) or received (by a server).
    #[inline(always)]
    pub fn ask<L: Ledger>(&mut self, ledger: &mut L, event: &Event<'_>) -> Outcome {
        let Event { message, role, now, window, .. } = *event;
        self.expire(ledger, now, TIMEOUT_NS);
        if role == ROLE_CLIENT {
            // A server cannot tell a client that asks again from another one with the same id.
            let waiting = self.oldest(window, message.question);
            if waiting < SLOTS {
                let slot = self.slot(waiting);
                slot.retransmits = slot.retransmits.saturating_add(1);
                return Outcome::Pending;
            }
        }
        let filled = self.fill(ledger, event);
        if filled >= SLOTS {
            return Outcome::Stray;
        }
        // No server answers before it has read.
        if role == ROLE_CLIENT
            && let Some(early) = ledger.claim(event)
        {
            self.end(ledger, filled, early.rcode as u8, early.at);
            return Outcome::Matched;
        }
        Outcome::Pending
    }

    /// An answer was received (by a client) or sent (by a server).
    #[inline(always)]
    pub fn answer<L: Ledger>(&mut self, ledger: &mut L, event: &Event<'_>) -> Outcome {
        self.expire(ledger, event.now, TIMEOUT_NS);
        let waiting = self.oldest(event.window, event.message.question);
        if waiting >= SLOTS {
            return Outcome::Stray;
        }
        self.end(ledger, waiting, rcode_index(event.message.rcode), event.now);
        Outcome::Matched
    }

    /// Looks once more for the query of an answer that was posted: it may have come in between.
    #[inline(always)]
    pub fn answer_posted<L: Ledger>(&mut self, ledger: &mut L, event: &Event<'_>) -> Outcome {
        let waiting = self.oldest(event.window, event.message.question);
        if waiting < SLOTS
            && let Some(early) = ledger.claim(event)
        {
            self.end(ledger, waiting, early.rcode as u8, early.at);
            return Outcome::Matched;
        }
        Outcome::Pending
    }

    #[inline(always)]
    fn end<L: Ledger>(&mut self, ledger: &mut L, at: usize, rcode: u8, now: u64) {
        let slot = self.slot(at);
        let ended = Ended {
            name: slot.name,
            qtype: slot.qtype,
            outcome: rcode,
            retransmits: slot.retransmits,
            took: now.saturating_sub(slot.start),
        };
        slot.state = FREE;
        if slot.known == 0 {
            ledger.seen();
        }
        ledger.record(&ended);
    }

    /// Ends what has waited for longer than `limit`; all that is left is free or younger.
    #[inline(always)]
    pub fn expire<L: Ledger>(&mut self, ledger: &mut L, now: u64, limit: u64) {
        for slot in &mut self.slots {
            let age = now.saturating_sub(slot.start);
            if slot.state == FREE || age <= limit {
                continue;
            }
            slot.state = FREE;
            if slot.known != 0 {
                ledger.record(&Ended {
                    name: slot.name,
                    qtype: slot.qtype,
                    outcome: TIMEOUT,
                    retransmits: slot.retransmits,
                    took: age,
                });
            }
        }
    }

    /// Whether nothing waits here.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        let mut states = 0;
        for slot in &self.slots {
            states |= slot.state;
        }
        states == FREE
    }

    /// Whether something waits here, and all of it for longer than `limit`. A flight without any is just being filled.
    pub fn is_older(&self, now: u64, limit: u64) -> bool {
        !self.is_empty()
            && self.slots.iter().all(|slot| slot.state == FREE || now.saturating_sub(slot.start) > limit)
    }

    /// The slot that has waited longest with this question (any, for 0); [`SLOTS`] where there is none.
    #[inline(always)]
    fn oldest(&self, window: &Window, question: u64) -> usize {
        let mut found = SLOTS as u64;
        let mut since = u64::MAX;
        for (at, slot) in self.slots.iter().enumerate() {
            if slot.state == WAITING && (question == 0 || slot.question == question) && slot.start < since {
                since = slot.start;
                found = at as u64;
            }
        }
        window.forget(found) as usize
    }

    #[inline(always)]
    fn slot(&mut self, at: usize) -> &mut Slot {
        // SAFETY: masked to the array's length.
        unsafe { &mut *self.slots.as_mut_ptr().add((opaque(at as u64) & (SLOTS as u64 - 1)) as usize) }
    }

    /// Which slot holds the query now; [`SLOTS`] for none.
    #[inline(always)]
    fn fill<L: Ledger>(&mut self, ledger: &mut L, event: &Event<'_>) -> usize {
        let Event { message, known, begin, window, .. } = *event;
        let mut free = SLOTS as u64;
        for (at, slot) in self.slots.iter().enumerate() {
            if slot.state == FREE {
                free = at as u64;
            }
        }
        let free = window.forget(free) as usize;
        if known {
            ledger.seen();
        }
        if free >= SLOTS {
            if known {
                ledger.dropped(Reason::PipelineDepth);
            }
            return SLOTS;
        }
        *self.slot(free) = Slot {
            start: begin,
            question: message.question,
            name: message.name,
            retransmits: 0,
            state: WAITING,
            qtype: type_index(message.qtype),
            known: u8::from(known),
            pad: 0,
        };
        free
    }
}

impl Event<'_> {
    /// Whether a query or an answer may be one: by its port, or by its looks.
    #[inline(always)]
    pub fn is_credible(&self) -> bool {
        self.known || self.message.plausible != 0
    }

    /// Whether this answer can be one whose query is still to come: that of a client with several threads. Zone transfers
    /// answer one query with many messages.
    #[inline(always)]
    pub fn is_early(&self) -> bool {
        self.role == ROLE_CLIENT
            && self.message.question != 0
            && !is_transfer(self.message.qtype)
            && self.is_credible()
    }

    /// Counts an answer that nobody waits for.
    #[inline(always)]
    pub fn stray<L: Ledger>(&self, ledger: &mut L) {
        if self.known && !is_transfer(self.message.qtype) {
            ledger.seen();
            ledger.dropped(Reason::NoRequest);
        }
    }
}

/// Which end a socket is that sends or receives this kind of message.
#[inline(always)]
pub const fn role(kind: u8, sent: bool) -> u8 {
    if (kind == QUERY) == sent { ROLE_CLIENT } else { ROLE_SERVER }
}
