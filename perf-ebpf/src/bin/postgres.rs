//! PostgreSQL queries, server and client side, counted where they happen.
//!
//! Hooks: as `http.rs` has them, and for the same reasons: `tp_btf/sock_send_length`, `tp_btf/sock_recv_length`,
//! `tp_btf/tcp_rcv_space_adjust`, `tp_btf/inet_sock_set_state`.
//! Maps: `CONNS` (socket → state), `STATEMENTS` (socket and name → fingerprint of a prepared statement or a portal), `CUT`
//! (socket → a statement of which one call brought a part), `CELLS` (workload, fingerprint, peer, outcome → histogram),
//! `NAMED` (fingerprints with a name) and `SAMPLES` (the normalised text that names a new one), `WORKLOADS`, `PEERS`,
//! `EVENTS`, `WORK` and `ARRIVAL` (scratch of one CPU).
//! Metrics: `db_query_duration_seconds`, `db_server_query_duration_seconds`.
//! Needs: 6.3 for the first two hooks; before that `tp_btf/sys_exit` stands in for them.
#![no_std]
#![no_main]
#![allow(clippy::needless_pass_by_value, reason = "the tracepoint macro hands over the context")]

#[path = "postgres/stages.rs"]
mod stages;

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_map, btf_tracepoint, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf};
use aya_ebpf::programs::BtfTracePointContext;
use perf_common::events::Reason;
use perf_common::histogram::Histogram;
use perf_common::http::{Call, Direction, ROLE_CLIENT, ROLE_OPAQUE, ROLE_SERVER, ROLE_UNKNOWN};
use perf_common::kernel::{FileOffsets, RegOffsets, SockOffsets, TaskOffsets};
use perf_common::peer::Peer;
use perf_common::postgres::{
    Conn, DbKey, Exchange, Io, Settle, StatementKey,
    block::Block,
    message::{Found, Half, NAME, Pass, SECOND_NAME, SKIP, SQL, STARTUP},
    step,
};
use perf_common::sql::{SqlSample, Statement};
use perf_common::workload::Workload;
use perf_ebpf::count::{EVENT_COUNTERS, Events};
use perf_ebpf::kernel::Ptr;
use perf_ebpf::socket::{self, MAX_PEERS};
use perf_ebpf::syscall::{Call as Syscall, Payload};
use perf_ebpf::who::{self, MAX_WORKLOADS};
use perf_ebpf::{get, unset};
use stages::{
    define, fill_block, fingerprint, is_request_chain, load_statement, lookup, parse_greeting,
    parse_messages, parse_name, parse_sql, peek_payload, record, save_statement, settle_waiting,
};

perf_ebpf::program!();

#[unsafe(no_mangle)]
static TASK: Global<TaskOffsets> = Global::new(unset());
#[unsafe(no_mangle)]
static SOCK: Global<SockOffsets> = Global::new(unset());
#[unsafe(no_mangle)]
static REGS: Global<RegOffsets> = Global::new(unset());
#[unsafe(no_mangle)]
static FILES: Global<FileOffsets> = Global::new(unset());
/// How many cells may be made before new statements and peers are counted as `other`.
#[unsafe(no_mangle)]
static MAX_DB_CELLS: Global<u64> = Global::new(8192);

#[btf_map]
static CONNS: SkStorage<Conn> = SkStorage::new();
/// The same on kernels where only the socket's address is known; one entry elsewhere.
#[map]
static CONNS_BY_ADDR: HashMap<u64, Conn> = HashMap::with_max_entries(1, 0);
#[map]
static CONN_ZERO: PerCpuArray<Conn> = PerCpuArray::with_max_entries(1, 0);
/// The oldest go first; a statement that is used after that counts as `other`.
#[map]
static STATEMENTS: LruHashMap<StatementKey, u64> = LruHashMap::with_max_entries(32_768, 0);
/// Keyed by the socket's address. What goes when there are too many costs its statement the name, not the count.
#[map]
static CUT: LruHashMap<u64, Statement> = LruHashMap::with_max_entries(1024, 0);
#[map]
static CELLS: HashMap<DbKey, Histogram> = HashMap::with_max_entries(10_240, 0);
#[map]
static CELL_ZERO: PerCpuArray<Histogram> = PerCpuArray::with_max_entries(1, 0);
#[map]
static CELLS_USED: Array<u64> = Array::with_max_entries(1, 0);
#[map]
static NAMED: HashMap<u64, u64> = HashMap::with_max_entries(16_384, 0);
#[map]
static SAMPLES: RingBuf = RingBuf::with_byte_size(1024 * 1024, 0);
#[map]
static WORKLOADS: HashMap<u64, Workload> = HashMap::with_max_entries(MAX_WORKLOADS, 0);
#[map]
static PEERS: HashMap<u64, Peer> = HashMap::with_max_entries(MAX_PEERS, 0);
#[map]
static EVENTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(EVENT_COUNTERS, 0);
/// 1 once every hook is attached. Until then nothing is counted: requests whose responses nobody watches yet would be paired
/// with later ones.
#[map]
static ARMED: Array<u32> = Array::with_max_entries(1, 0);
#[map]
static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);
#[map]
static ARRIVAL: PerCpuArray<Arrival> = PerCpuArray::with_max_entries(1, 0);
#[map]
static SENT_MORE: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static RECEIVED_MORE: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static RETURNED_MORE: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// What one socket call needs while it is looked at; too large for the stack.
#[repr(C)]
struct Work {
    /// The socket's address, as a key.
    sk: u64,
    block: Block,
    call: Call,
    payload: Payload,
    /// Where in the call the block begins.
    block_at: u64,
    pass: Pass,
    statement: Statement,
    sample: SqlSample,
    /// A copy, for what is too much to be part of the program that has the socket.
    conn: Conn,
}

