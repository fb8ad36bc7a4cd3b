//! Connections: how long they took to open, how they ended, what they moved, what was sent twice.
//!
//! Hooks: `tp_btf/inet_sock_set_state` for everything in a connection's life; `tp_btf/tcp_retransmit_skb`,
//! `tp_btf/tcp_send_reset`, `tp_btf/tcp_receive_reset`. `iter/task_file` runs at start, for
//! the sockets that were open before: listeners first, then connections; and at each scrape, for what open sockets have to tell.
//! Maps: a table of [`TcpCell`] by workload and peer, `SOCKETS` (socket → [`TcpSocket`]; `SOCKETS_BY_ADDR` on 5.10),
//! `LISTENERS` (namespace and port → workload: a connection arrives in interrupt context, where nobody owns it),
//! `BACKLOGS` (listening socket → [`Backlog`]) and `PASS` (the number of the walk that fills it), `PEERS`.
//! Metrics: `tcp_connect_duration_seconds`, `tcp_connects_total`, `tcp_accepts_total`, `tcp_connections`,
//! `tcp_connection_duration_seconds`, `tcp_retransmits_total`, `tcp_resets_total`, `tcp_sent_bytes_total`,
//! `tcp_received_bytes_total`, `tcp_rtt_seconds`, `tcp_listen_*`.
//! Needs: nothing newer than 5.10; sockets from before the start are only known from 5.11 on (`bpf_sock_from_file`), and before
//! that bytes and round trips are counted when a connection ends.
#![no_std]
#![no_main]
#![allow(clippy::needless_pass_by_value, reason = "the tracepoint macro hands over the context")]

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::{bpf_ktime_get_ns, generated::bpf_sock_from_file};
use aya_ebpf::macros::{btf_map, btf_tracepoint, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use aya_ebpf::programs::BtfTracePointContext;
use perf_common::bytes::opaque;
use perf_common::events::Reason;
use perf_common::kernel::SockOffsets;
use perf_common::peer::{CLASS_OTHER, Peer};
use perf_common::tcp::{
    Backlog, CONNECT_RESULTS, ConnectResult, Listener, PHASE_CLOSED, PHASE_CONNECTING, PHASE_OPEN,
    RETRANSMITS, Retransmit, STATES, TcpCell, TcpKey, TcpSocket,
};
use perf_common::workload::{OTHER, UNKNOWN};
use perf_ebpf::count::{Events, add, observe};
use perf_ebpf::kernel::Ptr;
use perf_ebpf::socket::{self, MAX_PEERS};
use perf_ebpf::twice::{Last, Step};
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
static BACKLOGS: HashMap<u64, Backlog> = HashMap::with_max_entries(4096, 0);
#[map]
static PASS: Array<u64> = Array::with_max_entries(1, 0);
#[map]
static LAST_STEP: PerCpuArray<Step> = PerCpuArray::with_max_entries(1, 0);
const LAST: Last = Last(&LAST_STEP);
#[map]
static PEERS: HashMap<u64, Peer> = HashMap::with_max_entries(MAX_PEERS, 0);

const TCP_ESTABLISHED: i32 = 1;
const TCP_SYN_SENT: i32 = 2;
const TCP_SYN_RECV: i32 = 3;
const TCP_CLOSE: i32 = 7;
const TCP_CLOSE_WAIT: i32 = 8;
const TCP_LISTEN: i32 = 10;

/// How a connection recovers from loss, `enum tcp_ca_state` of the user interface.
const CA_STATE: u8 = 0x1f;
const CA_RECOVERY: u8 = 3;
const CA_LOSS: u8 = 4;

const ECONNREFUSED: i32 = 111;
const ETIMEDOUT: i32 = 110;
const ENETUNREACH: i32 = 101;
const EHOSTUNREACH: i32 = 113;

#[btf_tracepoint(function = "inet_sock_set_state")]
fn state(ctx: BtfTracePointContext) -> i32 {
    let sk = Ptr::new(ctx.arg::<*const c_void>(0), get(&TASK).direct != 0);
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    step(sk, old, new);
    LAST.done(Step::of(sk.key(), old, new));
    0
}

/// Where the program above was skipped; see [`perf_ebpf::twice`].
#[btf_tracepoint(function = "inet_sock_set_state")]
fn state_again(ctx: BtfTracePointContext) -> i32 {
    let sk = Ptr::new(ctx.arg::<*const c_void>(0), get(&TASK).direct != 0);
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    if !LAST.was(Step::of(sk.key(), old, new)) {
        step(sk, old, new);
    }
    0
}

/// A socket's step from one state to another; once more, it changes nothing.
#[inline(always)]
fn step(sk: Ptr, old: i32, new: i32) {
    let at = get(&SOCK);
    if !socket::is_tcp(sk, at) {
        return;
    }
    match (old, new) {
        (_, TCP_LISTEN) => listening(sk, at),
        (_, TCP_SYN_SENT) => connecting(sk, at),
        (TCP_SYN_SENT, TCP_ESTABLISHED) => connected(sk, at),
        (TCP_SYN_RECV, TCP_ESTABLISHED) => accepted(sk, at),
        (TCP_SYN_SENT, TCP_CLOSE) => failed(sk, at),
        _ => moved(sk, at, new as u32),
    }
    if new == TCP_CLOSE && at.storage == 0 {
        let _: Result<(), i32> = SOCKETS_BY_ADDR.remove(sk.key());
    }
}

#[btf_tracepoint(function = "tcp_retransmit_skb")]
fn retransmit(ctx: BtfTracePointContext) -> i32 {
    let at = get(&SOCK);
    let sk = Ptr::new(ctx.arg::<*const c_void>(0), get(&TASK).direct != 0);
    let tcp = socket::tcp(sk);
    if tcp.is_null() {
        return 0;
    }
    let kind = match tcp.load::<u8>(at.tcp_ca_state) & CA_STATE {
        CA_LOSS => Retransmit::Timeout,
        CA_RECOVERY => Retransmit::Fast,
        _ => Retransmit::Probe,
    };
    // One event can be for many segments, and from 6.18 on for none. The kernel's own count grows as its `RetransSegs` does.
    let all: u32 = tcp.load(at.tcp_total_retrans);
    let (key, more) = match socket_state(sk, at, false) {
        Some(socket) => {
            let more = all.wrapping_sub(socket.retransmits);
            socket.retransmits = all;
            (socket.key, more)
        }
        None => (NOBODY, 1),
    };
    if more == 0 {
        return 0;
    }
    count(&key, |cell| {
        // SAFETY: a field of the cell.
        let retransmits = unsafe { &raw mut (*cell).retransmits };
        if let Some(counter) = nth::<{ RETRANSMITS.len() }>(retransmits, kind as u64) {
            add(counter, more.into());
        }
    });
    0
}

#[btf_tracepoint(function = "tcp_send_reset")]
fn reset_sent(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: a field of the cell that `tally` got.
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
    let at = get(&SOCK);
    let Some((task, sk)) = found(ctx, at) else { return 0 };
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
    let key = TcpKey { workload: owner(task), peer };
    // What it moved before is nobody's.
    let tcp = socket::tcp(sk);
    let (sent, received) = moved_bytes(sk, tcp, at, 0);
    *socket = TcpSocket {
        key,
        since: 0,
        phase: PHASE_OPEN,
        state: state as u32,
        sent,
        received,
        syn: 0,
        retransmits: retransmits(tcp, at),
        window_pass: 0,
    };
    count(&key, |cell| enter(cell, state as u32));
    0
}

/// One file of one process, at a scrape.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn look(ctx: *const TaskFile) -> i32 {
    let at = get(&SOCK);
    let Some((task, sk)) = found(ctx, at) else { return 0 };
    let state = i32::from(sk.load::<u8>(at.state));
    if state != TCP_LISTEN {
        let Some(socket) = socket_state(sk, at, false) else { return 0 };
        let tcp = socket::tcp(sk);
        flush(sk, tcp, at, socket);
        if state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT {
            note_window(tcp, at, socket);
        }
        return 0;
    }
    let listener = listener(sk, at);
    // SAFETY: copied at once.
    let workload = unsafe { LISTENERS.get(listener) }.copied().unwrap_or_else(|| owner(task));
    let backlog = Backlog {
        workload,
        pass: PASS.get(0).copied().unwrap_or(0),
        port: listener.port,
        waiting: sk.load(at.ack_backlog),
        limit: sk.load(at.max_ack_backlog),
        drops: sk.load(at.drops),
    };
    let _: Result<(), i32> = BACKLOGS.insert(sk.key(), backlog, 0);
    0
}

