//! The steps of a message that are functions of their own to the verifier; see `l7/postgres/stages.rs`. They find their data in
//! `WORK`.

use core::ffi::c_void;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_probe_read_user;
use perf_common::bytes::{opaque, within};
use perf_common::dns::flight::{
    self, Early, EarlyKey, Ended, Event, Flight, FlightKey, HEARD, Heard, Ledger, Outcome,
};
use perf_common::dns::stream::Next;
use perf_common::dns::{
    ANSWER, DnsKey, HEAD, Message, NEED, NONE, NameSample, OTHER, QUERY, ROLE_CLIENT, ROLE_SERVER,
    is_failure, rcode_index,
};
use perf_common::events::Reason;
use perf_common::request::{self, BY_SOCKET, Small};
use perf_common::workload;
use perf_ebpf::count::{Events, add, contains, get_or_insert, observe};
use perf_ebpf::{get, who};

use super::{
    CARRY_WORDS, DOMAINS, EARLY, EVENTS, FLIGHT_ZERO, FLIGHTS, HEARD_AT, LANE_ZERO, MAX_DOMAINS, SAMPLED,
    SAMPLES, STREAMS, StreamKey, TABLE, TASK, WORKLOADS, Work, sample_request, work,
};

/// How many pieces of memory one message is gathered from.
const PIECES: usize = 3;

/// A datagram; an [`Outcome`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn datagram() -> u64 {
    let Some(work) = work() else { return 0 };
    let length = u64::from(work.length);
    let want = if length < NEED as u64 { length } else { NEED as u64 };
    let have = gather(0, 0, want);
    if have < HEAD as u64 {
        return Outcome::Stray as u64;
    }
    parse(have, length);
    account()
}

/// One step through a call on a stream; 0 when it is done. With `last`, what is left is given up.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn advance(last: u64) -> u64 {
    let Some(work) = work() else { return 0 };
    let key =
        StreamKey { sk: work.sk, port: work.port, peer_port: work.peer_port, sent: u32::from(work.sent) };
    let lane = match STREAMS.get_ptr_mut(key) {
        Some(lane) => lane,
        None => {
            let Some(zero) = LANE_ZERO.get_ptr(0) else { return 0 };
            // SAFETY: a template that nobody writes.
            let _: Result<(), i32> = STREAMS.insert(key, unsafe { &*zero }, u64::from(BPF_NOEXIST));
            let Some(lane) = STREAMS.get_ptr_mut(key) else { return 0 };
            lane
        }
    };
    // SAFETY: a live element; each direction is moved by one call at a time.
    let lane = unsafe { &mut *lane };
    let stream = &mut lane.stream;
    let rest = work.length.saturating_sub(work.done);
    if stream.lost != 0 || rest == 0 {
        return 0;
    }
    if last != 0 {
        stream.lost = 1;
        return 0;
    }
    match stream.next(rest) {
        Next::Skipped(skipped) => work.done += skipped,
        Next::Prefix => {
            if piece(u64::from(work.done), 0, 1) == 0 {
                stream.lost = 1;
                return 0;
            }
            stream.take_prefix(work.window.byte(0));
            work.done += 1;
        }
        Next::Message(take) => {
            let carried = u64::from(stream.carried);
            if carried != 0 {
                for i in 0..CARRY_WORDS {
                    // SAFETY: this CPU's window, a masked index.
                    unsafe { work.window.copy_word(i).write_volatile(lane.carry[i]) };
                }
            }
            if gather(u64::from(work.done), carried, u64::from(take)) < u64::from(take) {
                stream.lost = 1;
                return 0;
            }
            work.done += take;
            let have = u32::from(stream.carried) + take;
            if !stream.suffices(have) {
                for i in 0..CARRY_WORDS {
                    // SAFETY: this CPU's window, a masked index.
                    lane.carry[i] = unsafe { work.window.copy_word(i).read_volatile() };
                }
                return 0;
            }
            parse(u64::from(have), u64::from(stream.length));
            stream.done(have, work.message.kind != NONE);
            account();
        }
    }
    u64::from(work.done < work.length)
}

/// Reads up to `most` bytes of the call's payload from `offset` on into the window at `at`; how many there were.
#[inline(always)]
fn gather(offset: u64, at: u64, most: u64) -> u64 {
    let mut have = 0;
    for _ in 0..PIECES {
        if have < most {
            have += piece(offset + have, at + have, most - have);
        }
    }
    have
}

