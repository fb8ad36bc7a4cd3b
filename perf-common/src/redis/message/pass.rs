//! One pass over a block: whole lines fast, cut ones in parts.

use super::{
    ARRAY, ATTRIBUTE, BAD, BODY, DIGIT, FAILED, Found, HEAD, Half, INLINE, IS_NEW, LARGEST, LINE, MAP,
    NEGATIVE, NUMBER, PUSH, REST, RETURN, SCAN, SIMPLE, STRING, TEXT, TYPE, is_letter, type_of,
};
use crate::block::Block;
use crate::bytes::{find, first};
use crate::redis::verb::{self, LONGEST, OPTIONS, OTHER, STREAMS, SUBSCRIBES, Text};

/// How many elements one pass looks at, and how many bytes or words of something cut: what the verifier walks through.
const STRINGS: u32 = 32;
const ELEMENTS: u32 = 48;
const DIGITS: u32 = 24;
const WORDS: u32 = 64;

/// One pass over a block: what goes in, what comes out.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Pass {
    pub text: Text,
    pub half: Half,
    pub out: Found,
    /// Where in the block the pass stands and where the block ends; how far the call reaches from the block's start.
    pub pos: u32,
    pub len: u32,
    pub reach: u32,
    pub pad: u32,
}

/// A type and its number, where both stand in the first bytes of a line.
struct Line {
    /// With the end of the line.
    size: u32,
    value: u32,
    /// Whether it is all there and makes sense.
    good: bool,
    /// There is nothing: `-1`.
    null: bool,
}

impl Line {
    /// Reads it from the eight bytes at its beginning, whose first carriage return is byte `end`.
    #[inline(always)]
    const fn read(head: u64, end: u32) -> Self {
        let null = head >> 8 & 0xffff == u16::from_le_bytes(*b"-1") as u64 && end == 3;
        let digits = end.wrapping_sub(1) & 7;
        // The last digit in the top byte, zeros before the first.
        let shift = (64 - 8 * digits) & 63;
        let value = (head >> 8 << shift) ^ (0x3030_3030_3030_3030 << shift);
        let good =
            (value.wrapping_add(0x7676_7676_7676_7676) | value) & 0x8080_8080_8080_8080 == 0 && end >= 2;
        let pairs = value.wrapping_mul(10).wrapping_add(value >> 8);
        let low = (pairs & 0xff_0000_00ff).wrapping_mul(0x000f_4240_0000_0064);
        let high = (pairs >> 16 & 0xff_0000_00ff).wrapping_mul(0x0000_2710_0000_0001);
        let number = (low.wrapping_add(high) >> 32) as u32;
        Self { size: end + 2, value: if null { 0 } else { number }, good: good && end <= 8 || null, null }
    }
}

impl Pass {
    pub const EMPTY: Self =
        Self { text: [0; 3], half: Half::EMPTY, out: Found::EMPTY, pos: 0, len: 0, reach: 0, pad: 0 };

    /// Sets up a pass from where the block's position is.
    #[inline(always)]
    pub fn prepare(&mut self, half: &Half, text: &Text) {
        self.half = *half;
        self.text = *text;
        self.out = Found::EMPTY;
    }

    /// All stages in a row; the half is in no [`BODY`].
    pub fn run(&mut self, block: &Block, is_request: bool) {
        let from = self.pos;
        if self.half.phase == HEAD {
            if is_request {
                self.requests(block);
            } else {
                self.replies(block);
            }
            if self.is_stuck() {
                self.begin(block, is_request);
            }
        }
        match self.half.phase {
            NUMBER => self.number(block, is_request),
            TEXT => self.text(block),
            INLINE => self.inline(block),
            REST | LINE => self.line(block, is_request),
            _ => {}
        }
        self.out.consumed = self.pos - from;
    }

    /// Whether something stands at the position that is to be read in parts.
    #[inline(always)]
    pub fn is_stuck(&self) -> bool {
        self.out.count == 0 && self.pos < self.len && self.half.phase == HEAD
    }

