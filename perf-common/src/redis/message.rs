//! RESP, the language of both directions: a type, a number or a line, and what that many bytes or elements are.
//!
//! A request is an array of strings whose first one is the verb, or a line. All that has to be kept of something cut is a
//! number, how many bytes and elements are still to come, and the bytes of a cut verb.

mod pass;

use super::verb::OTHER;
pub use pass::Pass;

/// A type comes.
pub const HEAD: u8 = 0;
/// Bytes of a string count for nothing.
pub const BODY: u8 = 1;
/// In the number behind a type.
pub const NUMBER: u8 = 2;
/// In a string that is looked at: the verb, or an option.
pub const TEXT: u8 = 3;
/// In the first word of a request without an array.
pub const INLINE: u8 = 4;
/// In the rest of it.
pub const REST: u8 = 5;
/// In a reply that is a line.
pub const LINE: u8 = 6;

/// What a pass over a block stopped at: nothing, or what cannot be.
pub const NOTHING: u8 = 0;
pub const BAD: u8 = 1;

/// In [`Half::flags`]: the reply's own type was read; it is an error; it is a push, which answers nothing.
const TOP: u8 = 1;
const FAILED: u8 = 2;
const PUSH: u8 = 4;
/// Arguments may change the verb.
const SCAN: u8 = 8;
/// Of the number or line being read: it is below zero; its carriage return is there; a digit is.
const NEGATIVE: u8 = 16;
const RETURN: u8 = 32;
const DIGIT: u8 = 64;

/// A type is one of these in the low three bits; 0 is none.
const SIMPLE: u8 = 1;
const STRING: u8 = 2;
const ARRAY: u8 = 3;
const MAP: u8 = 4;
/// A map that stands before a reply.
const ATTRIBUTE: u8 = 5;
const TYPE: u8 = 7;
/// It says that the reply is an error, or none at all, or that the connection speaks RESP3.
const IS_ERROR: u8 = 8;
const IS_PUSH: u8 = 16;
const IS_NEW: u8 = 32;

static TYPES: [u8; 256] = {
    let mut table = [0; 256];
    table[b'+' as usize] = SIMPLE;
    table[b'-' as usize] = SIMPLE | IS_ERROR;
    table[b':' as usize] = SIMPLE;
    table[b'$' as usize] = STRING;
    table[b'*' as usize] = ARRAY;
    table[b'_' as usize] = SIMPLE | IS_NEW;
    table[b'#' as usize] = SIMPLE | IS_NEW;
    table[b',' as usize] = SIMPLE | IS_NEW;
    table[b'(' as usize] = SIMPLE | IS_NEW;
    table[b'!' as usize] = STRING | IS_ERROR | IS_NEW;
    table[b'=' as usize] = STRING | IS_NEW;
    table[b'%' as usize] = MAP | IS_NEW;
    table[b'~' as usize] = ARRAY | IS_NEW;
    table[b'>' as usize] = ARRAY | IS_PUSH | IS_NEW;
    table[b'|' as usize] = ATTRIBUTE | IS_NEW;
    table
};

#[inline(always)]
fn type_of(byte: u8) -> u8 {
    // SAFETY: a u8 cannot exceed the table's 256 entries.
    unsafe { *TYPES.as_ptr().add(byte as usize) }
}

/// The largest length or number of elements: twice what the server's own limit of a string is.
const LARGEST: u32 = 0x3fff_ffff;
/// How many elements may be open at once.
const MOST_OPEN: u32 = 0x7fff_ffff;
/// How far one direction of a connection is read.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Half {
    /// Bytes of a string still to come, with the end of its line.
    pub left: u32,
    /// Elements still to come of what is being read; 0 between requests or replies.
    pub open: u32,
    /// The number being read, or the length of a string that is looked at, or how much of an inline verb is there.
    pub number: u32,
    /// Arguments of the request that are there.
    pub index: u32,
    /// [`HEAD`], [`BODY`], …
    pub phase: u8,
    /// The type being read.
    pub kind: u8,
    /// Of the request being read.
    pub verb: u8,
    pub flags: u8,
}

crate::pod!(Half: 20);

impl Half {
    pub const EMPTY: Self =
        Self { left: 0, open: 0, number: 0, index: 0, phase: HEAD, kind: 0, verb: 0, flags: 0 };

    /// Whether nothing was begun that has not ended.
    #[inline(always)]
    pub const fn is_between(&self) -> bool {
        self.phase == HEAD && self.open == 0
    }

    /// Passes over the string being read, whose bytes nobody has to look at.
    #[inline(always)]
    pub fn pass_over(&mut self, rest: u32, is_request: bool) -> Found {
        let mut found = Found::EMPTY;
        found.consumed = if self.left < rest { self.left } else { rest };
        self.left -= found.consumed;
        if self.left == 0 {
            self.end_element(&mut found, is_request);
        }
        found
    }

    /// An element came to its end, and with it perhaps the request or reply.
    #[inline(always)]
    fn end_element(&mut self, found: &mut Found, is_request: bool) {
        self.phase = HEAD;
        self.open = self.open.wrapping_sub(1);
        self.index = self.index.wrapping_add(1);
        if self.open == 0 && (is_request || self.flags & PUSH == 0) {
            found.count = 1;
            found.verb = self.verb;
            found.failed = u8::from(self.flags & FAILED != 0);
        }
    }

    /// Begins a reply's next element of this type, which has so many of its own; `false` if that cannot be.
    #[inline(always)]
    fn begin_element(&mut self, kind: u8, children: u32) -> bool {
        if self.open == 0 {
            self.open = 1;
            self.flags = 0;
        }
        let before = kind & TYPE == ATTRIBUTE;
        if self.flags & TOP == 0 && self.open == 1 && !before {
            self.flags = TOP
                | if kind & IS_ERROR != 0 { FAILED } else { 0 }
                | if kind & IS_PUSH != 0 { PUSH } else { 0 };
        }
        // One of them is this one, unless another one follows it in its place.
        self.open += children + u32::from(before);
        self.open <= MOST_OPEN
    }
}

/// What one pass over a block found.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Bytes done with; may reach beyond the block.
    pub consumed: u32,
    /// So many requests of one verb, or replies with one outcome, came to their end.
    pub count: u32,
    pub verb: u8,
    pub failed: u8,
    /// [`BAD`] stands behind everything else that was found.
    pub event: u8,
    /// 1 where a reply is of a kind that only RESP3 has.
    pub is_new: u8,
    pub pad: u32,
}

impl Found {
    pub const EMPTY: Self =
        Self { consumed: 0, count: 0, verb: OTHER, failed: 0, event: NOTHING, is_new: 0, pad: 0 };
}

#[inline(always)]
pub const fn is_letter(byte: u8) -> bool {
    (byte | 32).wrapping_sub(b'a') < 26
}