/// The same from one piece of memory.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn piece(offset: u64, at: u64, most: u64) -> u64 {
    let Some(Work { window, payload, .. }) = work() else { return 0 };
    let Some((address, left)) = payload.seek(offset) else { return 0 };
    let mut len = if most > left { left } else { most };
    len = opaque(len);
    if len > NEED as u64 {
        len = NEED as u64;
    }
    // SAFETY: the slot is masked, the length bounded, and the window longer than both.
    let failed =
        unsafe { bpf_probe_read_user(window.slot(at as usize).cast(), len as u32, address as *const c_void) };
    if failed != 0 { 0 } else { len }
}

/// Reads header and question from the window.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn parse(len: u64, total: u64) -> u64 {
    let Some(Work { window, message, .. }) = work() else { return 0 };
    message.read(window, len as usize, total as usize);
    0
}

/// What the message that was read means; an [`Outcome`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn account() -> u64 {
    let Some(Work { window, message, sk, now, port, known, sent, .. }) = work() else { return 0 };
    if message.kind != QUERY && message.kind != ANSWER {
        return Outcome::Stray as u64;
    }
    let role = flight::role(message.kind, *sent != 0);
    let key = FlightKey { sk: *sk, txid: message.txid, port: *port, role, pad: [0; 3] };
    let begin = if message.kind == QUERY { begin(message, role, *now) } else { *now };
    let event = Event { message, role, known: *known != 0, begin, now: *now, window };
    let mut books = Books { workload: 0, key };
    if message.kind == QUERY {
        if !event.is_credible() {
            return Outcome::Stray as u64;
        }
        let Some((flight, _)) = get_or_insert(&FLIGHTS, &key, &FLIGHT_ZERO) else {
            if event.known {
                books.seen();
                books.dropped(Reason::MapFull);
            }
            return Outcome::Stray as u64;
        };
        // SAFETY: a live element; what happens at once on one socket with one id is one lookup.
        let flight = unsafe { &mut *flight };
        if flight.workload == 0 {
            let task_at = get(&TASK);
            let workload = who::workload(who::current(task_at), task_at);
            flight.workload = workload.id();
            who::announce(&WORKLOADS, flight.workload, &workload);
        }
        books.workload = flight.workload;
        let outcome = flight.ask(&mut books, &event);
        if outcome == Outcome::Matched {
            leave(flight, &key);
        }
        return outcome as u64;
    }
    if let Some(flight) = FLIGHTS.get_ptr_mut(key) {
        // SAFETY: as above.
        let flight = unsafe { &mut *flight };
        books.workload = flight.workload;
        if flight.answer(&mut books, &event) == Outcome::Matched {
            leave(flight, &key);
            return Outcome::Matched as u64;
        }
    }
    if !event.is_early() || !books.post(&event) {
        event.stray(&mut books);
        return Outcome::Stray as u64;
    }
    if let Some(flight) = FLIGHTS.get_ptr_mut(key) {
        // SAFETY: as above.
        let flight = unsafe { &mut *flight };
        books.workload = flight.workload;
        if flight.answer_posted(&mut books, &event) == Outcome::Matched {
            leave(flight, &key);
            return Outcome::Matched as u64;
        }
    }
    Outcome::Pending as u64
}

/// When a query passed whose call has returned `now`. A server's leaves a note for its client, whose call may still be
/// under way: it can have been interrupted by that very server.
#[inline(always)]
fn begin(message: &Message, role: u8, now: u64) -> u64 {
    let tag = Heard::tag(message);
    let Some(heard) = HEARD_AT.get_ptr_mut(tag as u32 & (HEARD - 1)) else { return now };
    // SAFETY: a live element; two that write it at once cost precision.
    let heard = unsafe { &mut *heard };
    if role == ROLE_CLIENT {
        return heard.begin(tag, now);
    }
    *heard = Heard { tag, at: now };
    now
}

/// Lets go of a flight whose last lookup has ended. Not of one that merely is empty: another thread may be about to fill it.
#[inline(always)]
fn leave(flight: &Flight, key: &FlightKey) {
    if flight.is_empty() {
        let _: Result<(), i32> = FLIGHTS.remove(key);
    }
}

/// The findings' way into the maps.
struct Books {
    workload: u64,
    key: FlightKey,
}

impl Ledger for Books {
    #[inline(always)]
    fn seen(&mut self) {
        Events(&EVENTS).seen();
    }

