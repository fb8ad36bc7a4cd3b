//! What the protocols behind a tail call have in common: the programs that follow a call part by part and tell the connection
//! what came of it, the map of what each connection has to remember, and what ends with a connection.

/// Declares them for the protocol of this number, whose `Conn`, `step` and `ROUNDS` are in scope. `$part` is what it has in
/// [`super::Work`], with the `pass` over the block; `$io` are its state machine's hands in a call, `$ending` those where a
/// connection ends.
macro_rules! follow {
    (
        $protocol:ident as $part:ident, with $io:ident and $ending:ident,
        programs: $sent:ident, $received:ident, $returned:ident,
        maps: $conns:ident, $by_addr:ident, $zero:ident $(,)?
    ) => {
        #[aya_ebpf::macros::btf_map]
        static $conns: aya_ebpf::btf_maps::SkStorage<Conn> = aya_ebpf::btf_maps::SkStorage::new();
        /// The same on kernels where only the socket's address is known; one entry elsewhere.
        #[aya_ebpf::macros::map]
        static $by_addr: aya_ebpf::maps::HashMap<u64, Conn> = aya_ebpf::maps::HashMap::with_max_entries(1, 0);
        #[aya_ebpf::macros::map]
        static $zero: aya_ebpf::maps::PerCpuArray<Conn> = aya_ebpf::maps::PerCpuArray::with_max_entries(1, 0);

        #[aya_ebpf::macros::btf_tracepoint(function = "sock_send_length")]
        fn $sent(ctx: aya_ebpf::programs::BtfTracePointContext) -> i32 {
            follow(&ctx, &super::SENT_MORE, perf_common::l7::Direction::Sent)
        }

        #[aya_ebpf::macros::btf_tracepoint(function = "sock_recv_length")]
        fn $received(ctx: aya_ebpf::programs::BtfTracePointContext) -> i32 {
            follow(&ctx, &super::RECEIVED_MORE, perf_common::l7::Direction::Received)
        }

        #[aya_ebpf::macros::btf_tracepoint(function = "sys_exit")]
        fn $returned(ctx: aya_ebpf::programs::BtfTracePointContext) -> i32 {
            follow(&ctx, &super::RETURNED_MORE, perf_common::l7::Direction::Received)
        }

        /// Looks at a call, or at what is left of it, and tells the connection what came of it.
        #[inline(always)]
        fn follow(
            ctx: &aya_ebpf::programs::BtfTracePointContext,
            next: &aya_ebpf::maps::ProgramArray,
            place: perf_common::l7::Direction,
        ) -> i32 {
            use perf_common::l7::{PROTOCOL_UNKNOWN, ROLE_CLIENT, ROLE_SERVER, ROLE_UNKNOWN};
            let Some((sk, work)) = super::under_way(ctx, place) else { return 0 };
            let Some(all) = super::conn(sk, false) else { return 0 };
            let Some(conn) = state(sk, true) else { return 0 };
            if work.call.done == 0 {
                work.$part.pass.len = 0;
                let (call, unseen) = (work.call, work.unseen as u32);
                if unseen != 0 && (conn.role == ROLE_SERVER || conn.role == ROLE_CLIENT) {
                    conn.pass_over(&mut $io { work }, &call, unseen);
                }
            }
            let more = advance(sk, conn, work);
            if conn.role == ROLE_SERVER || conn.role == ROLE_CLIENT {
                if all.protocol != $protocol {
                    super::recognised(perf_common::l7::recognised($protocol));
                }
                all.protocol = $protocol;
                all.role = conn.role;
                if !conn.is_request(work.call.direction) {
                    all.last = work.call.now;
                }
            } else {
                if all.protocol == $protocol && conn.role == perf_common::l7::ROLE_OPAQUE {
                    super::recognised(perf_common::l7::OPAQUE);
                }
                // What gave up on a connection that it never knew leaves it to the others.
                all.role = if all.protocol == $protocol { conn.role } else { ROLE_UNKNOWN };
                all.protocol = PROTOCOL_UNKNOWN;
            }
            all.offered = if conn.has_beginning() { $protocol } else { PROTOCOL_UNKNOWN };
            if conn.role == ROLE_CLIENT {
                super::pools::note(all, conn.workload, conn.peer, conn.waiting());
            }
            if more {
                // SAFETY: an empty slot falls through.
                unsafe { next.tail_call(ctx, u32::from($protocol)) };
                let mut call = work.call;
                conn.lose(&mut $io { work }, &mut call);
            }
            0
        }

        /// Looks at up to [`ROUNDS`] parts of the call; whether some are left.
        #[inline(always)]
        fn advance(sk: perf_ebpf::kernel::Ptr, conn: &mut Conn, work: &mut super::Work) -> bool {
            use perf_common::l7::{ROLE_OPAQUE, ROLE_UNKNOWN};
            for _ in 0..ROUNDS {
                let mut call = work.call;
                step(conn, &mut $io { work }, &mut call);
                if conn.workload == 0 && conn.role != ROLE_UNKNOWN && conn.role != ROLE_OPAQUE {
                    (conn.workload, conn.peer) = super::owner(sk, conn.role);
                }
                work.call.done = call.done;
                if call.done >= call.total {
                    return false;
                }
            }
            true
        }

        /// The state of a socket's connection.
        #[inline(always)]
        fn state(sk: perf_ebpf::kernel::Ptr, create: bool) -> Option<&'static mut Conn> {
            let storage = perf_ebpf::get(&super::FILES).by_descriptor == 0;
            // SAFETY: maps of this object; an all-zero connection is a new one.
            unsafe { perf_ebpf::socket::state(&$conns, &$by_addr, &$zero, sk, storage, create) }
        }

        /// A connection, or what it can be read of, ends.
        #[inline(always)]
        pub(super) fn end(sk: perf_ebpf::kernel::Ptr, what: super::End) {
            let Some(conn) = state(sk, false) else { return };
            match what {
                super::End::Stream => conn.end_of_stream(&mut $ending),
                super::End::Connection => conn.finish(&mut $ending),
            }
        }

        /// The socket is gone; only where its address is the key.
        #[inline(always)]
        pub(super) fn forget(sk: perf_ebpf::kernel::Ptr) {
            let _: Result<(), i32> = $by_addr.remove(sk.key());
        }
    };
}
