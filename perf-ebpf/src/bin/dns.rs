//! DNS lookups, by those who ask and those who answer, over UDP on any port and over TCP on port 53.
//!
//! Hooks: `tp_btf/sock_send_length` and `tp_btf/sock_recv_length` fire for each message, also of `sendmmsg` and `recvmmsg`,
//! and carry socket and length; the bytes come from the registers of the system call. Before 6.3, `tp_btf/sys_exit`
//! stands in for both. Where the programs of `l7` are on these hooks, they pass on what is for this slice by a tail call, so
//! that a call of TCP's runs one program; else these are attached themselves.
//! Maps: `FLIGHTS` (socket, id and role → the lookups that wait) and `EARLY` (answers that wait for their queries), of which
//! user space sweeps what waits too long, `HEARD_AT` (when servers here read their queries), the table (workload,
//! domain, type and outcome → histogram), `STREAMS` (TCP socket and direction → framing), `WATCH` (what kind of traffic a UDP
//! socket has), `BATCH` (thread → how far its `sendmmsg` is), `DOMAINS` (fingerprints with a name) and `SAMPLES` (the
//! name of a new one), `WORK` (scratch of one thread on one CPU), and those for lookups that go up one by one
//! (`perf_ebpf::requests`).
//! Metrics: `dns_lookups_total`, `dns_lookup_duration_seconds`, `dns_lookup_timeouts_total`, `dns_lookup_retransmits_total`,
//! `dns_server_queries_total`, `dns_server_query_duration_seconds`, `dns_server_unanswered_total`.
//! Needs: 6.3 for the first two hooks; before that `tp_btf/sys_exit`.
#![no_std]
#![no_main]
#![allow(clippy::needless_pass_by_value, reason = "the tracepoint macro hands over the context")]

#[path = "dns/stages.rs"]
mod stages;

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_map, btf_tracepoint, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::programs::BtfTracePointContext;
use perf_common::bytes::Window;
use perf_common::dns::flight::{Early, EarlyKey, Flight, FlightKey, HEARD, Heard, Outcome};
use perf_common::dns::stream::Stream;
use perf_common::dns::{DnsCell, DnsKey, HEAD, Message, NameSample};
use perf_common::events::Reason;
use perf_common::kernel::{FileOffsets, RegOffsets, SockOffsets};
use perf_common::l7::Direction;
use perf_ebpf::count::Events;
use perf_ebpf::kernel::Ptr;
use perf_ebpf::socket::{self, AF_INET, AF_INET6, DNS_PORT, IPPROTO_TCP, IPPROTO_UDP};
use perf_ebpf::syscall::{self, Call as Syscall, Payload, Shape};
use perf_ebpf::{get, unset, who};
use stages::{advance, datagram};

perf_ebpf::program!();
perf_ebpf::slice!(DnsKey => DnsCell, 4096);
perf_ebpf::requests!();

#[unsafe(no_mangle)]
static SOCK: Global<SockOffsets> = Global::new(unset());
#[unsafe(no_mangle)]
static REGS: Global<RegOffsets> = Global::new(unset());
#[unsafe(no_mangle)]
static FILES: Global<FileOffsets> = Global::new(unset());
/// How many domains get a name of their own; 0 for none at all.
#[unsafe(no_mangle)]
static MAX_DOMAINS: Global<u64> = Global::new(0);

