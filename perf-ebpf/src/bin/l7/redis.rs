//! Redis: the program that follows a call.
//!
//! Maps: `RD_CONNS` (socket → state); its cells are in the table of the databases.
//! Metrics: `db_query_duration_seconds`, `db_server_query_duration_seconds`.

#[path = "redis/stages.rs"]
mod stages;

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use perf_common::db::{DbKey, REDIS as SYSTEM};
use perf_common::events::Reason;
use perf_common::l7::{Call, REDIS};
use perf_common::redis::message::{Found, HEAD, Half, INLINE, LINE, NUMBER, Pass, REST, TEXT};
use perf_common::redis::verb::Text;
use perf_common::redis::{Conn, Exchange, Io, Settle, step};
use perf_ebpf::count::{EVENT_COUNTERS, Events};
use stages::{rd_begin, rd_fill, rd_lines, rd_number, rd_settle, rd_text};

use super::Work as Scratch;
use super::db::{peek_payload, record_query};

#[map]
static RD_EVENTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(EVENT_COUNTERS, 0);
/// What Redis needs of [`super::Work`], besides the block.
#[repr(C)]
pub(super) struct Work {
    pass: Pass,
    /// A copy, for what is too much to be part of the program that has the socket.
    conn: Conn,
}

/// Parts of one call per program: a run of commands of one verb, or of replies with one outcome.
const ROUNDS: usize = 4;

follow! {
    REDIS as redis, with Kernel and Ending,
    programs: rd_sent, rd_received, rd_returned,
    maps: RD_CONNS, RD_BY_ADDR, RD_ZERO,
}

#[inline(always)]
fn count(conn: &Conn, exchange: &Exchange) {
    let rest = DbKey::rest(SYSTEM, conn.role, exchange.failed.into(), exchange.count);
    let ns = exchange.end.saturating_sub(exchange.start);
    super::phases::note(conn.role, conn.workload, REDIS, exchange.count, (exchange.start, exchange.end));
    if record_query(conn.workload, u64::from(exchange.verb), conn.peer, rest, ns) != 0 {
        Events(&RD_EVENTS).recorded_many(u64::from(exchange.count));
    } else {
        Events(&RD_EVENTS).dropped(Reason::MapFull, exchange.count);
    }
}

/// Its hands where a connection ends: in an interrupt that may stand in the middle of another one's work.
struct Ending;

impl Io for Ending {
    #[inline(always)]
    fn peek(&mut self, _: &Call) -> u64 {
        0
    }

    #[inline(always)]
    fn fill(&mut self, _: &Call) -> bool {
        false
    }

    #[inline(always)]
    fn parse(&mut self, _: &mut Half, _: &mut Text, _: bool) -> Found {
        Found::EMPTY
    }

    #[inline(always)]
    fn settle(&mut self, conn: &mut Conn, settle: &Settle) {
        conn.settle(self, settle);
    }

    #[inline(always)]
    fn seen(&mut self, _: u32) {}

    #[inline(always)]
    fn record(&mut self, conn: &Conn, exchange: &Exchange) {
        count(conn, exchange);
    }

    #[inline(always)]
    fn dropped(&mut self, reason: Reason, count: u32) {
        Events(&RD_EVENTS).dropped(reason, count);
    }
}

/// The state machine's hands in the kernel.
struct Kernel<'a> {
    work: &'a mut Scratch,
}

impl Io for Kernel<'_> {
    #[inline(always)]
    fn peek(&mut self, call: &Call) -> u64 {
        peek_payload(self.work.place, u64::from(call.done))
    }

    #[inline(always)]
    fn fill(&mut self, call: &Call) -> bool {
        rd_fill(self.work.place, u64::from(call.done), u64::from(call.total)) != 0
    }

    #[inline(always)]
    fn parse(&mut self, half: &mut Half, text: &mut Text, is_request: bool) -> Found {
        let place = self.work.place;
        let pass = &mut self.work.redis.pass;
        pass.prepare(half, text);
        let from = pass.pos;
        let mut phase = half.phase;
        if phase == HEAD {
            phase = rd_lines(place, u64::from(is_request)) as u8;
            if phase == HEAD && self.work.redis.pass.is_stuck() {
                phase = rd_begin(place, u64::from(is_request)) as u8;
            }
        }
        if phase == NUMBER {
            rd_number(place, u64::from(is_request));
        } else if phase == TEXT || phase == INLINE || phase == REST || phase == LINE {
            rd_text(place, u64::from(phase), u64::from(is_request));
        }
        let pass = &mut self.work.redis.pass;
        *half = pass.half;
        *text = pass.text;
        pass.out.consumed = pass.pos - from;
        pass.out
    }

    #[inline(always)]
    fn settle(&mut self, conn: &mut Conn, settle: &Settle) {
        let (from, to) =
            (core::ptr::from_mut(conn).cast::<u64>(), (&raw mut self.work.redis.conn).cast::<u64>());
        for i in 0..size_of::<Conn>() / 8 {
            // SAFETY: both are as long as that.
            unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) };
        }
        let what = u64::from(settle.what) | u64::from(settle.failed) << 8;
        rd_settle(self.work.place, what, settle.reason as u64, settle.count.into(), settle.end);
        conn.take_over(&self.work.redis.conn);
    }

    #[inline(always)]
    fn seen(&mut self, count: u32) {
        Events(&RD_EVENTS).seen_many(u64::from(count));
    }

    #[inline(always)]
    fn record(&mut self, conn: &Conn, exchange: &Exchange) {
        count(conn, exchange);
    }

    #[inline(always)]
    fn dropped(&mut self, reason: Reason, count: u32) {
        Events(&RD_EVENTS).dropped(reason, count);
    }
}
