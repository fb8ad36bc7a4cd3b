//! Connections: how long they took to open, how they ended, what was sent twice.
//!
//! Hooks: `tp_btf/inet_sock_set_state` for everything in a connection's life; `tp_btf/tcp_retransmit_skb`,
//! `tp_btf/tcp_send_reset`, `tp_btf/tcp_receive_reset`. `iter/task_file` runs at start, for
//! the sockets that were open before: listeners first, then connections.
//! Maps: a table of [`TcpCell`] by workload and peer, `SOCKETS` (socket → [`TcpSocket`]; `SOCKETS_BY_ADDR` on 5.10),
//! `LISTENERS` (namespace and port → workload: a connection arrives in interrupt context, where nobody owns it),
//! `PEERS`.
//! Metrics: `tcp_connect_duration_seconds`, `tcp_connects_total`, `tcp_accepts_total`, `tcp_connections`,
//! `tcp_connection_duration_seconds`, `tcp_retransmits_total`, `tcp_resets_total`.
//! Needs: nothing newer than 5.10; sockets from before the start are only known from 5.11 on (`bpf_sock_from_file`).
#![no_std]
#![no_main]
#![allow(clippy::needless_pass_by_value, reason = "the tracepoint macro hands over the context")]

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::{bpf_ktime_get_ns, generated::bpf_sock_from_file};
use aya_ebpf::macros::{btf_map, btf_tracepoint, map};
use aya_ebpf::maps::{HashMap, LruHashMap, PerCpuArray};
use aya_ebpf::programs::BtfTracePointContext;
use perf_common::events::Reason;
use perf_common::kernel::SockOffsets;
use perf_common::peer::{CLASS_OTHER, Peer};
use perf_common::tcp::{
    ConnectResult, Listener, PHASE_CLOSED, PHASE_CONNECTING, PHASE_OPEN, TcpCell, TcpKey, TcpSocket,
};
use perf_common::workload::{OTHER, UNKNOWN};
use perf_ebpf::count::{Events, add, observe};
use perf_ebpf::kernel::Ptr;
use perf_ebpf::socket::{self, MAX_PEERS};
use perf_ebpf::{get, unset, who};

perf_ebpf::program!();
perf_ebpf::slice!(TcpKey => TcpCell, 4096);

#[unsafe(no_mangle)]
static SOCK: Global<SockOffsets> = Global::new(unset());

#[btf_map]
static SOCKETS: SkStorage<TcpSocket> = SkStorage::new();
#[map]
static SOCKETS_BY_ADDR: HashMap<u64, TcpSocket> = HashMap::with_max_entries(65_536, 0);
#[map]
static SOCKET_ZERO: PerCpuArray<TcpSocket> = PerCpuArray::with_max_entries(1, 0);
#[map]
static LISTENERS: LruHashMap<Listener, u64> = LruHashMap::with_max_entries(8192, 0);
#[map]
static PEERS: HashMap<u64, Peer> = HashMap::with_max_entries(MAX_PEERS, 0);

const TCP_ESTABLISHED: i32 = 1;
const TCP_SYN_SENT: i32 = 2;
const TCP_SYN_RECV: i32 = 3;
const TCP_CLOSE: i32 = 7;
const TCP_CLOSE_WAIT: i32 = 8;
const TCP_LISTEN: i32 = 10;

const ECONNREFUSED: i32 = 111;
const ETIMEDOUT: i32 = 110;
const ENETUNREACH: i32 = 101;
const EHOSTUNREACH: i32 = 113;

#[btf_tracepoint(function = "inet_sock_set_state")]
fn state(ctx: BtfTracePointContext) -> i32 {
    let sk = Ptr::new(ctx.arg::<*const c_void>(0), get(&TASK).direct != 0);
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    let at = get(&SOCK);
    if !socket::is_tcp(sk, at) {
        return 0;
    }
    match (old, new) {
        (_, TCP_LISTEN) => listening(sk, at),
        (_, TCP_SYN_SENT) => connecting(sk, at),
        (TCP_SYN_SENT, TCP_ESTABLISHED) => connected(sk, at),
        (TCP_SYN_RECV, TCP_ESTABLISHED) => accepted(sk, at),
        (TCP_SYN_SENT, TCP_CLOSE) => failed(sk, at),
        // As `CurrEstab` in /proc/net/snmp counts: a connection that the peer closed is still open here.
        (TCP_ESTABLISHED | TCP_CLOSE_WAIT, new) if new != TCP_CLOSE_WAIT => closed(sk, at),
        _ => {}
    }
    if new == TCP_CLOSE && at.storage == 0 {
        let _: Result<(), i32> = SOCKETS_BY_ADDR.remove(sk.key());
    }
    0
}

