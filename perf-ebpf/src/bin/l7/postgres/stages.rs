//! The steps of a call that are functions of their own to the verifier; see `l7/http.rs`.

use core::ffi::c_void;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_probe_read_user;
use perf_common::block::{BLOCK, Block};
use perf_common::bytes::opaque;
use perf_common::db::{DbKey, REDIS};
use perf_common::events::Reason;
use perf_common::l7::ROLE_CLIENT;
use perf_common::peer::CLASS_OTHER;
use perf_common::postgres::message::is_chain;
use perf_common::postgres::{Settle, StatementKey};
use perf_common::redis::verb;
use perf_common::request::{self, DATABASES, Small};
use perf_common::sql::{OTHER, SqlSample, Statement, TEXT};
use perf_ebpf::count::{add, observe_many};
use perf_ebpf::syscall::Payload;

use super::super::{SAMPLED, WORK, Work as Scratch, sample_request};
use super::{CUT, DB_USED, Ending, MAX_DB_CELLS, NAMED, SQL_SAMPLES, STATEMENTS, TABLE, Work};

/// The first up to eight bytes from `offset` on; 0 where they cannot be had.
#[unsafe(no_mangle)]
#[inline(never)]
pub(in super::super) extern "C" fn peek_payload(place: u64, offset: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { payload, call, .. } = unsafe { &mut *work };
    // A search goes forward only, and this one is for looking ahead.
    let mut payload = *payload;
    let wanted = u64::from(call.total) - offset;
    let mut word = 0;
    let mut have = 0;
    let mut turns = 0;
    // A vector's first pieces may be a type and a length.
    loop {
        let mut got = 0;
        if let Some((address, left)) = payload.seek(offset + have) {
            let mut part = 0_u64;
            let room = 8 - (have & 7);
            let most = if left < room { left } else { room };
            got = opaque(if most < wanted - have { most } else { wanted - have });
            if got > 8 {
                got = 8;
            }
            // SAFETY: no more than the word that is written to.
            let failed =
                unsafe { bpf_probe_read_user((&raw mut part).cast(), got as u32, address as *const c_void) };
            if failed != 0 {
                got = 0;
            }
            word |= part << (8 * (have & 7));
        }
        have += got;
        turns += 1;
        if got == 0 || have >= 8 || have >= wanted || turns >= 3 {
            break;
        }
    }
    word
}

/// Reads up to a block of the call's payload from `offset` on; how many bytes, or 0.
#[inline(always)]
pub(in super::super) fn fill(block: &mut Block, payload: &mut Payload, offset: u64, total: u64) -> u64 {
    let Some((address, left)) = payload.seek(offset) else { return 0 };
    let rest = total - offset;
    let mut len = opaque(if rest > left { left } else { rest });
    if len > BLOCK as u64 {
        len = BLOCK as u64;
    }
    // SAFETY: the block is no shorter than the bound.
    let failed = unsafe { bpf_probe_read_user(block.start().cast(), len as u32, address as *const c_void) };
    if failed != 0 { 0 } else { len }
}

/// Reads the call's payload from `offset` on into the block, unless it is there; 0 where it cannot be had.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn fill_block(place: u64, offset: u64, total: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { block, block_at, payload, pg: Work { pass, .. }, .. } = unsafe { &mut *work };
    let pos = offset.wrapping_sub(*block_at);
    if pos < u64::from(pass.len) {
        pass.pos = pos as u32;
        return 1;
    }
    let len = fill(block, payload, offset, total);
    *block_at = offset;
    pass.pos = 0;
    pass.len = len as u32;
    pass.reach = (total - offset) as u32;
    len
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn is_request_chain(place: u64, total: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { block, pg: Work { pass, .. }, .. } = unsafe { &mut *work };
    u64::from(u64::from(pass.len) == total && is_chain(block, total as u32))
}

