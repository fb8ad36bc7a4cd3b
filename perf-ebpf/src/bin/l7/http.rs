//! HTTP/1.x: the program that follows a call, and its steps that are functions of their own to the verifier.
//!
//! It walks once through each global function, with arguments it knows nothing of, and not once for every way that leads
//! there. They find their data at `place` in `WORK`.
//!
//! Maps: a table of histograms by workload, route or peer, method and status; `CARRY` (socket and direction → a cut line),
//! `ROUTES` (fingerprints with a name), `SAMPLES` (the text that names a new one) and the rules that user space makes of what
//! it learns from them: `RULES` (all at a glance), `COLLAPSED` and `KEPT` (places in the tree of paths), `STATES` and `STEPS`
//! (the user's patterns).
//! Metrics: `http_requests_total`, `http_request_duration_seconds`, `http_client_requests_total`,
//! `http_client_request_duration_seconds`.

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_probe_read_user;
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, ProgramArray, RingBuf};
use aya_ebpf::programs::BtfTracePointContext;
use perf_common::bytes::{WINDOW, opaque, within};
use perf_common::events::Reason;
use perf_common::histogram::Histogram;
use perf_common::http::parse::{Parsed, Pass};
use perf_common::http::{Conn, Exchange, Half, HttpKey, Io, RouteSample, SAMPLE, step};
use perf_common::l7::{Direction, HTTP, ROLE_CLIENT, ROLE_SERVER};
use perf_common::peer::CLASS_OTHER;
use perf_common::request::{self, Small};
use perf_common::route;
use perf_common::route::rules::{Collapse, Outcome, Patterns, State, Step, Summary, matching};
use perf_ebpf::count::{Events, add, observe};
use perf_ebpf::kernel::Ptr;

use super::{
    EVENTS, End, RECEIVED_MORE, RETURNED_MORE, SAMPLED, SENT_MORE, WORK, Work as Scratch, clients, owner,
    sample_request,
};

// As many as the configuration asks for.
perf_ebpf::table!(HttpKey => Histogram, 10_240, INDEX, CELLS, FREE, RECENT);

/// How many cells may be made before new routes and peers are counted as `other`.
#[unsafe(no_mangle)]
static MAX_CELLS: Global<u64> = Global::new(8192);

/// Keyed by the socket's address, with the direction in its lowest bit. The oldest go first when there are too many: that
/// loses one request each, which is counted.
#[map]
static CARRY: LruHashMap<u64, Carry> = LruHashMap::with_max_entries(4096, 0);
#[map]
static CELLS_USED: Array<u64> = Array::with_max_entries(1, 0);
#[map]
static ROUTES: HashMap<u64, u64> = HashMap::with_max_entries(16_384, 0);
#[map]
static SAMPLES: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);
/// How many routes were named since user space last looked.
#[map]
static NEW_ROUTES: Array<u64> = Array::with_max_entries(1, 0);
#[map]
static RULES: Array<Summary> = Array::with_max_entries(1, 0);
/// Parents whose children are folded, and children that are not, by [`perf_common::route::rules::key`].
#[map]
static COLLAPSED: HashMap<u64, u64> = HashMap::with_max_entries(route::rules::MAX_COLLAPSED, 0);
#[map]
static KEPT: HashMap<u64, u64> = HashMap::with_max_entries(route::rules::MAX_KEPT, 0);
#[map]
static STATES: Array<State> = Array::with_max_entries(route::rules::MAX_STATES, 0);
#[map]
static STEPS: HashMap<Step, u64> = HashMap::with_max_entries(route::rules::MAX_STEPS, 0);

/// What HTTP needs of [`super::Work`].
#[repr(C)]
pub(super) struct Work {
    pass: Pass,
    /// What the path is under the rules.
    outcome: Outcome,
    sample: RouteSample,
    /// Fingerprints that are in `ROUTES`, each at the place that its lowest bits tell: spares the look-up for the usual ones.
    named: [u64; NAMED],
}

const NAMED: usize = 256;
/// How many routes get a name before user space looks, four times a second: rules are to be made before the cells are used up.
/// The samples of so many fit into the ring.
const MAX_NEW_ROUTES: u64 = 512;

/// A line that a call cut, until the next call brings the rest.
#[repr(C)]
struct Carry {
    words: [u64; WINDOW / 8],
}

