//! What the programs share: reading the kernel, naming who did it, counting.
//!
//! The library only has content for the BPF target; on the host it exists so that cargo rebuilds the agent when a program
//! changes.
#![no_std]
#![allow(
    clippy::not_unsafe_ptr_arg_deref,
    reason = "what a BPF program may dereference is for the verifier to say, on every path and before it runs"
)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
pub mod cells;
#[cfg(target_arch = "bpf")]
pub mod count;
#[cfg(target_arch = "bpf")]
pub mod kernel;
#[cfg(target_arch = "bpf")]
pub mod requests;
#[cfg(target_arch = "bpf")]
pub mod socket;
#[cfg(target_arch = "bpf")]
pub mod syscall;
#[cfg(target_arch = "bpf")]
pub mod twice;
#[cfg(target_arch = "bpf")]
pub mod who;

/// All zero until user space writes what the kernel says.
pub const fn unset<T: Copy>() -> T {
    // SAFETY: only used with structs of integers.
    unsafe { core::mem::zeroed() }
}

/// What user space wrote into a global, to be read field by field.
///
/// `Global::load` copies the whole struct to the stack on every run. Behind `opaque` the optimiser cannot take the initial
/// value for the last word, while the verifier still knows what the frozen section holds.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub fn get<T>(global: &'static aya_ebpf::Global<T>) -> &'static T {
    let address = perf_common::bytes::opaque(core::ptr::from_ref(global) as u64);
    // SAFETY: the address of a static that nobody writes; `Global` is transparent.
    unsafe { &*(address as *const T) }
}

/// The licence that the verifier asks for, and a panic handler that the linker drops because nothing panics.
#[macro_export]
macro_rules! program {
    () => {
        #[unsafe(no_mangle)]
        #[unsafe(link_section = "license")]
        static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

        #[cfg(not(test))]
        #[panic_handler]
        fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
            loop {}
        }
    };
}