/// The stages of [`perf_common::postgres::message::Pass`]; each tells the phase it leads to.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn parse_messages(place: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { block, pg: Work { pass, statement, .. }, .. } = unsafe { &mut *work };
    pass.walk(block, statement);
    u64::from(pass.half.phase)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn parse_name(place: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { block, pg: Work { pass, statement, .. }, .. } = unsafe { &mut *work };
    pass.name(block, statement);
    u64::from(pass.half.phase)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn parse_sql(place: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { block, pg: Work { pass, .. }, .. } = unsafe { &mut *work };
    // SAFETY: as above; the closure and what it calls are the only ones to use it.
    let statement = unsafe { &raw mut (*work).pg.statement };
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
pub(super) extern "C" fn sql_token(place: u64, transition: u64, byte: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 1 };
    // SAFETY: this CPU's element.
    let Scratch { pg: Work { statement, .. }, .. } = unsafe { &mut *work };
    u64::from(statement.token(transition as u32, byte as u8))
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn parse_greeting(place: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { block, pg: Work { pass, .. }, .. } = unsafe { &mut *work };
    pass.greet(block);
    0
}

/// Keeps a cut statement.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn save_statement(place: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { sk, pg: Work { statement, .. }, .. } = unsafe { &mut *work };
    // By reference: it is larger than the stack.
    let statement: &Statement = statement;
    u64::from(CUT.insert(*sk, statement, 0).is_ok())
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn load_statement(place: u64) -> u64 {
    const WORDS: usize = size_of::<Statement>() / 8;
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { sk, pg: Work { statement, .. }, .. } = unsafe { &mut *work };
    let Some(kept) = CUT.get_ptr(*sk) else { return 0 };
    let (from, to) = (kept.cast::<u64>(), (&raw mut *statement).cast::<u64>());
    for i in 0..WORDS {
        // SAFETY: a live value, this CPU's element, and both as long as that.
        unsafe { to.add(i).write_volatile(*from.add(i)) };
    }
    1
}

/// The fingerprint of the statement that was read. Sends up its text if nobody has named it yet.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn fingerprint(place: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return OTHER };
    // SAFETY: this CPU's element.
    let Scratch { pg: Work { statement, .. }, .. } = unsafe { &mut *work };
    let fingerprint = statement.fingerprint();
    // SAFETY: the value is not looked at.
    if unsafe { NAMED.get(fingerprint) }.is_none()
        && NAMED.insert(fingerprint, 1, u64::from(BPF_NOEXIST)).is_ok()
    {
        send_sample(place, fingerprint);
    }
    fingerprint
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn send_sample(place: u64, fingerprint: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { pg: Work { statement, sample, .. }, .. } = unsafe { &mut *work };
    let len = statement.written();
    sample.fingerprint = fingerprint;
    sample.len = len as u64;
    for i in 0..TEXT / 8 {
        // What lies behind the text is an earlier statement's.
        sample.text[i] = statement.masked_word(i, len);
    }
    if SQL_SAMPLES.output::<SqlSample>(&*sample, 0).is_err() {
        // Named another time.
        let _: Result<(), i32> = NAMED.remove(fingerprint);
    }
    0
}

/// Remembers what a prepared statement or a portal is.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn define(place: u64, name: u64, fingerprint: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let key = StatementKey { sk: unsafe { (*work).sk }, name };
    let _: Result<(), i32> = STATEMENTS.insert(key, fingerprint, 0);
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn lookup(place: u64, name: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return OTHER };
    // SAFETY: this CPU's element.
    let key = StatementKey { sk: unsafe { (*work).sk }, name };
    // SAFETY: a number, read at once.
    unsafe { STATEMENTS.get(key) }.copied().unwrap_or(OTHER)
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

/// Counts queries of `ns` each, and samples them if they are wanted; `rest` is as [`DbKey::rest`] has it. 1 if they were
/// counted. It must not use `WORK`: a connection that ends in an interrupt is recorded while another one is being parsed.
#[inline(always)]
pub(in super::super) fn record_query(workload: u64, fingerprint: u64, peer: u64, rest: u64, ns: u64) -> u64 {
    let counted = count_query(workload, fingerprint, peer, rest, ns);
    let (role, failed, system) = (rest as u8, (rest >> 8) as u8, (rest >> 16) as u8);
    // What is meant to wait is not slow. Not within the function above, which has left too little of the stack.
    if SAMPLED.want(failed != 0, ns)
        && (failed != 0 || system != REDIS || !verb::is_blocking(fingerprint as u8))
    {
        let flags = request::flags(role != ROLE_CLIENT, failed != 0);
        let (protocol, status) = (DATABASES + system, u16::from(failed));
        let small = Small { protocol, flags, status, kind: 0, count: (rest >> 32) as u32 };
        sample_request(workload, fingerprint, peer, small.pack(), ns);
    }
    counted
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(in super::super) extern "C" fn count_query(
    workload: u64,
    fingerprint: u64,
    peer: u64,
    rest: u64,
    ns: u64,
) -> u64 {
    let role = rest as u8;
    let mut key = DbKey {
        workload,
        fingerprint,
        peer: if role == ROLE_CLIENT { peer } else { 0 },
        role,
        failed: (rest >> 8) as u8,
        system: (rest >> 16) as u8,
        pad: [0; 5],
    };
    let Some(used) = DB_USED.get_ptr_mut(0) else { return 0 };
    let mut cell = TABLE.find(&key);
    if cell.is_none() {
        // SAFETY: a live element.
        if unsafe { used.read_volatile() } >= MAX_DB_CELLS.load() {
            key.fingerprint = OTHER;
            if role == ROLE_CLIENT {
                key.peer = u64::from(CLASS_OTHER);
            }
        }
        cell = TABLE.find_or_make(&key);
    }
    let Some(cell) = cell else { return 0 };
    if cell.new {
        add(used, 1);
    }
    observe_many(cell.value, ns, rest >> 32);
    1
}
