//! The fingerprint of an SQL statement: a hash of its text in which literals, comments and layout do not count.
//!
//! [`Statement`] reads a statement byte by byte and keeps its normalised text: `SELECT * FROM t WHERE a IN (1, 2)` and
//! `select *\nfrom t where a in ('x')` are both `select*from t where a in(?)`. A byte of a literal is never written, so that the
//! text can leave the kernel as it stands. Its lexer is PostgreSQL's with `standard_conforming_strings` on, the default
//! since 9.1: strings (`'…'`, `E'…'`), dollar quotes, numbers, parameters and the words that stand for a value (`null`,
//! `true`, `false`, `default`) become `?`; lists and rows of nothing else become one.
//!
//! MySQL's differs in its tables ([`read_mysql`]): there a connection without backslash escapes must not be read at all.
//!
//! Everything between two bytes is in a handful of numbers, so a statement can be cut anywhere.

mod table;

use crate::bytes::{low, opaque};
use crate::workload::mix;
use table::mysql::{CLASS_MYSQL, TABLE_MYSQL};
use table::{
    ACT, ACTION, BETWEEN, BLANK, CLASS, COPY, DO_COMMENT_BEGIN, DO_COMMENT_DEEPER, DO_COMMENT_END,
    DO_TAG_ADD, DO_TAG_BEGIN, DO_TAG_COMPARE, DO_TAG_EMPTY, DO_TAG_FIRST, DO_TAG_KEEP, FOLD, FULL, KIND,
    KIND_LITERAL, LAST, LAST_OPEN, LAST_OPERATOR, LAST_START, LAST_WORD, LIST, LIST_BACK, LIST_DROP,
    LIST_STATE, MASK, MEMBER, MODE, REWIND, REWIND_SIGN, SLOW, TABLE, TOKEN, WORD_END,
};

/// How much of a normalised text is kept, in bytes; what is behind does not count. A power of two.
pub const TEXT: usize = 1024;
/// How many bytes of a statement are read. Of one that is longer only the text before its first literal counts: how much of
/// the rest would be seen depends on how long its literals are.
pub const MAX_READ: u32 = 4096;
/// A token writes two bytes at most.
const LIMIT: u32 = TEXT as u32 - 8;

/// The fingerprint of whatever has no fingerprint, or no cell, of its own.
pub const OTHER: u64 = 0;

const PRIME: u64 = 0x0000_0100_0000_01b3;
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// A statement on its way through the lexer, and its text.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Statement {
    text: [u8; TEXT],
    /// The last eight bytes of the word being read, the last one lowest.
    word: u64,
    /// Of a dollar quote's tag, and of what may be its closing one.
    tag: u64,
    running: u64,
    pos: u32,
    mode: u32,
    /// The list's state; what the last token was (at 8); whether white space stands behind it (at 16).
    context: u32,
    /// `pos` and `context` where the last token began.
    mark_pos: u32,
    mark_context: u32,
    /// How deep comments are nested.
    depth: u32,
    /// Bytes read.
    read: u32,
    /// Where the first literal stands in the text, plus one; 0 for none.
    first_literal: u32,
}

crate::pod!(Statement: TEXT + 24 + 32);

/// What leaves the kernel, once for each fingerprint: the normalised text.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SqlSample {
    pub fingerprint: u64,
    pub len: u32,
    /// In whose language: an index into [`crate::db::SYSTEMS`].
    pub system: u32,
    /// The text's bytes, the first one lowest in each word; zero behind its end.
    pub text: [u64; TEXT / 8],
}

crate::pod!(SqlSample: 16 + TEXT);

const LAST_AT: u32 = 8;
const SPACE: u32 = 1 << 16;

/// The low bytes of a word, by their number.
static KEPT: [u64; 16] = {
    let mut table = [u64::MAX; 16];
    let mut n = 0;
    while n < 8 {
        table[n] = low(n as u32);
        n += 1;
    }
    table
};

/// Small words as [`Statement::word`] holds them.
const fn word(text: &[u8]) -> u64 {
    let mut word = 0;
    let mut i = 0;
    while i < text.len() {
        word = word << 8 | text[i] as u64;
        i += 1;
    }
    word
}

/// Whether a word stands for a value.
#[inline(always)]
const fn is_value(text: u64) -> bool {
    text == word(b"null") || text == word(b"true") || text == word(b"false") || text == word(b"default")
}

