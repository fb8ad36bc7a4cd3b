//! Paths of requests: naming and fingerprinting any bytes must neither panic nor grow without bound.
#![no_main]

use libfuzzer_sys::fuzz_target;
use perf_common::route::describe;

fuzz_target!(|path: &[u8]| {
    let mut length = 0;
    describe(path, u64::MAX / 3, |part| length += part.len());
    assert!(length <= 4 * path.len() + 4, "{length} bytes for a path of {}", path.len());
});
