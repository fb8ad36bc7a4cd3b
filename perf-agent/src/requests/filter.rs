//! Which requests are asked for: the query of `/requests`, read and written.

use std::fmt::Write as _;

use super::Entry;
use crate::config::Span;

/// All of it must be true of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Filter {
    pub(crate) service: Option<String>,
    /// That it took at least so long.
    pub(crate) slower: Option<Span>,
    /// That it failed.
    pub(crate) errors: bool,
    /// That its number is higher.
    pub(crate) after: u64,
}

impl Filter {
    /// Reads what follows the question mark; an error says what would be understood.
    pub(crate) fn parse(query: &str) -> Result<Self, String> {
        let mut filter = Self::default();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let value = decode(value);
            match name {
                "service" => filter.service = Some(value),
                "slower" => filter.slower = Some(value.parse().map_err(|error| format!("slower: {error}"))?),
                "errors" => {
                    let error = || format!("errors: {value:?} is neither true nor false");
                    filter.errors = value.parse().map_err(|_| error())?;
                }
                "after" => {
                    let error = || format!("after: {value:?} is no number of a request");
                    filter.after = value.parse().map_err(|_| error())?;
                }
                _ => {
                    return Err(format!(
                        "unknown parameter {:?}; known here: service=NAME, slower=100ms, errors=true, after=SEQUENCE",
                        decode(name)
                    ));
                }
            }
        }
        Ok(filter)
    }

    /// The query that is read as this.
    pub(crate) fn query(&self) -> String {
        let Self { service, slower, errors, after } = self;
        let mut query = format!("after={after}&errors={errors}");
        // Writing to a string does not fail.
        if let Some(service) = service {
            _ = write!(query, "&service={}", encode(service));
        }
        if let Some(slower) = slower {
            _ = write!(query, "&slower={slower}");
        }
        query
    }

    pub(super) fn wants(&self, entry: &Entry) -> bool {
        let Self { service, slower, errors, after } = self;
        entry.sequence > *after
            && service.as_ref().is_none_or(|service| *service == entry.service)
            && slower.is_none_or(|slower| entry.duration_seconds >= slower.get().as_secs_f64())
            && (!errors || entry.failed)
    }
}

/// A value as it stands in a query.
fn encode(value: &str) -> String {
    value.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// The reverse; what is no escape stands for itself.
fn decode(value: &str) -> String {
    let mut out = Vec::new();
    let mut rest = value.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        let escaped = || u8::from_str_radix(std::str::from_utf8(behind.get(..2)?).ok()?, 16).ok();
        match byte {
            b'+' => out.push(b' '),
            b'%' => match escaped() {
                Some(byte) => {
                    out.push(byte);
                    rest = behind.get(2..).unwrap_or_default();
                }
                None => out.push(b'%'),
            },
            byte => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(service: &str, seconds: f64, failed: bool) -> Entry {
        Entry {
            sequence: 5,
            service: service.to_owned(),
            duration_seconds: seconds,
            failed,
            ..Entry::default()
        }
    }

    #[test]
    fn each_part_must_be_true() {
        let (slow, failed) = (entry("a b", 0.1, false), entry("c", 0.001, true));
        for (query, wants_slow, wants_failed) in [
            ("", true, true),
            ("errors=false&after=4", true, true),
            ("after=5", false, false),
            ("service=a%20b", true, false),
            ("service=a+b&errors=true", false, false),
            ("slower=100ms", true, false),
            ("slower=101ms", false, false),
            ("errors=true", false, true),
        ] {
            let filter = Filter::parse(query).unwrap();
            assert_eq!((filter.wants(&slow), filter.wants(&failed)), (wants_slow, wants_failed), "{query}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_with_what_would_be() {
        for (query, expected) in [
            ("slowr=1s", "unknown parameter \"slowr\"; known here: service=NAME, slower=100ms"),
            ("errors", "errors: \"\" is neither true nor false"),
            ("errors=1", "errors: \"1\" is neither true nor false"),
            ("after=-1", "after: \"-1\" is no number of a request"),
            ("slower=fast", "slower: \"fast\" is no length of time; write one like `100ms`"),
        ] {
            let error = Filter::parse(query).unwrap_err();
            assert!(error.starts_with(expected), "{query} gives {error}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for service in ["plain", "a b&c=d%2", "ünï/code+"] {
            let filter = Filter {
                service: Some(service.to_owned()),
                slower: Some(Span::from_secs(2)),
                errors: true,
                after: 17,
            };
            assert_eq!(Filter::parse(&filter.query()), Ok(filter));
        }
        assert_eq!(decode("%zz%4"), "%zz%4");
    }
}
