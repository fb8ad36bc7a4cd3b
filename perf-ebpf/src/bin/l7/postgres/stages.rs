//! The steps of a call that are functions of their own to the verifier; see `l7/http.rs`.

use perf_common::events::Reason;
use perf_common::postgres::Settle;
use perf_common::postgres::message::is_chain;
use perf_common::sql::Statement;

use super::super::db::{fill, sql_token};
use super::super::{WORK, Work as Scratch, db};
use super::{Ending, Work};

/// Reads the call's payload from `offset` on into the block, unless it is there; 0 where it cannot be had.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn fill_block(place: u64, offset: u64, total: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { db, payload, pg: Work { pass, .. }, .. } = unsafe { &mut *work };
    fill(db, payload, (offset, total), (&mut pass.pos, &mut pass.len, &mut pass.reach))
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn is_request_chain(place: u64, total: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { db: db::Work { block, .. }, pg: Work { pass, .. }, .. } = unsafe { &mut *work };
    u64::from(u64::from(pass.len) == total && is_chain(block, total as u32))
}

/// The stages of [`perf_common::postgres::message::Pass`]; each tells the phase it leads to.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn parse_messages(place: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { db: db::Work { block, statement, .. }, pg: Work { pass, .. }, .. } = unsafe { &mut *work };
    pass.walk(block, statement);
    u64::from(pass.half.phase)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn parse_name(place: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { db: db::Work { block, statement, .. }, pg: Work { pass, .. }, .. } = unsafe { &mut *work };
    pass.name(block, statement);
    u64::from(pass.half.phase)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn parse_sql(place: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { db: db::Work { block, .. }, pg: Work { pass, .. }, .. } = unsafe { &mut *work };
    // SAFETY: as above; the closure and what it calls are the only ones to use it.
    let statement = unsafe { &raw mut (*work).db.statement };
    // SAFETY: as above.
    let wants = || unsafe { (*statement).wants() };
    pass.sql(block, wants(), |byte| {
        // SAFETY: as above.
        let transition = unsafe { (*statement).transition(byte) };
        if Statement::is_token(transition) {
            return sql_token(place, u64::from(transition), u64::from(byte)) as u32 & 1;
        }
        // SAFETY: as above.
        unsafe { (*statement).inside(transition, byte) };
        1
    });
    pass.end_sql(wants());
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn parse_greeting(place: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { db: db::Work { block, .. }, pg: Work { pass, .. }, .. } = unsafe { &mut *work };
    pass.greet(block);
    0
}

/// [`perf_common::postgres::Conn::settle`] on the copy in `WORK`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn settle_waiting(place: u64, what: u64, reason: u64, most: u64, end: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let conn = unsafe { &mut (*work).pg.conn };
    let reason = if reason == Reason::Opaque as u64 { Reason::Opaque } else { Reason::Desync };
    conn.settle(&mut Ending, &Settle { what: what as u8, reason, most: most as u32, end });
    0
}
