//! Reading bytes in a way that the verifier follows: a fixed window, every index masked, eight bytes at a time.

use core::cell::UnsafeCell;
use core::marker::PhantomData;

/// How many bytes a parser sees at once. A power of two: an index is bounded by a mask, not by a branch.
pub const WINDOW: usize = 512;
/// Room for a carried half line and a full window, which is what an index is masked to.
const ROOM: usize = 2 * WINDOW;
/// How far behind any masked index one may load.
pub const SLACK: usize = 64;

/// Hides a value from the optimiser. LLVM drops a mask that it can prove redundant, and then the verifier, which cannot
/// follow that proof, refuses the access.
#[inline(always)]
pub fn opaque(value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // One instruction, not none: two line records for one offset make the kernel refuse the object.
        // SAFETY: copies a register onto itself.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    value
}

/// Makes the optimiser load from memory what it had kept in registers: where paths meet whose constants it would carry on
/// separately, the verifier would do the same.
#[inline(always)]
pub fn meet() {
    #[cfg(target_arch = "bpf")]
    // SAFETY: sets a register that is told to be clobbered; what counts is that memory is, too.
    unsafe {
        core::arch::asm!("{0} = 0", out(reg) _, options(nostack));
    }
}

/// The bytes a parser looks at. What lies behind the length that goes with it is left over from earlier uses: parsers
/// may look at it (that is cheaper than not looking) but never let it decide.
#[repr(C, align(8))]
pub struct Window {
    bytes: [u8; ROOM + SLACK],
    scratch: UnsafeCell<u64>,
}

impl Default for Window {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: a window belongs to one CPU (or one thread); maps of windows are statics, which is all that asks for this.
unsafe impl Sync for Window {}

impl Window {
    /// A window of zeros.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; ROOM + SLACK], scratch: UnsafeCell::new(0) }
    }

    /// Makes the verifier forget what it knows of a value, by a trip through the map that holds the window.
    ///
    /// Where paths with different constants meet, it walks what follows once for each; a loop left at one of 512 known
    /// positions would be 512 programs. What comes out of a map can be anything, so the paths are one again.
    #[inline(always)]
    pub fn forget(&self, value: u64) -> u64 {
        #[cfg(target_arch = "bpf")]
        {
            // SAFETY: a plain number that nobody else uses between these two lines.
            unsafe {
                self.scratch.get().write_volatile(value);
                self.scratch.get().read_volatile()
            }
        }
        #[cfg(not(target_arch = "bpf"))]
        value
    }

    /// Where to write up to [`WINDOW`] bytes at `at`, which is taken modulo the window.
    #[inline(always)]
    pub fn slot(&mut self, at: usize) -> *mut u8 {
        // SAFETY: masked below the array's length.
        unsafe { self.bytes.as_mut_ptr().add((opaque(at as u64) & (WINDOW as u64 - 1)) as usize) }
    }

    /// The eight bytes number `i` (modulo the window), for copying.
    #[inline(always)]
    #[expect(clippy::cast_ptr_alignment, reason = "the struct is aligned to eight, and the bytes come first")]
    pub fn copy_word(&mut self, i: usize) -> *mut u64 {
        // SAFETY: masked below the array's length; the struct is aligned to eight.
        unsafe {
            self.bytes.as_mut_ptr().cast::<u64>().add((opaque(i as u64) & (WINDOW as u64 / 8 - 1)) as usize)
        }
    }

    /// The byte at `at` (modulo the room).
    #[inline(always)]
    pub fn byte(&self, at: usize) -> u8 {
        // SAFETY: masked below the array's length.
        unsafe { *self.bytes.as_ptr().add((opaque(at as u64) & (ROOM as u64 - 1)) as usize) }
    }

    /// The eight bytes from `at` (modulo the room), the first one lowest.
    #[inline(always)]
    pub fn word(&self, at: usize) -> u64 {
        self.from(at).word::<0>()
    }

    /// A place in the window, bounded once for several loads behind it.
    #[inline(always)]
    pub fn from(&self, at: usize) -> Place<'_> {
        // SAFETY: masked below the array's length.
        let address = unsafe { self.bytes.as_ptr().add((opaque(at as u64) & (ROOM as u64 - 1)) as usize) };
        Place { address, window: PhantomData }
    }

    /// The bytes from `at`, at most `len` of them: what a sample copies out.
    pub fn get(&self, at: usize, len: usize) -> &[u8] {
        let from = if at < ROOM { at } else { ROOM };
        let rest = ROOM - from;
        let len = if len < rest { len } else { rest };
        // SAFETY: `from + len` is at most ROOM.
        unsafe { core::slice::from_raw_parts(self.bytes.as_ptr().add(from), len) }
    }
}

/// A place in a [`Window`] with at least 64 bytes behind it.
#[derive(Clone, Copy)]
pub struct Place<'w> {
    address: *const u8,
    window: PhantomData<&'w Window>,
}

