//! Lengths of time as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// `100ms`, `1.5s`, `250us` or `2m`: more than nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(Duration);

/// The units, the longest first, in nanoseconds.
const UNITS: [(&str, u64); 4] =
    [("m", 60_000_000_000), ("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)];
const MOST: Duration = Duration::from_hours(1);

impl Span {
    pub(crate) const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    pub(crate) const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) =
            text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
        let unit = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, ns)| *ns as f64);
        // Digits alone: neither signs nor exponents.
        let is_plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let ns =
            unit.zip(number.parse::<f64>().ok().filter(|_| is_plain)).map(|(unit, number)| unit * number);
        let Some(ns) = ns else {
            return Err(format!("{text:?} is no length of time; write one like `100ms`, `1.5s` or `250us`"));
        };
        if ns < 1.0 || ns > MOST.as_nanos() as f64 {
            return Err(format!("{text} is out of range: write more than nothing and no more than an hour"));
        }
        Ok(Self(Duration::from_nanos(ns.round() as u64)))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
impl serde::Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ns = self.0.as_nanos() as u64;
        let whole = UNITS.iter().find(|(_, unit)| ns.is_multiple_of(*unit));
        let (name, unit) = whole.unwrap_or(&UNITS[UNITS.len() - 1]);
        write!(f, "{}{name}", ns as f64 / *unit as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        for (text, ns, shown) in [
            ("1s", 1_000_000_000, "1s"),
            ("100ms", 100_000_000, "100ms"),
            ("1.5s", 1_500_000_000, "1500ms"),
            ("250us", 250_000, "250us"),
            ("60s", 60_000_000_000, "1m"),
            ("0.0015ms", 1_500, "1.5us"),
            ("60m", 3_600_000_000_000, "60m"),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.get().as_nanos(), ns, "{text}");
            assert_eq!(span.to_string(), shown);
            assert_eq!(shown.parse(), Ok(span));
        }
    }

    #[test]
    fn what_is_none_is_refused_with_an_example() {
        for text in ["", "1", "s", "1h", "-1s", "1e3s", "1 s", "infs", "nans", "1.2.3s", "1S", "½s"] {
            assert!(text.parse::<Span>().unwrap_err().contains("`100ms`"), "{text}");
        }
        for text in ["0s", "0.0001us", "61m"] {
            assert!(text.parse::<Span>().unwrap_err().contains("out of range"), "{text}");
        }
    }
}
