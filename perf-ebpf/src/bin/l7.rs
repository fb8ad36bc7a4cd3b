//! Requests of the protocols above TCP, server and client side, counted where they happen.
//!
//! Every socket call comes by here once, finds its connection, and goes on to the program of the protocol that the
//! connection speaks; HTTP, the most frequent, follows in the same program. A connection whose protocol nobody knows yet is
//! tried as HTTP, and offered to those of the others whose messages can begin as its bytes do. What may be DNS goes on to the
//! programs of that slice's own object before anything else is done for it: another program on the same hooks would cost
//! every call more than all that is done here until then.
//!
//! Hooks: `tp_btf/sock_send_length` and `tp_btf/sock_recv_length` carry socket and length; the payload comes from the
//! registers of the system call. `tp_btf/tcp_rcv_space_adjust` fires just before and still knows when the packet arrived:
//! a server's request begins there, not when the program gets round to reading it. `tp_btf/inet_sock_set_state` ends
//! what only the connection's end ends.
//! Maps: `CONNS` (socket → state), `PEERS`, `WORK` and `ARRIVAL` (scratch of one CPU), those of each protocol, and those for
//! requests that go up one by one (`perf_ebpf::requests`).
//! Metrics: those of each protocol.
//! Needs: 6.3 for the first two hooks; before that `tp_btf/sys_exit` stands in for them.
#![no_std]
#![no_main]
#![allow(clippy::needless_pass_by_value, reason = "the tracepoint macro hands over the context")]

// First, for the others to see its macro.
#[macro_use]
#[path = "l7/follow.rs"]
mod follow;
#[path = "l7/clients.rs"]
mod clients;
#[path = "l7/db.rs"]
mod db;
#[path = "l7/http.rs"]
mod http;
#[path = "l7/mysql.rs"]
mod mysql;
#[path = "l7/phases.rs"]
mod phases;
#[path = "l7/pools.rs"]
mod pools;
#[path = "l7/postgres.rs"]
mod postgres;
#[path = "l7/redis.rs"]
mod redis;
#[path = "l7/sockets.rs"]
mod sockets;

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_map, btf_tracepoint, map};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, ProgramArray};
use aya_ebpf::programs::BtfTracePointContext;
use perf_common::bytes::Window;
use perf_common::http::Conn;
use perf_common::kernel::{FileOffsets, RegOffsets, SockOffsets, TaskOffsets};
use perf_common::l7::{
    self, Call, DNS, Direction, HTTP, MYSQL, POSTGRES, PROTOCOL_UNKNOWN, PROTOCOLS, REDIS, ROLE_CLIENT,
    ROLE_OPAQUE, ROLE_SERVER, ROLE_UNKNOWN,
};
use perf_common::peer::Peer;
use perf_ebpf::kernel::Ptr;
use perf_ebpf::socket::{self, MAX_PEERS};
use perf_ebpf::syscall::{Call as Syscall, Payload, Shape};
use perf_ebpf::twice::{Last, Step};
use perf_ebpf::{get, unset, who};

perf_ebpf::program!();
perf_ebpf::slice!();
perf_ebpf::requests!();

#[unsafe(no_mangle)]
static SOCK: Global<SockOffsets> = Global::new(unset());
#[unsafe(no_mangle)]
static REGS: Global<RegOffsets> = Global::new(unset());
#[unsafe(no_mangle)]
static FILES: Global<FileOffsets> = Global::new(unset());
/// The protocols that are switched on, a bit for each.
#[unsafe(no_mangle)]
static PROTOCOLS_ON: Global<u64> = Global::new(0);