#[map]
static FLIGHTS: HashMap<FlightKey, Flight> = HashMap::with_max_entries(16_384, 0);
#[map]
static FLIGHT_ZERO: PerCpuArray<Flight> = PerCpuArray::with_max_entries(1, 0);
#[map]
static EARLY: HashMap<EarlyKey, Early> = HashMap::with_max_entries(4096, 0);
#[map]
static HEARD_AT: Array<Heard> = Array::with_max_entries(HEARD, 0);
/// The longest unused go first when there are too many; such a connection is not followed any more.
#[map]
static STREAMS: LruHashMap<StreamKey, Lane> = LruHashMap::with_max_entries(1024, 0);
#[map]
static LANE_ZERO: PerCpuArray<Lane> = PerCpuArray::with_max_entries(1, 0);
#[btf_map]
static WATCH: SkStorage<Watch> = SkStorage::new();
#[map]
static BATCH: LruHashMap<u32, Batch> = LruHashMap::with_max_entries(1024, 0);
#[map]
static DOMAINS: HashMap<u64, u64> = HashMap::with_max_entries(1, 0);
#[map]
static SAMPLES: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);
/// 1 once both directions are attached: a query whose answer nobody watches would time out.
#[map]
static ARMED: Array<u32> = Array::with_max_entries(1, 0);
#[map]
static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(WORKS, 0);
/// A power of two. One would do as long as tracepoints cannot be preempted; newer kernels let them be, and then two threads
/// are at work on one CPU.
const WORKS: u32 = 16;

/// What one message needs while it is looked at; too large for the stack.
#[repr(C)]
struct Work {
    window: Window,
    message: Message,
    payload: Payload,
    sample: NameSample,
    /// The socket's address, as a key.
    sk: u64,
    /// `CLOCK_MONOTONIC` nanoseconds.
    now: u64,
    /// Bytes of the datagram, or of the call on a stream, and how many of them are done.
    length: u32,
    done: u32,
    /// The socket's own port and the other end's.
    port: u16,
    peer_port: u16,
    /// Whether one of the ports is 53.
    known: u8,
    sent: u8,
    pad: u16,
}

/// One direction of a TCP connection. Both ports, because addresses of sockets are used again at once.
#[repr(C)]
#[derive(Clone, Copy)]
struct StreamKey {
    sk: u64,
    port: u16,
    peer_port: u16,
    sent: u32,
}

/// Its framing, and the bytes of a message that a call cut.
#[repr(C)]
struct Lane {
    stream: Stream,
    carry: [u64; CARRY_WORDS],
}

const CARRY_WORDS: usize = perf_common::dns::NEED.div_ceil(8);

/// What kind of traffic a UDP socket has whose port tells nothing.
#[repr(C)]
#[derive(Clone, Copy)]
struct Watch {
    /// Since the last lookup that was complete: 1 for what may have been a query, [`FOREIGN`] for what was none.
    misses: u32,
    pad: u32,
}

const FOREIGN: u32 = 16;
/// From so many on a socket is left alone: 256 datagrams that are no DNS, or 4,096 queries without any answer.
const MAX_MISSES: u32 = 4096;

/// How far a thread is in a call for many messages.
#[repr(C)]
struct Batch {
    /// Where the call's messages are.
    vector: u64,
    next: u64,
}

const MSG_PEEK: i32 = 0x02;
const MSG_ERRQUEUE: i32 = 0x2000;
/// How many messages of one call are looked at where the call's end is the hook.
const MAX_BATCH: u32 = 64;
/// How many steps through a stream one call may take: two or three for a message.
const MAX_STEPS: u32 = 24;

#[btf_tracepoint(function = "sock_send_length")]
fn sent(ctx: BtfTracePointContext) -> i32 {
    by_socket(&ctx, Direction::Sent);
    0
}

#[btf_tracepoint(function = "sock_recv_length")]
fn received(ctx: BtfTracePointContext) -> i32 {
    let flags: i32 = ctx.arg(2);
    if flags & (MSG_PEEK | MSG_ERRQUEUE) == 0 {
        by_socket(&ctx, Direction::Received);
    }
    0
}

