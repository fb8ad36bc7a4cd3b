//! The lines of a head: where they end, and the two of them that frame a message.

use crate::bytes::{Place, SLACK, Window, find, first, low, lower, may_hold, text};

/// Steps per pass, each to the end of a line or [`SLACK`] bytes along it; what is left over is read in the next pass.
const STEPS: usize = 32;

/// Where the scan for lines stands, and what it found. Flags in one number, so that one [`Window::forget`] covers them.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Scan {
    pub(super) pos: u64,
    /// Behind the last line end; 0 before the first.
    pub(super) line_start: u64,
    /// Where the value of a `Content-Length` begins; 0 for none.
    pub(super) length_at: u64,
    pub(super) flags: u64,
}

/// In a request or status line, whose end is not found yet.
pub(super) const IN_FIRST_LINE: u64 = 1;
pub(super) const AT_LINE_START: u64 = 2;
/// The current line is a `Content-Length`.
const LENGTH: u64 = 4;
/// The current line is a `Transfer-Encoding`.
const TRANSFER: u64 = 8;
/// The empty line was found; `pos` is behind it.
pub(super) const EMPTY_LINE: u64 = 16;
/// The last `Transfer-Encoding` ended in `chunked`.
pub(super) const SAW_CHUNKED: u64 = 32;
pub(super) const BAD_VERSION: u64 = 64;
pub(super) const IS_REQUEST: u64 = 128;
pub(super) const IN_TRAILERS: u64 = 256;
/// There was a request or status line to find the end of.
pub(super) const WAS_FIRST_LINE: u64 = 512;
/// What a new line does not change.
const KEPT: u64 = SAW_CHUNKED | IS_REQUEST | IN_TRAILERS | WAS_FIRST_LINE;

impl Scan {
    #[inline(always)]
    pub(super) const fn is(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }
}

#[inline(always)]
pub(super) fn scan_lines(scan: &mut Scan, window: &Window, len: usize) {
    let mut flags = scan.flags;
    let mut at = scan.pos as usize;
    let mut line_start = scan.line_start as usize;
    let mut length_at = scan.length_at as usize;
    // Tested at its end and with one way back: kernels before 6.3 accept a loop's back edge only as a jump, and this shape
    // is what makes the compiler write one.
    let mut steps = 0;
    loop {
        if flags & AT_LINE_START != 0 {
            let word = window.word(at);
            let mut empty = 0;
            if word & low(2) == text(b"\r\n") {
                empty = 2;
            } else if word & low(1) == text(b"\n") {
                empty = 1;
            }
            if empty != 0 && at + empty <= len {
                at += empty;
                flags |= EMPTY_LINE;
                break;
            }
            flags = window.forget((flags | header(window, at, word)) & !AT_LINE_START);
        }
        // One number for both answers, so that the ways out of the search are one way again.
        let found = window.forget(line_end(window.from(at)) + 2 * at as u64);
        let end = (found >> 1) as usize;
        if end >= len {
            break;
        }
        if found & 1 != 0 {
            if flags & (IN_FIRST_LINE | LENGTH | TRANSFER) != 0 {
                let text_end = end - usize::from(window.byte(end.wrapping_sub(1)) == b'\r');
                if flags & IN_FIRST_LINE != 0 && flags & IS_REQUEST != 0 && !ends_in_version(window, text_end)
                {
                    flags |= BAD_VERSION;
                    break;
                }
                if flags & LENGTH != 0 {
                    length_at = line_start + 15;
                }
                if flags & TRANSFER != 0 {
                    flags &= !SAW_CHUNKED;
                    if lower(window.word(text_end.wrapping_sub(7))) & low(7) == text(b"chunked") {
                        flags |= SAW_CHUNKED;
                    }
                }
            }
            flags = flags & KEPT | AT_LINE_START;
            line_start = end + 1;
            at = line_start;
        } else {
            at = end;
        }
        flags = window.forget(flags);
        length_at = window.forget(length_at as u64) as usize;
        line_start = window.forget(line_start as u64) as usize;
        at = window.forget(at as u64) as usize;
        steps += 1;
        if steps == STEPS {
            break;
        }
    }
    *scan = Scan { pos: at as u64, line_start: line_start as u64, length_at: length_at as u64, flags };
}

/// Looks for a line end in the next [`SLACK`] bytes: how far ahead it is, times two, plus one; or, without one, how far ahead
/// to look on, times two.
#[inline(always)]
fn line_end(place: Place<'_>) -> u64 {
    // Written out, because one bound then serves eight loads.
    macro_rules! look {
        ($($offset:literal)*) => {$(
            let word = place.word::<$offset>();
            if may_hold(word, b'\n') {
                let newlines = find(word, b'\n');
                return if newlines == 0 { 2 * $offset + 16 } else { 2 * ($offset + first(newlines) as u64) + 1 };
            }
        )*};
    }
    look!(0 8 16 24 32 40 48 56);
    2 * SLACK as u64
}

/// Whether the line at `at` is one of the two headers that frame a message.
#[inline(always)]
fn header(window: &Window, at: usize, word: u64) -> u64 {
    let word = lower(word);
    if word == text(b"content-") && lower(window.word(at + 8)) & low(7) == text(b"length:") {
        return LENGTH;
    }
    if word == text(b"transfer")
        && lower(window.word(at + 8)) == text(b"-encodin")
        && lower(window.word(at + 16)) & low(2) == text(b"g:")
    {
        return TRANSFER;
    }
    0
}

/// Whether ` HTTP/1.x` stands before `end`.
#[inline(always)]
fn ends_in_version(window: &Window, end: usize) -> bool {
    end >= 14 && window.byte(end - 9) == b' ' && window.word(end - 8) & low(7) == text(b"HTTP/1.")
}