#[btf_tracepoint(function = "tcp_retransmit_skb")]
fn retransmit(ctx: BtfTracePointContext) -> i32 {
    // From 6.18 on it also fires where the segment could not be sent, which `RetransSegs` has always counted.
    // SAFETY: a field of the cell that `tally` got.
    tally(&ctx, |cell| unsafe { &raw mut (*cell).retransmits })
}

#[btf_tracepoint(function = "tcp_send_reset")]
fn reset_sent(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    tally(&ctx, |cell| unsafe { &raw mut (*cell).resets_sent })
}

#[btf_tracepoint(function = "tcp_receive_reset")]
fn reset_received(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    tally(&ctx, |cell| unsafe { &raw mut (*cell).resets_received })
}

/// `struct bpf_iter__task_file`: the interface of this iterator.
#[repr(C)]
struct TaskFile {
    meta: *const c_void,
    task: *const c_void,
    fd: u64,
    file: *const c_void,
}

/// One file of one process that was there before the agent.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn seed(ctx: *const TaskFile) -> i32 {
    // SAFETY: the context of this iterator, whose pointers are null at its end.
    let (task, file) = unsafe { (Ptr::new((*ctx).task, true), (*ctx).file) };
    if task.is_null() || file.is_null() {
        return 0;
    }
    // SAFETY: a file from the iterator; null where it is no socket.
    let socket = Ptr::new(unsafe { bpf_sock_from_file(file.cast_mut().cast()) }.cast(), true);
    if socket.is_null() {
        return 0;
    }
    let at = get(&SOCK);
    let sk = socket.follow(at.socket_sk);
    if sk.is_null() || !socket::is_tcp(sk, at) {
        return 0;
    }
    let state = i32::from(sk.load::<u8>(at.state));
    let listener = listener(sk, at);
    if state == TCP_LISTEN {
        let _: Result<(), i32> = LISTENERS.insert(listener, owner(task), u64::from(BPF_NOEXIST));
    }
    if state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT {
        return 0;
    }
    let peer = socket::peer(sk, at);
    // SAFETY: the value is not looked at.
    let incoming = unsafe { LISTENERS.get(listener) }.is_some();
    let Some(socket) = socket_state(sk, at, true) else { return 0 };
    if socket.phase != 0 {
        return 0;
    }
    let peer = if incoming { peer.classed().id() } else { socket::destination(&PEERS, &peer, at) };
    *socket = TcpSocket { key: TcpKey { workload: owner(task), peer }, since: 0, phase: PHASE_OPEN };
    // SAFETY: a field of the cell.
    count(&socket.key, |cell| unsafe { add(&raw mut (*cell).opened, 1) });
    0
}

#[inline(always)]
fn listening(sk: Ptr, at: &SockOffsets) {
    let workload = owner(who::current(get(&TASK)));
    let _: Result<(), i32> = LISTENERS.insert(listener(sk, at), workload, 0);
}

#[inline(always)]
fn connecting(sk: Ptr, at: &SockOffsets) {
    let Some(socket) = socket_state(sk, at, true) else { return };
    let workload = owner(who::current(get(&TASK)));
    let peer = socket::destination(&PEERS, &socket::peer(sk, at), at);
    *socket = TcpSocket { key: TcpKey { workload, peer }, since: now(), phase: PHASE_CONNECTING };
}

#[inline(always)]
fn connected(sk: Ptr, at: &SockOffsets) {
    let Some(socket) = socket_state(sk, at, false) else { return };
    if socket.phase != PHASE_CONNECTING {
        return;
    }
    let now = now();
    let took = now.saturating_sub(socket.since);
    socket.since = now;
    socket.phase = PHASE_OPEN;
    // SAFETY: fields of the cell.
    count(&socket.key, |cell| unsafe {
        add(&raw mut (*cell).connects[ConnectResult::Ok as usize], 1);
        add(&raw mut (*cell).opened, 1);
        observe(&raw mut (*cell).connect, took);
    });
}

