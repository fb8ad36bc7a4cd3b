//! The messages of PostgreSQL's protocol 3: a type, a length, a body.
//!
//! Bodies are passed over by their length but for what names a statement. Everything can be cut anywhere: the bytes of a
//! cut header, the hash of a cut name and the lexer's state of a cut statement are all that has to be kept.

use crate::block::Block;
use crate::bytes::low;
use crate::db::{Error, error_of};
use crate::sql::{self, Statement};

/// The body's bytes count for nothing; the next header follows them.
pub const SKIP: u8 = 1;
/// In a name: of a statement or a portal.
pub const NAME: u8 = 2;
/// In the second name of a Bind.
pub const SECOND_NAME: u8 = 3;
/// In a statement.
pub const SQL: u8 = 4;
/// A packet without a type comes: length and code.
pub const STARTUP: u8 = 5;
/// One byte comes: whether the connection is encrypted from here on.
pub const ANSWER: u8 = 6;
/// A header comes.
pub const HEAD: u8 = 0;

/// What a pass over a block stopped at.
pub const NOTHING: u8 = 0;
pub const QUERY: u8 = 1;
pub const PARSE: u8 = 2;
pub const BIND: u8 = 3;
pub const EXECUTE: u8 = 4;
pub const SYNC: u8 = 5;
/// A call of a function, answered like a query.
pub const CALL: u8 = 6;
pub const READY: u8 = 9;
/// Replication, encryption or a request to cancel: nothing that follows is a query.
pub const ENDED: u8 = 12;
/// The client asks whether it may encrypt.
pub const ASKED: u8 = 14;
/// The server does not encrypt.
pub const REFUSED: u8 = 10;
/// No message of this protocol, or one whose length makes no sense.
pub const BAD: u8 = 13;
/// The server told an error.
pub const FAILED: u8 = 11;
/// From this kind on nothing follows what was completed before it.
const FAILED_OR_ENDED: u8 = FAILED;

/// In [`KINDS`], the request's in the low four bits: nothing but its length counts.
const PASS: u8 = 7;
/// A response that ends one Execute.
const COMPLETE: u8 = 8;

/// What each type is: among requests in the low four bits, among responses in the high four; 0 is none.
static KINDS: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    let passed = b"DCHdcfp";
    while i < passed.len() {
        table[passed[i] as usize] = PASS;
        i += 1;
    }
    table[b'X' as usize] = PASS;
    table[b'Q' as usize] = QUERY;
    table[b'P' as usize] = PARSE;
    table[b'B' as usize] = BIND;
    table[b'E' as usize] = EXECUTE;
    table[b'S' as usize] = SYNC;
    table[b'F' as usize] = CALL;
    let passed = b"RSKTDN123ntGHdcAVv";
    i = 0;
    while i < passed.len() {
        table[passed[i] as usize] |= PASS << 4;
        i += 1;
    }
    let complete = b"CIs";
    i = 0;
    while i < complete.len() {
        table[complete[i] as usize] |= COMPLETE << 4;
        i += 1;
    }
    table[b'E' as usize] |= FAILED << 4;
    table[b'Z' as usize] |= READY << 4;
    table[b'W' as usize] |= ENDED << 4;
    table
};

/// The server's own limit of a message.
const LONGEST: u32 = 0x3fff_ffff;
/// Of a startup packet.
const LONGEST_STARTUP: u32 = 10_000;
/// How many messages one pass looks at, how many bytes of a name, and of a statement: what the verifier walks through.
const MESSAGES: u32 = 256;
/// How far an error is searched for its code, and what stands before that: the end of a field, and its own type.
const ERROR_BYTES: u32 = 64;
const CODE: u64 = (b'C' as u64) << 8;
const NAME_BYTES: u32 = 64;
const SQL_BYTES: u32 = 256;
const CHAIN: u32 = 32;

const PROTOCOL_3: u32 = 3;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

/// How far one direction of a connection is read.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Half {
    /// The bytes of a cut header, the first one lowest.
    pub head: u64,
    /// Of the name being read, and of the one before it.
    pub name: u64,
    pub first_name: u64,
    /// Bytes of the body still to come.
    pub left: u32,
    /// [`HEAD`], [`SKIP`], …
    pub phase: u8,
    /// How many bytes of a header are there.
    pub have: u8,
    /// What the message is: [`QUERY`], [`PARSE`], [`BIND`] or [`EXECUTE`].
    pub kind: u8,
    pub pad: u8,
}

crate::pod!(Half: 32);

impl Half {
    pub const EMPTY: Self =
        Self { head: 0, name: 0, first_name: 0, left: 0, phase: HEAD, have: 0, kind: 0, pad: 0 };
}

