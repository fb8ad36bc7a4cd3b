//! The grammar of an HTTP/1.x message over one window of bytes.
//!
//! A window begins where a line begins (or in the middle of one that is only passed over), and decisions are made on
//! whole lines. Newlines are found eight bytes at a time; only a path is read byte by byte, because it is hashed.

mod lines;
mod number;

use super::{Half, Method};
use crate::bytes::{WINDOW, Window, find, first, low, lower, meet, text, within};
use crate::route::{Path, Read, STEPS, Segments};
use lines::{
    AT_LINE_START, BAD_VERSION, EMPTY_LINE, IN_FIRST_LINE, IN_TRAILERS, IS_REQUEST, SAW_CHUNKED, Scan,
    WAS_FIRST_LINE, scan_lines,
};
use number::{CHUNK_LINE, chunk_line, decimal};

/// Where in a message one direction stands. The order matters: from [`State::FirstWithoutPayload`] on no payload is read.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A request or status line comes next.
    Start = 0,
    /// In a request or status line longer than the window.
    LineRest = 1,
    /// A header line or the empty line comes next.
    Headers = 2,
    /// In a header line longer than the window.
    HeaderRest = 3,
    /// A chunk's size comes next.
    Chunk = 4,
    /// A trailer line or the empty line comes next.
    Trailers = 5,
    TrailerRest = 6,
    /// The first state whose bytes are counted, not read: a body of known length.
    FirstWithoutPayload = 7,
    /// A chunk's bytes and the line end behind them.
    ChunkData = 8,
    /// A body that ends with the connection.
    UntilClose = 9,
    /// Framing was lost; it begins anew with the next request.
    Lost = 10,
}

const BODY: State = State::FirstWithoutPayload;

/// In [`Half::framing`]: `Transfer-Encoding` ended in `chunked`.
pub const CHUNKED: u8 = 1;
/// In [`Half::framing`]: there was a `Content-Length`, and it is in [`Half::remaining`].
pub const HAS_LENGTH: u8 = 2;

/// A request or status line was read; the fields of [`Parsed`] that describe it are valid.
pub const LINE: u8 = 1;
/// The head is complete.
pub const HEAD: u8 = 2;
/// The message is complete.
pub const DONE: u8 = 4;
/// What stood there is not HTTP/1, or its framing makes no sense.
pub const BAD: u8 = 8;
/// It is another protocol for sure: TLS, or HTTP/2 with prior knowledge.
pub const FOREIGN: u8 = 16;
/// A response stands where a request had to come.
pub const TURNED: u8 = 32;

/// The longest authority of an absolute-form target: 256 bytes, as a host name and a port can have.
const AUTHORITY_WORDS: usize = 32;
/// Lengths above this (an exbibyte) are taken for it, so that sums cannot overflow.
const MAX_LENGTH: u64 = 1 << 60;

/// What one pass over a window found.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Parsed {
    /// Bytes that are done with, counted from the window's start; may reach beyond the window into a body.
    /// 0: the window ends in a cut line.
    pub consumed: u32,
    /// [`LINE`], [`HEAD`], [`DONE`], [`BAD`], [`FOREIGN`].
    pub found: u8,
    pub method: u8,
    pub status: u16,
    pub route: u64,
    pub path_at: u32,
    pub path_len: u32,
}

impl Parsed {
    pub const EMPTY: Self =
        Self { consumed: 0, found: 0, method: 0, status: 0, route: 0, path_at: 0, path_len: 0 };
}

/// What passing over bytes without reading them did.
pub struct Skipped {
    pub bytes: u32,
    pub message_done: bool,
}

