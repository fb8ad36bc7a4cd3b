//! Any bytes in any datagrams and calls: neither a panic nor a standstill, all that was seen is accounted for, and whatever
//! name comes out can be written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use perf_common::dns::flight::TIMEOUT_NS;
use perf_common::dns::memory::Memory;
use perf_common::dns::{HEAD, NONE, describe};

fuzz_target!(|messages: Vec<(bool, bool, u8, Vec<u8>)>| {
    let mut memory = Memory::default();
    let mut now = 0;
    for (sent, stream, seconds, bytes) in &messages {
        now += u64::from(*seconds) * 100_000_000;
        if *stream {
            memory.call(*sent, bytes, now);
        } else {
            memory.datagram(*sent, bytes, now);
        }
        let read = memory.read(bytes);
        if read.kind != NONE && read.has_question != 0 {
            let mut length = 0;
            let name = usize::from(read.name_len);
            describe(&bytes[HEAD..HEAD + name], |part| length += part.len());
            assert!(length <= 4 * name, "{length} bytes for a name of {name}");
        }
    }
    memory.expire(u64::MAX, TIMEOUT_NS);
    let books = &memory.books;
    assert_eq!(books.seen as usize, books.recorded.len() + books.dropped.len(), "neither recorded nor dropped");
});
