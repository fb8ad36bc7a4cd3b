//! The steps of a call that are functions of their own to the verifier.
//!
//! It walks once through each global function, with arguments it knows nothing of, and not once for every way that leads
//! there: 12,000 instructions for the program that calls them instead of over a million. They find their data at `place` in `WORK`.

use core::ffi::c_void;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_probe_read_user;
use perf_common::bytes::{WINDOW, opaque, within};
use perf_common::events::Reason;
use perf_common::http::{HttpKey, ROLE_SERVER, RouteSample, SAMPLE};
use perf_common::peer::CLASS_OTHER;
use perf_common::route;
use perf_ebpf::count::{Events, add, observe};

use super::{CARRY, CELLS_USED, Carry, EVENTS, MAX_CELLS, ROUTES, SAMPLES, TABLE, WORK, Work};

/// Runs the pass that is set up there.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn parse(place: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Work { window, pass, .. } = unsafe { &mut *work };
    pass.run(window);
    0
}

/// Reads up to `most` bytes of the call's payload into the window at `at`; how many, or 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn read_payload(place: u64, offset: u64, at: u64, most: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Work { window, payload, .. } = unsafe { &mut *work };
    let Some((address, left)) = payload.seek(offset) else { return 0 };
    let mut len = if most > left { left } else { most };
    len = opaque(len);
    if len > WINDOW as u64 {
        len = WINDOW as u64;
    }
    // SAFETY: the slot is masked, the length bounded, and the window longer than both.
    let failed =
        unsafe { bpf_probe_read_user(window.slot(at as usize).cast(), len as u32, address as *const c_void) };
    if failed != 0 { 0 } else { len }
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

/// Sends up the path in the window, if nobody has named its route yet; 1 if it is named now.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn name_route(place: u64, route: u64, at: u64, len: u64) -> u64 {
    // SAFETY: the value is not looked at.
    if unsafe { ROUTES.get(route) }.is_some() {
        return 1;
    }
    if ROUTES.insert(route, 1, u64::from(BPF_NOEXIST)).is_err() {
        return 0;
    }
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Work { window, sample, .. } = unsafe { &mut *work };
    let len = if len > SAMPLE as u64 { SAMPLE as u64 } else { len };
    sample.route = route;
    sample.len = len;
    for (i, word) in sample.path.iter_mut().enumerate() {
        // What follows the path is its query, which stays here.
        *word = window.word(at as usize + 8 * i) & within(len, 8 * i as u64);
    }
    if SAMPLES.output::<RouteSample>(&*sample, 0).is_err() {
        // Named another time.
        let _: Result<(), i32> = ROUTES.remove(route);
        return 0;
    }
    1
}

/// Counts one exchange of `ns`; `rest` is status, method and role as [`HttpKey`] has them. It must not use `WORK`: a
/// connection that ends in an interrupt is recorded while another one is being parsed.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn record(workload: u64, route_or_peer: u64, rest: u64, ns: u64) -> u64 {
    let mut key = HttpKey {
        workload,
        route_or_peer,
        status: rest as u16,
        method: (rest >> 16) as u8,
        role: (rest >> 24) as u8,
        pad: 0,
    };
    let Some(used) = CELLS_USED.get_ptr_mut(0) else { return 0 };
    let events = Events(&EVENTS);
    let mut cell = TABLE.find(&key);
    if cell.is_none() {
        // SAFETY: a live element.
        if unsafe { used.read_volatile() } >= MAX_CELLS.load() {
            key.route_or_peer = if key.role == ROLE_SERVER { route::OTHER } else { u64::from(CLASS_OTHER) };
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
    0
}
