//! UDP and UNIX sockets: how many messages or calls, and how many bytes.
//!
//! Here because the calls come by here anyway: a program of its own on the same hooks would cost those of TCP as well.
//!
//! Maps: a table of [`SocketCell`] by workload and protocol.
//! Metrics: `socket_operations_total`, `socket_sent_bytes_total`, `socket_received_bytes_total`.

use aya_ebpf::Global;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use perf_common::bytes::opaque;
use perf_common::cells::ByProtocol;
use perf_common::events::Reason;
use perf_common::kernel::SockOffsets;
use perf_common::l7::Direction;
use perf_common::sockets::{SocketCell, UDP, UNIX};
use perf_common::workload::OTHER;
use perf_ebpf::count::{EVENT_COUNTERS, Events, add};
use perf_ebpf::kernel::Ptr;
use perf_ebpf::socket::{AF_INET, AF_INET6, IPPROTO_UDP};
use perf_ebpf::{get, who};

use super::{TASK, WORKLOADS};

perf_ebpf::table!(ByProtocol => SocketCell, 4096, SO_INDEX, SO_CELLS, SO_FREE, SO_RECENT);

#[map]
static SO_EVENTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(EVENT_COUNTERS, 0);
/// Whether it is switched on.
#[unsafe(no_mangle)]
static SOCKETS_ON: Global<u64> = Global::new(0);

const AF_UNIX: u16 = 1;

/// Counts a call that moved so many bytes, if its socket is one of these.
#[inline(always)]
pub(super) fn note(sk: Ptr, at: &SockOffsets, direction: Direction, length: u64) {
    let family: u16 = sk.load(at.family);
    let protocol = match family {
        // The end of a stream is no message.
        AF_UNIX if length == 0 => return,
        AF_UNIX => UNIX,
        AF_INET | AF_INET6 if sk.load::<u16>(at.protocol) == IPPROTO_UDP => UDP,
        _ => return,
    };
    if *get(&SOCKETS_ON) != 0 {
        count_socket(protocol.into(), direction as u64, length);
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn count_socket(protocol: u64, direction: u64, length: u64) -> u64 {
    let task_at = get(&TASK);
    let events = Events(&SO_EVENTS);
    events.seen();
    let workload = who::workload(who::current(task_at), task_at);
    let id = workload.id();
    let key = ByProtocol { workload: id, protocol };
    let Some(cell) = TABLE.find_or(&key, &ByProtocol { workload: OTHER, protocol }) else {
        events.dropped(Reason::MapFull, 1);
        return 0;
    };
    if cell.new {
        who::announce(&WORKLOADS, id, &workload);
    }
    let direction = opaque(direction) & 1;
    // SAFETY: fields of a live cell, and a masked index.
    unsafe {
        add((&raw mut (*cell.value).operations).cast::<u64>().add(direction as usize), 1);
        add((&raw mut (*cell.value).bytes).cast::<u64>().add(direction as usize), length);
    }
    events.recorded();
    1
}
