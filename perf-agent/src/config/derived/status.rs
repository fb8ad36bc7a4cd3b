//! Which status codes match: `201`, `2xx` or `200-299`.

use std::ops::RangeInclusive;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) struct StatusRange(RangeInclusive<u16>);

impl StatusRange {
    pub(crate) fn contains(&self, status: u16) -> bool {
        self.0.contains(&status)
    }

    fn parse(text: &str) -> Option<Self> {
        let range = if let Some(class) = text.strip_suffix("xx") {
            let first = class.parse::<u16>().ok()?.checked_mul(100)?;
            first..=first.checked_add(99)?
        } else if let Some((from, to)) = text.split_once('-') {
            from.trim().parse().ok()?..=to.trim().parse().ok()?
        } else {
            let one = text.parse().ok()?;
            one..=one
        };
        let valid = *range.start() >= 100 && *range.end() <= 599 && !range.is_empty();
        valid.then_some(Self(range))
    }
}

impl<'de> Deserialize<'de> for StatusRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Text)
    }
}

/// A number or a text.
struct Text;

impl Visitor<'_> for Text {
    type Value = StatusRange;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a status like 201, 2xx or 200-299")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<StatusRange, E> {
        StatusRange::parse(text)
            .ok_or_else(|| E::custom(format!("{text:?} is no status: write one like 201, 2xx or 200-299")))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<StatusRange, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<StatusRange, E> {
        self.visit_str(&number.to_string())
    }
}