    /// Requests whose lines are whole, up to one that is not or that has another verb than those before it.
    #[inline(always)]
    pub fn requests(&mut self, block: &Block) {
        let (len, reach) = (self.len, self.reach);
        let Half { mut open, mut index, mut verb, mut flags, .. } = self.half;
        let mut pos = self.pos;
        let mut run = OTHER;
        let mut count = 0;
        let mut turns = 0;
        loop {
            let head = block.word(pos);
            let mark = find(head, b'\r');
            let end = if mark == 0 { 8 } else { first(mark) as u32 };
            let line = Line::read(head, end);
            let kind = (head & 255) as u8;
            let there = len.wrapping_sub(pos);
            let mut go = pos < len
                && line.good
                && !line.null
                && end < 7
                && line.size <= there
                && (head >> ((8 * (end & 7) + 8) & 63)) & 255 == u64::from(b'\n');
            let mut stop = false;
            if kind == b'*' && open == 0 {
                if go {
                    pos += line.size;
                    open = line.value;
                    index = 0;
                }
            } else if kind == b'$' && open != 0 {
                let at = pos.wrapping_add(line.size);
                let size = line.size.wrapping_add(line.value).wrapping_add(2);
                let mut this = verb;
                if index == 0 {
                    this = if line.value <= LONGEST { verb::read(block, at, line.value) } else { OTHER };
                    flags = if verb::class(this) & OPTIONS != 0 { SCAN } else { 0 };
                    // The name itself has to be there.
                    go = go && (line.value > LONGEST || size <= there);
                } else {
                    go = go && flags & SCAN == 0;
                }
                let last = open == 1;
                go = go && size <= reach.wrapping_sub(pos) && !(last && count != 0 && this != run);
                if go {
                    pos += size;
                    open -= 1;
                    index = index.wrapping_add(1);
                    verb = this;
                    if last {
                        run = this;
                        count += 1;
                        stop = verb::class(this) & (SUBSCRIBES | STREAMS) != 0;
                    }
                } else if index == 0 {
                    flags = 0;
                }
            } else {
                go = false;
            }
            pos = block.forget(u64::from(pos)) as u32;
            open = block.forget(u64::from(open)) as u32;
            index = block.forget(u64::from(index)) as u32;
            count = block.forget(u64::from(count)) as u32;
            verb = block.forget(u64::from(verb)) as u8;
            run = block.forget(u64::from(run)) as u8;
            flags = block.forget(u64::from(flags)) as u8;
            turns += 1;
            if !go || stop || turns >= STRINGS {
                break;
            }
        }
        self.half.open = open;
        self.half.index = index;
        self.half.verb = verb;
        self.half.flags = flags;
        self.pos = pos;
        self.out.count = count;
        self.out.verb = run;
    }

    /// Replies whose lines are whole, up to one that is not or that has another outcome than those before it.
    #[inline(always)]
    pub fn replies(&mut self, block: &Block) {
        let (len, reach) = (self.len, self.reach);
        let mut half = self.half;
        let mut pos = self.pos;
        let mut failed = 0;
        let mut count = 0;
        let mut is_new = 0;
        let mut turns = 0;
        loop {
            let head = block.word(pos);
            let mark = find(head, b'\r');
            let end = if mark != 0 {
                first(mark) as u32
            } else {
                let mark = find(block.word(pos.wrapping_add(8)), b'\r');
                if mark == 0 { 16 } else { 8 + first(mark) as u32 }
            };
            let kind = type_of((head & 255) as u8);
            let shape = kind & TYPE;
            let line = Line::read(head, end);
            let there = len.wrapping_sub(pos);
            let whole = pos < len
                && end < 16
                && line.size <= there
                && block.byte(pos.wrapping_add(end).wrapping_add(1)) == b'\n';
            let mut size = line.size;
            let mut children = 0;
            if shape == STRING && !line.null {
                size = size.wrapping_add(line.value).wrapping_add(2);
            } else if shape == ARRAY {
                children = line.value;
            } else if shape >= MAP {
                children = line.value.wrapping_mul(2);
            }
            let mut next = half;
            let fits = next.begin_element(kind, children);
            next.open = next.open.wrapping_sub(1);
            let answers = next.open == 0 && next.flags & PUSH == 0;
            let is_error = u8::from(next.flags & FAILED != 0);
            let go = whole
                && kind != 0
                && (line.good || shape == SIMPLE)
                && size <= reach.wrapping_sub(pos)
                && fits
                && !(answers && count != 0 && is_error != failed);
            if go {
                half.open = next.open;
                half.flags = next.flags;
                pos += size;
                is_new |= kind & IS_NEW;
                if answers {
                    count += 1;
                    failed = is_error;
                }
            }
            pos = block.forget(u64::from(pos)) as u32;
            half.open = block.forget(u64::from(half.open)) as u32;
            half.flags = block.forget(u64::from(half.flags)) as u8;
            count = block.forget(u64::from(count)) as u32;
            failed = block.forget(u64::from(failed)) as u8;
            turns += 1;
            if !go || turns >= ELEMENTS {
                break;
            }
        }
        self.half.open = half.open;
        self.half.flags = half.flags;
        self.pos = pos;
        self.out.count = count;
        self.out.failed = failed;
        self.out.is_new = is_new;
    }