/// When the data arrived that the current task is just reading.
#[repr(C)]
struct Arrival {
    sk: u64,
    /// `CLOCK_MONOTONIC` nanoseconds.
    at: u64,
    /// The task's context switches: as long as they stand still, it is the same call on the same CPU.
    switches: u64,
    pid: u64,
}

/// Parts of one call per program: up to a message that matters, or a block of ones that do not.
const ROUNDS: usize = 4;

const MSG_PEEK: i32 = 0x02;
const MSG_ERRQUEUE: i32 = 0x2000;
const MSG_TRUNC: i32 = 0x20;

const TCP_FIN_WAIT1: i32 = 4;
const TCP_CLOSE: i32 = 7;
const TCP_LAST_ACK: i32 = 9;

#[btf_tracepoint(function = "sock_send_length")]
fn sent(ctx: BtfTracePointContext) -> i32 {
    let length: i32 = ctx.arg(1);
    if length <= 0 || !armed() {
        return 0;
    }
    let task_at = get(&TASK);
    let sock_at = get(&SOCK);
    let sk = Ptr::new(ctx.arg::<*const c_void>(0), true);
    if !socket::is_tcp(sk, sock_at) {
        return 0;
    }
    let Some(conn) = conn(sk, true) else { return 0 };
    if conn.ignores(Direction::Sent) {
        return 0;
    }
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let begin = if conn.role == ROLE_SERVER { now } else { departure(conn, sk, sock_at, length as u64, now) };
    let Some(work) = WORK.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's element; programs of one object do not nest.
    let work = unsafe { &mut *work };
    work.sk = sk.key();
    work.pass.len = 0;
    work.call = Call { direction: Direction::Sent, total: length as u32, done: 0, begin, now };
    if !conn.skips(Direction::Sent, length as u32) {
        work.payload = Payload::of(who::current(task_at), get(&REGS), Direction::Sent, length as u32);
    }
    if advance(sk, conn, work) {
        // SAFETY: an empty slot falls through.
        unsafe { SENT_MORE.tail_call(&ctx, 0) };
        give_up(conn, work);
    }
    0
}

#[btf_tracepoint(function = "sock_recv_length")]
fn received(ctx: BtfTracePointContext) -> i32 {
    let length: i32 = ctx.arg(1);
    let flags: i32 = ctx.arg(2);
    if length < 0 || flags & (MSG_PEEK | MSG_ERRQUEUE) != 0 || !armed() {
        return 0;
    }
    let task_at = get(&TASK);
    let sock_at = get(&SOCK);
    let sk = Ptr::new(ctx.arg::<*const c_void>(0), true);
    if !socket::is_tcp(sk, sock_at) {
        return 0;
    }
    let arrived = arrival(sk, task_at);
    let Some(conn) = conn(sk, length != 0) else { return 0 };
    let Some(work) = WORK.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's element; programs of one object do not nest.
    let work = unsafe { &mut *work };
    if length == 0 {
        conn.end_of_stream(&mut Ending);
        return 0;
    }
    if conn.ignores(Direction::Received) {
        return 0;
    }
    // `tcp_rcv_space_adjust` refreshed the socket's clock a moment ago.
    let tcp = socket::tcp(sk);
    if tcp.is_null() {
        return 0;
    }
    let now: u64 = tcp.load(sock_at.tcp_clock_cache);
    let begin = if arrived == 0 { now } else { arrived };
    work.sk = sk.key();
    work.pass.len = 0;
    work.call = Call { direction: Direction::Received, total: length as u32, done: 0, begin, now };
    if !conn.skips(Direction::Received, length as u32) {
        work.payload = if flags & MSG_TRUNC != 0 {
            Payload::NONE
        } else {
            Payload::of(who::current(task_at), get(&REGS), Direction::Received, length as u32)
        };
    }
    if advance(sk, conn, work) {
        // SAFETY: an empty slot falls through.
        unsafe { RECEIVED_MORE.tail_call(&ctx, 0) };
        give_up(conn, work);
    }
    0
}

