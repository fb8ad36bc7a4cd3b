//! The contract between the kernel half and the user half of perf-agent.
//!
//! Everything here is `no_std`, free of panics and of allocation, and runs unchanged in three places: inside the
//! verifier's limits in a BPF program, in the agent, and under the fuzzer. Records that cross the boundary are
//! `repr(C)`, of fixed width and without hidden padding: old verifiers refuse uninitialised bytes in a map key, and new
//! ones let them split one key into many.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod block;
pub mod bytes;
pub mod cells;
pub mod clients;
pub mod db;
pub mod disk;
pub mod dns;
pub mod drops;
pub mod events;
pub mod histogram;
pub mod http;
pub mod irq;
pub mod kernel;
pub mod l7;
pub mod mysql;
pub mod peer;
pub mod phases;
pub mod pools;
pub mod postgres;
pub mod process;
pub mod redis;
pub mod request;
pub mod route;
pub mod sched;
pub mod sockets;
pub mod sql;
pub mod tcp;
pub mod workload;

/// Declares that a record may be read from and written to the kernel as plain bytes.
///
/// Use it only for `repr(C)` structs of integers without padding, which is what [`no_padding`] checks at compile time.
#[macro_export]
macro_rules! pod {
    ($($record:ty: $size:expr),+ $(,)?) => {$(
        const _: () = assert!(core::mem::size_of::<$record>() == $size, "the fields do not add up: hidden padding");
        #[cfg(feature = "user")]
        // SAFETY: a `repr(C)` struct of integers; the assertion above excludes padding.
        unsafe impl aya::Pod for $record {}
    )+};
}