/// What one pass over a block found.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Found {
    /// Names, of [`PARSE`], [`BIND`] and [`EXECUTE`]: the statement's, or the portal's and the statement's.
    pub name: u64,
    pub second_name: u64,
    /// Bytes done with; may reach beyond the block.
    pub consumed: u32,
    /// How many Executes the server completed.
    pub completed: u32,
    /// What the pass stopped at; everything else stands before it.
    pub event: u8,
    /// 1 where a message that asks for something begins.
    pub begins: u8,
    /// Of [`FAILED`].
    pub error: Error,
    pub pad: u32,
}

impl Found {
    pub const EMPTY: Self = Self {
        name: 0,
        second_name: 0,
        consumed: 0,
        completed: 0,
        event: NOTHING,
        begins: 0,
        error: 0,
        pad: 0,
    };
}

/// One pass over a block: what goes in, what comes out.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Pass {
    pub half: Half,
    pub out: Found,
    /// Where in the block the pass stands and where the block ends; how far the call reaches from the block's start.
    pub pos: u32,
    pub len: u32,
    pub reach: u32,
    /// The shift that finds the direction's kinds in [`KINDS`]: 0 for requests, 4 for responses.
    pub shift: u32,
    /// 1 if the statement came to its end.
    pub ended: u32,
    pub pad: u32,
}

/// From memory and to memory, so that the verifier knows nothing of a value when it comes round again.
macro_rules! get {
    ($place:expr) => {
        // SAFETY: a live field.
        unsafe { (&raw const $place).read_volatile() }
    };
}
macro_rules! set {
    ($place:expr, $value:expr) => {{
        let value = $value;
        // SAFETY: a live field.
        unsafe { (&raw mut $place).write_volatile(value) }
    }};
}

impl Pass {
    pub const EMPTY: Self =
        Self { half: Half::EMPTY, out: Found::EMPTY, pos: 0, len: 0, reach: 0, shift: 0, ended: 0, pad: 0 };

    /// Sets up a pass from where the block's position is.
    #[inline(always)]
    pub fn prepare(&mut self, half: &Half, is_request: bool) {
        self.half = *half;
        self.out = Found::EMPTY;
        self.shift = if is_request { 0 } else { 4 };
    }

    /// All stages in a row.
    pub fn run(&mut self, block: &Block, statement: &mut Statement) {
        let from = self.pos;
        if self.half.phase >= STARTUP {
            self.greet(block);
        } else {
            if self.half.phase <= SKIP {
                self.walk(block, statement);
            }
            if self.half.phase == NAME {
                self.name(block, statement);
            }
            if self.half.phase == SECOND_NAME {
                self.name(block, statement);
            }
            if self.half.phase == SQL {
                let wants = statement.wants();
                self.sql(block, wants, |byte| u32::from(statement.read(byte)));
                self.end_sql(statement.wants());
            }
        }
        self.out.consumed = self.pos - from;
    }

    /// Passes over messages up to one that matters.
    ///
    /// Whole messages that do not are all that is looked at in a loop, with next to no state: thousands of rows are cheap to
    /// pass over, and to verify.
    #[inline(always)]
    pub fn walk(&mut self, block: &Block, statement: &mut Statement) {
        if self.half.phase == SKIP {
            self.pass_over();
        }
        let len = self.len;
        let mut pos = self.pos;
        if self.half.phase != HEAD || pos >= len {
            return;
        }
        if self.half.have == 0 {
            let mut completed = 0;
            let mut seen = 0;
            loop {
                let head = block.word(pos);
                let kind = self.kind(head);
                let length = ((head >> 8) as u32).swap_bytes();
                let there = len.wrapping_sub(pos);
                let passed =
                    there >= 5 && length >= 4 && length < there && (kind == PASS || kind == COMPLETE);
                if passed {
                    completed += u32::from(kind == COMPLETE);
                    pos += length + 1;
                }
                pos = block.forget(u64::from(pos)) as u32;
                completed = block.forget(u64::from(completed)) as u32;
                seen += 1;
                if !passed || pos >= len || seen >= MESSAGES {
                    break;
                }
            }
            self.out.completed = completed;
            self.pos = pos;
        }
        if pos < len {
            self.header(block, statement);
        }
    }

    /// Whether the message with this type asks for something.
    #[inline(always)]
    fn begins(&mut self, head: u64) {
        let kind = self.kind(head);
        if self.shift == 0 && kind >= QUERY && kind <= CALL && kind != SYNC {
            set!(self.out.begins, 1);
        }
    }

    #[inline(always)]
    fn kind(&self, head: u64) -> u8 {
        // SAFETY: a u8 cannot exceed the table's 256 entries.
        let kinds = unsafe { *KINDS.as_ptr().add((head & 255) as usize) };
        kinds >> (self.shift & 7) & 15
    }