/// Kernels before 6.3: every system call's return, from whose descriptor the socket is found. Dearer than the tracepoints
/// above, because calls that have nothing to do with sockets pay for it too.
#[btf_tracepoint(function = "sys_exit")]
fn returned(ctx: BtfTracePointContext) -> i32 {
    let length: i64 = ctx.arg(1);
    let regs_at = get(&REGS);
    let regs = Ptr::new(ctx.arg::<*const c_void>(0), true);
    let Some(syscall) = Syscall::of(regs, regs_at) else { return 0 };
    if length < 0 || length > i64::from(i32::MAX) || !armed() {
        return 0;
    }
    let flags: u64 = match syscall.flags_arg {
        2 => regs.load(regs_at.arg[2]),
        3 => regs.load(regs_at.arg[3]),
        _ => 0,
    };
    if flags & (MSG_PEEK | MSG_ERRQUEUE) as u64 != 0 {
        return 0;
    }
    let task_at = get(&TASK);
    let sock_at = get(&SOCK);
    let task = who::current(task_at);
    let sk = socket::of_descriptor(task, regs.load(regs_at.arg[0]), get(&FILES), sock_at);
    if sk.is_null() || !socket::is_tcp(sk, sock_at) {
        return 0;
    }
    let received = syscall.direction as u8 == Direction::Received as u8;
    let arrived = if received { arrival(sk, task_at) } else { 0 };
    let Some(conn) = conn(sk, length != 0) else { return 0 };
    let Some(work) = WORK.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's element; programs of one object do not nest.
    let work = unsafe { &mut *work };
    if length == 0 {
        if received {
            conn.end_of_stream(&mut Ending);
        }
        return 0;
    }
    if conn.ignores(syscall.direction) {
        return 0;
    }
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let mut begin = now;
    if received {
        if arrived != 0 {
            begin = arrived;
        }
    } else if conn.role != ROLE_SERVER {
        begin = departure(conn, sk, sock_at, length as u64, now);
    }
    work.sk = sk.key();
    work.pass.len = 0;
    work.call = Call { direction: syscall.direction, total: length as u32, done: 0, begin, now };
    if !conn.skips(syscall.direction, length as u32) {
        work.payload = Payload::of_call(regs, regs_at, &syscall, length as u32);
    }
    if advance(sk, conn, work) {
        // SAFETY: an empty slot falls through.
        unsafe { RETURNED_MORE.tail_call(&ctx, 0) };
        give_up(conn, work);
    }
    0
}

#[btf_tracepoint(function = "sys_exit")]
fn returned_more(ctx: BtfTracePointContext) -> i32 {
    let Some(work) = WORK.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's element, left there by the program that called this one.
    let work = unsafe { &mut *work };
    let sk = Ptr::new(work.sk as *const c_void, false);
    let Some(conn) = conn(sk, false) else { return 0 };
    if advance(sk, conn, work) {
        // SAFETY: an empty slot falls through.
        unsafe { RETURNED_MORE.tail_call(&ctx, 0) };
        give_up(conn, work);
    }
    0
}

/// The rest of a call with more parts than one program looks at.
#[btf_tracepoint(function = "sock_send_length")]
fn sent_more(ctx: BtfTracePointContext) -> i32 {
    if more(&ctx) {
        // SAFETY: an empty slot falls through.
        unsafe { SENT_MORE.tail_call(&ctx, 0) };
        abandon(&ctx);
    }
    0
}

#[btf_tracepoint(function = "sock_recv_length")]
fn received_more(ctx: BtfTracePointContext) -> i32 {
    if more(&ctx) {
        // SAFETY: an empty slot falls through.
        unsafe { RECEIVED_MORE.tail_call(&ctx, 0) };
        abandon(&ctx);
    }
    0
}

