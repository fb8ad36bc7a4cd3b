//! The packets of MySQL's protocol: a length of three bytes, a number, a body.
//!
//! Bodies are passed over by their length but for their first bytes and the text of statements. Everything can be cut anywhere:
//! the first bytes of a packet and the lexer's state of a cut statement are all that has to be kept. A body of 16 MiB less a
//! byte is continued in the next packet.

use crate::block::Block;
use crate::bytes::low;
use crate::sql::Statement;

/// A header comes.
pub const HEAD: u8 = 0;
/// The body's bytes count for nothing; the next header follows them.
pub const SKIP: u8 = 1;
/// In the first bytes of a body, which say what it is.
pub const START: u8 = 2;
/// Before a statement: attributes may stand there.
pub const ATTRIBUTES: u8 = 3;
/// In a statement.
pub const SQL: u8 = 4;

/// What a pass over a block stopped at.
pub const NOTHING: u8 = 0;
/// A command that is all there, as far as it counts.
pub const COMMAND: u8 = 1;
/// A packet of a client that is no command: an answer to what the server asked.
pub const REPLY: u8 = 2;
/// A packet of the server, of which [`Pass::text`] has the first bytes.
pub const PACKET: u8 = 3;
/// All definitions of a prepared statement are there.
pub const PREPARED: u8 = 4;
/// No packet of this protocol.
pub const BAD: u8 = 5;

/// What the server's next packet is.
pub const FIRST: u8 = 0;
/// The definition of a column; [`Half::columns`] are still to come.
pub const DEFINITIONS: u8 = 1;
/// A row, or the marker between definitions and rows.
pub const AFTER_DEFINITIONS: u8 = 2;
pub const ROWS: u8 = 3;
/// The definition of a prepared statement's parameter or column, or a marker.
pub const PREPARING: u8 = 4;
/// In the client's half: its answer to the greeting comes.
pub const GREETED: u8 = 5;
/// There, too: a file comes, up to an empty packet.
pub const FILE: u8 = 6;

pub const QUIT: u8 = 0x01;
pub const QUERY: u8 = 0x03;
pub const FIELD_LIST: u8 = 0x04;
pub const STATISTICS: u8 = 0x09;
/// Also what a greeting begins with.
pub const PROCESS_INFO: u8 = 0x0a;
pub const CHANGE_USER: u8 = 0x11;
pub const BINLOG_DUMP: u8 = 0x12;
pub const TABLE_DUMP: u8 = 0x13;
pub const PREPARE: u8 = 0x16;
pub const EXECUTE: u8 = 0x17;
pub const SEND_LONG_DATA: u8 = 0x18;
pub const CLOSE: u8 = 0x19;
pub const SET_OPTION: u8 = 0x1b;
pub const FETCH: u8 = 0x1c;
pub const BINLOG_DUMP_GTID: u8 = 0x1e;
pub const LAST_COMMAND: u8 = 0x20;
/// MariaDB's execution with many rows of parameters.
pub const BULK_EXECUTE: u8 = 0xfa;

/// The first byte of a marker (or of an OK in its place), of an error, and of a request for a file.
pub const EOF: u64 = 0xfe;
pub const ERROR: u64 = 0xff;
pub const ASKS_FILE: u64 = 0xfb;

/// A body that is continued.
const FULL: u32 = 0x00ff_ffff;
/// How many packets one pass looks at, and how many bytes of a statement: what the verifier walks through.
const PACKETS: u32 = 256;
const SQL_BYTES: u32 = 256;
/// How many of a server's packet are kept.
pub const KEPT: u32 = 24;

/// How far one direction of a connection is read.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Half {
    /// The bytes of a cut header, then a client's command with what it is about; the first one lowest.
    pub head: u64,
    /// Bytes of the body still to come.
    pub left: u32,
    /// Of the whole body.
    pub length: u32,
    /// Definitions still to come.
    pub columns: u32,
    /// [`HEAD`], [`SKIP`], …
    pub phase: u8,
    /// How many bytes of a header, or of a body's first ones, are there.
    pub have: u8,
    /// The packet's number.
    pub seq: u8,
    /// [`FIRST`], [`DEFINITIONS`], …
    pub expect: u8,
    /// 1 where the next packet continues the body of the last one.
    pub more: u8,
    pub pad: [u8; 7],
}

