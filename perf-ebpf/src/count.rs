//! Counting: atomic adds into shared cells, plain adds into per-CPU counters.

use aya_ebpf::{helpers::bpf_map_lookup_elem, maps::PerCpuArray};
use perf_common::events::{COUNTERS, DROPPED, RECORDED, Reason, SEEN};
use perf_common::histogram::{CELLS, Histogram, index};

/// Adds to a counter that other CPUs add to as well.
///
/// `AtomicU64::fetch_add` does not exist for BPF, so the instruction is written out.
#[inline(always)]
pub fn add(counter: *mut u64, value: u64) {
    // SAFETY: the callers pass pointers into map values, which the verifier checks.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) value, options(nostack));
    }
}

/// Adds one duration to a histogram in a map.
#[inline(always)]
pub fn observe(histogram: *mut Histogram, ns: u64) {
    observe_many(histogram, ns, 1);
}

/// Adds `count` durations of `ns` each.
#[inline(always)]
pub fn observe_many(histogram: *mut Histogram, ns: u64, count: u64) {
    let cell = perf_common::bytes::opaque(index(ns) as u64);
    if cell >= CELLS as u64 {
        return;
    }
    // SAFETY: bounded just above; the fields lie inside the map value that the caller got.
    unsafe {
        add(&raw mut (*histogram).sum, ns.wrapping_mul(count));
        add((&raw mut (*histogram).cells).cast::<u64>().add(cell as usize), count);
    }
}

/// A probe's counters of events, one array of [`COUNTERS`] per CPU.
pub struct Events<'a>(pub &'a PerCpuArray<u64>);

/// As many as [`PerCpuArray::with_max_entries`] needs.
pub const EVENT_COUNTERS: u32 = COUNTERS;

impl Events<'_> {
    #[inline(always)]
    pub fn seen(&self) {
        self.bump(SEEN, 1);
    }

    #[inline(always)]
    pub fn seen_many(&self, count: u64) {
        self.bump(SEEN, count);
    }

    #[inline(always)]
    pub fn recorded(&self) {
        self.bump(RECORDED, 1);
    }

    /// The same for a probe whose programs never interrupt each other: without the price of an atomic.
    #[inline(always)]
    pub fn seen_alone(&self) {
        self.bump_alone(SEEN);
    }

    #[inline(always)]
    pub fn recorded_alone(&self) {
        self.bump_alone(RECORDED);
    }

    #[inline(always)]
    pub fn recorded_many(&self, count: u64) {
        self.bump(RECORDED, count);
    }

    #[inline(always)]
    pub fn dropped(&self, reason: Reason, count: u32) {
        self.bump(DROPPED + reason as u32, u64::from(count));
    }

    /// Counts nothing, by an atomic instruction all the same.
    #[inline(always)]
    pub fn nothing(&self) {
        self.bump(SEEN, 0);
    }

    #[inline(always)]
    fn bump_alone(&self, counter: u32) {
        if let Some(value) = self.0.get_ptr_mut(counter) {
            // SAFETY: a live element of this CPU's array, which nobody else writes meanwhile.
            unsafe { *value += 1 };
        }
    }

    #[inline(always)]
    fn bump(&self, counter: u32, by: u64) {
        if let Some(value) = self.0.get_ptr_mut(counter) {
            // SAFETY: a live element of this CPU's array. Atomic, because an interrupt on this CPU counts as well.
            add(value, by);
        }
    }
}

/// The value at `key`, made from `template` when it is missing. `None` when the map is full.
///
/// The raw helper, because a value can be larger than the stack and must be inserted from another map.
#[inline(always)]
pub fn get_or_insert<K, V>(
    map: &aya_ebpf::maps::HashMap<K, V>,
    key: &K,
    template: &PerCpuArray<V>,
) -> Option<(*mut V, bool)> {
    if let Some(value) = map.get_ptr_mut(key) {
        return Some((value, false));
    }
    let zero = template.get_ptr(0)?;
    // SAFETY: a template is written by nobody.
    let _: Result<(), i32> = map.insert(key, unsafe { &*zero }, u64::from(aya_ebpf::bindings::BPF_NOEXIST));
    Some((map.get_ptr_mut(key)?, true))
}

/// Whether a map holds `key`; cheaper to read in the programs than an `Option` of a pointer.
#[inline(always)]
pub fn contains<K>(map: *mut core::ffi::c_void, key: &K) -> bool {
    // SAFETY: the helper only reads the key.
    unsafe { !bpf_map_lookup_elem(map, core::ptr::from_ref(key).cast()).is_null() }
}