/// Counts a connection whose peer takes nothing at the moment.
#[inline(always)]
fn note_window(tcp: Ptr, at: &SockOffsets, socket: &mut TcpSocket) {
    if tcp.is_null() || tcp.load::<u32>(at.tcp_snd_wnd) != 0 {
        return;
    }
    let pass = PASS.get(0).copied().unwrap_or(0);
    if socket.window_pass == pass {
        return;
    }
    socket.window_pass = pass;
    if let Some(cell) = TABLE.find_or(&socket.key, &OTHERS) {
        // SAFETY: a live cell, these fields of which nobody else writes: there is one walk at a time.
        unsafe {
            let before = if (*cell.value).zero_window_pass == pass { (*cell.value).zero_window } else { 0 };
            (*cell.value).zero_window = before + 1;
            (*cell.value).zero_window_pass = pass;
        }
    }
}

/// The task and the TCP socket that an iterator is at, if it is at one.
#[inline(always)]
fn found(ctx: *const TaskFile, at: &SockOffsets) -> Option<(Ptr, Ptr)> {
    // SAFETY: the context of this iterator, whose pointers are null at its end.
    let (task, file) = unsafe { (Ptr::new((*ctx).task, true), (*ctx).file) };
    if task.is_null() || file.is_null() {
        return None;
    }
    // SAFETY: a file from the iterator; null where it is no socket.
    let socket = Ptr::new(unsafe { bpf_sock_from_file(file.cast_mut().cast()) }.cast(), true);
    if socket.is_null() {
        return None;
    }
    let sk = socket.follow(at.socket_sk);
    (!sk.is_null() && socket::is_tcp(sk, at)).then_some((task, sk))
}

