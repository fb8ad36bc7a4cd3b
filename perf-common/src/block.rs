//! The bytes of a call that are looked at together: larger than HTTP's window, because a result is thousands of small
//! messages whose headers are all that counts.

use core::cell::UnsafeCell;

use crate::bytes::opaque;

/// A power of two: an index is bounded by a mask.
pub const BLOCK: usize = 4096;

#[repr(C, align(8))]
pub struct Block {
    bytes: [u8; BLOCK + 64],
    scratch: UnsafeCell<u64>,
}

// SAFETY: a block belongs to one CPU (or one thread); maps of blocks are statics, which is all that asks for this.
unsafe impl Sync for Block {}

impl Default for Block {
    fn default() -> Self {
        Self::new()
    }
}

impl Block {
    /// A block of zeros.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; BLOCK + 64], scratch: UnsafeCell::new(0) }
    }

    /// Where to write up to [`BLOCK`] bytes.
    #[inline(always)]
    pub fn start(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr()
    }

    /// Makes the verifier forget what it knows of a value; see [`crate::bytes::Window::forget`].
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

    /// The byte at `at` (modulo the block).
    #[inline(always)]
    pub fn byte(&self, at: u32) -> u8 {
        // SAFETY: masked below the array's length.
        unsafe { *self.bytes.as_ptr().add((opaque(u64::from(at)) & (BLOCK as u64 - 1)) as usize) }
    }

    /// The eight bytes from `at` (modulo the block), the first one lowest.
    #[inline(always)]
    pub fn word(&self, at: u32) -> u64 {
        // SAFETY: masked, and the array is 64 bytes longer than the mask reaches.
        let raw: u64 = unsafe {
            self.bytes
                .as_ptr()
                .add((opaque(u64::from(at)) & (BLOCK as u64 - 1)) as usize)
                .cast::<u64>()
                .read_unaligned()
        };
        u64::from_le(raw)
    }
}