crate::pod!(Half: 32);

impl Half {
    pub const EMPTY: Self = Self {
        head: 0,
        left: 0,
        length: 0,
        columns: 0,
        phase: HEAD,
        have: 0,
        seq: 0,
        expect: FIRST,
        more: 0,
        pad: [0; 7],
    };

    #[inline(always)]
    pub const fn command(&self) -> u8 {
        (self.head & 255) as u8
    }

    /// The statement that a command is about.
    #[inline(always)]
    pub const fn statement(&self) -> u32 {
        (self.head >> 8) as u32
    }
}

/// What one pass over a block found.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Bytes done with; may reach beyond the block.
    pub consumed: u32,
    /// What the pass stopped at; everything else stands before it.
    pub event: u8,
    /// 1 where a packet begins.
    pub begins: u8,
    /// 1 where a statement's text cannot be told from what stands before it.
    pub hidden: u8,
    pub pad: u8,
}

impl Found {
    pub const EMPTY: Self = Self { consumed: 0, event: NOTHING, begins: 0, hidden: 0, pad: 0 };
}

/// One pass over a block: what goes in, what comes out.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Pass {
    /// The first bytes of a server's packet, the first one lowest.
    pub text: [u64; 3],
    pub half: Half,
    pub out: Found,
    /// Where in the block the pass stands and where the block ends; how far the call reaches from the block's start.
    pub pos: u32,
    pub len: u32,
    pub reach: u32,
    /// 1 if the statement came to its end.
    pub ended: u32,
}

impl Pass {
    pub const EMPTY: Self =
        Self { text: [0; 3], half: Half::EMPTY, out: Found::EMPTY, pos: 0, len: 0, reach: 0, ended: 0 };

    /// Sets up a pass from where the block's position is.
    #[inline(always)]
    pub fn prepare(&mut self, half: &Half, text: &[u64; 3]) {
        self.half = *half;
        self.text = *text;
        self.out = Found::EMPTY;
    }

    /// All stages in a row.
    pub fn run(&mut self, block: &Block, statement: &mut Statement, is_request: bool) {
        let from = self.pos;
        if self.half.phase == SKIP {
            self.pass_over();
        }
        if self.half.phase == HEAD {
            if !is_request {
                self.rows(block);
            }
            if self.out.event == NOTHING && self.pos < self.len {
                self.header(block);
            }
        }
        if self.half.phase == START {
            if is_request {
                self.command(block, statement);
            } else {
                self.packet(block);
            }
        }
        if self.half.phase == ATTRIBUTES {
            self.attributes(block);
        }
        if self.half.phase == SQL {
            let wants = statement.wants();
            self.sql(block, wants, |byte| u32::from(statement.read_mysql(byte)));
            self.end_sql(statement.wants(), |byte| u32::from(statement.read_mysql(byte)));
        }
        self.out.consumed = self.pos - from;
    }

    /// Passes over definitions and rows: whole packets, looked at in a loop with next to no state, so that thousands of them are
    /// cheap to pass over, and to verify.
    #[inline(always)]
    pub fn rows(&mut self, block: &Block) {
        let Half { mut columns, mut expect, .. } = self.half;
        let (len, reach) = (self.len, self.reach);
        let mut pos = self.pos;
        if self.half.have != 0 || self.half.more != 0 || expect == FIRST {
            return;
        }
        let mut seen = 0;
        loop {
            let head = block.word(pos);
            let length = (head & u64::from(FULL)) as u32;
            let first = head >> 32 & 255;
            let there = len.wrapping_sub(pos);
            let counted = expect == DEFINITIONS || expect == PREPARING;
            let passed = pos < len
                && there >= 5
                && length != 0
                && length < FULL
                && first != EOF
                && first != ERROR
                && length + 4 <= reach.wrapping_sub(pos)
                && (!counted || columns != 0);
            if passed {
                pos += length + 4;
                columns -= u32::from(counted);
            }
            let last = passed && counted && columns == 0;
            if last && expect == DEFINITIONS {
                expect = AFTER_DEFINITIONS;
            } else if passed && expect == AFTER_DEFINITIONS {
                expect = ROWS;
            }
            pos = block.forget(u64::from(pos)) as u32;
            columns = block.forget(u64::from(columns)) as u32;
            expect = block.forget(u64::from(expect)) as u8;
            seen += 1;
            if !passed || last || seen >= PACKETS {
                break;
            }
        }
        self.pos = pos;
        self.half.columns = columns;
        self.half.expect = expect;
        if expect == PREPARING && columns == 0 {
            self.out.event = PREPARED;
        }
    }