#[btf_map]
static CONNS: SkStorage<Conn> = SkStorage::new();
/// The same on kernels where only the socket's address is known; one entry elsewhere.
#[map]
static CONNS_BY_ADDR: HashMap<u64, Conn> = HashMap::with_max_entries(1, 0);
#[map]
static CONN_ZERO: PerCpuArray<Conn> = PerCpuArray::with_max_entries(1, 0);
#[map]
static PEERS: HashMap<u64, Peer> = HashMap::with_max_entries(MAX_PEERS, 0);
/// 1 once every hook is attached. Until then nothing is counted: requests whose responses nobody watches yet would be paired
/// with later ones for as long as their connections live.
#[map]
static ARMED: Array<u32> = Array::with_max_entries(1, 0);
/// One for each direction. A task can be preempted in the middle of a program, on kernels that preempt tasks in the kernel,
/// and the next one on this CPU comes by here as well; the same program it cannot enter (that run is counted as missed),
/// but the other one it can.
#[map]
static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(2, 0);
#[map]
static LAST_STEP: PerCpuArray<Step> = PerCpuArray::with_max_entries(1, 0);
const LAST: Last = Last(&LAST_STEP);
#[map]
static ARRIVAL: PerCpuArray<Arrival> = PerCpuArray::with_max_entries(1, 0);
/// Connections that were recognised, by [`perf_common::l7::RECOGNISED`].
#[map]
static RECOGNISED: PerCpuArray<u64> =
    PerCpuArray::with_max_entries(perf_common::l7::RECOGNISED.len() as u32, 0);
/// What goes on with a call, by protocol: that of another protocol than HTTP, and what is left of one of HTTP's.
#[map]
static SENT_MORE: ProgramArray = ProgramArray::with_max_entries(PROTOCOLS, 0);
#[map]
static RECEIVED_MORE: ProgramArray = ProgramArray::with_max_entries(PROTOCOLS, 0);
#[map]
static RETURNED_MORE: ProgramArray = ProgramArray::with_max_entries(PROTOCOLS, 0);

