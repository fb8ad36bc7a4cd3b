//! Requests that wait, taken out of the ring when the server says what became of them.

use super::{Conn, DEPTH, Exchange, GAP, Io};
use crate::events::Reason;
use crate::l7::ROLE_CLIENT;

/// What is to be done with the requests that wait.
#[derive(Clone, Copy)]
pub struct Settle {
    /// One of the constants below.
    pub what: u8,
    /// 1 for errors.
    pub failed: u8,
    pub reason: Reason,
    /// How many have their replies.
    pub count: u32,
    pub end: u64,
}

/// Nothing.
pub(super) const KEEP: u8 = 0;
/// So many were answered.
pub(super) const COMPLETE: u8 = 1;
/// Whatever waits is dropped.
const GIVE_UP: u8 = 2;

impl Settle {
    pub(super) const NOTHING: Self = Self { what: KEEP, failed: 0, reason: Reason::Desync, count: 0, end: 0 };

    #[inline(always)]
    pub(super) const fn give_up(reason: Reason) -> Self {
        Self { what: GIVE_UP, reason, ..Self::NOTHING }
    }
}

impl Conn {
    /// The common case: all that was answered is of the first run. `false` if it is not.
    #[inline(always)]
    pub(super) fn settle_one<I: Io>(&mut self, io: &mut I, settle: &Settle) -> bool {
        let first = *self.entry(self.head);
        let left = first.count().wrapping_sub(self.done);
        if settle.what != COMPLETE || self.waiting() == 0 || first.verb() == GAP || settle.count > left {
            return false;
        }
        self.done += settle.count;
        if settle.count == left {
            self.head = self.head.wrapping_add(1);
            self.done = 0;
        }
        io.record(
            self,
            &Exchange {
                verb: first.verb(),
                failed: settle.failed != 0,
                count: settle.count,
                start: first.start(settle.end),
                end: settle.end,
            },
        );
        true
    }

    /// What [`Conn::settle`] changes, from a copy that it ran on.
    #[inline(always)]
    pub fn take_over(&mut self, settled: &Self) {
        self.head = settled.head;
        self.done = settled.done;
        self.early = settled.early;
        self.early_count = settled.early_count;
        self.early_failed = settled.early_failed;
        self.tentative = settled.tentative;
        self.unconfirmed = settled.unconfirmed;
    }

    /// Takes requests that wait out of the ring and records or drops them.
    #[inline(always)]
    pub fn settle<I: Io>(&mut self, io: &mut I, settle: &Settle) {
        let Settle { what, failed, reason, count, end } = *settle;
        let mut rest = count;
        let mut lost = 0;
        let mut turns = 0;
        loop {
            let first = *self.entry(self.head);
            let more = self.waiting() != 0 && (what == GIVE_UP || rest != 0);
            if more {
                let left = first.count().wrapping_sub(self.done);
                let taken = if what == GIVE_UP || left < rest { left } else { rest };
                self.done += taken;
                if taken == left {
                    self.head = self.head.wrapping_add(1);
                    self.done = 0;
                }
                // What a gap stands for was dropped when it came.
                if first.verb() != GAP {
                    if what == GIVE_UP {
                        lost += taken;
                    } else {
                        let exchange = Exchange {
                            verb: first.verb(),
                            failed: failed != 0,
                            count: taken,
                            start: first.start(end),
                            end,
                        };
                        io.record(self, &exchange);
                    }
                }
                rest = rest.saturating_sub(taken);
            }
            turns += 1;
            if !more || turns > DEPTH {
                break;
            }
        }
        if lost != 0 && self.tentative == 0 {
            io.dropped(reason, lost);
        }
        if what == GIVE_UP {
            self.tentative = 0;
            self.unconfirmed = 0;
        }
        if what == COMPLETE && rest != 0 && self.role == ROLE_CLIENT {
            self.early = end;
            self.early_count = self.early_count.saturating_add(rest);
            self.early_failed = failed;
        }
    }
}