impl Default for Statement {
    fn default() -> Self {
        Self::new()
    }
}

/// The state is read from memory at each byte and written back: what the verifier has to remember of one byte when it looks
/// at the next would multiply, and from memory of a map anything can come.
macro_rules! get {
    ($self:ident.$field:ident) => {
        // SAFETY: a live field.
        unsafe { (&raw const $self.$field).read_volatile() }
    };
}
macro_rules! set {
    ($self:ident.$field:ident = $value:expr) => {{
        let value = $value;
        // SAFETY: a live field.
        unsafe { (&raw mut $self.$field).write_volatile(value) }
    }};
}

impl Statement {
    #[must_use]
    pub const fn new() -> Self {
        Self {
            text: [0; TEXT],
            word: 0,
            tag: 0,
            running: 0,
            pos: 0,
            mode: BETWEEN as u32,
            context: LAST_START << LAST_AT,
            mark_pos: 0,
            mark_context: 0,
            depth: 0,
            read: 0,
            first_literal: 0,
        }
    }

    /// Begins a new statement; the text of the one before stays in memory and does not count.
    #[inline(always)]
    pub fn begin(&mut self) {
        set!(self.word = 0);
        set!(self.pos = 0);
        set!(self.mode = u32::from(BETWEEN));
        set!(self.context = LAST_START << LAST_AT);
        set!(self.mark_pos = 0);
        set!(self.mark_context = 0);
        set!(self.depth = 0);
        set!(self.read = 0);
        set!(self.first_literal = 0);
    }

    /// How many more bytes are to be read.
    #[inline(always)]
    pub fn wants(&self) -> u32 {
        let read = get!(self.read);
        if read >= MAX_READ || get!(self.mode) == u32::from(FULL) { 0 } else { MAX_READ - read }
    }

    /// Whether it is longer than what is read of it.
    #[inline(always)]
    fn is_cut(&self) -> bool {
        get!(self.read) >= MAX_READ && get!(self.mode) != u32::from(FULL)
    }

    /// Takes one byte. `false` if it is to be given once more, which happens at most once.
    #[inline(always)]
    pub fn read(&mut self, byte: u8) -> bool {
        let transition = self.transition(byte);
        if Self::is_token(transition) {
            return self.token(transition, byte);
        }
        self.inside(transition, byte);
        true
    }

    /// What a byte means here: for [`Statement::token`] or [`Statement::inside`].
    #[inline(always)]
    pub fn transition(&self, byte: u8) -> u32 {
        let mode = get!(self.mode);
        // SAFETY: a u8 cannot exceed the table's 256 entries.
        let class = u32::from(unsafe { *CLASS.as_ptr().add(byte as usize) });
        let at = opaque(u64::from(mode * 32 + class)) & 1023;
        // SAFETY: masked to the table's 1024 entries.
        unsafe { *TABLE.as_ptr().add(at as usize) }
    }

    /// The same where MySQL is spoken, whose statements do not end with a NUL: give one when they end.
    #[inline(always)]
    pub fn transition_mysql(&self, byte: u8) -> u32 {
        let mode = get!(self.mode);
        // SAFETY: a u8 cannot exceed the table's 256 entries.
        let class = u32::from(unsafe { *CLASS_MYSQL.as_ptr().add(byte as usize) });
        let at = opaque(u64::from(mode * 32 + class)) & 1023;
        // SAFETY: masked to the table's 1024 entries.
        unsafe { *TABLE_MYSQL.as_ptr().add(at as usize) }
    }

    /// [`Statement::read`] where MySQL is spoken.
    #[inline(always)]
    pub fn read_mysql(&mut self, byte: u8) -> bool {
        let transition = self.transition_mysql(byte);
        if Self::is_token(transition) {
            return self.token(transition, byte);
        }
        self.inside(transition, byte);
        true
    }

    /// Whether a byte begins or ends something.
    #[inline(always)]
    pub const fn is_token(transition: u32) -> bool {
        transition & SLOW != 0
    }

    /// Takes a byte that begins and ends nothing.
    #[inline(always)]
    pub fn inside(&mut self, transition: u32, byte: u8) {
        set!(self.mode = transition & MODE);
        set!(self.read = get!(self.read) + 1);
        if transition & COPY != 0 {
            self.put(fold(byte, transition));
        }
    }