#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
fn arrived(ctx: BtfTracePointContext) -> i32 {
    let task_at = get(&TASK);
    let sk = Ptr::new(ctx.arg::<*const c_void>(0), task_at.direct != 0);
    let Some(slot) = ARRIVAL.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's element.
    let slot = unsafe { &mut *slot };
    let task = who::current(task_at);
    let switches = switches(task, task_at);
    let pid: u32 = task.load(task_at.pid);
    if slot.sk == sk.key() && slot.switches == switches && slot.pid == u64::from(pid) {
        // A later segment of the same call: the first one's arrival counts.
        return 0;
    }
    let tcp = socket::tcp(sk);
    if tcp.is_null() {
        return 0;
    }
    *slot = Arrival { sk: sk.key(), at: tcp.load(get(&SOCK).tcp_clock_cache), switches, pid: u64::from(pid) };
    0
}

#[btf_tracepoint(function = "inet_sock_set_state")]
fn closing(ctx: BtfTracePointContext) -> i32 {
    let state: i32 = ctx.arg(2);
    if state != TCP_FIN_WAIT1 && state != TCP_LAST_ACK && state != TCP_CLOSE {
        return 0;
    }
    let sk = Ptr::new(ctx.arg::<*const c_void>(0), get(&TASK).direct != 0);
    if !socket::is_tcp(sk, get(&SOCK)) {
        return 0;
    }
    let Some(conn) = conn(sk, false) else { return 0 };
    if state == TCP_FIN_WAIT1 && conn.role == ROLE_CLIENT {
        // Done with sending, not with receiving.
        return 0;
    }
    conn.finish(&mut Ending);
    if state == TCP_CLOSE && get(&FILES).by_descriptor != 0 {
        let _: Result<(), i32> = CONNS_BY_ADDR.remove(sk.key());
    }
    0
}

#[inline(always)]
fn armed() -> bool {
    // SAFETY: a live element.
    ARMED.get_ptr(0).is_some_and(|armed| unsafe { armed.read_volatile() } != 0)
}

/// The state of a socket's connection.
#[inline(always)]
fn conn(sk: Ptr, create: bool) -> Option<&'static mut Conn> {
    let storage = get(&FILES).by_descriptor == 0;
    // SAFETY: maps of this object; an all-zero connection is a new one.
    unsafe { socket::state(&CONNS, &CONNS_BY_ADDR, &CONN_ZERO, sk, storage, create) }
}

/// When a request's first packet left. Not when the call returned: on loopback the server can have answered by then.
#[inline(always)]
fn departure(conn: &Conn, sk: Ptr, at: &SockOffsets, length: u64, now: u64) -> u64 {
    let tcp = socket::tcp(sk);
    if tcp.is_null() {
        return now;
    }
    let left: u64 = tcp.load(at.tcp_wstamp);
    let all: u64 = tcp.load(at.tcp_bytes_sent);
    // The stamp belongs to this call if it is younger than what the connection did before.
    let fresh = conn.last != 0 && left > conn.last || conn.last == 0 && all == length;
    if fresh && left < now && left != 0 { left } else { now }
}

#[inline(always)]
fn switches(task: Ptr, at: &TaskOffsets) -> u64 {
    task.load::<u64>(at.nvcsw).wrapping_add(task.load::<u64>(at.nivcsw))
}

/// When the data of this receive call arrived; 0 where it is not known. Consumed, so that it serves one call only.
#[inline(always)]
fn arrival(sk: Ptr, at: &TaskOffsets) -> u64 {
    let Some(slot) = ARRIVAL.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's element.
    let slot = unsafe { &mut *slot };
    if slot.sk != sk.key() {
        return 0;
    }
    slot.sk = 0;
    let task = who::current(at);
    let pid: u32 = task.load(at.pid);
    if slot.switches == switches(task, at) && slot.pid == u64::from(pid) { slot.at } else { 0 }
}

/// Looks at up to [`ROUNDS`] parts of the call; whether some are left.
#[inline(always)]
fn advance(sk: Ptr, conn: &mut Conn, work: &mut Work) -> bool {
    for _ in 0..ROUNDS {
        let mut call = work.call;
        step(conn, &mut Kernel { work }, &mut call);
        if conn.workload == 0 && conn.role != ROLE_UNKNOWN && conn.role != ROLE_OPAQUE {
            adopt(sk, conn);
        }
        work.call.done = call.done;
        if call.done >= call.total {
            return false;
        }
    }
    true
}

