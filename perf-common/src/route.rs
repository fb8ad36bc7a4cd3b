//! The fingerprint of a route: a hash of the path in which variable segments count as `{id}`, and those that a rule folds as
//! `{*}`.
//!
//! Computed over one segment at a time by the same code that later turns the sample into text, so that two paths share a
//! text exactly when they share a fingerprint. The hash of the segments up to one is its *parent*, by which rules
//! ([`rules`]) name a place in the tree of all paths.

pub mod rules;

use crate::bytes::opaque;

const PRIME: u64 = 0x0000_0100_0000_01b3;
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
/// Stands for a masked segment; no segment hashes to it by other than chance.
const MASKED: u64 = 0x6964_7b6d_7d61_736b;
/// The same for one that a rule folds.
const COLLAPSED: u64 = 0x2a7b_636f_6c6c_7d61;

/// The fingerprint under which everything is counted that has no cell of its own.
pub const OTHER: u64 = 0;

/// How many segments a path has at the most; those behind count as part of nothing. As many as a mask has bits.
pub const SEGMENTS: usize = 64;
/// As much of a path as tells its route, in steps of up to eight bytes of a segment. A step ends one segment at the most, and
/// the path's end one more.
pub const STEPS: usize = SEGMENTS - 1;

/// Ends a path: the top bit of a byte's class.
const STOP: u64 = 1 << 63;
/// Counters of a segment in one number, ten bits each: a segment has 504 bytes at the most.
const DIGIT: u64 = 1;
const HEX: u64 = 1 << 10;
const PUNCT: u64 = 1 << 20;
const OTHER_BYTE: u64 = 1 << 30;
/// Counted beside one of those above.
const UPPER: u64 = 1 << 40;
const ESCAPED: u64 = 1 << 50;

/// What each byte adds to its segment's counters; [`STOP`] for one that ends the segment.
static CLASS: [u64; 256] = {
    let mut table = [OTHER_BYTE; 256];
    let mut b = 0;
    while b < 256 {
        table[b] = match b as u8 {
            b'0'..=b'9' => DIGIT,
            b'a'..=b'f' => HEX,
            b'A'..=b'F' => HEX + UPPER,
            b'G'..=b'Z' => OTHER_BYTE + UPPER,
            b'-' | b':' | b'.' | b'_' => PUNCT,
            // What follows a semicolon are parameters: session ids, for the most part.
            b'/' | b'?' | b'#' | b';' | 0..=b' ' | 0x7f => STOP,
            b'%' | 0x80.. => OTHER_BYTE + ESCAPED,
            _ => OTHER_BYTE,
        };
        b += 1;
    }
    table
};

/// The segments of a path: the hash of each, and in its lowest bit whether it is masked.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Segments {
    len: u64,
    values: [u64; SEGMENTS],
}

impl Segments {
    pub const EMPTY: Self = Self { len: 0, values: [0; SEGMENTS] };

    /// Those of a path that was read before.
    #[must_use]
    pub fn of(segments: &[Segment]) -> Self {
        let mut all = Self::EMPTY;
        segments.iter().take(SEGMENTS).for_each(|segment| all.push(*segment));
        all
    }

    /// How many there are.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A bit for each segment that is masked, the first one lowest.
    #[inline(always)]
    pub fn masked(&self) -> u64 {
        let mut masked = 0;
        // By number: a loop that ends at an address has no end that the verifier can see.
        for at in 0..SEGMENTS {
            masked |= (self.get(at).0 & 1) << at;
        }
        // What is behind the end is left over from another path.
        if self.len >= SEGMENTS as u64 { masked } else { masked & ((1 << (self.len & 63)) - 1) }
    }

    /// The one at `at`, modulo [`SEGMENTS`].
    #[inline(always)]
    pub fn get(&self, at: usize) -> Segment {
        // SAFETY: masked to the array's entries.
        Segment(unsafe { *self.values.as_ptr().add((opaque(at as u64) & (SEGMENTS as u64 - 1)) as usize) })
    }

    /// Its length makes a trip through memory, which is a map in the kernel: the verifier is not to know it, or there would
    /// be a path for each.
    #[inline(always)]
    fn push(&mut self, segment: Segment) {
        let len = &raw mut self.len;
        // SAFETY: a field, and masked to the array's entries.
        unsafe {
            let at = len.read_volatile();
            *self.values.as_mut_ptr().add((opaque(at) & (SEGMENTS as u64 - 1)) as usize) = segment.0;
            len.write_volatile(at + 1);
        }
    }

    #[inline(always)]
    fn clear(&mut self) {
        // SAFETY: a field.
        unsafe { (&raw mut self.len).write_volatile(0) };
    }
}

/// One segment: the hash of its bytes, and in the lowest bit whether it is masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment(u64);

impl Segment {
    /// That of these bytes, which hold none that ends a segment.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let (mut hash, mut counts) = (BASIS, 0_u64);
        for &byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(PRIME);
            counts = counts.wrapping_add(CLASS[byte as usize] & !STOP);
        }
        Self(hash & !1 | is_variable(counts))
    }

    /// Whether it is `{id}` where no rule says otherwise.
    #[inline(always)]
    #[must_use]
    pub fn is_masked(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether there is nothing in it, as before the first slash and behind the last one.
    #[inline(always)]
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == BASIS & !1
    }

    /// What tells its text apart from others, masked or not.
    #[inline(always)]
    #[must_use]
    pub fn literal(self) -> u64 {
        self.0 & !1
    }

    /// The place in the tree to which it leads from `parent`.
    #[inline(always)]
    #[must_use]
    pub fn below(self, parent: u64) -> u64 {
        let masked = (self.0 & 1).wrapping_neg();
        below(parent, MASKED & masked | self.0 & !masked)
    }
}