/// Passes over up to `rest` bytes in a state that needs no payload.
#[inline(always)]
pub fn skip(half: &mut Half, rest: u32) -> Skipped {
    if half.state >= State::UntilClose as u8 {
        return Skipped { bytes: rest, message_done: false };
    }
    let bytes = if half.remaining < u64::from(rest) { half.remaining as u32 } else { rest };
    half.remaining -= u64::from(bytes);
    if half.remaining != 0 {
        return Skipped { bytes, message_done: false };
    }
    let message_done = half.state == BODY as u8;
    half.state = if message_done { State::Start } else { State::Chunk } as u8;
    Skipped { bytes, message_done }
}

/// One pass over a window: what goes in, what comes out, and what the stages hand on.
///
/// What the stages share is in a map, where the verifier knows nothing of it: it walks through each stage once, and not once
/// for every way that leads there.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Pass {
    /// The direction's state, changed by the stages.
    pub half: Half,
    /// How many bytes of the window count, at most [`WINDOW`].
    pub len: u64,
    /// How many bytes of the stream there are in all, from the window's start: at least `len`.
    pub reach: u32,
    /// The method of the request that a response answers.
    pub answered: u32,
    pub out: Parsed,
    /// Those of the path that was read last.
    pub segments: Segments,
    scan: Scan,
}

impl Pass {
    pub const EMPTY: Self = Self {
        half: Half::EMPTY,
        len: 0,
        reach: 0,
        answered: 0,
        out: Parsed::EMPTY,
        segments: Segments::EMPTY,
        scan: Scan { pos: 0, line_start: 0, length_at: 0, flags: 0 },
    };

    /// Sets up a pass over `len` bytes.
    #[inline(always)]
    pub fn prepare(&mut self, half: &Half, is_request: bool, answered: u8, len: usize, reach: u32) {
        self.half = *half;
        self.len = len as u64;
        self.reach = reach;
        self.answered = u32::from(answered);
        self.out = Parsed::EMPTY;
        self.scan =
            Scan { pos: 0, line_start: 0, length_at: 0, flags: if is_request { IS_REQUEST } else { 0 } };
    }

    /// The whole pass.
    #[inline(always)]
    pub fn run(&mut self, window: &Window) {
        let more = self.begin(window);
        meet();
        if more {
            self.lines(window);
            meet();
            self.finish(window);
        }
    }

    /// First stage: a request line, or what else can come. Whether there is more to do in this pass.
    #[inline(always)]
    pub fn begin(&mut self, window: &Window) -> bool {
        if self.half.state == State::Start as u8 && self.scan.is(IS_REQUEST) {
            self.request(window)
        } else {
            self.other(window)
        }
    }

    /// Second stage: finds the lines of the head, or of what is there of it.
    #[inline(always)]
    pub fn lines(&mut self, window: &Window) {
        scan_lines(&mut self.scan, window, self.len as usize);
    }

    /// A request's method and path.
    #[inline(always)]
    fn request(&mut self, window: &Window) -> bool {
        let len = self.len as usize;
        let first = window.byte(0);
        if first == b'\n' || first == b'\r' {
            // Empty lines in front of a request are passed over (RFC 9112, 2.2).
            let size = if first == b'\n' { 1 } else { 2 };
            if len >= size {
                self.out.consumed = size as u32;
                if size == 2 && window.byte(1) != b'\n' {
                    self.bad();
                }
            }
            return false;
        }
        let begun = method(&mut self.out, window, len);
        let Begun::At(pos) = begun else { return self.begun(&begun) };
        let mut pos = window.forget(pos as u64) as usize;
        // Every compare with the length above has left another bound on it.
        let len = window.forget(len as u64) as usize;
        // A path, `*`, or an authority: of what remains only the absolute form has its path elsewhere.
        let target = window.byte(pos);
        if target != b'/' && target != b'*' && self.out.method != Method::Connect as u8 {
            let begun = authority_end(window, pos, len);
            let Begun::At(path) = begun else { return self.begun(&begun) };
            pos = window.forget(path as u64) as usize;
        }
        let begun = path(&mut self.out, &mut self.segments, window, pos, len);
        self.begun(&begun)
    }

