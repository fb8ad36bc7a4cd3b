//! Loads from the kernel's own structures at offsets that user space read from its BTF.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_probe_read_kernel;

/// A pointer into the kernel, as a tracepoint's argument or another load gave it.
#[derive(Clone, Copy)]
pub struct Ptr {
    address: *const c_void,
    /// Whether the verifier knows the pointer's type and lets it be dereferenced.
    direct: bool,
}

impl Ptr {
    #[inline(always)]
    pub const fn new(address: *const c_void, direct: bool) -> Self {
        Self { address, direct }
    }

    pub const NULL: Self = Self { address: core::ptr::null(), direct: false };

    /// Whether the verifier knows what is behind it.
    #[inline(always)]
    pub const fn is_direct(self) -> bool {
        self.direct
    }

    /// The same place, read through the helper from here on: for what the verifier's types cannot follow.
    #[inline(always)]
    pub const fn indirect(self) -> Self {
        Self { direct: false, ..self }
    }

    /// Element `index` of an array of pointers.
    #[inline(always)]
    pub const fn element(self, index: u64) -> Self {
        Self { address: self.address.wrapping_byte_add(8 * index as usize), direct: false }
    }

    #[inline(always)]
    pub fn is_null(self) -> bool {
        self.address.is_null()
    }

    #[inline(always)]
    pub const fn raw(self) -> *mut c_void {
        self.address.cast_mut()
    }

    /// The address as a number that stands for the object in a key.
    #[inline(always)]
    pub fn key(self) -> u64 {
        self.address as u64
    }

    /// The value of a member; zero where it cannot be read.
    #[inline(always)]
    pub fn load<T: Copy + Default>(self, offset: u32) -> T {
        // SAFETY: pointer arithmetic only; the verifier checks the access that follows.
        let at = unsafe { self.address.cast::<u8>().add(offset as usize).cast::<T>() };
        if self.direct {
            // SAFETY: the verifier knows the type behind a direct pointer, and a fault reads as zero.
            return unsafe { at.read_volatile() };
        }
        // SAFETY: the helper survives any address.
        unsafe { bpf_probe_read_kernel(at) }.unwrap_or_default()
    }

    /// Follows a pointer member.
    #[inline(always)]
    #[expect(clippy::cast_ptr_alignment, reason = "members of pointer type are aligned")]
    pub fn follow(self, offset: u32) -> Self {
        // SAFETY: as in `load`.
        let at = unsafe { self.address.cast::<u8>().add(offset as usize).cast::<*const c_void>() };
        if self.direct {
            // SAFETY: as in `load`.
            return Self::new(unsafe { at.read_volatile() }, true);
        }
        // SAFETY: the helper survives any address.
        let address = unsafe { bpf_probe_read_kernel(at) }.unwrap_or(core::ptr::null());
        Self::new(address, false)
    }

    /// The address of an embedded member.
    #[inline(always)]
    pub fn member(self, offset: u32) -> Self {
        // SAFETY: pointer arithmetic only.
        Self::new(unsafe { self.address.cast::<u8>().add(offset as usize).cast() }, self.direct)
    }
}
