//! Where the time of a server's requests went.
//!
//! What a thread has run and has waited for a CPU so far is the kernel's own account; its difference between reading a request and
//! sending the response splits the time between them.

/// What a request's time is split into, in the order of a cell's counters.
pub const PHASES: [&str; 4] = ["socket_queue", "run_queue", "cpu", "other"];

/// The requests that one workload answered in one protocol, which is one of [`crate::l7`]'s.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PhaseCell {
    /// Nanoseconds by [`PHASES`].
    pub spent: [u64; PHASES.len()],
}

crate::pod!(PhaseCell: 32);

/// An element of the table of cells.
pub type PhaseSlot = crate::cells::Slot<crate::cells::ByProtocol, PhaseCell>;
crate::pod!(PhaseSlot: 48);

/// What a thread has done so far, in nanoseconds. Only differences mean anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub ran: u64,
    pub waited: u64,
}

/// The last time that a server began to read from a connection after it had written to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn {
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub read: u64,
    /// What the thread had done by then, and which it was.
    pub ran: u64,
    pub waited: u64,
    pub pid: u32,
    /// 1 until it writes.
    pub open: u32,
}

crate::pod!(Turn: 32);

/// A send call under way: what its thread did since the turn began.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Serving {
    /// The time of the call, by which those know it that it answers.
    pub end: u64,
    pub read: u64,
    pub ran: u64,
    pub waited: u64,
}

impl Turn {
    /// Begins a turn with a read, unless one is under way.
    #[inline(always)]
    pub fn begin(&mut self, now: u64, pid: u32, progress: Progress) {
        *self = Self { read: now, ran: progress.ran, waited: progress.waited, pid, open: 1 };
    }

    /// What a send call by that thread makes of the turn. Another thread than the one that read tells nothing of what was done.
    #[inline(always)]
    pub fn serving(&mut self, now: u64, pid: u32, progress: Progress) -> Serving {
        self.open = 0;
        let same = self.pid == pid;
        Serving {
            end: now,
            read: self.read,
            ran: if same { progress.ran.saturating_sub(self.ran) } else { 0 },
            waited: if same { progress.waited.saturating_sub(self.waited) } else { 0 },
        }
    }
}

impl Serving {
    /// Splits the time of a request that ended with the call; the parts are the whole.
    #[inline(always)]
    pub fn split(&self, start: u64, end: u64) -> [u64; PHASES.len()] {
        let all = end.saturating_sub(start);
        if self.end != end {
            // It ended another way, such as with its connection.
            return [0, 0, 0, all];
        }
        let queued = least(self.read.saturating_sub(start), all);
        let waited = least(self.waited, all - queued);
        let ran = least(self.ran, all - queued - waited);
        [queued, waited, ran, all - queued - waited - ran]
    }
}

#[inline(always)]
const fn least(a: u64, b: u64) -> u64 {
    if a < b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_the_whole() {
        let mut turn = Turn::default();
        turn.begin(1_000, 7, Progress { ran: 50, waited: 20 });
        let serving = turn.serving(5_000, 7, Progress { ran: 1_050, waited: 520 });
        assert_eq!((turn.open, serving.ran, serving.waited), (0, 1_000, 500));
        assert_eq!(serving.split(400, 5_000), [600, 500, 1_000, 2_500]);
        // Later than the turn began: what was done is more than there was time for.
        assert_eq!(serving.split(4_200, 5_000), [0, 500, 300, 0]);
        assert_eq!(serving.split(400, 4_999), [0, 0, 0, 4_599]);
        assert_eq!(serving.split(6_000, 5_000), [0; 4]);
    }

    #[test]
    fn another_thread_tells_nothing() {
        let mut turn = Turn::default();
        turn.begin(1_000, 7, Progress { ran: 50, waited: 20 });
        let serving = turn.serving(5_000, 8, Progress { ran: 9_000, waited: 900 });
        assert_eq!(serving.split(400, 5_000), [600, 0, 0, 4_000]);
    }
}