    /// Takes the type that something begins with, to read on in parts.
    #[inline(always)]
    pub fn begin(&mut self, block: &Block, is_request: bool) {
        let byte = block.byte(self.pos);
        self.half.kind = byte;
        self.half.number = 0;
        self.half.flags &= !(NEGATIVE | RETURN | DIGIT);
        if !is_request {
            let kind = type_of(byte);
            if kind == 0 {
                self.out.event = BAD;
                return;
            }
            self.out.is_new |= kind & IS_NEW;
            self.half.phase = if kind & TYPE == SIMPLE { LINE } else { NUMBER };
            if kind & TYPE == SIMPLE && !self.half.begin_element(kind, 0) {
                self.out.event = BAD;
            }
            self.pos += 1;
            return;
        }
        let between = self.half.open == 0;
        if byte == if between { b'*' } else { b'$' } {
            self.half.phase = NUMBER;
            self.pos += 1;
        } else if between && is_letter(byte) {
            self.half.phase = INLINE;
            self.text = [0; 3];
        } else if between && (byte == b'\r' || byte == b'\n' || byte == b' ') {
            // An empty line asks for nothing; what stands before a verb says nothing.
            self.pos += 1;
        } else {
            self.out.event = BAD;
        }
    }

    /// Reads a number to the end of its line, or as much of it as is there.
    #[inline(always)]
    pub fn number(&mut self, block: &Block, is_request: bool) {
        let mut pos = self.pos;
        let mut flags = self.half.flags;
        let mut number = self.half.number;
        let mut bad = false;
        let mut ended = false;
        for _ in 0..DIGITS {
            if pos >= self.len {
                break;
            }
            let byte = block.byte(pos);
            let digit = byte.wrapping_sub(b'0');
            if flags & RETURN != 0 {
                ended = byte == b'\n' && flags & DIGIT != 0;
                bad = !ended;
            } else if byte == b'\r' {
                flags |= RETURN;
            } else if byte == b'-' && flags & (NEGATIVE | DIGIT) == 0 {
                flags |= NEGATIVE;
            } else if digit < 10 && number < LARGEST / 10 {
                number = number * 10 + u32::from(digit);
                flags |= DIGIT;
            } else {
                bad = true;
            }
            pos = block.forget(u64::from(pos) + 1) as u32;
            flags = block.forget(u64::from(flags)) as u8;
            number = block.forget(u64::from(number)) as u32;
            if bad || ended {
                break;
            }
        }
        self.pos = pos;
        self.half.flags = flags;
        self.half.number = number;
        if bad {
            self.out.event = BAD;
        } else if ended {
            self.end_number(is_request);
        }
    }

