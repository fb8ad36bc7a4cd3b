//! MySQL and MariaDB: the program that follows a call.
//!
//! Maps: `MY_CONNS` (socket → state); its statements and its cells are with those of the other databases.
//! Metrics: `db_query_duration_seconds`, `db_server_query_duration_seconds`.

#[path = "mysql/stages.rs"]
mod stages;

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use perf_common::db::{DbKey, MYSQL as SYSTEM};
use perf_common::events::Reason;
use perf_common::l7::{Call, MYSQL};
use perf_common::mysql::message::{ATTRIBUTES, Found, HEAD, Half, Pass, SKIP, SQL, START};
use perf_common::mysql::{Conn, Exchange, Io, step};
use perf_ebpf::count::{EVENT_COUNTERS, Events};
use stages::{my_attributes, my_begin, my_fill, my_headers, my_sql};

use super::Work as Scratch;
use super::db::{define, fingerprint, load_statement, lookup, peek_payload, record_query, save_statement};

#[map]
static MY_EVENTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(EVENT_COUNTERS, 0);

/// What MySQL needs of [`super::Work`], besides what the databases share.
#[repr(C)]
pub(super) struct Work {
    pass: Pass,
}

/// Parts of one call per program: up to a packet that matters, or a block of ones that do not.
const ROUNDS: usize = 4;

follow! {
    MYSQL as mysql, with Kernel and Ending,
    programs: my_sent, my_received, my_returned,
    maps: MY_CONNS, MY_BY_ADDR, MY_ZERO,
}

#[inline(always)]
fn count(conn: &Conn, exchange: &Exchange) {
    let rest = DbKey::rest(SYSTEM, conn.role, exchange.error, 1);
    let ns = exchange.end.saturating_sub(exchange.start);
    super::phases::note(conn.role, conn.workload, MYSQL, 1, (exchange.start, exchange.end));
    if record_query(conn.workload, exchange.fingerprint, conn.peer, rest, ns) != 0 {
        Events(&MY_EVENTS).recorded();
    } else {
        Events(&MY_EVENTS).dropped(Reason::MapFull, 1);
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
    fn parse(&mut self, _: &mut Half, _: &mut [u64; 3], _: bool) -> Found {
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
    fn seen(&mut self, _: u32) {}

    #[inline(always)]
    fn record(&mut self, conn: &Conn, exchange: &Exchange) {
        count(conn, exchange);
    }

    #[inline(always)]
    fn dropped(&mut self, reason: Reason, count: u32) {
        Events(&MY_EVENTS).dropped(reason, count);
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
        my_fill(self.work.place, u64::from(call.done), u64::from(call.total)) != 0
    }

    #[inline(always)]
    fn parse(&mut self, half: &mut Half, text: &mut [u64; 3], is_request: bool) -> Found {
        let place = self.work.place;
        let pass = &mut self.work.mysql.pass;
        pass.prepare(half, text);
        let from = pass.pos;
        let mut phase = half.phase;
        if phase == HEAD || phase == SKIP {
            phase = my_headers(place, u64::from(is_request)) as u8;
        }
        if phase == START {
            phase = my_begin(place, u64::from(is_request)) as u8;
        }
        if phase == ATTRIBUTES {
            phase = my_attributes(place) as u8;
        }
        if phase == SQL {
            my_sql(place);
        }
        let pass = &mut self.work.mysql.pass;
        *half = pass.half;
        *text = pass.text;
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
        fingerprint(self.work.place, SYSTEM.into())
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
    fn seen(&mut self, count: u32) {
        Events(&MY_EVENTS).seen_many(u64::from(count));
    }

    #[inline(always)]
    fn record(&mut self, conn: &Conn, exchange: &Exchange) {
        count(conn, exchange);
    }

    #[inline(always)]
    fn dropped(&mut self, reason: Reason, count: u32) {
        Events(&MY_EVENTS).dropped(reason, count);
    }
}
