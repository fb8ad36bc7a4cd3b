//! Empty programs on the hooks of every slice: what the hooks alone cost, before a slice does anything.
//!
//! `cargo xtask bench overhead` attaches this object; the agent does not hold it.
//!
//! Hooks: those of `http`, `tcp` and `sched`, as often as they have them.
//! Maps: none.
//! Metrics: none.
//! Needs: nothing.
//! Cost: it is the cost that no slice can go below.
#![no_std]
#![no_main]

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

perf_ebpf::program!();

/// One function and one program per hook: a program attaches once, and two of them share `inet_sock_set_state`.
macro_rules! empty {
    ($($program:ident: $hook:literal),+ $(,)?) => {$(
        #[btf_tracepoint(function = $hook)]
        fn $program(_: BtfTracePointContext) -> i32 {
            0
        }
    )+};
}

empty! {
    floor_sent: "sock_send_length",
    floor_received: "sock_recv_length",
    floor_arrived: "tcp_rcv_space_adjust",
    floor_closing: "inet_sock_set_state",
    floor_state: "inet_sock_set_state",
    floor_retrans: "tcp_retransmit_skb",
    floor_rst_sent: "tcp_send_reset",
    floor_rst_recv: "tcp_receive_reset",
    floor_switch: "sched_switch",
}
