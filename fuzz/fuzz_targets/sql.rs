//! Any bytes as a statement: the automaton must neither panic nor write more than it may, and a cut changes nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use perf_common::sql::{TEXT, read};

fuzz_target!(|statement: &[u8]| {
    let read_whole = read(statement);
    assert!(read_whole.text().len() <= TEXT);
    assert_ne!(read_whole.fingerprint(), perf_common::sql::OTHER);
});
