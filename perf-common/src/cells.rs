//! A table of cells: an array whose elements know their own key.
//!
//! The kernel finds a key's element by a hash map of indices, and mostly without it: each CPU remembers where it found the
//! last keys, and an element says itself whether it is the one. An array look-up is a few instructions in place; a hash
//! look-up is a call that calls others, and where returns are guarded against speculation that is what it costs.

/// One element: free while its key is all zero, which no valid key is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Slot<K, V> {
    pub key: K,
    pub value: V,
}

/// How many places each CPU remembers; a power of two.
pub const RECENT: usize = 256;

/// What a table's key has to tell of itself.
pub trait Key: Copy {
    /// Any number that differs where keys differ, for the most part.
    fn hash(&self) -> u64;
    /// Whether the two are the same. Spelled out, because a derived `==` can become a call of `memcmp`.
    fn same(&self, other: &Self) -> bool;
}

impl Key for u64 {
    #[inline(always)]
    fn hash(&self) -> u64 {
        *self
    }

    #[inline(always)]
    fn same(&self, other: &Self) -> bool {
        *self == *other
    }
}

/// The key of what is counted by workload and protocol alone; which protocols those are is the slice's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ByProtocol {
    pub workload: u64,
    pub protocol: u64,
}

crate::pod!(ByProtocol: 16);

impl Key for ByProtocol {
    #[inline(always)]
    fn hash(&self) -> u64 {
        self.workload ^ self.protocol
    }

    #[inline(always)]
    fn same(&self, other: &Self) -> bool {
        self.workload == other.workload && self.protocol == other.protocol
    }
}