/// Parts of one call per program: a head with its body is one part; pipelined messages and chunks are one each.
const ROUNDS: usize = 3;

#[btf_tracepoint(function = "sock_send_length")]
fn sent_more(ctx: BtfTracePointContext) -> i32 {
    more(&ctx, &SENT_MORE, Direction::Sent)
}

#[btf_tracepoint(function = "sock_recv_length")]
fn received_more(ctx: BtfTracePointContext) -> i32 {
    more(&ctx, &RECEIVED_MORE, Direction::Received)
}

#[btf_tracepoint(function = "sys_exit")]
fn returned_more(ctx: BtfTracePointContext) -> i32 {
    more(&ctx, &RETURNED_MORE, Direction::Received)
}

/// The rest of a call with more parts than one program looks at.
#[inline(always)]
fn more(ctx: &BtfTracePointContext, next: &ProgramArray, place: Direction) -> i32 {
    let Some((sk, work)) = super::under_way(ctx, place) else { return 0 };
    let Some(conn) = super::conn(sk, false) else { return 0 };
    if advance(sk, conn, work) {
        // SAFETY: an empty slot falls through.
        unsafe { next.tail_call(ctx, u32::from(HTTP)) };
        // More parts than a chain of programs may look at.
        give_up(conn, work);
    }
    0
}

/// Looks at up to [`ROUNDS`] parts of the call; whether some are left.
#[inline(always)]
pub(super) fn advance(sk: Ptr, conn: &mut Conn, work: &mut Scratch) -> bool {
    for _ in 0..ROUNDS {
        let mut call = work.call;
        step(conn, &mut Kernel { work, sk }, &mut call);
        if conn.workload == 0 && conn.role == ROLE_CLIENT {
            (conn.workload, conn.peer) = owner(sk, ROLE_CLIENT);
        }
        work.call.done = call.done;
        if call.done >= call.total {
            return false;
        }
    }
    true
}

/// What passed by unseen before the call.
#[inline(always)]
pub(super) fn pass_over(sk: Ptr, conn: &mut Conn, work: &mut Scratch) {
    let (call, unseen) = (work.call, work.unseen as u32);
    conn.pass_over(&mut Kernel { work, sk }, &call, unseen);
}

#[inline(always)]
pub(super) fn give_up(conn: &mut Conn, work: &mut Scratch) {
    let mut call = work.call;
    conn.lose(&mut call);
}

#[inline(always)]
pub(super) fn end(sk: Ptr, conn: &mut Conn, work: &mut Scratch, what: End) {
    match what {
        End::Stream => conn.end_of_stream(&mut Kernel { work, sk }),
        End::Connection => conn.finish(&mut Kernel { work, sk }),
    }
}

/// The state machine's hands in the kernel.
struct Kernel<'a> {
    work: &'a mut Scratch,
    sk: Ptr,
}

impl Io for Kernel<'_> {
    #[inline(always)]
    fn parse(&mut self, half: &mut Half, is_request: bool, answered: u8, len: usize, reach: u32) -> Parsed {
        let pass = &mut self.work.http.pass;
        pass.prepare(half, is_request, answered, len, reach);
        parse(self.work.place);
        *half = self.work.http.pass.half;
        self.work.http.pass.out
    }

    #[inline(always)]
    fn read(&mut self, offset: u32, at: usize, most: usize) -> usize {
        read_payload(self.work.place, u64::from(offset), at as u64, most as u64) as usize
    }

    #[inline(always)]
    fn load_carry(&mut self, direction: Direction, _: usize) -> bool {
        load_carry(self.work.place, direction as u64) != 0
    }

    #[inline(always)]
    fn save_carry(&mut self, direction: Direction, _: usize) -> bool {
        save_carry(self.work.place, direction as u64) != 0
    }

    #[inline(always)]
    fn seen(&mut self) {
        Events(&EVENTS).seen();
    }

    #[inline(always)]
    fn route(&mut self, conn: &mut Conn, route: u64, at: usize, len: usize) -> u64 {
        // Here and not when it is recorded: each workload has rules of its own.
        if conn.workload == 0 {
            (conn.workload, conn.peer) = owner(self.sk, ROLE_SERVER);
        }
        let place = self.work.place;
        self.work.http.outcome = Outcome { route, collapsed: 0 };
        if has_rules() && apply_patterns(place) == 0 {
            apply_collapses(place, conn.workload);
        }
        let route = opaque(self.work.http.outcome.route);
        // SAFETY: masked to the array's entries.
        let named = unsafe {
            &mut *self.work.http.named.as_mut_ptr().add((opaque(route) & (NAMED as u64 - 1)) as usize)
        };
        if *named == route {
            return route;
        }
        if name_route(place, route, at as u64, len as u64) == 0 {
            return route::OTHER;
        }
        *named = route;
        route
    }

    #[inline(always)]
    fn record(&mut self, conn: &Conn, exchange: &Exchange) {
        let role = if conn.role == ROLE_SERVER { ROLE_SERVER } else { ROLE_CLIENT };
        let rest = u64::from(exchange.status) | u64::from(exchange.method) << 16 | u64::from(role) << 24;
        let ns = exchange.end.saturating_sub(exchange.start);
        let cell = record(conn.workload, exchange.route, conn.peer, rest, ns);
        super::phases::note(role, conn.workload, HTTP, 1, (exchange.start, exchange.end));
        if role == ROLE_SERVER && cell != 0 {
            clients::note(self.sk, cell - 1, exchange.end);
        }
    }

    #[inline(always)]
    fn dropped(&mut self, reason: Reason, count: u32) {
        Events(&EVENTS).dropped(reason, count);
    }
}