/// What one socket call needs while it is looked at; too large for the stack.
#[repr(C)]
struct Work {
    /// The socket's address, as a key.
    sk: u64,
    /// Which element of `WORK` this is.
    place: u64,
    window: Window,
    call: Call,
    /// How many bytes of the connection passed by unseen before the call.
    unseen: u64,
    payload: Payload,
    /// Where in the window the last bytes were put that came from the call.
    fresh_at: u64,
    /// How many they are; 0 where they could not be had.
    fresh: u64,
    http: http::Work,
    db: db::Work,
    pg: postgres::Work,
    redis: redis::Work,
    mysql: mysql::Work,
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

const MSG_PEEK: i32 = 0x02;
const MSG_ERRQUEUE: i32 = 0x2000;
const MSG_TRUNC: i32 = 0x20;

const TCP_FIN_WAIT1: i32 = 4;
const TCP_CLOSE: i32 = 7;
const TCP_LAST_ACK: i32 = 9;

#[btf_tracepoint(function = "sock_send_length")]
fn sent(ctx: BtfTracePointContext) -> i32 {
    if !armed() {
        return 0;
    }
    let length: i32 = ctx.arg(1);
    let task_at = get(&TASK);
    let sock_at = get(&SOCK);
    let sk = Ptr::new(ctx.arg::<*const c_void>(0), true);
    if length >= 0 {
        sockets::note(sk, sock_at, Direction::Sent, length as u64);
    }
    pass_on_dns(&ctx, &SENT_MORE, sk, sock_at);
    if length <= 0 || !socket::is_tcp(sk, sock_at) {
        return 0;
    }
    let Some(conn) = conn(sk, true) else { return 0 };
    if conn.ignores(Direction::Sent) {
        return 0;
    }
    let tcp = socket::tcp(sk);
    if tcp.is_null() {
        return 0;
    }
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let begin =
        if conn.role == ROLE_SERVER { now } else { departure(conn, tcp, sock_at, length as u64, now) };
    phases::written(conn, now);
    let Some(work) = work(Direction::Sent) else { return 0 };
    work.unseen = conn.unseen(Direction::Sent, length as u32, |of| position(tcp, sock_at, of)).into();
    work.sk = sk.key();
    work.place = Direction::Sent as u64;
    work.call = Call { direction: Direction::Sent, total: length as u32, done: 0, begin, now };
    if !conn.skips(Direction::Sent, length as u32) {
        work.payload = Payload::of(who::current(task_at), get(&REGS), Direction::Sent, length as u32);
    }
    go_on(&ctx, &SENT_MORE, sk, conn, work);
    0
}

#[btf_tracepoint(function = "sock_recv_length")]
fn received(ctx: BtfTracePointContext) -> i32 {
    let length: i32 = ctx.arg(1);
    let flags: i32 = ctx.arg(2);
    if flags & (MSG_PEEK | MSG_ERRQUEUE) != 0 || !armed() {
        return 0;
    }
    let task_at = get(&TASK);
    let sock_at = get(&SOCK);
    let sk = Ptr::new(ctx.arg::<*const c_void>(0), true);
    if length >= 0 {
        sockets::note(sk, sock_at, Direction::Received, length as u64);
    }
    pass_on_dns(&ctx, &RECEIVED_MORE, sk, sock_at);
    if length < 0 || !socket::is_tcp(sk, sock_at) {
        return 0;
    }
    let arrived = arrival(sk, task_at);
    let Some(conn) = conn(sk, length != 0) else { return 0 };
    let Some(work) = work(Direction::Received) else { return 0 };
    if length == 0 {
        end(sk, conn, work, End::Stream);
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
    phases::read(conn, now);
    let begin = if arrived == 0 { now } else { arrived };
    work.unseen = conn.unseen(Direction::Received, length as u32, |of| position(tcp, sock_at, of)).into();
    work.sk = sk.key();
    work.place = Direction::Received as u64;
    work.call = Call { direction: Direction::Received, total: length as u32, done: 0, begin, now };
    if !conn.skips(Direction::Received, length as u32) {
        work.payload = if flags & MSG_TRUNC != 0 {
            Payload::NONE
        } else {
            Payload::of(who::current(task_at), get(&REGS), Direction::Received, length as u32)
        };
    }
    go_on(&ctx, &RECEIVED_MORE, sk, conn, work);
    0
}

/// Kernels before 6.3: every system call's return, from whose descriptor the socket is found. Dearer than the tracepoints
/// above, because calls that have nothing to do with sockets pay for it too.
#[btf_tracepoint(function = "sys_exit")]
fn returned(ctx: BtfTracePointContext) -> i32 {
    let length: i64 = ctx.arg(1);
    let regs_at = get(&REGS);
    let regs = Ptr::new(ctx.arg::<*const c_void>(0), true);
    let Some(syscall) = Syscall::of_any(regs, regs_at) else { return 0 };
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
    if sk.is_null() {
        return 0;
    }
    if syscall.shape != Shape::Batch {
        sockets::note(sk, sock_at, syscall.direction, length as u64);
    }
    pass_on_dns(&ctx, &RETURNED_MORE, sk, sock_at);
    if syscall.shape == Shape::Batch || !socket::is_tcp(sk, sock_at) {
        return 0;
    }
    let received = syscall.direction as u8 == Direction::Received as u8;
    let arrived = if received { arrival(sk, task_at) } else { 0 };
    // What is read of a closed connection must leave nothing behind: nobody would take it away before the next socket is at
    // this address.
    let is_open = i32::from(sk.load::<u8>(sock_at.state)) != TCP_CLOSE;
    let Some(conn) = conn(sk, length != 0 && is_open) else { return 0 };
    // This program never interrupts itself, so its two directions can share.
    let Some(work) = work(Direction::Received) else { return 0 };
    if length == 0 {
        if received {
            end(sk, conn, work, End::Stream);
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
        phases::read(conn, now);
        if arrived != 0 {
            begin = arrived;
        }
    } else if conn.role == ROLE_SERVER {
        phases::written(conn, now);
    } else {
        begin = departure(conn, sk, sock_at, length as u64, now);
    }
    work.unseen = conn.unseen(syscall.direction, length as u32, |of| position(sk, sock_at, of)).into();
    work.sk = sk.key();
    work.place = Direction::Received as u64;
    work.call = Call { direction: syscall.direction, total: length as u32, done: 0, begin, now };
    if !conn.skips(syscall.direction, length as u32) {
        work.payload = Payload::of_call(regs, regs_at, &syscall, length as u32);
    }
    go_on(&ctx, &RETURNED_MORE, sk, conn, work);
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
    if !ends_something(state) {
        return 0;
    }
    let sk = Ptr::new(ctx.arg::<*const c_void>(0), get(&TASK).direct != 0);
    close(sk, state);
    LAST.done(Step::of(sk.key(), 0, state));
    0
}

/// Where the program above was skipped; see [`perf_ebpf::twice`].
#[btf_tracepoint(function = "inet_sock_set_state")]
fn closing_again(ctx: BtfTracePointContext) -> i32 {
    let state: i32 = ctx.arg(2);
    if !ends_something(state) {
        return 0;
    }
    let sk = Ptr::new(ctx.arg::<*const c_void>(0), get(&TASK).direct != 0);
    if !LAST.was(Step::of(sk.key(), 0, state)) {
        close(sk, state);
    }
    0
}

/// Whether anything of a connection ends with its way to this state.
#[inline(always)]
const fn ends_something(state: i32) -> bool {
    state == TCP_FIN_WAIT1 || state == TCP_LAST_ACK || state == TCP_CLOSE
}

/// What a connection's way to this state ends; once more, it ends nothing.
#[inline(always)]
fn close(sk: Ptr, state: i32) {
    if !socket::is_tcp(sk, get(&SOCK)) {
        return;
    }
    let Some(conn) = conn(sk, false) else { return };
    pools::leave(conn);
    if state == TCP_FIN_WAIT1 && conn.role == ROLE_CLIENT {
        // Done with sending, not with receiving.
        return;
    }
    // The state machine does not touch it when a connection ends.
    let Some(work) = work(Direction::Received) else { return };
    end(sk, conn, work, End::Connection);
    if state == TCP_CLOSE && get(&FILES).by_descriptor != 0 {
        let _: Result<(), i32> = CONNS_BY_ADDR.remove(sk.key());
        postgres::forget(sk);
        redis::forget(sk);
        mysql::forget(sk);
    }
}

/// Leaves what may be DNS to the programs for it, and does not return if they are there.
#[inline(always)]
fn pass_on_dns(ctx: &BtfTracePointContext, others: &ProgramArray, sk: Ptr, at: &SockOffsets) {
    if socket::may_be_dns(sk, at) {
        // SAFETY: an empty slot falls through.
        unsafe { others.tail_call(ctx, u32::from(DNS)) };
    }
}

/// Hands a call that is set up in `work` to the protocol of its connection.
#[inline(always)]
fn go_on(ctx: &BtfTracePointContext, others: &ProgramArray, sk: Ptr, conn: &mut Conn, work: &mut Work) {
    let mut next = u32::from(conn.protocol);
    if next <= u32::from(HTTP) {
        if work.unseen != 0 {
            http::pass_over(sk, conn, work);
        }
        let was_unknown = conn.role == ROLE_UNKNOWN;
        let more = http::advance(sk, conn, work);
        if was_unknown && conn.role != ROLE_UNKNOWN {
            let head = if work.fresh == 0 { 0 } else { work.window.word(work.fresh_at as usize) };
            recognised(if conn.role == ROLE_OPAQUE { l7::foreign(head) } else { l7::recognised(HTTP) });
        }
        if conn.protocol == HTTP && !is_on(HTTP) {
            conn.role = ROLE_OPAQUE;
            return;
        }
        if more {
            next = u32::from(HTTP);
        } else if conn.role == ROLE_UNKNOWN {
            next = candidate(conn, work);
            work.call.done = 0;
        } else {
            return;
        }
    }
    // SAFETY: an empty slot falls through.
    unsafe { others.tail_call(ctx, next) };
    if next == u32::from(HTTP) {
        http::give_up(conn, work);
    }
}

/// Counts a connection whose protocol is known from now on, or never will be.
#[inline(always)]
fn recognised(kind: u32) {
    if let Some(count) = RECOGNISED.get_ptr_mut(kind) {
        perf_ebpf::count::add(count, 1);
    }
}

#[inline(always)]
fn is_on(protocol: u8) -> bool {
    *get(&PROTOCOLS_ON) >> protocol & 1 != 0
}

/// What of a connection ends.
#[derive(Clone, Copy)]
enum End {
    /// The bytes that the peer sends: for a client, what waits gets no response any more.
    Stream,
    Connection,
}

/// Leaves it to the connection's protocol what becomes of that which waits.
#[inline(always)]
fn end(sk: Ptr, conn: &mut Conn, work: &mut Work, what: End) {
    match conn.protocol {
        POSTGRES => postgres::end(sk, what),
        REDIS => redis::end(sk, what),
        MYSQL => mysql::end(sk, what),
        _ => http::end(sk, conn, work, what),
    }
}

/// The protocol whose messages can begin as the bytes do that were just read; [`PROTOCOL_UNKNOWN`] if none.
#[inline(always)]
fn candidate(conn: &Conn, work: &Work) -> u32 {
    if work.fresh == 0 {
        // Its bytes cannot be had; what the window holds is another call's.
        return u32::from(PROTOCOL_UNKNOWN);
    }
    if conn.offered != PROTOCOL_UNKNOWN {
        return u32::from(conn.offered);
    }
    let head = work.window.word(work.fresh_at as usize);
    let total = work.call.total;
    // First what tells the most of itself.
    if is_on(MYSQL) && perf_common::mysql::may_begin(head, total) {
        return u32::from(MYSQL);
    }
    if is_on(POSTGRES) && perf_common::postgres::may_begin(head, total) {
        return u32::from(POSTGRES);
    }
    if is_on(REDIS) && perf_common::redis::may_begin(head, total) {
        return u32::from(REDIS);
    }
    u32::from(PROTOCOL_UNKNOWN)
}

/// What the programs of one direction work with on this CPU.
#[inline(always)]
fn work(direction: Direction) -> Option<&'static mut Work> {
    // SAFETY: this CPU's element, which no other program uses meanwhile.
    WORK.get_ptr_mut(direction as u32).and_then(|work| unsafe { work.as_mut() })
}

/// The call that a program handed on, and its socket.
#[inline(always)]
fn under_way(ctx: &BtfTracePointContext, place: Direction) -> Option<(Ptr, &'static mut Work)> {
    let work = work(place)?;
    let sk = if get(&FILES).by_descriptor == 0 {
        Ptr::new(ctx.arg::<*const c_void>(0), true)
    } else {
        Ptr::new(work.sk as *const c_void, false)
    };
    Some((sk, work))
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

/// The sequence number where a direction stands: how far the program has read or written.
#[inline(always)]
fn position(tcp: Ptr, at: &SockOffsets, direction: Direction) -> u32 {
    tcp.load(if direction as u8 == Direction::Sent as u8 { at.tcp_write_seq } else { at.tcp_copied_seq })
}

/// When a request's first packet left. Not when the call returned: on loopback the server can have answered by then.
#[inline(always)]
fn departure(conn: &Conn, tcp: Ptr, at: &SockOffsets, length: u64, now: u64) -> u64 {
    let left: u64 = tcp.load(at.tcp_wstamp);
    let all: u64 = tcp.load(at.tcp_bytes_sent);
    // The stamp belongs to this call if it is younger than what the connection did before.
    let fresh = conn.last != 0 && left > conn.last
        || conn.last == 0 && all == length
        // The response can have been read before this call returned.
        || conn.early != 0 && left < conn.early;
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

/// Who owns a connection, and as a client its remote end; as a server the socket, which can still be asked for that.
/// Remembered by the protocols: asking again for every request would cost more than parsing it.
#[inline(always)]
fn owner(sk: Ptr, role: u8) -> (u64, u64) {
    let task_at = get(&TASK);
    let sock_at = get(&SOCK);
    let workload = who::workload(who::current(task_at), task_at);
    let id = workload.id();
    who::announce(&WORKLOADS, id, &workload);
    let peer = if role == ROLE_CLIENT {
        socket::destination(&PEERS, &socket::peer(sk, sock_at), sock_at)
    } else {
        sk.key()
    };
    (id, peer)
}
