//! The fingerprint of a route: a hash of the path in which variable segments count as `{id}`.
//!
//! Computed over one segment at a time by the same code that later turns the sample into text, so that two paths share a
//! text exactly when they share a fingerprint.

use crate::bytes::opaque;

const PRIME: u64 = 0x0000_0100_0000_01b3;
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
/// Stands for a masked segment; no segment hashes to it by other than chance.
const MASKED: u64 = 0x6964_7b6d_7d61_736b;

/// The fingerprint under which everything is counted that has no cell of its own.
pub const OTHER: u64 = 0;

/// Ends a path: the top bit of a byte's class.
const STOP: u64 = 1 << 63;
/// Four counters of a segment in one number, sixteen bits each.
const DIGIT: u64 = 1;
const HEX: u64 = 1 << 16;
const PUNCT: u64 = 1 << 32;
const OTHER_BYTE: u64 = 1 << 48;

/// What each byte adds to its segment's counters; [`STOP`] for one that ends the segment.
static CLASS: [u64; 256] = {
    let mut table = [OTHER_BYTE; 256];
    let mut b = 0;
    while b < 256 {
        table[b] = match b as u8 {
            b'0'..=b'9' => DIGIT,
            b'a'..=b'f' | b'A'..=b'F' => HEX,
            b'-' | b':' | b'.' | b'_' => PUNCT,
            b'/' | b'?' | b'#' | 0..=b' ' | 0x7f => STOP,
            _ => OTHER_BYTE,
        };
        b += 1;
    }
    table
};

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
    /// `zero` is 0; see [`crate::bytes::Window::forget`].
    #[inline(always)]
    pub const fn start(zero: u64) -> Self {
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
    pub fn stop(&mut self, byte: u8) -> Read {
        if byte != b'/' {
            return Read::End;
        }
        self.fold();
        Read::Inside
    }

    /// The fingerprint of what was read; never [`OTHER`].
    #[inline(always)]
    pub fn finish(mut self) -> u64 {
        self.fold();
        self.hash | u64::from(self.hash == OTHER)
    }

    #[inline(always)]
    fn fold(&mut self) {
        let masked = is_variable(self.counts).wrapping_neg();
        let segment = MASKED & masked | self.segment & !masked;
        self.hash = (self.hash.rotate_left(23) ^ segment).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.segment = BASIS ^ self.zero;
        self.counts = self.zero;
    }
}

/// 1 if `a` is less than `b`, without a branch: `opaque` keeps the optimiser from making one. Both are small.
#[inline(always)]
fn less(a: u64, b: u64) -> u64 {
    opaque(a.wrapping_sub(b)) >> 63
}

/// Whether (1 or 0) a segment with these counters is a number, date, UUID, hash or other identifier.
#[inline(always)]
fn is_variable(counts: u64) -> u64 {
    let digits = counts & 0xffff;
    let hex = counts >> 16 & 0xffff;
    let punct = counts >> 32 & 0xffff;
    let other = counts >> 48 & 0x7fff;
    let total = digits + hex + punct + other;
    let has_digits = less(0, digits);
    let only_hex = less(other, 1);
    // Sixteen letters a to f and nothing else is no word of any language.
    let letters = only_hex & less(15, hex);
    // A number or date; a UUID or hash.
    let number = has_digits & only_hex & (less(hex, 1) | less(7, digits + hex));
    // `order-12345678`, `2024-01-01T10:00:00Z`; or a long token with digits in it.
    let mixed = has_digits & (less(7, total) & less(total, 2 * digits + 1) | less(23, total));
    letters | number | mixed
}

/// Writes the route of a path (up to its query) into `out` with `{id}` for what varies.
pub fn describe(path: &[u8], mut out: impl FnMut(&[u8])) {
    let mut from = 0;
    let mut counts = 0_u64;
    for at in 0..=path.len() {
        let byte = path.get(at).copied().unwrap_or(b' ');
        let class = CLASS[byte as usize];
        if class != STOP {
            counts = counts.wrapping_add(class);
            continue;
        }
        if is_variable(counts) != 0 {
            out(b"{id}");
        } else if let Some(segment) = path.get(from..at) {
            out(segment);
        }
        if byte != b'/' {
            return;
        }
        out(b"/");
        from = at + 1;
        counts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str) -> String {
        let mut out = Vec::new();
        describe(path.as_bytes(), |part| out.extend_from_slice(part));
        String::from_utf8(out).unwrap()
    }

    fn fingerprint(path: &[u8]) -> u64 {
        let mut reader = Path::start(0);
        let mut rest = path;
        while !rest.is_empty() {
            let mut word = [0; 8];
            let len = rest.len().min(8);
            word[..len].copy_from_slice(&rest[..len]);
            let inside = reader.segment(u64::from_le_bytes(word)) as usize;
            rest = &rest[inside.min(len)..];
            if inside < 8 {
                if rest.is_empty() || reader.stop(rest[0]) == Read::End {
                    break;
                }
                rest = &rest[1..];
            }
        }
        reader.finish()
    }

    #[test]
    fn variable_segments_are_masked() {
        for (path, route) in [
            ("/", "/"),
            ("", ""),
            ("/api/bookings/123", "/api/bookings/{id}"),
            ("/api/bookings/123/", "/api/bookings/{id}/"),
            ("/a/550e8400-e29b-41d4-a716-446655440000/b", "/a/{id}/b"),
            ("/commit/da39a3ee5e6b4b0d3255bfef95601890afd80709", "/commit/{id}"),
            ("/day/2024-01-31", "/day/{id}"),
            ("/at/2024-01-01T10:00:00Z", "/at/{id}"),
            ("/order-12345678/x", "/{id}/x"),
            ("/v1/users", "/v1/users"),
            ("/facade/added", "/facade/added"),
            ("/search?q=secret", "/search"),
            ("/frag#part", "/frag"),
            ("//x", "//x"),
            ("/static/app.js", "/static/app.js"),
        ] {
            assert_eq!(text(path), route, "{path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn same_text_is_same_fingerprint(a in "(/[a-f0-9x-]{0,9}){0,3}", b in "(/[a-f0-9x-]{0,9}){0,3}") {
            proptest::prop_assert_eq!(text(&a) == text(&b), fingerprint(a.as_bytes()) == fingerprint(b.as_bytes()), "{} {}", a, b);
        }

        #[test]
        fn any_bytes_do(path in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600)) {
            let mut len = 0;
            describe(&path, |part| len += part.len());
            proptest::prop_assert!(len <= 4 * path.len() + 4);
            fingerprint(&path);
        }
    }
}
