//! Events that must not be missed.
//!
//! The kernel skips a program that is under way on this CPU already. `inet_sock_set_state` fires in a task as well as in
//! interrupts, and an interrupt that comes to a running program can bring a batch of 64 packets: 64 connections that would stay
//! open for ever. So a second program of the same content has the same hook, attached after the first. It does nothing where the
//! first one was there just before it, and where it cannot tell (an interrupt came in between the two), both do the same, which
//! is why what they do has to be without effect the second time.

use aya_ebpf::maps::PerCpuArray;

/// A socket's step from one state to another.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Step {
    /// The socket's address.
    socket: u64,
    states: u64,
}

impl Step {
    #[inline(always)]
    pub const fn of(socket: u64, old: i32, new: i32) -> Self {
        Self { socket, states: (old as u64) << 32 | new as u32 as u64 }
    }
}

/// The step that the first program saw last on this CPU.
pub struct Last(pub &'static PerCpuArray<Step>);

impl Last {
    /// The first program is done with it.
    #[inline(always)]
    pub fn done(&self, step: Step) {
        if let Some(last) = self.0.get_ptr_mut(0) {
            // SAFETY: this CPU's element.
            unsafe { last.write_volatile(step) };
        }
    }

    /// Whether it was this one.
    #[inline(always)]
    pub fn was(&self, step: Step) -> bool {
        let Some(last) = self.0.get_ptr(0) else { return false };
        // SAFETY: this CPU's element.
        let last = unsafe { last.read_volatile() };
        last.socket == step.socket && last.states == step.states
    }
}