    /// A status line, a chunk's size, or the middle of a head.
    #[inline(always)]
    fn other(&mut self, window: &Window) -> bool {
        let state = self.half.state;
        if state == State::Start as u8 {
            let begun = status_line(&mut self.out, window, self.len as usize);
            return self.begun(&begun);
        }
        if state == State::Chunk as u8 {
            return self.chunk(window);
        }
        if state == State::Headers as u8 {
            self.scan.flags |= AT_LINE_START;
        } else if state == State::Trailers as u8 {
            self.scan.flags |= AT_LINE_START | IN_TRAILERS;
        } else if state == State::TrailerRest as u8 {
            self.scan.flags |= IN_TRAILERS;
        }
        true
    }

    #[inline(always)]
    fn begun(&mut self, begun: &Begun) -> bool {
        match *begun {
            Begun::At(pos) => {
                self.scan.pos = pos as u64;
                self.scan.flags |= IN_FIRST_LINE | WAS_FIRST_LINE;
                true
            }
            Begun::Cut => false,
            Begun::Bad => self.bad(),
        }
    }

    #[inline(always)]
    fn bad(&mut self) -> bool {
        self.out.found |= BAD;
        self.out.consumed = self.reach;
        false
    }

    #[inline(always)]
    fn chunk(&mut self, window: &Window) -> bool {
        let (size, pos) = chunk_line(window, self.len as usize);
        if pos == 0 {
            return self.len >= CHUNK_LINE as u64 && self.bad();
        }
        if size != 0 {
            self.half.remaining = size + 2;
            self.half.state = State::ChunkData as u8;
            self.out.consumed = pos as u32 + skip(&mut self.half, self.reach - pos as u32).bytes;
            return false;
        }
        self.half.state = State::Trailers as u8;
        self.scan.pos = pos as u64;
        self.scan.line_start = pos as u64;
        self.scan.flags |= AT_LINE_START | IN_TRAILERS;
        true
    }

    /// Last stage: what the head means for the body.
    #[inline(always)]
    pub fn finish(&mut self, window: &Window) {
        let Self { half, len, reach, answered, out, segments: _, scan } = self;
        if scan.is(BAD_VERSION) {
            out.found |= BAD;
            out.consumed = *reach;
            return;
        }
        if scan.is(WAS_FIRST_LINE) && !(scan.is(IN_FIRST_LINE) && *len < WINDOW as u64) {
            out.found |= LINE;
            half.framing = 0;
            half.remaining = 0;
            half.status = u32::from(out.status);
        }
        if !scan.is(IN_TRAILERS) {
            if scan.is(SAW_CHUNKED) {
                half.framing |= CHUNKED;
            }
            if scan.length_at != 0 {
                half.remaining = decimal(window, scan.length_at as usize);
                half.framing |= HAS_LENGTH;
            }
        }
        if !scan.is(EMPTY_LINE) {
            return cut(half, out, scan, *len);
        }
        out.consumed = scan.pos as u32;
        if scan.is(IN_TRAILERS) {
            half.state = State::Start as u8;
            out.found |= DONE;
        } else {
            out.found |= HEAD;
            body(half, out, scan.is(IS_REQUEST), *answered as u8, *reach);
        }
    }
}

/// The window ended before the head did: decides what is done with and where to go on.
#[inline(always)]
fn cut(half: &mut Half, out: &mut Parsed, scan: &Scan, len: u64) {
    let (at_line, in_line) = if scan.is(IN_TRAILERS) {
        (State::Trailers, State::TrailerRest)
    } else {
        (State::Headers, State::HeaderRest)
    };
    if scan.line_start != 0 {
        half.state = at_line as u8;
        out.consumed = scan.line_start as u32;
    } else if scan.is(IN_FIRST_LINE) {
        // A full window without a line end: the query or the reason phrase is long, what counts has been read.
        if len >= WINDOW as u64 {
            half.state = State::LineRest as u8;
            out.consumed = len as u32;
        }
    } else if half.state != at_line as u8 {
        out.consumed = len as u32;
    } else if len >= WINDOW as u64 {
        half.state = in_line as u8;
        out.consumed = len as u32;
    }
}