/// Runs the pass that is set up there.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn parse(place: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { window, http, .. } = unsafe { &mut *work };
    http.pass.run(window);
    0
}

/// Reads up to `most` bytes of the call's payload into the window at `at`; how many, or 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn read_payload(place: u64, offset: u64, at: u64, most: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { window, payload, fresh_at, fresh, .. } = unsafe { &mut *work };
    *fresh_at = at;
    *fresh = 0;
    let Some((address, left)) = payload.seek(offset) else { return 0 };
    let mut len = if most > left { left } else { most };
    len = opaque(len);
    if len > WINDOW as u64 {
        len = WINDOW as u64;
    }
    // SAFETY: the slot is masked, the length bounded, and the window longer than both.
    let failed =
        unsafe { bpf_probe_read_user(window.slot(at as usize).cast(), len as u32, address as *const c_void) };
    if failed != 0 {
        return 0;
    }
    *fresh = len;
    len
}

/// Puts a carried line at the start of the window.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn load_carry(place: u64, direction: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let key = unsafe { (*work).sk } | direction;
    let Some(carry) = CARRY.get_ptr(key) else { return 0 };
    for i in 0..WINDOW / 8 {
        // SAFETY: a live value, this CPU's element, and a masked index.
        unsafe { (*work).window.copy_word(i).write_volatile((*carry).words[i]) };
    }
    1
}

/// Keeps the start of the window.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn save_carry(place: u64, direction: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let key = unsafe { (*work).sk } | direction;
    // SAFETY: the window is longer than what is kept of it.
    let start = unsafe { &*(*work).window.copy_word(0).cast_const().cast::<Carry>() };
    u64::from(CARRY.insert(key, start, 0).is_ok())
}

#[inline(always)]
fn has_rules() -> bool {
    // SAFETY: a live element.
    RULES.get_ptr(0).is_some_and(|rules| unsafe { (*rules).patterns | (*rules).collapsed } != 0)
}

/// The rules as they are in the maps.
struct Maps {
    summary: *const Summary,
}

impl Collapse for Maps {
    #[inline(always)]
    fn is_collapsed(&mut self, parent: u64) -> bool {
        // SAFETY: a live element; the value is not looked at.
        unsafe { (*self.summary).may_collapse(parent) && COLLAPSED.get(parent).is_some() }
    }

    #[inline(always)]
    fn is_kept(&mut self, child: u64) -> bool {
        // SAFETY: as above.
        unsafe { KEPT.get(child).is_some() }
    }
}

impl Patterns for Maps {
    #[inline(always)]
    fn state(&mut self, state: u64) -> State {
        // SAFETY: a live element, copied at once. What does not exist is like 0.
        STATES.get_ptr(state as u32).map_or(State { any: 0, accept: 0, rest: 0 }, |state| unsafe { *state })
    }

    #[inline(always)]
    fn step(&mut self, step: &Step) -> u64 {
        // SAFETY: copied at once.
        unsafe { STEPS.get(step) }.copied().unwrap_or(0)
    }
}