#[inline(always)]
fn more(ctx: &BtfTracePointContext) -> bool {
    let sk = Ptr::new(ctx.arg::<*const c_void>(0), true);
    let Some(conn) = conn(sk, false) else { return false };
    let Some(work) = WORK.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's element, left there by the program that called this one.
    advance(sk, conn, unsafe { &mut *work })
}

/// More parts than a chain of programs may look at.
#[inline(always)]
fn abandon(ctx: &BtfTracePointContext) {
    let sk = Ptr::new(ctx.arg::<*const c_void>(0), true);
    let Some(conn) = conn(sk, false) else { return };
    let Some(work) = WORK.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's element.
    give_up(conn, unsafe { &mut *work });
}

#[inline(always)]
fn give_up(conn: &mut Conn, work: &mut Work) {
    let mut call = work.call;
    conn.lose(&mut Kernel { work }, &mut call);
}

/// Remembers who owns the connection, once: asking again for every request would cost more than parsing it.
#[inline(always)]
fn adopt(sk: Ptr, conn: &mut Conn) {
    let task_at = get(&TASK);
    let sock_at = get(&SOCK);
    let workload = who::workload(who::current(task_at), task_at);
    let id = workload.id();
    who::announce(&WORKLOADS, id, &workload);
    if conn.role == ROLE_CLIENT {
        conn.peer = socket::destination(&PEERS, &socket::peer(sk, sock_at), sock_at);
    }
    conn.workload = id;
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
        Events(&EVENTS).dropped(reason, count);
    }
}

#[inline(always)]
fn count(conn: &Conn, exchange: &Exchange) {
    let rest = u64::from(conn.role) | u64::from(exchange.failed) << 8 | u64::from(exchange.count) << 32;
    let ns = exchange.end.saturating_sub(exchange.start);
    record(conn.workload, exchange.fingerprint, conn.peer, rest, ns);
}

/// The state machine's hands in the kernel.
struct Kernel<'a> {
    work: &'a mut Work,
}

impl Io for Kernel<'_> {
    #[inline(always)]
    fn peek(&mut self, call: &Call) -> u64 {
        peek_payload(u64::from(call.done))
    }

    #[inline(always)]
    fn fill(&mut self, call: &Call) -> bool {
        fill_block(u64::from(call.done), u64::from(call.total)) != 0
    }

    #[inline(always)]
    fn is_chain(&mut self, total: u32) -> bool {
        is_request_chain(u64::from(total)) != 0
    }

    #[inline(always)]
    fn parse(&mut self, half: &mut Half, is_request: bool) -> Found {
        let pass = &mut self.work.pass;
        pass.prepare(half, is_request);
        let from = pass.pos;
        let mut phase = half.phase;
        if phase >= STARTUP {
            parse_greeting();
        } else {
            if phase <= SKIP {
                phase = parse_messages() as u8;
            }
            if phase == NAME {
                phase = parse_name() as u8;
            }
            if phase == SECOND_NAME {
                phase = parse_name() as u8;
            }
            if phase == SQL {
                parse_sql();
            }
        }
        let pass = &mut self.work.pass;
        *half = pass.half;
        pass.out.consumed = pass.pos - from;
        pass.out
    }

    #[inline(always)]
    fn save_statement(&mut self) -> bool {
        save_statement() != 0
    }

    #[inline(always)]
    fn load_statement(&mut self) -> bool {
        load_statement() != 0
    }

    #[inline(always)]
    fn fingerprint(&mut self) -> u64 {
        fingerprint()
    }

    #[inline(always)]
    fn define(&mut self, name: u64, fingerprint: u64) {
        define(name, fingerprint);
    }

    #[inline(always)]
    fn lookup(&mut self, name: u64) -> u64 {
        lookup(name)
    }

    #[inline(always)]
    fn settle(&mut self, conn: &mut Conn, settle: &Settle) {
        let (from, to) = (core::ptr::from_mut(conn).cast::<u64>(), (&raw mut self.work.conn).cast::<u64>());
        for i in 0..size_of::<Conn>() / 8 {
            // SAFETY: both are as long as that.
            unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) };
        }
        settle_waiting(settle.what.into(), settle.reason as u64, settle.most.into(), settle.end);
        conn.take_over(&self.work.conn);
    }

    #[inline(always)]
    fn seen(&mut self) {
        Events(&EVENTS).seen();
    }

    #[inline(always)]
    fn record(&mut self, conn: &Conn, exchange: &Exchange) {
        count(conn, exchange);
    }

    #[inline(always)]
    fn dropped(&mut self, reason: Reason, count: u32) {
        Events(&EVENTS).dropped(reason, count);
    }
}