#[inline(always)]
fn accepted(sk: Ptr, at: &SockOffsets) {
    let Some(socket) = socket_state(sk, at, true) else { return };
    // SAFETY: copied at once.
    let workload = unsafe { LISTENERS.get(listener(sk, at)) }.copied().unwrap_or(UNKNOWN);
    let peer = socket::peer(sk, at).classed().id();
    *socket = TcpSocket { key: TcpKey { workload, peer }, since: now(), phase: PHASE_OPEN };
    // SAFETY: fields of the cell.
    count(&socket.key, |cell| unsafe {
        add(&raw mut (*cell).accepts, 1);
        add(&raw mut (*cell).opened, 1);
    });
}

#[inline(always)]
fn failed(sk: Ptr, at: &SockOffsets) {
    let Some(socket) = socket_state(sk, at, false) else { return };
    if socket.phase != PHASE_CONNECTING {
        return;
    }
    socket.phase = PHASE_CLOSED;
    let result = match sk.load::<i32>(at.err) {
        ECONNREFUSED => ConnectResult::Refused,
        ETIMEDOUT => ConnectResult::TimedOut,
        ENETUNREACH | EHOSTUNREACH => ConnectResult::Unreachable,
        0 => ConnectResult::Aborted,
        _ => ConnectResult::Error,
    };
    let index = perf_common::bytes::opaque(result as u64) & 7;
    count(&socket.key, |cell| {
        if index < perf_common::tcp::CONNECT_RESULTS.len() as u64 {
            // SAFETY: bounded just above.
            unsafe { add((&raw mut (*cell).connects).cast::<u64>().add(index as usize), 1) };
        }
    });
}

#[inline(always)]
fn closed(sk: Ptr, at: &SockOffsets) {
    let Some(socket) = socket_state(sk, at, false) else { return };
    if socket.phase != PHASE_OPEN {
        return;
    }
    socket.phase = PHASE_CLOSED;
    let since = socket.since;
    // SAFETY: fields of the cell.
    count(&socket.key, |cell| unsafe {
        add(&raw mut (*cell).closed, 1);
        if since != 0 {
            observe(&raw mut (*cell).lifetime, now().saturating_sub(since));
        }
    });
}

/// Adds one to a counter of the socket that a tracepoint names; of nobody's where it has none.
#[inline(always)]
fn tally(ctx: &BtfTracePointContext, counter: impl Fn(*mut TcpCell) -> *mut u64) -> i32 {
    let sk = Ptr::new(ctx.arg::<*const c_void>(0), get(&TASK).direct != 0);
    let mut key = TcpKey { workload: UNKNOWN, peer: u64::from(CLASS_OTHER) };
    if !sk.is_null()
        && let Some(socket) = socket_state(sk, get(&SOCK), false)
    {
        key = socket.key;
    }
    count(&key, |cell| add(counter(cell), 1));
    0
}

/// Counts one event in its cell.
#[inline(always)]
fn count(key: &TcpKey, record: impl Fn(*mut TcpCell)) {
    let events = Events(&EVENTS);
    events.seen();
    let other = TcpKey { workload: OTHER, peer: u64::from(CLASS_OTHER) };
    let key = *key;
    match TABLE.find_or(&key, &other) {
        Some(cell) => {
            record(cell.value);
            events.recorded();
        }
        None => events.dropped(Reason::MapFull, 1),
    }
}

/// The workload of a task, made known.
#[inline(always)]
fn owner(task: Ptr) -> u64 {
    let workload = who::workload(task, get(&TASK));
    let id = workload.id();
    who::announce(&WORKLOADS, id, &workload);
    id
}

#[inline(always)]
fn listener(sk: Ptr, at: &SockOffsets) -> Listener {
    Listener { netns: socket::netns(sk, at), port: u32::from(sk.load::<u16>(at.num)) }
}

#[inline(always)]
fn socket_state(sk: Ptr, at: &SockOffsets, create: bool) -> Option<&'static mut TcpSocket> {
    // SAFETY: maps of this object; an all-zero socket is in no phase.
    unsafe { socket::state(&SOCKETS, &SOCKETS_BY_ADDR, &SOCKET_ZERO, sk, at.storage != 0, create) }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}
