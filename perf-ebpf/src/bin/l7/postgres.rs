//! PostgreSQL: the program that follows a call.
//!
//! Maps: `PG_CONNS` (socket → state); its statements and its cells are with those of the other databases.
//! Metrics: `db_query_duration_seconds`, `db_server_query_duration_seconds`.

#[path = "postgres/stages.rs"]
mod stages;

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use perf_common::db::{DbKey, POSTGRESQL};
use perf_common::events::Reason;
use perf_common::l7::{Call, POSTGRES};
use perf_common::postgres::{
    Conn, Exchange, Io, Settle,
    message::{Found, Half, NAME, Pass, SECOND_NAME, SKIP, SQL, STARTUP},
    step,
};
use perf_ebpf::count::{EVENT_COUNTERS, Events};
use stages::{
    fill_block, is_request_chain, parse_greeting, parse_messages, parse_name, parse_sql, settle_waiting,
};

use super::Work as Scratch;
use super::db::{define, fingerprint, load_statement, lookup, peek_payload, record_query, save_statement};

#[map]
static PG_EVENTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(EVENT_COUNTERS, 0);

/// What PostgreSQL needs of [`super::Work`].
#[repr(C)]
pub(super) struct Work {
    pass: Pass,
    /// A copy, for what is too much to be part of the program that has the socket.
    conn: Conn,
}

/// Parts of one call per program: up to a message that matters, or a block of ones that do not.
const ROUNDS: usize = 4;

follow! {
    POSTGRES as pg, with Kernel and Ending,
    programs: pg_sent, pg_received, pg_returned,
    maps: PG_CONNS, PG_BY_ADDR, PG_ZERO,
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
    fn is_chain(&mut self, _: u32) -> bool {
        false
    }

    #[inline(always)]
    fn parse(&mut self, _: &mut Half, _: bool) -> Found {
        Found::EMPTY
    }

    #[inline(always)]
    fn save_statement(&mut self) -> bool {
        false
    }

    #[inline(always)]
    fn load_statement(&mut self) -> bool {
        false
    }

    #[inline(always)]
    fn fingerprint(&mut self) -> u64 {
        0
    }

    #[inline(always)]
    fn define(&mut self, _: u64, _: u64) {}

    #[inline(always)]
    fn lookup(&mut self, _: u64) -> u64 {
        0
    }

    #[inline(always)]
    fn settle(&mut self, conn: &mut Conn, settle: &Settle) {
        conn.settle(self, settle);
    }

    #[inline(always)]
    fn seen(&mut self) {}

    #[inline(always)]
    fn record(&mut self, conn: &Conn, exchange: &Exchange) {
        count(conn, exchange);
    }

    #[inline(always)]
    fn dropped(&mut self, reason: Reason, count: u32) {
        Events(&PG_EVENTS).dropped(reason, count);
    }
}

#[inline(always)]
fn count(conn: &Conn, exchange: &Exchange) {
    let rest = DbKey::rest(POSTGRESQL, conn.role, exchange.error, exchange.count);
    let ns = exchange.end.saturating_sub(exchange.start);
    super::phases::note(conn.role, conn.workload, POSTGRES, exchange.count, (exchange.start, exchange.end));
    if record_query(conn.workload, exchange.fingerprint, conn.peer, rest, ns) != 0 {
        Events(&PG_EVENTS).recorded_many(u64::from(exchange.count));
    } else {
        Events(&PG_EVENTS).dropped(Reason::MapFull, exchange.count);
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
        fill_block(self.work.place, u64::from(call.done), u64::from(call.total)) != 0
    }

    #[inline(always)]
    fn is_chain(&mut self, total: u32) -> bool {
        is_request_chain(self.work.place, u64::from(total)) != 0
    }

    #[inline(always)]
    fn parse(&mut self, half: &mut Half, is_request: bool) -> Found {
        let pass = &mut self.work.pg.pass;
        pass.prepare(half, is_request);
        let from = pass.pos;
        let mut phase = half.phase;
        if phase >= STARTUP {
            parse_greeting(self.work.place);
        } else {
            if phase <= SKIP {
                phase = parse_messages(self.work.place) as u8;
            }
            if phase == NAME {
                phase = parse_name(self.work.place) as u8;
            }
            if phase == SECOND_NAME {
                phase = parse_name(self.work.place) as u8;
            }
            if phase == SQL {
                parse_sql(self.work.place);
            }
        }
        let pass = &mut self.work.pg.pass;
        *half = pass.half;
        pass.out.consumed = pass.pos - from;
        pass.out
    }

    #[inline(always)]
    fn save_statement(&mut self) -> bool {
        save_statement(self.work.place) != 0
    }

    #[inline(always)]
    fn load_statement(&mut self) -> bool {
        load_statement(self.work.place) != 0
    }

    #[inline(always)]
    fn fingerprint(&mut self) -> u64 {
        fingerprint(self.work.place, POSTGRESQL.into())
    }

    #[inline(always)]
    fn define(&mut self, name: u64, fingerprint: u64) {
        define(self.work.place, name, fingerprint);
    }

    #[inline(always)]
    fn lookup(&mut self, name: u64) -> u64 {
        lookup(self.work.place, name)
    }

    #[inline(always)]
    fn settle(&mut self, conn: &mut Conn, settle: &Settle) {
        let (from, to) =
            (core::ptr::from_mut(conn).cast::<u64>(), (&raw mut self.work.pg.conn).cast::<u64>());
        for i in 0..size_of::<Conn>() / 8 {
            // SAFETY: both are as long as that.
            unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) };
        }
        settle_waiting(
            self.work.place,
            settle.what.into(),
            settle.reason as u64,
            settle.most.into(),
            settle.end,
        );
        conn.take_over(&self.work.pg.conn);
    }

    #[inline(always)]
    fn seen(&mut self) {
        Events(&PG_EVENTS).seen();
    }

    #[inline(always)]
    fn record(&mut self, conn: &Conn, exchange: &Exchange) {
        count(conn, exchange);
    }

    #[inline(always)]
    fn dropped(&mut self, reason: Reason, count: u32) {
        Events(&PG_EVENTS).dropped(reason, count);
    }
}