    /// Reads a header, or what is there of it.
    #[inline(always)]
    fn header(&mut self, block: &Block, statement: &mut Statement) {
        let have = u32::from(self.half.have & 7);
        let there = self.len - self.pos;
        let missing = 5 - if have < 5 { have } else { 4 };
        let taken = if there < missing { there } else { missing };
        let head = self.half.head | (block.word(self.pos) & low(taken)) << (8 * have);
        let kind = self.kind(head);
        if self.out.completed != 0 && kind >= FAILED_OR_ENDED {
            // Whether what was completed before an error has to do with it is for the connection to tell.
            return;
        }
        self.pos += taken;
        if have == 0 {
            self.begins(head);
        }
        if taken < missing {
            self.half.head = head;
            self.half.have = (have + taken) as u8;
            return;
        }
        self.half.have = 0;
        self.half.head = 0;
        let length = ((head >> 8) as u32).swap_bytes();
        if kind == 0 || length < 4 || length > LONGEST {
            self.out.event = BAD;
            return;
        }
        self.half.left = length - 4;
        if kind <= EXECUTE {
            self.half.kind = kind;
            self.half.name = sql::NAME;
            self.half.phase = if kind == QUERY { SQL } else { NAME };
            if kind == QUERY {
                statement.begin();
            }
            return;
        }
        if kind == FAILED {
            self.error(block);
        }
        if kind == COMPLETE {
            self.out.completed += 1;
        } else if kind != PASS {
            self.out.event = kind;
        }
        self.pass_over();
    }

    /// Looks for the SQLSTATE in an error that begins here: severity, once more in English, and code come first.
    #[inline(always)]
    fn error(&mut self, block: &Block) {
        let limit = self.limit(ERROR_BYTES);
        let mut pos = self.pos;
        let mut sqlstate = 0;
        for _ in 0..ERROR_BYTES {
            if pos + 8 > limit || sqlstate != 0 {
                break;
            }
            let word = block.word(pos);
            if word & 0xffff == CODE {
                sqlstate = word >> 16;
            }
            pos = block.forget(u64::from(pos) + 1) as u32;
        }
        self.out.error = error_of(sqlstate);
    }

    /// Reads a name to its end, or as much of it as is there.
    #[inline(always)]
    pub fn name(&mut self, block: &Block, statement: &mut Statement) {
        let limit = self.limit(NAME_BYTES);
        let from = self.pos;
        let mut pos = from;
        let mut ended = false;
        let mut hash = get!(self.half.name);
        for _ in 0..NAME_BYTES {
            if pos >= limit {
                break;
            }
            let byte = block.byte(pos);
            pos = block.forget(u64::from(pos) + 1) as u32;
            if byte == 0 {
                ended = true;
                break;
            }
            hash = sql::name(hash, byte);
        }
        set!(self.half.name, hash);
        let left = get!(self.half.left) - (pos - from);
        set!(self.half.left, left);
        self.pos = pos;
        if !ended {
            if left == 0 {
                set!(self.out.event, BAD);
            }
            return;
        }
        let kind = get!(self.half.kind);
        if kind == BIND && get!(self.half.phase) == NAME || kind == PARSE {
            set!(self.half.first_name, hash);
            set!(self.half.name, sql::NAME);
            set!(self.half.phase, if kind == PARSE { SQL } else { SECOND_NAME });
            if kind == PARSE {
                statement.begin();
            }
            return;
        }
        set!(self.out.event, kind);
        self.out.name = if kind == BIND { get!(self.half.first_name) } else { hash };
        self.out.second_name = hash;
        self.pass_over();
    }

    /// Reads a statement to its end, or as much of it as is there, up to `wanted` bytes; [`Pass::end_sql`] has to follow.
    /// `read` gives 0 for a byte that it wants once more, else 1.
    #[inline(always)]
    pub fn sql(&mut self, block: &Block, wanted: u32, mut read: impl FnMut(u8) -> u32) {
        let limit = self.limit(if wanted < SQL_BYTES { wanted } else { SQL_BYTES });
        let from = self.pos;
        let mut pos = from;
        let mut ended = false;
        for _ in 0..SQL_BYTES {
            if pos >= limit {
                break;
            }
            let byte = block.byte(pos);
            let taken = read(byte);
            pos = block.forget(u64::from(pos + taken)) as u32;
            if u32::from(byte) < taken {
                ended = true;
                break;
            }
        }
        self.ended = u32::from(ended);
        let left = get!(self.half.left) - (pos - from);
        set!(self.half.left, left);
        self.pos = pos;
    }

