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
pub mod count;
#[cfg(target_arch = "bpf")]
pub mod kernel;
#[cfg(target_arch = "bpf")]
pub mod socket;
#[cfg(target_arch = "bpf")]
pub mod syscall;
#[cfg(target_arch = "bpf")]
pub mod who;

/// All zero until user space writes what the kernel says.
pub const fn unset<T: Copy>() -> T {
    // SAFETY: only used with structs of integers.
    unsafe { core::mem::zeroed() }
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
