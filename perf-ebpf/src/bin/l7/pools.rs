//! Connection pools: the connections to databases that are open, one by one, for user space to count.
//!
//! Not counters of openings and closings, queries and answers: those would be wrong for good after one that was missed.
//!
//! Maps: `POOL` (what is known of each connection), `POOL_FREE` (elements of it that nobody has; user space fills it, the first
//! one on top), `POOL_HIGH` (how many of `POOL` a CPU has ever reached, for user space not to read them all).
//! Metrics: `db_connection_pool_size`, `db_connection_pool_active_connections`, `db_connection_pool_max_size`.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray, Stack};
use perf_common::db::system_of;
use perf_common::http::Conn;
use perf_common::pools::PoolConn;

/// Connections beyond this are in no pool.
const MAX_CONNS: u32 = 16_384;

#[map]
static POOL: Array<PoolConn> = Array::with_max_entries(MAX_CONNS, 0);
#[map]
static POOL_FREE: Stack<u32> = Stack::with_max_entries(MAX_CONNS, 0);
#[map]
static POOL_HIGH: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// A client's connection, of which something was sent or received, has so many queries waiting.
#[inline(always)]
pub(super) fn note(conn: &mut Conn, workload: u64, peer: u64, waiting: u32) {
    let active = u32::from(waiting != 0);
    let new = conn.pool == 0;
    if new {
        let Ok(Some(at)) = POOL_FREE.pop() else { return };
        conn.pool = at + 1;
        if let Some(high) = POOL_HIGH.get_ptr_mut(0) {
            // SAFETY: this CPU's element.
            unsafe { *high = if *high > at { *high } else { at + 1 } };
        }
    }
    let Some(element) = POOL.get_ptr_mut(conn.pool - 1) else { return };
    if new {
        let system = u32::from(system_of(conn.protocol));
        // SAFETY: a live element that nobody else has.
        unsafe { element.write_volatile(PoolConn { workload, peer, system, active }) };
    } else {
        // SAFETY: as above.
        unsafe { (&raw mut (*element).active).write_volatile(active) };
    }
}

/// The connection was closed.
#[inline(always)]
pub(super) fn leave(conn: &mut Conn) {
    if conn.pool == 0 {
        return;
    }
    let at = conn.pool - 1;
    conn.pool = 0;
    if let Some(element) = POOL.get_ptr_mut(at) {
        // SAFETY: a live element that nobody else has.
        unsafe { (&raw mut (*element).workload).write_volatile(0) };
        let _: Result<(), i32> = POOL_FREE.push(at, 0);
    }
}
