//! The steps of a call that are functions of their own to the verifier; see `l7/http.rs`.

use perf_common::events::Reason;
use perf_common::redis::Settle;
use perf_common::redis::message::{INLINE, TEXT};

use super::super::db::fill;
use super::super::{WORK, Work as Scratch, db};
use super::{Ending, Work};

/// Reads the call's payload from `offset` on into the block, unless it is there; 0 where it cannot be had.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn rd_fill(place: u64, offset: u64, total: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { db, payload, redis: Work { pass, .. }, .. } = unsafe { &mut *work };
    fill(db, payload, (offset, total), (&mut pass.pos, &mut pass.len, &mut pass.reach))
}

/// The stages of [`perf_common::redis::message::Pass`]; each tells the phase it leads to.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn rd_lines(place: u64, is_request: u64) -> u64 {
    if is_request != 0 { rd_requests(place) } else { rd_replies(place) }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn rd_requests(place: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { db: db::Work { block, .. }, redis: Work { pass, .. }, .. } = unsafe { &mut *work };
    pass.requests(block);
    u64::from(pass.half.phase)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn rd_replies(place: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { db: db::Work { block, .. }, redis: Work { pass, .. }, .. } = unsafe { &mut *work };
    pass.replies(block);
    u64::from(pass.half.phase)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn rd_begin(place: u64, is_request: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { db: db::Work { block, .. }, redis: Work { pass, .. }, .. } = unsafe { &mut *work };
    pass.begin(block, is_request != 0);
    u64::from(pass.half.phase)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn rd_number(place: u64, is_request: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { db: db::Work { block, .. }, redis: Work { pass, .. }, .. } = unsafe { &mut *work };
    pass.number(block, is_request != 0);
    u64::from(pass.half.phase)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn rd_text(place: u64, phase: u64, is_request: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { db: db::Work { block, .. }, redis: Work { pass, .. }, .. } = unsafe { &mut *work };
    if phase == u64::from(TEXT) {
        pass.text(block);
    } else if phase == u64::from(INLINE) {
        pass.inline(block);
    } else {
        pass.line(block, is_request != 0);
    }
    0
}

/// [`perf_common::redis::Conn::settle`] on the copy in `WORK`; `what` holds the outcome in its second byte.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn rd_settle(place: u64, what: u64, reason: u64, count: u64, end: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let conn = unsafe { &mut (*work).redis.conn };
    let reason = if reason == Reason::Opaque as u64 { Reason::Opaque } else { Reason::Desync };
    conn.settle(
        &mut Ending,
        &Settle { what: what as u8, failed: (what >> 8) as u8, reason, count: count as u32, end },
    );
    0
}