impl Place<'_> {
    /// The eight bytes at `OFFSET` (at most 56), the first one lowest.
    #[inline(always)]
    pub fn word<const OFFSET: u64>(self) -> u64 {
        const { assert!(OFFSET <= SLACK as u64 - 8, "beyond what stands behind a place") };
        #[cfg(target_arch = "bpf")]
        {
            let word: u64;
            // The compiler takes the target to have no unaligned loads and writes eight loads of a byte with shifts
            // between them, 22 instructions; the kernel's verifier allows them wherever the machine has them.
            // SAFETY: a load within the window: the place is masked below ROOM, and SLACK bytes follow.
            unsafe {
                core::arch::asm!("{0} = *(u64 *)({1} + {2})", out(reg) word, in(reg) self.address, const OFFSET,
                    options(pure, readonly, nostack, preserves_flags));
            }
            word
        }
        #[cfg(not(target_arch = "bpf"))]
        {
            // SAFETY: within the window: the place is masked below ROOM, and SLACK bytes follow.
            u64::from_le(unsafe { self.address.add(OFFSET as usize).cast::<u64>().read_unaligned() })
        }
    }
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// A mask with the high bit of the *first* byte equal to `wanted` set, and nothing below it; higher bits may lie.
#[inline(always)]
pub const fn find(word: u64, wanted: u8) -> u64 {
    let zeroed = word ^ (ONES * wanted as u64);
    zeroed.wrapping_sub(ONES) & !zeroed & HIGHS
}

/// Whether [`find`] can find anything, for less: it also says yes to bytes outside of ASCII.
#[inline(always)]
pub const fn may_hold(word: u64, wanted: u8) -> bool {
    (word ^ (ONES * wanted as u64)).wrapping_sub(ONES) & HIGHS != 0
}

/// The byte position of the lowest set high bit of a [`find`] mask that is not zero.
#[inline(always)]
pub const fn first(mask: u64) -> usize {
    // All bits below the lowest set one: seven of its own byte and eight of each byte before it. One bit of each of
    // those bytes is kept, and the multiplication sums them in its top byte.
    let below = (mask & mask.wrapping_neg()).wrapping_sub(1);
    ((below & ONES).wrapping_mul(ONES) >> 56) as usize - 1
}

/// A text of at most eight bytes as [`Window::word`] would load it.
#[inline(always)]
pub const fn text(bytes: &[u8]) -> u64 {
    let mut word = 0;
    let mut i = 0;
    while i < bytes.len() && i < 8 {
        word |= (bytes[i] as u64) << (8 * i);
        i += 1;
    }
    word
}

/// The low `n` bytes of a word, all ones.
#[inline(always)]
pub const fn low(n: u32) -> u64 {
    if n >= 8 { u64::MAX } else { (1 << (8 * n)) - 1 }
}

/// For [`within`]: the mask for every distance from -120 to 135.
static WITHIN: [u64; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        table[i] = if i <= 120 { 0 } else { low(i as u32 - 120) };
        i += 1;
    }
    table
};

/// What of the eight bytes at offset `from` (at most 120) lies within `len` bytes (at most 128), as a mask. By table:
/// sixteen branches in a row would be as many paths for the verifier.
#[inline(always)]
pub fn within(len: u64, from: u64) -> u64 {
    // SAFETY: masked to the table's 256 entries.
    unsafe { *WITHIN.as_ptr().add((opaque(len + 120 - from) & 255) as usize) }
}

/// Eight letters in lower case; other bytes that have a lower-case twin change as well, which is why only the header
/// names that we compare against contain letters, `-` and `:` (all unchanged by it).
#[inline(always)]
pub const fn lower(word: u64) -> u64 {
    word | 0x2020_2020_2020_2020
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_and_first_agree_with_a_plain_search() {
        for at in 0..8 {
            let mut bytes = [b'x'; 8];
            bytes[at] = b'\n';
            assert_eq!(first(find(u64::from_le_bytes(bytes), b'\n')), at);
            bytes[7] = b'\n';
            assert_eq!(first(find(u64::from_le_bytes(bytes), b'\n')), at);
        }
        assert_eq!(find(u64::from_le_bytes(*b"no break"), b'\n'), 0);
    }

    #[test]
    fn within_keeps_what_is_inside() {
        for len in 0..=128_u64 {
            for from in [0, 8, 16, 24, 120] {
                let inside = len.saturating_sub(from).min(8) as u32;
                assert_eq!(within(len, from), low(inside), "{len} {from}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn first_is_the_first(bytes in proptest::prelude::any::<[u8; 8]>(), wanted in proptest::prelude::any::<u8>()) {
            let mask = find(u64::from_le_bytes(bytes), wanted);
            match bytes.iter().position(|&b| b == wanted) {
                Some(at) => {
                    proptest::prop_assert!(may_hold(u64::from_le_bytes(bytes), wanted));
                    proptest::prop_assert_eq!(first(mask), at);
                }
                None => proptest::prop_assert_eq!(mask, 0),
            }
        }
    }
}