    /// What a number at the end of its line means.
    #[inline(always)]
    fn end_number(&mut self, is_request: bool) {
        let null = self.half.flags & NEGATIVE != 0;
        let value = if null { 0 } else { self.half.number };
        self.half.phase = HEAD;
        if is_request {
            if self.half.kind == b'*' {
                self.half.open = value;
                self.half.index = 0;
                return;
            }
            if null {
                self.out.event = BAD;
                return;
            }
            self.half.left = value + 2;
            let named = self.half.index == 0;
            if named {
                self.half.verb = OTHER;
                self.half.flags = 0;
            }
            if value <= LONGEST && (named || self.half.flags & SCAN != 0) {
                self.text = [0; 3];
                self.half.number = value;
                self.half.phase = TEXT;
            } else {
                self.half.phase = BODY;
            }
            return;
        }
        let kind = type_of(self.half.kind);
        let shape = kind & TYPE;
        let children = match shape {
            ARRAY => value,
            MAP | ATTRIBUTE => value * 2,
            _ => 0,
        };
        if !self.half.begin_element(kind, children) {
            self.out.event = BAD;
        } else if shape == STRING && !null {
            self.half.left = value + 2;
            self.half.phase = BODY;
        } else {
            self.half.end_element(&mut self.out, false);
        }
    }

    /// Adds a byte to the text, as number `at`.
    #[inline(always)]
    fn add(&mut self, at: u32, byte: u8) {
        let bits = u64::from(byte) << (8 * (at & 7));
        let first = if at < 8 { bits } else { 0 };
        let second = if at >> 3 == 1 { bits } else { 0 };
        let third = if at >> 3 == 2 { bits } else { 0 };
        self.text = [self.text[0] | first, self.text[1] | second, self.text[2] | third];
    }

    /// Reads the verb or an option to its end, or as much of it as is there.
    #[inline(always)]
    pub fn text(&mut self, block: &Block) {
        let mut pos = self.pos;
        for _ in 0..LONGEST + 2 {
            if pos >= self.len || self.half.left == 0 {
                break;
            }
            let at = (self.half.number + 2).wrapping_sub(self.half.left);
            if self.half.left > 2 {
                self.add(at, block.byte(pos));
            }
            self.half.left -= 1;
            pos = block.forget(u64::from(pos) + 1) as u32;
        }
        self.pos = pos;
        if self.half.left != 0 {
            return;
        }
        if self.half.index == 0 {
            self.half.verb = verb::find(self.text);
            self.half.flags = if verb::class(self.half.verb) & OPTIONS != 0 { SCAN } else { 0 };
        } else {
            let (verb, more) = verb::option(self.half.verb, self.half.index, self.text);
            self.half.verb = verb;
            if !more {
                self.half.flags &= !SCAN;
            }
        }
        self.half.end_element(&mut self.out, true);
    }

    /// Reads the first word of an inline request to its end, or as much of it as is there.
    #[inline(always)]
    pub fn inline(&mut self, block: &Block) {
        let mut pos = self.pos;
        let mut have = self.half.number;
        let mut ended = false;
        for _ in 0..LONGEST {
            if pos >= self.len {
                break;
            }
            let byte = block.byte(pos);
            ended = byte <= b' ';
            if ended {
                break;
            }
            self.add(have, byte);
            have = block.forget(u64::from(have + u32::from(have < 32))) as u32;
            pos = block.forget(u64::from(pos) + 1) as u32;
        }
        self.pos = pos;
        self.half.number = have;
        if ended {
            self.half.phase = REST;
            self.half.verb = if have <= LONGEST { verb::find(self.text) } else { OTHER };
            self.half.open = 1;
        }
    }

    /// Passes over a line to its end, or over as much of it as is there.
    #[inline(always)]
    pub fn line(&mut self, block: &Block, is_request: bool) {
        let (from, len) = (self.pos, self.len);
        let mut pos = from;
        let mut ended = false;
        let mut turns = 0;
        loop {
            let mark = find(block.word(pos), b'\n');
            let at = pos + if mark == 0 { 8 } else { first(mark) as u32 };
            if mark != 0 && at < len {
                let returned = if at == from {
                    self.half.flags & RETURN != 0
                } else {
                    block.byte(at.wrapping_sub(1)) == b'\r'
                };
                ended = is_request || returned;
                pos = at + 1;
            } else {
                pos = if at < len { at } else { len };
            }
            pos = block.forget(u64::from(pos)) as u32;
            turns += 1;
            if ended || pos >= len || turns >= WORDS {
                break;
            }
        }
        self.pos = pos;
        self.half.flags &= !RETURN;
        if pos != from && block.byte(pos.wrapping_sub(1)) == b'\r' {
            self.half.flags |= RETURN;
        }
        if ended {
            self.half.end_element(&mut self.out, is_request);
        }
    }
}