    #[inline(always)]
    fn record(&mut self, ended: &Ended) {
        let rest = u64::from(ended.qtype)
            | u64::from(ended.outcome) << 8
            | u64::from(self.key.role) << 16
            | u64::from(ended.retransmits) << 32;
        let domain = record(self.workload, ended.name, rest, ended.took);
        let failed = is_failure(ended.outcome);
        // Not within the function above, which has left too little of the stack.
        if SAMPLED.want(failed, ended.took) {
            let small = Small {
                protocol: request::DNS,
                flags: request::flags(self.key.role == ROLE_SERVER, failed) | BY_SOCKET,
                status: u16::from(ended.outcome),
                kind: ended.qtype,
                count: 1,
            };
            sample_request(self.workload, domain, self.key.sk, small.pack(), ended.took);
        }
    }

    #[inline(always)]
    fn dropped(&mut self, reason: Reason) {
        Events(&EVENTS).dropped(reason, 1);
    }

    #[inline(always)]
    fn post(&mut self, event: &Event<'_>) -> bool {
        let key = EarlyKey { flight: self.key, question: event.message.question };
        let rcode = u32::from(rcode_index(event.message.rcode));
        let early = Early { at: event.now, rcode, known: u32::from(event.known) };
        let posted = EARLY.insert(key, early, 0).is_ok();
        fence();
        posted
    }

    #[inline(always)]
    fn claim(&mut self, event: &Event<'_>) -> Option<Early> {
        fence();
        let key = EarlyKey { flight: self.key, question: event.message.question };
        // SAFETY: copied at once; an element that is deleted meanwhile stays readable.
        let early = unsafe { *EARLY.get_ptr(key)? };
        // Of two that have found it, one deletes it.
        EARLY.remove(key).is_ok().then_some(early)
    }
}

/// What this CPU has written is visible before it reads on: an atomic instruction is a full barrier on x86-64.
#[inline(always)]
fn fence() {
    Events(&EVENTS).nothing();
}

/// Counts one lookup of `ns`; `rest` is type, outcome, role and retransmits. The domain under which it was counted.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn record(workload: u64, name: u64, rest: u64, ns: u64) -> u64 {
    let mut key = DnsKey {
        workload,
        domain: OTHER,
        qtype: rest as u8,
        outcome: (rest >> 8) as u8,
        role: (rest >> 16) as u8,
        pad: [0; 5],
    };
    if *get(&MAX_DOMAINS) != 0 {
        key.domain = domain(name, u64::from(key.outcome));
    }
    let events = Events(&EVENTS);
    let other = DnsKey { workload: workload::OTHER, domain: OTHER, ..key };
    let Some(cell) = TABLE.find_or(&key, &other) else {
        events.dropped(Reason::MapFull, 1);
        return OTHER;
    };
    // SAFETY: fields of a live element.
    unsafe {
        if rest >> 32 != 0 {
            add(&raw mut (*cell.value).retransmits, rest >> 32);
        }
        observe(&raw mut (*cell.value).duration, ns);
    }
    events.recorded();
    key.domain
}

/// What to count a name under: itself while there is room, and only if it exists. A flood of names that nobody has would
/// otherwise take all the room.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn domain(name: u64, outcome: u64) -> u64 {
    if contains(core::ptr::from_ref(&DOMAINS).cast_mut().cast(), &name) {
        return name;
    }
    let Some(Work { window, message, sample, .. }) = work() else { return OTHER };
    let exists = outcome == u64::from(rcode_index(0));
    // An answer that repeats no question has no name in the window.
    if !exists || message.name != name || DOMAINS.insert(name, 1, u64::from(BPF_NOEXIST)).is_err() {
        return OTHER;
    }
    let len = u64::from(message.name_len);
    sample.name = name;
    sample.len = len;
    for (i, word) in sample.wire.iter_mut().enumerate() {
        *word = window.word(HEAD + 8 * i) & name_within(len, 8 * i as u64);
    }
    if SAMPLES.output::<NameSample>(&*sample, 0).is_err() {
        // Named another time.
        let _: Result<(), i32> = DOMAINS.remove(name);
        return OTHER;
    }
    name
}

/// [`within`] for up to 256 bytes, of which it knows half.
#[inline(always)]
fn name_within(len: u64, from: u64) -> u64 {
    let upper = from & 128;
    // Both by subtraction that stops at its ends, without a branch.
    let left = len.wrapping_sub(upper);
    let left = left & !(opaque(left) >> 63).wrapping_neg();
    let full = (opaque(128_u64.wrapping_sub(left)) >> 63).wrapping_neg();
    within(left & !full | 128 & full, from & 127)
}