#[inline(always)]
fn listening(sk: Ptr, at: &SockOffsets) {
    let workload = owner(who::current(get(&TASK)));
    let _: Result<(), i32> = LISTENERS.insert(listener(sk, at), workload, 0);
}

#[inline(always)]
fn connecting(sk: Ptr, at: &SockOffsets) {
    let Some(socket) = socket_state(sk, at, true) else { return };
    if socket.phase == PHASE_CONNECTING {
        return;
    }
    let workload = owner(who::current(get(&TASK)));
    let peer = socket::destination(&PEERS, &socket::peer(sk, at), at);
    let key = TcpKey { workload, peer };
    let state = TCP_SYN_SENT as u32;
    *socket = TcpSocket {
        key,
        since: now(),
        phase: PHASE_CONNECTING,
        state,
        sent: 0,
        received: 0,
        syn: 1,
        retransmits: 0,
        window_pass: 0,
    };
    count(&key, |cell| enter(cell, state));
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
    let old = socket.state;
    socket.state = TCP_ESTABLISHED as u32;
    // SAFETY: fields of the cell.
    count(&socket.key, |cell| unsafe {
        add(&raw mut (*cell).connects[ConnectResult::Ok as usize], 1);
        leave(cell, old);
        enter(cell, TCP_ESTABLISHED as u32);
        observe(&raw mut (*cell).connect, took);
    });
}

#[inline(always)]
fn accepted(sk: Ptr, at: &SockOffsets) {
    let Some(socket) = socket_state(sk, at, true) else { return };
    if socket.phase == PHASE_CONNECTING {
        // Both ends sent a SYN at the same time.
        connected(sk, at);
    }
    if socket.phase == PHASE_OPEN {
        return;
    }
    // SAFETY: copied at once.
    let workload = unsafe { LISTENERS.get(listener(sk, at)) }.copied().unwrap_or(UNKNOWN);
    let key = TcpKey { workload, peer: socket::peer(sk, at).classed().id() };
    let state = TCP_ESTABLISHED as u32;
    // Those of the answer to the SYN: there was no socket yet.
    let retransmits = retransmits(socket::tcp(sk), at);
    *socket = TcpSocket {
        key,
        since: now(),
        phase: PHASE_OPEN,
        state,
        sent: 0,
        received: 0,
        syn: 0,
        retransmits,
        window_pass: 0,
    };
    // SAFETY: fields of the cell.
    count(&key, |cell| unsafe {
        add(&raw mut (*cell).accepts, 1);
        add(&raw mut (*cell).retransmits[Retransmit::Timeout as usize], retransmits.into());
        enter(cell, state);
    });
}

#[inline(always)]
fn failed(sk: Ptr, at: &SockOffsets) {
    let Some(socket) = socket_state(sk, at, false) else { return };
    if socket.phase != PHASE_CONNECTING {
        return;
    }
    socket.phase = PHASE_CLOSED;
    let old = socket.state;
    socket.state = 0;
    let result = match sk.load::<i32>(at.err) {
        ECONNREFUSED => ConnectResult::Refused,
        ETIMEDOUT => ConnectResult::TimedOut,
        ENETUNREACH | EHOSTUNREACH => ConnectResult::Unreachable,
        0 => ConnectResult::Aborted,
        _ => ConnectResult::Error,
    };
    count(&socket.key, |cell| {
        leave(cell, old);
        // SAFETY: a field of the cell.
        let connects = unsafe { &raw mut (*cell).connects };
        if let Some(counter) = nth::<{ CONNECT_RESULTS.len() }>(connects, result as u64) {
            add(counter, 1);
        }
    });
}