/// The head is complete: how the message goes on (RFC 9112, 6.3).
#[inline(always)]
fn body(half: &mut Half, out: &mut Parsed, is_request: bool, answered: u8, reach: u32) {
    let chunked = half.framing & CHUNKED != 0;
    let mut has_length = half.framing & HAS_LENGTH != 0;
    let mut has_body = chunked || has_length;
    if !is_request {
        let status = half.status as u16;
        if status / 100 == 1 && status != 101 {
            // An interim response: the real one follows.
            half.state = State::Start as u8;
            return;
        }
        let tunnel = answered == Method::Connect as u8 && status / 100 == 2;
        if answered == Method::Head as u8 || status == 204 || status == 304 || status == 101 || tunnel {
            has_body = false;
        } else if !has_body {
            half.state = State::UntilClose as u8;
            out.consumed = reach;
            return;
        }
    }
    if has_body && chunked {
        half.state = State::Chunk as u8;
        return;
    }
    if has_body && half.remaining >= MAX_LENGTH {
        // No number that makes sense.
        half.state = if is_request { State::Lost } else { State::UntilClose } as u8;
        out.consumed = reach;
        return;
    }
    has_length &= has_body && half.remaining != 0;
    if has_length {
        half.state = BODY as u8;
        let skipped = skip(half, reach - out.consumed);
        out.consumed += skipped.bytes;
        if !skipped.message_done {
            return;
        }
    }
    half.state = State::Start as u8;
    out.found |= DONE;
}

enum Begun {
    /// The line is understood up to here.
    At(usize),
    /// More bytes are needed to tell.
    Cut,
    Bad,
}

/// The method of a request line, up to where its path begins.
#[inline(always)]
fn method(out: &mut Parsed, window: &Window, len: usize) -> Begun {
    let word = window.word(0);
    let (method, pos) = if word & low(4) == text(b"GET ") {
        (Method::Get, 4)
    } else if word & low(5) == text(b"POST ") {
        (Method::Post, 5)
    } else if word & low(4) == text(b"PUT ") {
        (Method::Put, 4)
    } else if word & low(5) == text(b"HEAD ") {
        (Method::Head, 5)
    } else if word & low(7) == text(b"DELETE ") {
        (Method::Delete, 7)
    } else if word & low(6) == text(b"PATCH ") {
        (Method::Patch, 6)
    } else if word == text(b"OPTIONS ") {
        (Method::Options, 8)
    } else if word == text(b"CONNECT ") {
        (Method::Connect, 8)
    } else if word & low(6) == text(b"TRACE ") {
        (Method::Trace, 6)
    } else {
        if len >= 3 && crate::l7::is_tls(word) || len >= 8 && word == text(b"PRI * HT") {
            out.found |= FOREIGN;
            return Begun::Bad;
        }
        if len >= 8 && word & low(7) == text(b"HTTP/1.") {
            out.found |= TURNED;
            return Begun::Bad;
        }
        match other_method(window, len) {
            Begun::At(pos) => (Method::Other, pos),
            cut_or_bad => return cut_or_bad,
        }
    };
    if pos >= len {
        // What stands behind the length took part in the comparison: wait and look again.
        return if other_method_prefix(window, len) { Begun::Cut } else { Begun::Bad };
    }
    out.method = method as u8;
    Begun::At(pos)
}

