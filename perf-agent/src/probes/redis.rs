//! Redis' part of [`super::db`]: its verbs are their own names. See `perf-ebpf/src/bin/l7/redis.rs`.

use perf_common::redis::verb::{self, VERBS};

use super::db::Name;

/// What the command of this number is called.
pub(super) fn name(number: u64) -> Name {
    let number = usize::try_from(number).unwrap_or(usize::MAX);
    let query_type = VERBS.get(number).copied().unwrap_or(VERBS[usize::from(verb::OTHER)]).to_owned();
    let is_blocking = u8::try_from(number).is_ok_and(verb::is_blocking);
    Name { query_type, table: String::new(), is_blocking }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_have_their_names_and_some_of_them_wait() {
        let number = |wanted: &str| VERBS.iter().position(|verb| *verb == wanted).unwrap() as u64;
        assert_eq!(name(number("GET")).query_type, "GET");
        assert!(!name(number("GET")).is_blocking);
        assert!(name(number("BLPOP")).is_blocking);
        // The one with BLOCK stands behind the one without.
        let read = number("XREAD");
        assert_eq!((name(read).is_blocking, name(read + 1).is_blocking), (false, true));
        assert_eq!(name(read + 1).query_type, "XREAD");
        assert_eq!(name(u64::MAX).query_type, "other");
    }
}