    /// Takes any other; `false` if it is to be given once more.
    #[inline(always)]
    pub fn token(&mut self, transition: u32, byte: u8) -> bool {
        if transition & WORD_END != 0 && is_value(get!(self.word)) {
            self.rewind();
            set!(self.mode = u32::from(BETWEEN));
            self.write(KIND_LITERAL, b'?');
            set!(self.word = 0);
            return false;
        }
        set!(self.mode = transition & MODE);
        set!(self.read = get!(self.read) + 1);
        let mut back = transition & REWIND != 0;
        if transition & REWIND_SIGN != 0 {
            let before = get!(self.mark_context) >> LAST_AT & 7;
            back = before == LAST_START || before == LAST_OPERATOR || before == LAST_OPEN;
        }
        if back {
            self.rewind();
        }
        if transition & BLANK != 0 {
            set!(self.context = get!(self.context) | SPACE);
        }
        if transition & TOKEN != 0 {
            if transition & MEMBER != 0 && get!(self.context) >> LAST_AT & 7 == LAST_WORD {
                set!(self.mode = u32::from(BETWEEN));
            }
            let masked = transition & MASK != 0;
            self.write(transition >> KIND & 7, if masked { b'?' } else { fold(byte, transition) });
        }
        if transition & ACT != 0 {
            self.act(transition >> ACTION & 15, byte);
        }
        true
    }

    /// Takes back the last token.
    #[inline(always)]
    fn rewind(&mut self) {
        set!(self.pos = get!(self.mark_pos));
        set!(self.context = get!(self.mark_context));
    }

    /// Writes the first byte of a token, and a space before it where it would run into the last one.
    #[inline(always)]
    fn write(&mut self, kind: u32, byte: u8) {
        let context = get!(self.context);
        let pos = get!(self.pos);
        set!(self.mark_pos = pos);
        set!(self.mark_context = context);
        let at = opaque(u64::from((context & 15) * 8 + kind)) & 127;
        // SAFETY: masked to the table's 128 entries.
        let list = unsafe { *LIST.as_ptr().add(at as usize) };
        // SAFETY: masked to the table's eight entries.
        let last = u32::from(unsafe { *LAST.as_ptr().add((opaque(u64::from(kind)) & 7) as usize) });
        set!(self.context = u32::from(list & LIST_STATE) | last << LAST_AT);
        if list & LIST_DROP != 0 {
            set!(self.pos = pos - u32::from(list >> LIST_BACK & 7));
            return;
        }
        if kind == KIND_LITERAL && get!(self.first_literal) == 0 {
            set!(self.first_literal = pos + 1);
        }
        let runs_in = context >> LAST_AT & 7 == last && last <= LAST_OPERATOR;
        if context & SPACE != 0 && runs_in {
            self.put(b' ');
        }
        set!(self.word = 0);
        self.put(byte);
    }

    #[inline(always)]
    fn put(&mut self, byte: u8) {
        let pos = get!(self.pos);
        set!(self.word = get!(self.word) << 8 | u64::from(byte));
        let at = opaque(u64::from(pos)) & (TEXT as u64 - 1);
        // SAFETY: masked below the text's length.
        unsafe { self.text.as_mut_ptr().add(at as usize).write_volatile(byte) };
        set!(self.pos = pos + 1);
        // Without a branch, which would be a path of its own for each byte.
        let full = 0_u64.wrapping_sub(opaque(u64::from(LIMIT).wrapping_sub(u64::from(pos) + 1)) >> 63) as u32;
        set!(self.mode = get!(self.mode) & !full | u32::from(FULL) & full);
    }

    /// Dollar quotes and comments.
    #[inline(always)]
    fn act(&mut self, action: u32, byte: u8) {
        match action {
            DO_TAG_FIRST => set!(self.running = hash(BASIS, byte)),
            DO_TAG_ADD => set!(self.running = hash(get!(self.running), byte)),
            DO_TAG_BEGIN => set!(self.running = BASIS),
            DO_TAG_KEEP => set!(self.tag = get!(self.running)),
            DO_TAG_EMPTY => set!(self.tag = BASIS),
            DO_TAG_COMPARE => {
                if get!(self.running) == get!(self.tag) {
                    set!(self.mode = u32::from(BETWEEN));
                }
                // Else this dollar may begin the closing tag.
                set!(self.running = BASIS);
            }
            DO_COMMENT_BEGIN => set!(self.depth = 1),
            DO_COMMENT_DEEPER => set!(self.depth = get!(self.depth) + 1),
            DO_COMMENT_END => {
                let depth = get!(self.depth) - 1;
                set!(self.depth = depth);
                if depth == 0 {
                    set!(self.mode = u32::from(BETWEEN));
                }
            }
            _ => {}
        }
    }

