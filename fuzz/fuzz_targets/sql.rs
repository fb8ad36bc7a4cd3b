//! Any bytes as a statement: the automaton must neither panic nor write more than it may, and a cut changes nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use perf_common::sql::{OTHER, TEXT, read, read_mysql};

fuzz_target!(|statement: &[u8]| {
    for read_whole in [read(statement), read_mysql(statement)] {
        assert!(read_whole.text().len() <= TEXT);
        assert_ne!(read_whole.fingerprint(), OTHER);
    }
});