#[inline(always)]
fn below(parent: u64, segment: u64) -> u64 {
    (parent.rotate_left(23) ^ segment).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The fingerprint of the path that ends there; never [`OTHER`].
#[inline(always)]
fn fingerprint(hash: u64) -> u64 {
    hash | u64::from(hash == OTHER)
}

/// A path as it is being read, byte by byte.
#[derive(Clone, Copy)]
pub struct Path {
    hash: u64,
    segment: u64,
    counts: u64,
    /// Zero, from where the optimiser and the verifier cannot tell: a known zero at the start of each segment would be a
    /// path of its own.
    zero: u64,
}

/// What a byte meant for the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    Inside,
    /// The byte is no part of the path: `?`, `#`, a space or a control byte.
    End,
}

impl Path {
    /// `zero` is 0; see [`crate::bytes::Window::forget`]. What it reads goes into `segments`.
    #[inline(always)]
    pub fn start(zero: u64, segments: &mut Segments) -> Self {
        segments.clear();
        Self { hash: BASIS, segment: BASIS, counts: zero, zero }
    }

    /// Takes up to eight bytes of a segment, the lowest first; how many there were before one that ends it.
    #[inline(always)]
    pub fn segment(&mut self, word: u64) -> u64 {
        for i in 0..8 {
            let byte = word >> (8 * i) & 0xff;
            // SAFETY: a byte cannot exceed the table's 256 entries.
            let class = unsafe { *CLASS.as_ptr().add(opaque(byte) as usize) };
            if class == STOP {
                return i;
            }
            self.segment = (self.segment ^ byte).wrapping_mul(PRIME);
            self.counts = self.counts.wrapping_add(class);
        }
        8
    }

    /// Takes the byte that ended a segment.
    #[inline(always)]
    pub fn stop(&mut self, byte: u8, segments: &mut Segments) -> Read {
        if byte != b'/' {
            return Read::End;
        }
        self.fold(segments);
        Read::Inside
    }

    /// The fingerprint of what was read; never [`OTHER`].
    #[inline(always)]
    pub fn finish(mut self, segments: &mut Segments) -> u64 {
        self.fold(segments);
        fingerprint(self.hash)
    }

    #[inline(always)]
    fn fold(&mut self, segments: &mut Segments) {
        let segment = Segment(self.segment & !1 | is_variable(self.counts));
        segments.push(segment);
        self.hash = segment.below(self.hash);
        self.segment = BASIS ^ self.zero;
        self.counts = self.zero;
    }
}

/// 1 if `a` is less than `b`, without a branch: `opaque` keeps the optimiser from making one. Both are small.
#[inline(always)]
fn less(a: u64, b: u64) -> u64 {
    opaque(a.wrapping_sub(b)) >> 63
}

/// Whether (1 or 0) a segment with these counters is a number, date, UUID, hash, token or other identifier.
///
/// Words with a few digits in them (`v1`, `oauth2`, `s3`, `utf8`, `h264`, `2fa`) are none.
#[inline(always)]
fn is_variable(counts: u64) -> u64 {
    let digits = counts & 0x3ff;
    let hex = counts >> 10 & 0x3ff;
    let punct = counts >> 20 & 0x3ff;
    let other = counts >> 30 & 0x3ff;
    let upper = counts >> 40 & 0x3ff;
    let escaped = counts >> 50 & 0x3ff;
    let total = digits + hex + punct + other;
    let has_digits = less(0, digits);
    let only_hex = less(other, 1);
    // Sixteen letters a to f and nothing else is no word of any language.
    let letters = only_hex & less(15, hex);
    // A number or date; a UUID or hash.
    let number = has_digits & only_hex & (less(hex, 1) | less(7, digits + hex));
    // `order-12345678`, `2024-01-01T10:00:00Z`; or a long token with digits in it.
    let mixed = has_digits & (less(7, total) & less(total, 2 * digits + 1) | less(23, total));
    // `summer-sale-2024-x7f3`: words and a date or number.
    let slug = less(0, punct) & less(3, digits) & less(7, total);
    // `eyJhbGciOiJIUzI1NiJ9`: digits, and more capitals than `Base64EncodeString` has.
    let token = less(11, total) & less(1, digits) & less(total, 3 * upper);
    // Somebody's text: `hello%20world`.
    letters | number | mixed | slug | token | less(0, escaped)
}

/// Writes the route of a path (up to its query) into `out`, with `{id}` for what varies, and `{*}` for the segments whose bit
/// (by their number, from 0) is set in `collapsed`.
pub fn describe(path: &[u8], collapsed: u64, mut out: impl FnMut(&[u8])) {
    each_segment(path, |at, bytes, segment| {
        if at != 0 {
            out(b"/");
        }
        if collapsed >> at & 1 != 0 {
            out(b"{*}");
        } else if segment.is_masked() {
            out(b"{id}");
        } else {
            out(bytes);
        }
    });
}

/// Calls `each` with the number of every segment of a path (up to its query), its bytes and what counts of it.
pub fn each_segment(path: &[u8], mut each: impl FnMut(usize, &[u8], Segment)) {
    // The kernel reads no further either.
    let path = path.get(..8 * STEPS).unwrap_or(path);
    let mut from = 0;
    let mut number = 0;
    for at in 0..=path.len() {
        let byte = path.get(at).copied().unwrap_or(b' ');
        if CLASS[byte as usize] != STOP {
            continue;
        }
        let bytes = path.get(from..at).unwrap_or_default();
        each(number, bytes, Segment::of(bytes));
        from = at + 1;
        number += 1;
        if byte != b'/' || number == SEGMENTS {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
