//! What the protocols of databases share: payload by the block, statements and their names, and the table that queries are
//! counted in.
//!
//! Maps: a table of histograms by workload, fingerprint, peer and outcome; `STATEMENTS` (socket and name → fingerprint of a
//! prepared statement or a portal), `CUT` (socket → a statement of which one call brought a part), `NAMED` (fingerprints with
//! a name) and `SQL_SAMPLES` (the normalised text that names a new one).
//! Metrics: `db_query_duration_seconds`, `db_server_query_duration_seconds`.

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_probe_read_user;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, RingBuf};
use perf_common::block::{BLOCK, Block};
use perf_common::bytes::opaque;
use perf_common::db::{DbKey, REDIS, StatementKey};
use perf_common::histogram::Histogram;
use perf_common::l7::ROLE_CLIENT;
use perf_common::peer::CLASS_OTHER;
use perf_common::redis::verb;
use perf_common::request::{self, DATABASES, Small};
use perf_common::sql::{OTHER, SqlSample, Statement, TEXT};
use perf_ebpf::count::{add, observe_many};
use perf_ebpf::syscall::Payload;

use super::{SAMPLED, WORK, Work as Scratch, sample_request};

// As many as the configuration asks for.
perf_ebpf::table!(DbKey => Histogram, 10_240, DB_INDEX, DB_CELLS, DB_FREE, DB_RECENT);

/// How many cells may be made before new statements and peers are counted as `other`.
#[unsafe(no_mangle)]
static MAX_DB_CELLS: Global<u64> = Global::new(8192);
#[map]
static DB_USED: Array<u64> = Array::with_max_entries(1, 0);
/// The oldest go first; a statement that is used after that counts as `other`.
#[map]
static STATEMENTS: LruHashMap<StatementKey, u64> = LruHashMap::with_max_entries(32_768, 0);
/// Keyed by the socket's address. What goes when there are too many costs its statement the name, not the count.
#[map]
static CUT: LruHashMap<u64, Statement> = LruHashMap::with_max_entries(1024, 0);
/// By fingerprint and system.
#[map]
static NAMED: HashMap<u64, u64> = HashMap::with_max_entries(16_384, 0);
#[map]
static SQL_SAMPLES: RingBuf = RingBuf::with_byte_size(1024 * 1024, 0);

/// What they need of [`super::Work`].
#[repr(C)]
pub(super) struct Work {
    /// What is looked at together, and where in the call it begins.
    pub(super) block: Block,
    block_at: u64,
    pub(super) statement: Statement,
    sample: SqlSample,
}

/// The first up to eight bytes from `offset` on; 0 where they cannot be had.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn peek_payload(place: u64, offset: u64) -> u64 {
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
fn read(block: &mut Block, payload: &mut Payload, offset: u64, total: u64) -> u64 {
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

/// Reads the call's payload from `offset` on into the block, unless it is there; 0 where it cannot be had. `pos`, `len` and
/// `reach` are those of the protocol's pass.
#[inline(always)]
pub(super) fn fill(
    work: &mut Work,
    payload: &mut Payload,
    (offset, total): (u64, u64),
    (pos, len, reach): (&mut u32, &mut u32, &mut u32),
) -> u64 {
    let at = offset.wrapping_sub(work.block_at);
    if at < u64::from(*len) {
        *pos = at as u32;
        return 1;
    }
    let read = read(&mut work.block, payload, offset, total);
    work.block_at = offset;
    *pos = 0;
    *len = read as u32;
    *reach = (total - offset) as u32;
    read
}

/// Takes a byte of a statement that begins or ends something; 0 if it is to be given once more.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn sql_token(place: u64, transition: u64, byte: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 1 };
    // SAFETY: this CPU's element.
    let Scratch { db: Work { statement, .. }, .. } = unsafe { &mut *work };
    u64::from(statement.token(transition as u32, byte as u8))
}

/// Keeps a cut statement.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn save_statement(place: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { sk, db: Work { statement, .. }, .. } = unsafe { &mut *work };
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
    let Scratch { sk, db: Work { statement, .. }, .. } = unsafe { &mut *work };
    let Some(kept) = CUT.get_ptr(*sk) else { return 0 };
    let (from, to) = (kept.cast::<u64>(), (&raw mut *statement).cast::<u64>());
    for i in 0..WORDS {
        // SAFETY: a live value, this CPU's element, and both as long as that.
        unsafe { to.add(i).write_volatile(*from.add(i)) };
    }
    1
}

/// The fingerprint of the statement that was read, in the language of that system. Sends up its text if nobody has named it
/// yet.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn fingerprint(place: u64, system: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return OTHER };
    // SAFETY: this CPU's element.
    let Scratch { db: Work { statement, .. }, .. } = unsafe { &mut *work };
    let fingerprint = statement.fingerprint();
    let key = fingerprint ^ system;
    // SAFETY: the value is not looked at.
    if unsafe { NAMED.get(key) }.is_none() && NAMED.insert(key, 1, u64::from(BPF_NOEXIST)).is_ok() {
        send_sample(place, fingerprint, system);
    }
    fingerprint
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn send_sample(place: u64, fingerprint: u64, system: u64) -> u64 {
    let Some(work) = WORK.get_ptr_mut(place as u32) else { return 0 };
    // SAFETY: this CPU's element.
    let Scratch { db: Work { statement, sample, .. }, .. } = unsafe { &mut *work };
    let len = statement.written();
    sample.fingerprint = fingerprint;
    sample.len = len as u32;
    sample.system = system as u32;
    for i in 0..TEXT / 8 {
        // What lies behind the text is an earlier statement's.
        sample.text[i] = statement.masked_word(i, len);
    }
    if SQL_SAMPLES.output::<SqlSample>(&*sample, 0).is_err() {
        // Named another time.
        let _: Result<(), i32> = NAMED.remove(fingerprint ^ system);
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

/// Counts queries of `ns` each, and samples them if they are wanted; `rest` is as [`DbKey::rest`] has it. 1 if they were
/// counted. It must not use `WORK`: a connection that ends in an interrupt is recorded while another one is being parsed.
#[inline(always)]
pub(super) fn record_query(workload: u64, fingerprint: u64, peer: u64, rest: u64, ns: u64) -> u64 {
    let counted = count_query(workload, fingerprint, peer, rest, ns);
    let (role, system, error) = (rest as u8, (rest >> 8) as u8, (rest >> 16) as u16);
    // What is meant to wait is not slow. Not within the function above, which has left too little of the stack.
    if SAMPLED.want(error != 0, ns)
        && (error != 0 || system != REDIS || !verb::is_blocking(fingerprint as u8))
    {
        let flags = request::flags(role != ROLE_CLIENT, error != 0);
        let protocol = DATABASES + system;
        let small = Small { protocol, flags, status: error, kind: 0, count: (rest >> 32) as u32 };
        sample_request(workload, fingerprint, peer, small.pack(), ns);
    }
    counted
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn count_query(workload: u64, fingerprint: u64, peer: u64, rest: u64, ns: u64) -> u64 {
    let role = rest as u8;
    let mut key = DbKey {
        workload,
        fingerprint,
        peer: if role == ROLE_CLIENT { peer } else { 0 },
        role,
        system: (rest >> 8) as u8,
        error: (rest >> 16) as u16,
        pad: 0,
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
