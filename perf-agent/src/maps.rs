//! Reading maps: tables and hash maps in batches, per-CPU counters as sums.
//!
//! aya has no batch reads, and walking a hash key by key costs a system call per entry (ten times as much for 10,000
//! entries) and may never end while entries come and go.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, bail};
use aya::Ebpf;
use aya::Pod;
use aya::maps::ring_buf::RingBufItem;
use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, Queue, RingBuf};
use perf_common::cells::Slot;

use crate::bpf;

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
/// Entries per system call; a bucket that holds more makes the kernel ask for more room.
const BATCH: u32 = 512;

/// Bytes that came up through all rings since the start.
static SENT_UP: AtomicU64 = AtomicU64::new(0);

/// How many bytes BPF programs have sent up one by one, the only thing that is not read from maps.
pub(crate) fn sent_up() -> u64 {
    SENT_UP.load(Ordering::Relaxed)
}

/// What BPF programs send up one by one.
pub(crate) struct Ring(RingBuf<MapData>);

impl Ring {
    /// Takes the ring of this name out of a loaded object.
    pub(crate) fn take(object: &mut Ebpf, name: &str) -> anyhow::Result<Self> {
        let map = object.take_map(name).with_context(|| format!("the object has no map {name}"))?;
        Ok(Self(RingBuf::try_from(map)?))
    }

    pub(crate) fn next(&mut self) -> Option<RingBufItem<'_>> {
        let item = self.0.next()?;
        SENT_UP.fetch_add(item.len() as u64, Ordering::Relaxed);
        Some(item)
    }
}

/// A map of the kernel's, to be read whole.
pub(crate) struct MapReader {
    fd: OwnedFd,
    max_entries: u32,
}

/// The arguments of the batch commands, from `union bpf_attr`.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

impl MapReader {
    /// Takes the map of this name out of a loaded object.
    pub(crate) fn take(object: &mut Ebpf, name: &str) -> Result<Self, MapError> {
        let map = object.take_map(name).ok_or_else(|| MapError::InvalidName { name: name.to_owned() })?;
        Self::of(&map).unwrap_or_else(|| Err(MapError::InvalidName { name: name.to_owned() }))
    }

    /// A second handle to a map that something else keeps; `None` where it is of a kind that is not read whole.
    pub(crate) fn of(map: &Map) -> Option<Result<Self, MapError>> {
        let (Map::HashMap(data) | Map::LruHashMap(data) | Map::Array(data)) = map else { return None };
        Some(Self::new(data))
    }

    fn new(data: &MapData) -> Result<Self, MapError> {
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(MapError::from)?;
        Ok(Self { fd, max_entries: data.info()?.max_entries() })
    }

    pub(crate) fn max_entries(&self) -> u32 {
        self.max_entries
    }

    /// Calls `each` for every entry. Entries that come or go meanwhile may be missed, ones that stay are seen once.
    pub(crate) fn each<K: Pod, V: Pod>(&self, mut each: impl FnMut(&K, &V)) -> io::Result<()> {
        self.batches::<K, V>(|keys, values| {
            keys.iter().zip(values).for_each(|(key, value)| each(key, value));
            true
        })
    }

    /// Calls `each` with some entries at a time until it says that it has enough.
    pub(crate) fn batches<K: Pod, V: Pod>(&self, mut each: impl FnMut(&[K], &[V]) -> bool) -> io::Result<()> {
        let mut room = BATCH;
        let mut keys: Vec<K> = Vec::with_capacity(room as usize);
        let mut values: Vec<V> = Vec::with_capacity(room as usize);
        let mut position = 0_u64;
        let mut begun = false;
        let mut read = 0;
        loop {
            keys.reserve(room as usize);
            values.reserve(room as usize);
            let mut attr = BatchAttr {
                in_batch: if begun { &raw const position as u64 } else { 0 },
                out_batch: &raw mut position as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: room,
                map_fd: self.fd.as_raw_fd() as u32,
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: the buffers hold `count` elements, and the kernel writes no more.
            let error = unsafe { bpf::call(BPF_MAP_LOOKUP_BATCH, &mut attr) }.err();
            let end = match error.as_ref().and_then(io::Error::raw_os_error) {
                Some(libc::ENOENT) => true,
                Some(libc::ENOSPC) => {
                    room = room.saturating_mul(2);
                    continue;
                }
                Some(_) => return Err(error.unwrap_or_else(io::Error::last_os_error)),
                None => false,
            };
            begun = true;
            let got = attr.count.min(room) as usize;
            // SAFETY: the kernel filled `got` plain-data elements of the reserved room.
            unsafe {
                keys.set_len(got);
                values.set_len(got);
            }
            let more = each(&keys, &values);
            read += attr.count;
            // A map cannot hold more; entries that come and go must not keep a scrape busy.
            if end || !more || read >= self.max_entries.saturating_mul(2) {
                return Ok(());
            }
            keys.clear();
            values.clear();
        }
    }
}

fn named<'o>(object: &'o mut Ebpf, prefix: &str, name: &str) -> anyhow::Result<&'o mut Map> {
    let name = format!("{prefix}{name}");
    object.map_mut(&name).with_context(|| format!("the object has no map {name}"))
}