    /// Reads a header, or what is there of it.
    #[inline(always)]
    pub fn header(&mut self, block: &Block) {
        let have = u32::from(self.half.have & 3);
        let there = self.len - self.pos;
        let missing = 4 - have;
        let taken = if there < missing { there } else { missing };
        let head = self.half.head & low(have) | (block.word(self.pos) & low(taken)) << (8 * have);
        self.pos += taken;
        if have == 0 {
            self.out.begins = 1;
        }
        self.half.head = head;
        if taken < missing {
            self.half.have = (have + taken) as u8;
            return;
        }
        self.half.have = 0;
        self.half.head = 0;
        self.half.seq = (head >> 24) as u8;
        self.half.length = (head & u64::from(FULL)) as u32;
        self.half.left = self.half.length;
        let continues = self.half.more != 0;
        self.half.more = u8::from(self.half.length == FULL);
        self.text = [0; 3];
        self.half.phase = START;
        if continues || self.half.length == 0 {
            if !continues && self.half.expect == FILE {
                self.half.expect = FIRST;
            }
            self.pass_over();
        }
    }

    /// Reads what a client's packet begins with.
    #[inline(always)]
    pub fn command(&mut self, block: &Block, statement: &mut Statement) {
        let greeted = self.half.expect == GREETED;
        // Numbers begin again behind 255, and a file can have more packets than that.
        if self.half.seq != 0 && !greeted || self.half.expect == FILE {
            self.out.event = REPLY;
            return self.pass_over();
        }
        // The command first: it says how much of the rest matters.
        let have = u32::from(self.half.have & 7);
        let command = if have == 0 { block.byte(self.pos) } else { self.half.command() };
        let about = matches!(command, EXECUTE | BULK_EXECUTE | CLOSE | FETCH | SEND_LONG_DATA);
        let wanted = if greeted {
            4
        } else if about {
            5
        } else {
            1
        };
        let most = if self.half.length < wanted { self.half.length } else { wanted };
        let missing = most.wrapping_sub(have) & 7;
        let there = self.len - self.pos;
        let taken = if there < missing { there } else { missing };
        self.half.head |= (block.word(self.pos) & low(taken)) << (8 * have);
        self.pos += taken;
        self.half.left -= taken;
        self.half.have = (have + taken) as u8;
        if taken < missing {
            return;
        }
        self.half.have = 0;
        if greeted {
            self.out.event = REPLY;
            return self.pass_over();
        }
        if command > LAST_COMMAND && command != BULK_EXECUTE || most < wanted {
            self.out.event = BAD;
            return;
        }
        if command == QUERY || command == PREPARE {
            self.half.phase = if command == QUERY { ATTRIBUTES } else { SQL };
            statement.begin();
            if self.half.left == 0 {
                self.out.event = COMMAND;
                self.half.phase = HEAD;
            }
            return;
        }
        self.out.event = COMMAND;
        self.pass_over();
    }

    /// Passes over the attributes that a client may send before a query: none, which is a zero and a one, or some, behind which
    /// the text is not looked for.
    #[inline(always)]
    pub fn attributes(&mut self, block: &Block) {
        for _ in 0..2 {
            if self.pos >= self.len || self.half.left == 0 {
                break;
            }
            let byte = block.byte(self.pos);
            if self.half.have == 0 && byte > 8 {
                self.half.phase = SQL;
                return;
            }
            self.pos += 1;
            self.half.left -= 1;
            if self.half.have == 1 {
                self.half.have = 0;
                self.half.phase = SQL;
                if byte != 1 {
                    self.out.event = BAD;
                }
                return;
            }
            if byte != 0 {
                self.out.event = COMMAND;
                self.out.hidden = 1;
                return self.pass_over();
            }
            self.half.have = 1;
        }
        if self.half.left == 0 {
            self.half.have = 0;
            self.out.event = BAD;
        }
    }