/// From one state of a connection's end to another, or to none.
#[inline(always)]
fn moved(sk: Ptr, at: &SockOffsets, new: u32) {
    let Some(socket) = socket_state(sk, at, false) else { return };
    let state = if new == TCP_CLOSE as u32 { 0 } else { new };
    if socket.phase == 0 || socket.state == state {
        return;
    }
    // As `CurrEstab` in /proc/net/snmp counts: a connection that the peer closed is still open here.
    let closes = socket.phase == PHASE_OPEN && new != TCP_CLOSE_WAIT as u32;
    let since = if closes { socket.since } else { 0 };
    if closes {
        socket.phase = PHASE_CLOSED;
    }
    if state == 0 {
        // Once, and not at each step on the way, which would take half as long again.
        flush(sk, socket::tcp(sk), at, socket);
    }
    let old = socket.state;
    socket.state = state;
    count(&socket.key, |cell| {
        leave(cell, old);
        enter(cell, state);
        if since != 0 {
            // SAFETY: a field of the cell.
            observe(unsafe { &raw mut (*cell).lifetime }, now().saturating_sub(since));
        }
    });
}

/// Bytes of payload that the peer has acknowledged, and that it has sent.
///
/// Not `bytes_sent` without `bytes_retrans`: what is lost on this host, in a full queue of a device, is in the first twice.
#[inline(always)]
fn moved_bytes(sk: Ptr, tcp: Ptr, at: &SockOffsets, syn: u64) -> (u64, u64) {
    if tcp.is_null() {
        return (0, 0);
    }
    let (acked, received): (u64, u64) = (tcp.load(at.tcp_bytes_acked), tcp.load(at.tcp_bytes_received));
    let (up_to, written): (u32, u32) = (tcp.load(at.tcp_snd_una), tcp.load(at.tcp_write_seq));
    let state = i32::from(sk.load::<u8>(at.state));
    // It has sent its own FIN, which is the last that it wrote.
    let has_ended = state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT;
    let fin = u64::from(has_ended && up_to == written);
    let peer_fin = sk.load::<u64>(at.flags) >> (at.flag_done & 63) & 1;
    (acked.saturating_sub(syn + fin), received.saturating_sub(peer_fin))
}

/// Segments that a socket has sent again so far.
#[inline(always)]
fn retransmits(tcp: Ptr, at: &SockOffsets) -> u32 {
    if tcp.is_null() { 0 } else { tcp.load(at.tcp_total_retrans) }
}

/// Counts what a socket has moved since the last time, and its round-trip time if it has moved anything.
#[inline(always)]
fn flush(sk: Ptr, tcp: Ptr, at: &SockOffsets, socket: &mut TcpSocket) {
    let (sent, received) = moved_bytes(sk, tcp, at, socket.syn.into());
    let more_sent = sent.saturating_sub(socket.sent);
    let more_received = received.saturating_sub(socket.received);
    if more_sent | more_received == 0 {
        return;
    }
    socket.sent += more_sent;
    socket.received += more_received;
    let srtt: u32 = if tcp.is_null() { 0 } else { tcp.load(at.tcp_srtt) };
    // SAFETY: fields of the cell.
    count(&socket.key, |cell| unsafe {
        add(&raw mut (*cell).sent, more_sent);
        add(&raw mut (*cell).received, more_received);
        if srtt != 0 {
            observe(&raw mut (*cell).rtt, u64::from(srtt) * 125);
        }
    });
}

#[inline(always)]
fn enter(cell: *mut TcpCell, state: u32) {
    shift(cell, state, 1);
}

#[inline(always)]
fn leave(cell: *mut TcpCell, state: u32) {
    shift(cell, state, u64::MAX);
}

/// Nobody is counted in state 0, which is none.
#[inline(always)]
fn shift(cell: *mut TcpCell, state: u32, by: u64) {
    if state == 0 {
        return;
    }
    // SAFETY: a field of a live cell.
    if let Some(counter) = nth::<{ STATES.len() }>(unsafe { &raw mut (*cell).states }, state.into()) {
        add(counter, by);
    }
}

/// An element of an array in a map, in a form that the verifier can follow.
#[inline(always)]
fn nth<const N: usize>(array: *mut [u64; N], index: u64) -> Option<*mut u64> {
    let index = opaque(index) & 15;
    if index >= N as u64 {
        return None;
    }
    // SAFETY: bounded just above.
    Some(unsafe { array.cast::<u64>().add(index as usize) })
}

/// Where what finds no cell of its own is counted.
const OTHERS: TcpKey = TcpKey { workload: OTHER, peer: CLASS_OTHER as u64 };
/// What has no socket, or one that nobody knows.
const NOBODY: TcpKey = TcpKey { workload: UNKNOWN, peer: CLASS_OTHER as u64 };

/// Adds one to a counter of the socket that a tracepoint names; of nobody's where it has none.
#[inline(always)]
fn tally(ctx: &BtfTracePointContext, counter: impl Fn(*mut TcpCell) -> *mut u64) -> i32 {
    let sk = Ptr::new(ctx.arg::<*const c_void>(0), get(&TASK).direct != 0);
    let mut key = NOBODY;
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
    let key = *key;
    match TABLE.find_or(&key, &OTHERS) {
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
