//! Any bytes in any calls: the state machine must neither panic nor stand still, and must account for what it saw.
#![no_main]

use libfuzzer_sys::fuzz_target;
use perf_common::http::Direction;
use perf_common::redis::Conn;
use perf_common::redis::memory::Memory;

/// A connection that is recognised: only behind it is the grammar reached.
const PING: [u8; 14] = *b"*1\r\n$4\r\nPING\r\n";

fuzz_target!(|calls: Vec<(bool, u8, Vec<u8>)>| {
    let mut conn = Conn::default();
    let mut io = Memory::default();
    io.call(&mut conn, Direction::Received, &PING, 1);
    for (at, (sent, unseen, bytes)) in calls.iter().enumerate() {
        let direction = if *sent { Direction::Sent } else { Direction::Received };
        // Bytes that no hook tells of come before a few calls.
        if let Some(count @ 1..) = unseen.checked_sub(200) {
            io.unseen(&mut conn, direction, count.into(), 10 * at as u64 + 10);
        }
        io.call(&mut conn, direction, bytes, 10 * at as u64 + 11);
    }
    conn.finish(&mut io);
    assert_eq!(io.seen, io.counted() + io.lost(), "a request is neither recorded nor dropped");
});