    /// Reads a statement to its end, or as much of it as is there, up to `wanted` bytes; [`Pass::end_sql`] has to follow.
    /// `read` gives 0 for a byte that it wants once more, else 1.
    #[inline(always)]
    pub fn sql(&mut self, block: &Block, wanted: u32, mut read: impl FnMut(u8) -> u32) {
        let most = if wanted < SQL_BYTES { wanted } else { SQL_BYTES };
        let most = if self.half.left < most { self.half.left } else { most };
        let there = self.len - self.pos;
        let limit = self.pos + if there < most { there } else { most };
        let from = self.pos;
        let mut pos = from;
        // Each byte may be read twice, but not each in a row.
        for _ in 0..SQL_BYTES {
            if pos >= limit {
                break;
            }
            let taken = read(block.byte(pos));
            pos = block.forget(u64::from(pos + taken)) as u32;
        }
        self.half.left -= pos - from;
        self.pos = pos;
    }

    /// Tells of a statement if it is at its end, or if so many more bytes count. A statement ends with its packet; its last
    /// word does with a NUL.
    #[inline(always)]
    pub fn end_sql(&mut self, wanted: u32, mut read: impl FnMut(u8) -> u32) {
        if self.half.left != 0 && wanted != 0 {
            return;
        }
        if wanted != 0 && read(0) == 0 {
            read(0);
        }
        self.out.event = COMMAND;
        self.pass_over();
    }

    /// Reads what a server's packet begins with.
    #[inline(always)]
    pub fn packet(&mut self, block: &Block) {
        let have = u32::from(self.half.have & 31);
        let most = if self.half.length < KEPT { self.half.length } else { KEPT };
        let missing = most.wrapping_sub(have) & 31;
        let there = self.len - self.pos;
        let taken = if there < missing { there } else { missing };
        let shift = 8 * (have & 7);
        let mut at = 0;
        // The words from here on, each in two parts.
        loop {
            let from = 8 * at;
            let rest = taken.saturating_sub(from);
            let word = block.word(self.pos + from) & low(rest);
            let spilled = if shift == 0 { 0 } else { word >> (64 - shift) };
            self.put(have / 8 + at, word << shift);
            self.put(have / 8 + at + 1, spilled);
            at += 1;
            if at >= 3 {
                break;
            }
        }
        self.pos += taken;
        self.half.left -= taken;
        self.half.have = (have + taken) as u8;
        if taken < missing {
            return;
        }
        self.half.have = 0;
        self.out.event = PACKET;
        self.pass_over();
    }

    #[inline(always)]
    fn put(&mut self, at: u32, bits: u64) {
        let [first, second, third] = self.text;
        self.text = [
            first | if at == 0 { bits } else { 0 },
            second | if at == 1 { bits } else { 0 },
            third | if at == 2 { bits } else { 0 },
        ];
    }

    /// What is left of the body counts for nothing.
    #[inline(always)]
    pub fn pass_over(&mut self) {
        let room = self.reach - self.pos;
        let skipped = if self.half.left < room { self.half.left } else { room };
        self.pos += skipped;
        self.half.left -= skipped;
        self.half.phase = if self.half.left == 0 { HEAD } else { SKIP };
    }
}

/// The byte number `at` of a packet's first ones.
#[inline(always)]
pub const fn byte(text: [u64; 3], at: u32) -> u64 {
    let word = match at / 8 {
        0 => text[0],
        1 => text[1],
        2 => text[2],
        _ => 0,
    };
    word >> (8 * (at % 8)) & 255
}

/// How many bytes a number takes that begins with this one.
#[inline(always)]
pub const fn width(first: u64) -> u32 {
    match first {
        0xfc => 3,
        0xfd => 4,
        0xfe => 9,
        _ => 1,
    }
}

/// The server's status in an OK, or in a marker of five bytes; `None` where it is too short for one.
#[inline(always)]
pub const fn status(text: [u64; 3], length: u32) -> Option<u64> {
    let at = if length == 5 && text[0] & 255 == EOF {
        3
    } else if length >= 7 {
        let id = 1 + width(byte(text, 1));
        id + width(byte(text, id))
    } else {
        return None;
    };
    Some(byte(text, at) | byte(text, at + 1) << 8)
}