/// Sets the outcome to the pattern that the path matches; 0 if there is none.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn apply_patterns(place: u64) -> u64 {
    let Some(summary) = RULES.get_ptr(0) else { return 0 };
    // SAFETY: a live element.
    if unsafe { (*summary).patterns } == 0 {
        return 0;
    }
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let http = unsafe { &mut (*work).http };
    let route = matching(&http.pass.segments, &mut Maps { summary });
    if route != 0 {
        http.outcome.route = route;
    }
    route
}

/// Sets the outcome to what the path is where places of the workload's tree are collapsed.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn apply_collapses(place: u64, workload: u64) -> u64 {
    let Some(summary) = RULES.get_ptr(0) else { return 0 };
    // SAFETY: a live element.
    if unsafe { (*summary).collapsed } == 0 {
        return 0;
    }
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let http = unsafe { &mut (*work).http };
    http.outcome.collapse(&http.pass.segments, workload, &mut Maps { summary });
    0
}

/// Sends up the path in the window, if nobody has named its route yet; 1 if it is named now.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn name_route(place: u64, route: u64, at: u64, len: u64) -> u64 {
    // SAFETY: the value is not looked at.
    if unsafe { ROUTES.get(route) }.is_some() {
        return 1;
    }
    let Some(new) = NEW_ROUTES.get_ptr_mut(0) else { return 0 };
    // SAFETY: a live element.
    if unsafe { new.read_volatile() } >= MAX_NEW_ROUTES {
        return 0;
    }
    if ROUTES.insert(route, 1, u64::from(BPF_NOEXIST)).is_err() {
        // Another CPU was faster, or there is no room.
        // SAFETY: as above.
        return u64::from(unsafe { ROUTES.get(route) }.is_some());
    }
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { window, http: Work { pass, outcome, sample, .. }, .. } = unsafe { &mut *work };
    let len = if len > SAMPLE as u64 { SAMPLE as u64 } else { len };
    sample.route = route;
    sample.len = len;
    sample.collapsed = outcome.collapsed;
    sample.segments = pass.segments.len() as u64;
    sample.masked = pass.segments.masked();
    for (i, word) in sample.path.iter_mut().enumerate() {
        // What follows the path is its query, which stays here.
        *word = window.word(at as usize + 8 * i) & within(len, 8 * i as u64);
    }
    if SAMPLES.output::<RouteSample>(&*sample, 0).is_err() {
        // Named another time.
        let _: Result<(), i32> = ROUTES.remove(route);
        return 0;
    }
    add(new, 1);
    1
}

/// Counts one exchange of `ns`; `rest` is status, method and role as [`HttpKey`] has them. Where its cell is, plus one; 0 where
/// it has none. It must not use `WORK`: a
/// connection that ends in an interrupt is recorded while another one is being parsed.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn record(workload: u64, route: u64, peer: u64, rest: u64, ns: u64) -> u64 {
    let (status, method, role) = (rest as u16, (rest >> 16) as u8, (rest >> 24) as u8);
    let is_server = role == ROLE_SERVER;
    let mut key = HttpKey {
        workload,
        route_or_peer: if is_server { route } else { peer },
        status,
        method,
        role,
        pad: 0,
    };
    let Some(used) = CELLS_USED.get_ptr_mut(0) else { return 0 };
    let events = Events(&EVENTS);
    let mut cell = TABLE.find(&key);
    if cell.is_none() {
        // SAFETY: a live element.
        if unsafe { used.read_volatile() } >= MAX_CELLS.load() {
            key.route_or_peer = if is_server { route::OTHER } else { u64::from(CLASS_OTHER) };
        }
        cell = TABLE.find_or_make(&key);
    }
    let Some(cell) = cell else {
        events.dropped(Reason::MapFull, 1);
        return 0;
    };
    if cell.new {
        add(used, 1);
    }
    observe(cell.value, ns);
    events.recorded();
    let failed = status >= 500;
    if SAMPLED.want(failed, ns) {
        let flags = request::flags(is_server, failed);
        let small = Small { protocol: request::HTTP, flags, status, kind: method, count: 1 };
        // Only a server's route has a name.
        sample_request(workload, if is_server { route } else { 0 }, peer, small.pack(), ns);
    }
    u64::from(cell.at) + 1
}