/// A slice's table of cells; see [`perf_common::cells`].
pub(crate) struct Table(MapReader);

impl Table {
    /// Makes an empty table ready: its first elements count what finds no room, under these keys, all others are free.
    ///
    /// `prefix` is what the names of its maps begin with.
    pub(crate) fn prepare<K: Pod, V: Pod>(object: &mut Ebpf, prefix: &str, others: &[K]) -> anyhow::Result<()>
    where
        Slot<K, V>: Pod,
    {
        let index = named(object, prefix, "INDEX")?;
        let mut index = aya::maps::HashMap::<_, K, u32>::try_from(index)?;
        for (at, other) in (0..).zip(others) {
            index.insert(other, at, 0)?;
        }
        let cells = named(object, prefix, "CELLS")?;
        let mut cells = Array::<_, Slot<K, V>>::try_from(cells)?;
        for (at, other) in (0..).zip(others) {
            let mut slot = cells.get(&at, 0)?;
            slot.key = *other;
            cells.set(at, slot, 0)?;
        }
        let made = others.len() as u32;
        let entries = cells.len();
        let free = named(object, prefix, "FREE")?;
        let mut free = Queue::<_, u32>::try_from(free)?;
        (made..entries).try_for_each(|at| free.push(at, 0)).context("the table cannot be filled")
    }

    pub(crate) fn take(object: &mut Ebpf, prefix: &str) -> Result<Self, MapError> {
        MapReader::take(object, &format!("{prefix}CELLS")).map(Self)
    }

    /// Calls `each` for every cell with a key, and where it is in the table.
    pub(crate) fn each<K: Pod + Default + PartialEq, V: Pod>(
        &self,
        mut each: impl FnMut(u32, &K, &V),
    ) -> io::Result<()>
    where
        Slot<K, V>: Pod,
    {
        let free = K::default();
        self.0.batches::<u32, Slot<K, V>>(|places, slots| {
            let mut any = false;
            for (place, slot) in places.iter().zip(slots).filter(|(_, slot)| slot.key != free) {
                any = true;
                each(*place, &slot.key, &slot.value);
            }
            // Elements are taken in order, so behind so many free ones there is nothing.
            any
        })
    }
}

/// Counters that each CPU keeps for itself.
pub(crate) struct Counters(PerCpuArray<MapData, u64>);

impl Counters {
    pub(crate) fn take(object: &mut Ebpf, name: &str) -> Result<Self, MapError> {
        let map = object.take_map(name).ok_or_else(|| MapError::InvalidName { name: name.to_owned() })?;
        Ok(Self(PerCpuArray::try_from(map)?))
    }

    /// Every counter, summed over the CPUs; zero where it cannot be read.
    pub(crate) fn sums<const N: usize>(&self) -> [u64; N] {
        std::array::from_fn(|i| self.0.get(&(i as u32), 0).map_or(0, |cpus| cpus.iter().sum()))
    }
}

/// An array that the kernel's side made to be read in place (`BPF_F_MMAPABLE`): no call and no copy.
pub(crate) struct Mapped<T> {
    base: NonNull<T>,
    entries: usize,
    /// The mapping outlives the descriptor, but not the process.
    _map: Map,
}

// SAFETY: memory that this alone points to, and that nobody here writes.
unsafe impl<T: Pod + Send> Send for Mapped<T> {}

impl<T: Pod> Mapped<T> {
    /// Maps the array of this name of a loaded object.
    pub(crate) fn take(object: &mut Ebpf, name: &str) -> anyhow::Result<Self> {
        let map = object.take_map(name).with_context(|| format!("the object has no map {name}"))?;
        let Map::Array(data) = &map else { bail!("{name} is no array") };
        let entries = data.info()?.max_entries() as usize;
        // SAFETY: a mapping of its own, which the kernel checks against the size of the map.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                entries * size_of::<T>(),
                libc::PROT_READ,
                libc::MAP_SHARED,
                data.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).with_context(|| format!("{name} cannot be mapped"));
        }
        let base = NonNull::new(base.cast()).context("mapped at no address")?;
        Ok(Self { base, entries, _map: map })
    }

    /// Every element. The kernel may be writing it meanwhile: its fields need not belong together.
    pub(crate) fn each(&self) -> impl Iterator<Item = T> {
        // SAFETY: inside of the mapping, plain data that is copied; volatile, because the kernel writes it.
        (0..self.entries).map(|at| unsafe { self.base.add(at).read_volatile() })
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: what `take` mapped.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.entries * size_of::<T>()) };
    }
}
