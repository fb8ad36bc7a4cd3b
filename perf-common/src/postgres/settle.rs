//! Requests that wait, taken out of the ring when the server says what became of them.

use super::{Conn, DEPTH, Exchange, Io, Pending, SIMPLE};
use crate::db::Error;
use crate::events::Reason;

/// What is to be done with the requests that wait.
#[derive(Clone, Copy)]
pub struct Settle {
    /// One of the constants below.
    pub what: u8,
    pub reason: Reason,
    /// How many Executes are done.
    pub most: u32,
    pub end: u64,
}

/// Nothing.
pub(super) const KEEP: u8 = 0;
/// So many were completed.
pub(super) const COMPLETE: u8 = 1;
/// The server ended a group, before which so many were completed.
pub(super) const GROUP: u8 = 2;
/// It had done so before the group was seen: all that is known is that it ended.
pub(super) const EARLY_GROUP: u8 = 3;
/// Whatever waits is dropped.
pub(super) const GIVE_UP: u8 = 4;

impl Settle {
    #[inline(always)]
    pub(super) const fn new(what: u8, end: u64) -> Self {
        Self { what, reason: Reason::Desync, most: 0, end }
    }

    #[inline(always)]
    pub(super) const fn give_up(reason: Reason) -> Self {
        Self { what: GIVE_UP, reason, most: 0, end: 0 }
    }
}

impl Conn {
    /// Whether the first entry is of the group being answered.
    #[inline(always)]
    fn is_current(&mut self) -> bool {
        let group = self.answered & !SIMPLE;
        self.waiting() != 0 && self.entry(self.head).group & !SIMPLE == group
    }

    /// The server told an error: of what it is doing, or of the commit behind it.
    #[inline(always)]
    pub(super) fn fail(&mut self, error: Error) -> Settle {
        self.failed = error.into();
        let one_is_left = self.entry(self.head).count - self.done == 1;
        let next = self.entry(self.head.wrapping_add(1)).group & !SIMPLE;
        let was_last = one_is_left && (self.waiting() == 1 || next != self.answered & !SIMPLE);
        // An Execute that was completed and is not its group's last is not what failed.
        Settle::new(if was_last { KEEP } else { COMPLETE }, 0)
    }

    /// The common case: a group of one request ends. `false` if it is none.
    #[inline(always)]
    pub(super) fn settle_one<I: Io>(&mut self, io: &mut I, settle: &Settle) -> bool {
        let Pending { start, fingerprint, count, group } = *self.entry(self.head);
        let one = count == 1 && self.waiting() == 1 && group & !SIMPLE == self.answered & !SIMPLE;
        let known = self.failed != 0 || group & SIMPLE != 0 || settle.most == 1 && self.completed == 0;
        if settle.what != GROUP || !one || !known || self.overflow != 0 {
            return false;
        }
        let error = self.failed as Error;
        self.head = self.head.wrapping_add(1);
        self.done = 0;
        self.completed = 0;
        self.failed = 0;
        self.answered = self.answered.wrapping_add(1);
        io.record(self, &Exchange { fingerprint, start, end: settle.end, count: 1, error });
        true
    }

    /// What [`Conn::settle`] changes, from a copy that it ran on.
    #[inline(always)]
    pub fn take_over(&mut self, settled: &Self) {
        self.head = settled.head;
        self.done = settled.done;
        self.completed = settled.completed;
        self.failed = settled.failed;
        self.overflow = settled.overflow;
        self.early = settled.early;
        self.answered = settled.answered;
    }

    /// Takes requests that wait out of the ring and records or drops them.
    #[inline(always)]
    pub fn settle<I: Io>(&mut self, io: &mut I, settle: &Settle) {
        let Settle { what, reason, most, end } = *settle;
        // The last one that was completed may be its group's last, which lasts until the group ends.
        let held = self.completed;
        let mut flush = held != 0 && (what != GROUP || most != 0);
        let mut rest = most;
        if what == COMPLETE && most != 0 {
            rest = most - 1;
        } else if what == GROUP && held != 0 && most == 0 {
            rest = 1;
        }
        let error = if what == COMPLETE { 0 } else { self.failed as Error };
        let failed = error != 0;
        let group = self.answered & !SIMPLE;
        self.completed = 0;
        let mut lost = 0;
        let mut turns = 0;
        loop {
            let entry = *self.entry(self.head);
            let simple = entry.group & SIMPLE != 0;
            let left = entry.count - self.done;
            let in_group = what == GIVE_UP || entry.group & !SIMPLE == group;
            let wanted = what != COMPLETE || flush || rest != 0 && !simple;
            let more = self.waiting() != 0 && in_group && wanted;
            if more {
                let whole = what != GIVE_UP && (failed || simple) || what == EARLY_GROUP;
                let drops = !flush && !whole && rest == 0;
                let limit = if flush {
                    1
                } else if whole || drops {
                    left
                } else {
                    rest
                };
                let taken = if limit < left { limit } else { left };
                self.done += taken;
                if taken == left {
                    self.head = self.head.wrapping_add(1);
                    self.done = 0;
                }
                if drops {
                    lost += taken;
                } else {
                    let exchange = Exchange {
                        fingerprint: entry.fingerprint,
                        start: entry.start,
                        end: if flush { held } else { end },
                        count: taken,
                        error: if flush { 0 } else { error },
                    };
                    io.record(self, &exchange);
                }
                if !flush && !whole && !drops {
                    rest -= taken;
                }
                flush = false;
            }
            turns += 1;
            if !more || turns >= DEPTH + 2 {
                break;
            }
        }
        if lost != 0 {
            io.dropped(reason, lost);
        }
        if what == COMPLETE {
            if most != 0 && rest == 0 && self.is_current() && self.entry(self.head).group & SIMPLE == 0 {
                self.completed = end;
            }
            return;
        }
        self.failed = 0;
        if what == GIVE_UP {
            self.overflow = 0;
            self.early = 0;
            return;
        }
        if self.overflow == group + 1 {
            self.overflow = 0;
        }
        self.answered = self.answered.wrapping_add(1);
    }
}