#[inline(always)]
fn by_socket(ctx: &BtfTracePointContext, direction: Direction) {
    let length: i32 = ctx.arg(1);
    let sk = Ptr::new(ctx.arg::<*const c_void>(0), true);
    let at = get(&SOCK);
    let Some(ends) = Ends::of(sk, at) else { return };
    if !armed() {
        return;
    }
    if length <= 0 {
        if length < 0 && !ends.tcp {
            // An error ends a call for many messages.
            let _: Result<(), i32> = BATCH.remove(thread());
        }
        return;
    }
    if !ends.tcp && (length < MIN_QUERY || !ends.known() && is_foreign(sk)) {
        return;
    }
    let regs_at = get(&REGS);
    let regs = syscall::registers(who::current(get(&TASK)), regs_at);
    if !syscall::is_running(regs, regs_at) {
        return;
    }
    let Some(work) = work() else { return };
    work.begin(sk, &ends, direction);
    work.length = length as u32;
    let Some(call) = Syscall::of_any(regs, regs_at) else { return };
    if call.direction as u8 != direction as u8 {
        return;
    }
    if call.shape == Shape::Batch {
        let vector: u64 = regs.load(regs_at.arg[1]);
        work.one_of_many(vector + syscall::MMSGHDR * position(vector, regs.load(regs_at.arg[2])));
    } else {
        work.single(regs, regs_at, &call);
    }
    if ends.tcp {
        stream();
    } else {
        let outcome = datagram();
        if work.known == 0 {
            watch(sk, outcome);
        }
    }
}

/// Kernels before 6.3: every system call's return, from whose descriptor the socket is found.
#[btf_tracepoint(function = "sys_exit")]
fn returned(ctx: BtfTracePointContext) -> i32 {
    let length: i64 = ctx.arg(1);
    let regs_at = get(&REGS);
    let regs = Ptr::new(ctx.arg::<*const c_void>(0), true);
    let Some(call) = Syscall::of_any(regs, regs_at) else { return 0 };
    if length <= 0 || length > i64::from(i32::MAX) || !armed() {
        return 0;
    }
    let flags: u64 = match call.flags_arg {
        2 => regs.load(regs_at.arg[2]),
        3 => regs.load(regs_at.arg[3]),
        _ => 0,
    };
    if flags & (MSG_PEEK | MSG_ERRQUEUE) as u64 != 0 {
        return 0;
    }
    let at = get(&SOCK);
    let task = who::current(get(&TASK));
    let sk = socket::of_descriptor(task, regs.load(regs_at.arg[0]), get(&FILES), at);
    if sk.is_null() {
        return 0;
    }
    let Some(ends) = Ends::of(sk, at) else { return 0 };
    let Some(work) = work() else { return 0 };
    work.begin(sk, &ends, call.direction);
    work.length = length as u32;
    if call.shape == Shape::Batch {
        if !ends.tcp {
            messages(work, regs.load(regs_at.arg[1]), length as u32);
        }
        return 0;
    }
    work.single(regs, regs_at, &call);
    if ends.tcp {
        stream();
    } else if length >= i64::from(MIN_QUERY) {
        datagram();
    }
    0
}

/// The messages of a call that is done.
#[inline(always)]
fn messages(work: &mut Work, vector: u64, count: u32) {
    let known = work.known;
    let mut i = 0;
    loop {
        let header = vector + syscall::MMSGHDR * u64::from(i);
        work.length = syscall::length_of_message(header);
        work.known = known;
        work.one_of_many(header);
        datagram();
        i += 1;
        if i >= count || i >= MAX_BATCH {
            break;
        }
    }
    if count > MAX_BATCH && known != 0 {
        let events = Events(&EVENTS);
        events.seen_many(u64::from(count - MAX_BATCH));
        events.dropped(Reason::Opaque, count - MAX_BATCH);
    }
}

/// A header and the shortest question.
const MIN_QUERY: i32 = HEAD as i32 + 5;

/// What tells whether a socket is of interest.
struct Ends {
    tcp: bool,
    port: u16,
    peer_port: u16,
}

impl Ends {
    /// `None` for what is neither UDP nor TCP on port 53: most of what passes here, so little is done before.
    #[inline(always)]
    fn of(sk: Ptr, at: &SockOffsets) -> Option<Self> {
        let protocol: u16 = sk.load(at.protocol);
        let tcp = protocol == IPPROTO_TCP;
        if !tcp && protocol != IPPROTO_UDP {
            return None;
        }
        let ends = Self { tcp, port: sk.load(at.num), peer_port: u16::from_be(sk.load(at.dport)) };
        if tcp && !ends.known() {
            return None;
        }
        let family: u16 = sk.load(at.family);
        (family == AF_INET || family == AF_INET6).then_some(ends)
    }