    /// How much of the text counts: not its last semicolon, and of a statement that was not read to its end only what
    /// stands before its first literal.
    #[inline(always)]
    pub fn counting(&self) -> usize {
        let pos = get!(self.pos);
        let literal = get!(self.first_literal);
        if self.is_cut() && literal != 0 {
            return literal as usize - 1;
        }
        let at = opaque(u64::from(pos).wrapping_sub(1)) & (TEXT as u64 - 1);
        // SAFETY: masked below the text's length.
        let last = unsafe { *self.text.as_ptr().add(at as usize) };
        (pos - u32::from(pos != 0 && last == b';')) as usize
    }

    /// The length of the text so far.
    #[inline(always)]
    pub fn written(&self) -> usize {
        get!(self.pos) as usize
    }

    /// The text's eight bytes number `i` (modulo its length), those from `len` on as zero.
    #[inline(always)]
    #[expect(clippy::cast_ptr_alignment, reason = "the struct is aligned to eight, and the text comes first")]
    pub fn masked_word(&self, i: usize, len: usize) -> u64 {
        let at = opaque(i as u64) & (TEXT as u64 / 8 - 1);
        // SAFETY: masked below the text's length; aligned to eight.
        let word = u64::from_le(unsafe { *self.text.as_ptr().cast::<u64>().add(at as usize) });
        // Between 0 and 8 without a branch, which would double the paths of a loop that copies.
        let left = opaque((len as u64).wrapping_sub(8 * i as u64));
        let negative = opaque(left >> 63).wrapping_neg();
        let many = opaque(7_u64.wrapping_sub(left & !negative) >> 63).wrapping_neg();
        let kept = (left & !negative & !many | 8 & many) & 15;
        // SAFETY: masked to the table's sixteen entries.
        word & unsafe { *KEPT.as_ptr().add(opaque(kept) as usize & 15) }
    }

    /// The fingerprint of the text; never [`OTHER`].
    #[inline(always)]
    pub fn fingerprint(&self) -> u64 {
        let len = self.counting();
        let mut hash = BASIS;
        let mut i = 0;
        loop {
            let more = 8 * i < len;
            if more {
                hash = (hash.rotate_left(23) ^ self.masked_word(i, len)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            }
            i += 1;
            if !more || i >= TEXT / 8 {
                break;
            }
        }
        let hash = mix(hash);
        hash | u64::from(hash == OTHER)
    }

    /// The text; for user space and tests.
    pub fn text(&self) -> &[u8] {
        self.text.get(..self.written()).unwrap_or_default()
    }
}

#[inline(always)]
const fn hash(hash: u64, byte: u8) -> u64 {
    (hash ^ byte as u64).wrapping_mul(PRIME)
}

/// In lower case where the transition says so.
#[inline(always)]
const fn fold(byte: u8, transition: u32) -> u8 {
    let upper = byte.wrapping_sub(b'A') < 26 && transition & FOLD != 0;
    byte + ((upper as u8) << 5)
}

/// Adds a byte to the hash of a name: a prepared statement's or a portal's. Starts at [`NAME`].
#[inline(always)]
pub const fn name(so_far: u64, byte: u8) -> u64 {
    hash(so_far, byte)
}

/// The hash of the empty name.
pub const NAME: u64 = BASIS;

/// Whether a text of this length is all that there was room for.
#[must_use]
pub const fn is_full(len: usize) -> bool {
    len >= LIMIT as usize
}

/// Reads a whole statement.
pub fn read(statement: &[u8]) -> Statement {
    let mut reader = Statement::new();
    // The byte that ends a statement on the wire, and its last word.
    for &byte in statement.iter().take_while(|&&byte| byte != 0).chain(&[0]) {
        if reader.wants() == 0 {
            break;
        }
        if !reader.read(byte) {
            reader.read(byte);
        }
    }
    reader
}

/// The same for MySQL.
pub fn read_mysql(statement: &[u8]) -> Statement {
    let mut reader = Statement::new();
    for &byte in statement.iter().chain(&[0]) {
        if reader.wants() == 0 {
            break;
        }
        if !reader.read_mysql(byte) {
            reader.read_mysql(byte);
        }
    }
    reader
}

#[cfg(test)]
mod tests;