/// The path of a request line, from `from` on. The version is checked where the line ends.
#[inline(always)]
fn path(out: &mut Parsed, segments: &mut Segments, window: &Window, from: usize, len: usize) -> Begun {
    let mut pos = from;
    let mut path = Path::start(window.forget(0), segments);
    let mut ended = false;
    let mut steps = 0;
    loop {
        let left = len.wrapping_sub(pos) as u64;
        if pos >= len {
            break;
        }
        // What lies behind the window's end reads as zeros, which end a path.
        let word = window.word(pos) & within(if left < 8 { left } else { 8 }, 0);
        let inside = path.segment(word);
        pos = window.forget(pos as u64 + inside) as usize;
        if inside < 8 {
            if path.stop(window.byte(pos), segments) == Read::End {
                ended = true;
                break;
            }
            pos += 1;
        }
        steps += 1;
        if steps == STEPS {
            break;
        }
    }
    if pos >= len && len < WINDOW {
        return Begun::Cut;
    }
    let ended = window.forget(u64::from(ended)) != 0 && pos < len;
    if ended {
        let end = window.byte(pos);
        if end != b' ' && end != b'?' && end != b'#' && end != b';' {
            return Begun::Bad;
        }
        // A line that is longer than the window is believed before its end is seen, and so has to look the part.
        let version = window.word(pos + 1) & low(7) == text(b"HTTP/1.");
        let known = out.method != Method::Other as u8;
        if len >= WINDOW && pos + 8 <= len && !(if end == b' ' { version } else { known }) {
            return Begun::Bad;
        }
    }
    out.route = path.finish(segments);
    out.path_at = from as u32;
    out.path_len = (pos - from) as u32;
    Begun::At(pos)
}

/// A method that RFC 9110 does not name: capital letters and hyphens, then a space.
#[inline(always)]
fn other_method(window: &Window, len: usize) -> Begun {
    for pos in 0..24 {
        if pos >= len {
            return Begun::Cut;
        }
        let byte = window.byte(pos);
        if byte == b' ' && pos >= 3 {
            return Begun::At(pos + 1);
        }
        if !(byte.is_ascii_uppercase() || byte == b'-') {
            return Begun::Bad;
        }
    }
    Begun::Bad
}

/// Whether so few bytes can be the beginning of a method.
#[inline(always)]
fn other_method_prefix(window: &Window, len: usize) -> bool {
    !matches!(other_method(window, len), Begun::Bad)
}

/// The path of an absolute-form target (`http://host/path`): at the first slash behind the authority.
#[inline(always)]
fn authority_end(window: &Window, from: usize, len: usize) -> Begun {
    let scheme = lower(window.word(from));
    let mut pos = if scheme & low(7) == text(b"http://") {
        from + 7
    } else if scheme == text(b"https://") {
        from + 8
    } else {
        return if from + 8 > len { Begun::Cut } else { Begun::Bad };
    };
    let mut found = 0;
    for _ in 0..AUTHORITY_WORDS {
        let word = window.word(pos);
        found = find(word, b'/') | find(word, b' ') | find(word, b'?') | find(word, b'#');
        if found != 0 {
            break;
        }
        pos += 8;
    }
    pos = window.forget(pos as u64) as usize;
    if found == 0 {
        return if pos < len { Begun::Bad } else { Begun::Cut };
    }
    pos += first(found);
    if pos < len { Begun::At(pos) } else { Begun::Cut }
}

/// `HTTP/1.x NNN`; the reason phrase may be missing.
#[inline(always)]
fn status_line(out: &mut Parsed, window: &Window, len: usize) -> Begun {
    let known = if len < 7 { len as u32 } else { 7 };
    if window.word(0) & low(known) != text(b"HTTP/1.") & low(known) {
        return Begun::Bad;
    }
    if len < 13 {
        return Begun::Cut;
    }
    let mut status = 0_u16;
    for at in 9..12 {
        let digit = window.byte(at).wrapping_sub(b'0');
        if digit > 9 {
            return Begun::Bad;
        }
        status = status * 10 + u16::from(digit);
    }
    if status < 100 {
        return Begun::Bad;
    }
    out.status = status;
    Begun::At(12)
}
