//! The steps of a call that are functions of their own to the verifier; see `l7/http.rs`.

use perf_common::mysql::message::{HEAD, NOTHING, SKIP};
use perf_common::sql::Statement;

use super::super::db::{fill, sql_token};
use super::super::{WORK, Work as Scratch, db};
use super::Work;

/// Reads the call's payload from `offset` on into the block, unless it is there; 0 where it cannot be had.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn my_fill(place: u64, offset: u64, total: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { db, payload, mysql: Work { pass }, .. } = unsafe { &mut *work };
    fill(db, payload, (offset, total), (&mut pass.pos, &mut pass.len, &mut pass.reach))
}

/// The stages of [`perf_common::mysql::message::Pass`]; each tells the phase it leads to.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn my_headers(place: u64, is_request: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let pass = unsafe { &mut (*work).mysql.pass };
    if pass.half.phase == SKIP {
        pass.pass_over();
    }
    if pass.half.phase == HEAD {
        if is_request == 0 {
            my_rows(place);
        }
        my_header(place);
    }
    // SAFETY: as above.
    u64::from(unsafe { (*work).mysql.pass.half.phase })
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn my_rows(place: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { db: db::Work { block, .. }, mysql: Work { pass }, .. } = unsafe { &mut *work };
    pass.rows(block);
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn my_header(place: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { db: db::Work { block, .. }, mysql: Work { pass }, .. } = unsafe { &mut *work };
    if pass.out.event == NOTHING && pass.pos < pass.len {
        pass.header(block);
    }
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn my_begin(place: u64, is_request: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { db: db::Work { block, statement, .. }, mysql: Work { pass }, .. } = unsafe { &mut *work };
    if is_request != 0 {
        pass.command(block, statement);
    } else {
        pass.packet(block);
    }
    u64::from(pass.half.phase)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn my_attributes(place: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { db: db::Work { block, .. }, mysql: Work { pass }, .. } = unsafe { &mut *work };
    pass.attributes(block);
    u64::from(pass.half.phase)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn my_sql(place: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { db: db::Work { block, .. }, mysql: Work { pass }, .. } = unsafe { &mut *work };
    // SAFETY: as above; these closures and what they call are the only ones to use it.
    let statement = unsafe { &raw mut (*work).db.statement };
    // SAFETY: as above.
    let wants = || unsafe { (*statement).wants() };
    let read = |byte: u8| {
        // SAFETY: as above.
        let transition = unsafe { (*statement).transition_mysql(byte) };
        if Statement::is_token(transition) {
            return sql_token(place, u64::from(transition), u64::from(byte)) as u32 & 1;
        }
        // SAFETY: as above.
        unsafe { (*statement).inside(transition, byte) };
        1
    };
    pass.sql(block, wants(), read);
    pass.end_sql(wants(), read);
    0
}