    /// Tells of a statement if it is at its end, or if so many more bytes count.
    #[inline(always)]
    pub fn end_sql(&mut self, wanted: u32) {
        if self.ended != 0 || get!(self.half.left) == 0 || wanted == 0 {
            set!(self.out.event, get!(self.half.kind));
            self.out.name = get!(self.half.first_name);
            self.pass_over();
        }
    }

    /// Up to where in the block the body is read.
    #[inline(always)]
    fn limit(&self, most: u32) -> u32 {
        let left = get!(self.half.left);
        let most = if left < most { left } else { most };
        let there = self.len - self.pos;
        self.pos + if there < most { there } else { most }
    }

    /// What is left of the body counts for nothing.
    #[inline(always)]
    fn pass_over(&mut self) {
        let left = get!(self.half.left);
        let room = self.reach - self.pos;
        let skipped = if left < room { left } else { room };
        self.pos += skipped;
        set!(self.half.left, left - skipped);
        set!(self.half.phase, if left == skipped { HEAD } else { SKIP });
    }

    /// The packets without a type that a connection begins with, and the answer to a question for encryption.
    #[inline(always)]
    pub fn greet(&mut self, block: &Block) {
        if get!(self.half.phase) == ANSWER {
            let answer = block.byte(self.pos);
            self.pos += 1;
            set!(self.half.phase, HEAD);
            set!(self.out.event, if answer == b'N' { REFUSED } else { ENDED });
            return;
        }
        let have = u32::from(get!(self.half.have) & 7);
        let there = self.len - self.pos;
        let missing = 8 - have;
        let taken = if there < missing { there } else { missing };
        let head = get!(self.half.head) | (block.word(self.pos) & low(taken)) << (8 * have);
        self.pos += taken;
        if taken < missing {
            set!(self.half.head, head);
            set!(self.half.have, (have + taken) as u8);
            return;
        }
        set!(self.half.have, 0);
        set!(self.half.head, 0);
        let Some(packet) = startup(head) else {
            set!(self.out.event, BAD);
            return;
        };
        set!(self.half.left, (head as u32).swap_bytes() - 8);
        match packet {
            Startup::Protocol => self.pass_over(),
            Startup::Question => set!(self.out.event, ASKED),
            Startup::Cancel => set!(self.out.event, ENDED),
        }
    }
}

/// What the first eight bytes of a connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Startup {
    Protocol,
    /// May the connection be encrypted?
    Question,
    Cancel,
}

/// Reads the first eight bytes of a packet without a type, the first one lowest.
#[inline(always)]
pub fn startup(head: u64) -> Option<Startup> {
    let length = (head as u32).swap_bytes();
    let code = ((head >> 32) as u32).swap_bytes();
    if code >> 16 == PROTOCOL_3 && code & 0xffff < 16 && length >= 8 && length <= LONGEST_STARTUP {
        return Some(Startup::Protocol);
    }
    if (code == SSL_REQUEST || code == GSSENC_REQUEST) && length == 8 {
        return Some(Startup::Question);
    }
    // Protocol 3.2 has longer keys.
    if code == CANCEL_REQUEST && length >= 16 && length <= 268 {
        return Some(Startup::Cancel);
    }
    None
}

/// Whether these first bytes (at most seven) can be the beginning of such a packet.
#[inline(always)]
pub fn startup_prefix(head: u64, have: u32) -> bool {
    // The length's upper bytes are zero, and a code begins with 0 or 4.
    let upper = head & low(if have < 2 { have } else { 2 });
    let code = head >> 32 & 255;
    upper == 0 && (have < 5 || code == 0 || code == 4)
}

/// Whether a call that begins with these bytes may begin with a request: a message that only clients send, and that the call
/// holds.
#[inline(always)]
pub fn may_be_request(head: u64, total: u32) -> bool {
    let kind = (head & 255) as u8;
    let length = ((head >> 8) as u32).swap_bytes();
    (kind == b'Q' || kind == b'P' || kind == b'B') && length >= 5 && length < total
}

/// Whether the block is messages of a client from its start to its end, which is the call's.
#[inline(always)]
pub fn is_chain(block: &Block, total: u32) -> bool {
    let mut pos = 0;
    let mut seen = 0;
    let mut good = true;
    loop {
        let head = block.word(pos);
        let length = ((head >> 8) as u32).swap_bytes();
        // SAFETY: a u8 cannot exceed the table's 256 entries.
        let kind = unsafe { *KINDS.as_ptr().add((head & 255) as usize) } & 15;
        good = good && kind != 0 && length >= 4 && length <= LONGEST;
        pos = block.forget(u64::from(pos) + u64::from(length) + 1) as u32;
        seen += 1;
        if !good || pos >= total || seen >= CHAIN {
            break;
        }
    }
    // More messages than are looked at, all of them good, are good enough.
    good && (pos == total || pos < total && seen >= CHAIN)
}
