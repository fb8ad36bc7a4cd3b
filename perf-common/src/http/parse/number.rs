//! The number of a `Content-Length`, eight digits at a time, and the size of a chunk.

use super::MAX_LENGTH;
use crate::bytes::{Window, first, opaque};

/// The longest line that tells a chunk's size, extensions included.
pub(super) const CHUNK_LINE: usize = 64;

/// 10 to the power of the index.
static POWERS: [u64; 16] = {
    let mut table = [1; 16];
    let mut i = 1;
    while i < 16 {
        table[i] = table[i - 1] * 10;
        i += 1;
    }
    table
};

/// White space and zeros in front of a number that are passed over.
const LEADING: usize = 24;

/// The number of a `Content-Length` whose value begins at `at`, behind white space and zeros; what is longer than sixteen
/// digits or none at all is [`MAX_LENGTH`], which ends with the connection or where the next message begins.
#[inline(always)]
pub(super) fn decimal(window: &Window, at: usize) -> u64 {
    let mut at = at;
    let mut zero = false;
    for _ in 0..LEADING {
        let byte = window.byte(at);
        zero |= byte == b'0';
        if byte != b' ' && byte != b'\t' && byte != b'0' {
            break;
        }
        at = window.forget(at as u64 + 1) as usize;
    }
    let zero = window.forget(u64::from(zero)) != 0;
    let (high, digits) = digits(window.word(at));
    if digits < 8 {
        return if digits == 0 && !zero { MAX_LENGTH } else { high };
    }
    let (low, more) = self::digits(window.word(at + 8));
    if more >= 8 {
        return MAX_LENGTH;
    }
    // SAFETY: masked to the table's sixteen entries.
    high * unsafe { *POWERS.as_ptr().add((opaque(more as u64) & 15) as usize) } + low
}

/// The number that the digits at the start of a word spell, and how many they are.
#[inline(always)]
fn digits(word: u64) -> (u64, usize) {
    const ZEROS: u64 = 0x3030_3030_3030_3030;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let values = word ^ ZEROS;
    // A byte above 9 carries into its own high bit.
    let others = (((values & !HIGHS) + 0x7676_7676_7676_7676) | values) & HIGHS;
    let count = if others == 0 { 8 } else { first(others) };
    // The digits in the high bytes, zeros before them; then neighbours are joined: ones and tens, hundreds, …
    let aligned = if count == 0 { 0 } else { values << (opaque(64 - 8 * count as u64) & 63) };
    let pairs = aligned.wrapping_mul(10).wrapping_add(aligned >> 8) & 0x00ff_00ff_00ff_00ff;
    let fours = pairs.wrapping_mul(100).wrapping_add(pairs >> 16) & 0x0000_ffff_0000_ffff;
    let eight = fours.wrapping_mul(10_000).wrapping_add(fours >> 32) & 0xffff_ffff;
    (eight, count)
}

/// The size that a chunk's line tells and where the line ends; 0 where it is cut or makes no sense.
#[inline(always)]
pub(super) fn chunk_line(window: &Window, len: usize) -> (u64, usize) {
    let mut size = 0_u64;
    let mut in_digits = true;
    for pos in 0..CHUNK_LINE {
        if pos >= len {
            break;
        }
        let byte = window.byte(pos);
        if byte == b'\n' {
            return (
                size & (MAX_LENGTH - 1),
                if pos == 0 { 0 } else { window.forget(pos as u64 + 1) as usize },
            );
        }
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => 16,
        };
        in_digits &= digit < 16;
        if in_digits {
            size = size << 4 | u64::from(digit);
        }
    }
    (0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths() {
        for (value, length) in [
            ("0\r\n", 0),
            (" 7\r\n", 7),
            (" 12345678\r\n", 12_345_678),
            ("123456789\r\n", 123_456_789),
            (" 123456789012345\r\n", 123_456_789_012_345),
            (" 00000000001\r\n", 1),
            ("  7\r\n", 7),
            ("\t 12\r\n", 12),
            (" 00000000000000000007\r\n", 7),
            (" 000\r\n", 0),
            (" 12, 12\r\n", 12),
            (" 1234567890123456\r\n", MAX_LENGTH),
            (" -1\r\n", MAX_LENGTH),
            ("\r\n", MAX_LENGTH),
        ] {
            let mut window = Box::new(Window::new());
            for (i, byte) in value.bytes().enumerate() {
                // SAFETY: `slot` masks its index.
                unsafe { *window.slot(i) = byte };
            }
            assert_eq!(decimal(&window, 0), length, "{value:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn digits_agree_with_parse(number in 0_u64..100_000_000, behind in "[^0-9]{8}") {
            let text = format!("{number}{behind}");
            let word = crate::bytes::text(text.as_bytes());
            proptest::prop_assert_eq!(digits(word), (number, number.to_string().len()));
        }
    }
}