    #[inline(always)]
    fn known(&self) -> bool {
        self.port == DNS_PORT || self.peer_port == DNS_PORT
    }
}

impl Work {
    #[inline(always)]
    fn begin(&mut self, sk: Ptr, ends: &Ends, direction: Direction) {
        self.sk = sk.key();
        // SAFETY: no arguments.
        self.now = unsafe { bpf_ktime_get_ns() };
        self.port = ends.port;
        self.peer_port = ends.peer_port;
        self.known = u8::from(ends.known());
        self.sent = direction as u8;
        self.done = 0;
    }

    /// The bytes of a call for one message.
    #[inline(always)]
    fn single(&mut self, regs: Ptr, regs_at: &RegOffsets, call: &Syscall) {
        // With MSG_TRUNC a call says how long a datagram was, which can be more than it took.
        let mut room = self.length;
        if call.shape == Shape::Buffer {
            let buffer: u64 = regs.load(regs_at.arg[2]);
            if buffer < u64::from(room) {
                room = buffer as u32;
            }
        }
        self.payload = Payload::of_call(regs, regs_at, call, room);
        self.named(syscall::port_at(syscall::name_of_call(regs, regs_at, call)));
    }

    /// The bytes of the message with this header.
    #[inline(always)]
    fn one_of_many(&mut self, header: u64) {
        self.payload = Payload::of_message(header);
        self.named(syscall::port_at(syscall::name_of_message(header)));
    }

    /// Where a socket that is not connected sends to says what it sends.
    #[inline(always)]
    fn named(&mut self, port: u16) {
        if self.sent != 0 && port == DNS_PORT {
            self.known = 1;
        }
    }
}

/// Passes over the messages of a call on a stream.
#[inline(always)]
fn stream() {
    let mut steps = 0;
    loop {
        let more = advance(u64::from(steps == MAX_STEPS - 1));
        steps += 1;
        if more == 0 || steps >= MAX_STEPS {
            break;
        }
    }
}

#[inline(always)]
fn armed() -> bool {
    // SAFETY: a live element.
    ARMED.get_ptr(0).is_some_and(|armed| unsafe { armed.read_volatile() } != 0)
}

#[inline(always)]
fn thread() -> u32 {
    bpf_get_current_pid_tgid() as u32
}

/// The scratch of this thread on this CPU, which it does not leave while a program runs.
#[inline(always)]
fn work() -> Option<&'static mut Work> {
    // SAFETY: another thread has it only if it preempts this one and their ids agree in the low bits.
    WORK.get_ptr_mut(thread() & (WORKS - 1)).and_then(|work| unsafe { work.as_mut() })
}

/// Which of `count` messages it is that was just moved.
#[inline(always)]
fn position(vector: u64, count: u64) -> u64 {
    if count <= 1 {
        return 0;
    }
    let thread = thread();
    let mut at = 0;
    // SAFETY: an element that only this thread uses.
    if let Some(batch) = BATCH.get_ptr(thread).and_then(|batch| unsafe { batch.as_ref() })
        && batch.vector == vector
    {
        at = batch.next;
    }
    if at + 1 >= count {
        let _: Result<(), i32> = BATCH.remove(thread);
    } else {
        let _: Result<(), i32> = BATCH.insert(thread, Batch { vector, next: at + 1 }, 0);
    }
    at
}

/// Whether a UDP socket has shown often enough that it carries something else.
#[inline(always)]
fn is_foreign(sk: Ptr) -> bool {
    // SAFETY: this object's map.
    unsafe { socket::storage(&WATCH, sk, false) }.is_some_and(|watch| watch.misses >= MAX_MISSES)
}

/// Remembers what a datagram was.
#[inline(always)]
fn watch(sk: Ptr, outcome: u64) {
    let by = if outcome == Outcome::Stray as u64 { FOREIGN } else { 1 };
    let matched = outcome == Outcome::Matched as u64;
    // SAFETY: this object's map.
    if let Some(watch) = unsafe { socket::storage(&WATCH, sk, !matched) } {
        watch.misses = if matched { 0 } else { watch.misses.saturating_add(by) };
    }
}
