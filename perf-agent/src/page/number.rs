//! Numbers as Prometheus' own client writes them.

use std::io::Write as _;

use super::Format;

/// Below this, every integer has a `f64` of its own.
const EXACT: f64 = 9_007_199_254_740_992.0;

pub(super) fn integer(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// The shortest text that reads back as the same number; integers without point or exponent.
pub(super) fn float(out: &mut Vec<u8>, value: f64) {
    if value.is_nan() {
        out.extend_from_slice(b"NaN");
    } else if value.is_infinite() {
        out.extend_from_slice(if value > 0.0 { b"+Inf" } else { b"-Inf" });
    } else if value.abs() < EXACT && value.fract() == 0.0 {
        out.extend_from_slice(itoa::Buffer::new().format(value as i64).as_bytes());
    } else {
        let text = out.len();
        // Without an exponent, the ends of the range are hundreds of digits long.
        let written = if (1e-6..1e21).contains(&value.abs()) {
            write!(out, "{value}")
        } else {
            write!(out, "{value:e}")
        };
        debug_assert!(written.is_ok() && out.len() > text, "a vector takes every byte");
    }
}

/// The value of `le`. It is part of a series' identity, so it is spelled exactly as Go's client spells it: a scrape of
/// another exporter with the same bounds must aggregate with ours.
pub(super) fn bound(value: f64, format: Format) -> String {
    let text = go(value);
    if format == Format::OpenMetrics && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') {
        // OpenMetrics wants a float that looks like one.
        return format!("{text}.0");
    }
    text
}

/// Go's `strconv.FormatFloat(value, 'g', -1, 64)`: an exponent below 1e-4 and from 1e6 on, of two digits at least.
fn go(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    if value == 0.0 || (1e-4..1e6).contains(&value.abs()) {
        return value.to_string();
    }
    let text = format!("{value:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => match exponent.strip_prefix('-') {
            Some(exponent) => format!("{digits}e-{exponent:0>2}"),
            None => format!("{digits}e+{exponent:0>2}"),
        },
        None => text,
    }
}
