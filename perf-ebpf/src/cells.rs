//! The kernel's side of a table of cells; see [`perf_common::cells`].

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, Queue};
use perf_common::bytes::opaque;
use perf_common::cells::{Key, RECENT, Slot};

/// Where each CPU found its last keys, each at the place that the key's hash tells.
pub type Recent = [u32; RECENT];

/// The maps that make a table.
pub struct Table<K: 'static, V: 'static> {
    pub index: &'static HashMap<K, u32>,
    pub cells: &'static Array<Slot<K, V>>,
    /// Elements that nobody has; user space fills it at start.
    pub free: &'static Queue<u32>,
    pub recent: &'static PerCpuArray<Recent>,
}

/// A cell and where it is.
pub struct Found<V> {
    pub at: u32,
    pub value: *mut V,
    /// It was not there before.
    pub new: bool,
}

impl<K: Key, V> Table<K, V> {
    /// The cell of a key that has one.
    #[inline(always)]
    pub fn find(&self, key: &K) -> Option<Found<V>> {
        let recent = self.recent.get_ptr_mut(0)?;
        let place = (opaque(key.hash()) & (RECENT as u64 - 1)) as usize;
        // SAFETY: this CPU's element, and masked to its entries.
        let recent = unsafe { recent.cast::<u32>().add(place) };
        // SAFETY: as above.
        let mut at = unsafe { recent.read_volatile() };
        let mut slot = self.cells.get_ptr_mut(at)?;
        // SAFETY: a live element.
        if !unsafe { &(*slot).key }.same(key) {
            // SAFETY: copied at once.
            at = *unsafe { self.index.get(key) }?;
            slot = self.cells.get_ptr_mut(at)?;
            // SAFETY: as above.
            unsafe { recent.write_volatile(at) };
        }
        // SAFETY: a field of a live element.
        Some(Found { at, value: unsafe { &raw mut (*slot).value }, new: false })
    }

    /// The cell of a key, made if need be; `None` when the table is full.
    #[inline(always)]
    pub fn find_or_make(&self, key: &K) -> Option<Found<V>> {
        if let Some(found) = self.find(key) {
            return Some(found);
        }
        let at = self.free.pop().ok()??;
        let slot = self.cells.get_ptr_mut(at)?;
        // Before anybody can find it: an element without its key would be taken for another's.
        // SAFETY: a live element that nobody else has.
        unsafe { (&raw mut (*slot).key).write_volatile(*key) };
        if self.index.insert(key, at, u64::from(BPF_NOEXIST)).is_err() {
            // Another CPU was faster, or there is no room.
            // SAFETY: as above; a key is plain data, all zero where free.
            unsafe { (&raw mut (*slot).key).write_volatile(core::mem::zeroed()) };
            let _: Result<(), i32> = self.free.push(at, 0);
            return self.find(key);
        }
        // SAFETY: a field of a live element.
        Some(Found { at, value: unsafe { &raw mut (*slot).value }, new: true })
    }

    /// The cell of a key, or when the table is full the one of `other`, which user space made at start.
    #[inline(always)]
    pub fn find_or(&self, key: &K, other: &K) -> Option<Found<V>> {
        match self.find_or_make(key) {
            Some(found) => Some(found),
            None => self.find(other),
        }
    }

    /// The cell at a place where one was found.
    #[inline(always)]
    pub fn at(&self, at: u32) -> Option<*mut V> {
        // SAFETY: a field of a live element.
        self.cells.get_ptr_mut(at).map(|slot| unsafe { &raw mut (*slot).value })
    }
}

/// What every object has.
#[macro_export]
macro_rules! slice {
    () => {
        #[unsafe(no_mangle)]
        static TASK: aya_ebpf::Global<perf_common::kernel::TaskOffsets> =
            aya_ebpf::Global::new($crate::unset());
        #[aya_ebpf::macros::map]
        static WORKLOADS: aya_ebpf::maps::HashMap<u64, perf_common::workload::Workload> =
            aya_ebpf::maps::HashMap::with_max_entries($crate::who::MAX_WORKLOADS, 0);
        #[aya_ebpf::macros::map]
        static EVENTS: aya_ebpf::maps::PerCpuArray<u64> =
            aya_ebpf::maps::PerCpuArray::with_max_entries($crate::count::EVENT_COUNTERS, 0);
    };
    // With one table of cells.
    ($key:ty => $cell:ty, $entries:expr) => {
        $crate::slice!();
        $crate::table!($key => $cell, $entries, INDEX, CELLS, FREE, RECENT);
    };
}

/// The maps of a table, by name.
#[macro_export]
macro_rules! table {
    ($key:ty => $cell:ty, $entries:expr, $index:ident, $cells:ident, $free:ident, $recent:ident) => {
        #[aya_ebpf::macros::map]
        static $index: aya_ebpf::maps::HashMap<$key, u32> =
            aya_ebpf::maps::HashMap::with_max_entries($entries, 0);
        #[aya_ebpf::macros::map]
        static $cells: aya_ebpf::maps::Array<perf_common::cells::Slot<$key, $cell>> =
            aya_ebpf::maps::Array::with_max_entries($entries, 0);
        #[aya_ebpf::macros::map]
        static $free: aya_ebpf::maps::Queue<u32> = aya_ebpf::maps::Queue::with_max_entries($entries, 0);
        #[aya_ebpf::macros::map]
        static $recent: aya_ebpf::maps::PerCpuArray<$crate::cells::Recent> =
            aya_ebpf::maps::PerCpuArray::with_max_entries(1, 0);

        const TABLE: $crate::cells::Table<$key, $cell> =
            $crate::cells::Table { index: &$index, cells: &$cells, free: &$free, recent: &$recent };
    };
}
