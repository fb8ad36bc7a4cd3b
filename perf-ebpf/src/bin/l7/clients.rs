//! Which clients a server's requests came from, where the user asked for their number.
//!
//! Maps: `WATCHED` (by cell: which sets its clients belong to), `CLIENTS` (the sets), `UNDECIDED` (clients of cells of which user
//! space has not said yet).
//! Metrics: those of the configuration's `derived_metrics`.

use aya_ebpf::Global;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, LruHashMap};
use perf_common::bytes::opaque;
use perf_common::clients::{DECIDED, Place, RANKS, REGISTERS, Register, SETS, stamp};
use perf_ebpf::kernel::Ptr;
use perf_ebpf::{get, socket};

use super::SOCK;

/// How many sets there may be; 0 where nobody asked.
#[unsafe(no_mangle)]
static CLIENT_SETS: Global<u64> = Global::new(0);
/// As many as there are cells; one where nobody asked.
#[map]
static WATCHED: Array<u64> = Array::with_max_entries(1, 0);
/// The registers of all sets; one where nobody asked.
#[map]
static CLIENTS: Array<Register> = Array::with_max_entries(1, 0);
/// Keyed by [`Place::key`], and what a register would hold.
#[map]
static UNDECIDED: LruHashMap<u64, u64> = LruHashMap::with_max_entries(16_384, 0);

/// A request that is counted in this cell came over this socket.
#[inline(always)]
pub(super) fn note(sk: Ptr, cell: u64, at: u64) {
    if *get(&CLIENT_SETS) == 0 {
        return;
    }
    let place = Place::of(&socket::peer(sk, get(&SOCK)));
    mark(cell, place.register.into(), place.rank.into(), at);
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn mark(cell: u64, register: u64, rank: u64, at: u64) -> u64 {
    let Some(watched) = WATCHED.get_ptr(cell as u32) else { return 0 };
    // SAFETY: a live element.
    let sets = unsafe { watched.read_volatile() };
    let stamp = stamp(at);
    if sets & DECIDED == 0 {
        let place = Place { register: register as u32, rank: rank as u32 };
        let _: Result<(), i32> = UNDECIDED.insert(place.key(cell as u32), u64::from(stamp), 0);
        return 0;
    }
    let rank = (opaque(rank) & (RANKS as u64 - 1)) as usize;
    for set in 0..SETS {
        if sets >> set & 1 == 0 {
            continue;
        }
        let Some(stamps) = CLIENTS.get_ptr_mut(set * REGISTERS + register as u32) else { return 0 };
        // SAFETY: masked to the register's ranks.
        unsafe { stamps.cast::<u32>().add(rank).write_volatile(stamp) };
    }
    0
}
