use proptest::prelude::*;

use super::flight::{Outcome, TIMEOUT_NS};
use super::memory::Memory;
use super::*;
use crate::events::Reason;

/// A name as it is on the wire.
fn wire(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out
}

fn message(txid: u16, flags: u16, counts: [u16; 4], name: &str, qtype: u16) -> Vec<u8> {
    let mut out = Vec::new();
    for field in [txid, flags].into_iter().chain(counts) {
        out.extend_from_slice(&field.to_be_bytes());
    }
    out.extend(wire(name));
    out.extend_from_slice(&qtype.to_be_bytes());
    out.extend_from_slice(&1_u16.to_be_bytes());
    out
}

fn query(txid: u16, name: &str, qtype: u16) -> Vec<u8> {
    message(txid, 0x0100, [1, 0, 0, 0], name, qtype)
}

fn answer(txid: u16, name: &str, qtype: u16, rcode: u16) -> Vec<u8> {
    message(txid, 0x8180 | rcode, [1, 0, 0, 0], name, qtype)
}

fn text(wire: &[u8]) -> String {
    let mut out = Vec::new();
    describe(wire, |part| out.extend_from_slice(part));
    String::from_utf8(out).unwrap()
}

fn outcomes(memory: &Memory) -> Vec<(&'static str, &'static str, u64)> {
    let label = |outcome: u8| RCODES.get(usize::from(outcome)).copied().unwrap_or("timeout");
    let recorded = memory.books.recorded.iter();
    recorded.map(|ended| (QTYPES[usize::from(ended.qtype)], label(ended.outcome), ended.took)).collect()
}

#[test]
fn questions_are_read() {
    let mut memory = Memory::default();
    let bytes = query(0x1234, "www.Example.com", 28);
    let read = memory.read(&bytes);
    assert_eq!((read.kind, read.txid, read.qtype, read.name_len), (QUERY, 0x1234, 28, 17));
    assert_eq!(read.plausible, 1);
    assert_eq!(read.name, memory.read(&query(1, "WWW.eXAMPLE.COM", 1)).name);
    assert_ne!(read.question, memory.read(&query(1, "www.example.com", 1)).question);
    for other in ["www.example.co", "wwwexample.com", "www.example.com.a", "ww.wexample.com", ""] {
        assert_ne!(read.name, memory.read(&query(1, other, 28)).name, "{other}");
    }
    let root = memory.read(&query(7, "", 2));
    assert_eq!((root.kind, root.qtype, root.name_len), (QUERY, 2, 1));
    let mut with_edns = message(9, 0x0100, [1, 0, 0, 1], "a.b", 1);
    with_edns.extend_from_slice(b"\0\0\x29\x04\xd0\0\0\0\0\0\0");
    assert_eq!((memory.read(&with_edns).kind, memory.read(&with_edns).plausible), (QUERY, 1));
    let read = memory.read(&answer(5, "www.example.com", 28, 3));
    assert_eq!((read.kind, read.rcode, read.qtype), (ANSWER, 3, 28));
}

#[test]
fn the_longest_name_is_read_and_a_longer_one_is_not() {
    let mut memory = Memory::default();
    let label = "x".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}", "y".repeat(61));
    let read = memory.read(&query(1, &longest, 16));
    assert_eq!((read.kind, read.name_len as usize, read.qtype), (QUERY, MAX_NAME, 16));
    assert_eq!(memory.read(&query(1, &format!("{longest}y"), 16)).kind, NONE);
}

#[test]
fn hostile_messages_are_none() {
    let good = query(1, "www.example.com", 1);
    let mut memory = Memory::default();
    for cut in 0..good.len() {
        assert_eq!(memory.read(&good[..cut]).kind, NONE, "cut at {cut}");
    }
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    for (what, bytes) in [
        ("a pointer to itself", [&good[..12], b"\xc0\x0c\0\x01\0\x01"].concat()),
        ("a pointer past the end", [&good[..12], b"\xff\xff\0\x01\0\x01"].concat()),
        ("a label of 64", with(12, 64)),
        ("a label past the end", with(12, 63)),
        ("65535 questions", [&[0, 1, 1, 0, 0xff, 0xff][..], &good[6..12]].concat()),
        ("no question", with(5, 0)),
        ("two questions", with(5, 2)),
        ("answers in a query", with(7, 1)),
        ("an update", with(2, 0x28)),
        ("a notification", with(2, 0x20)),
        ("a truncated query", with(2, 0x02)),
        ("a query with a response code", with(3, 5)),
    ] {
        assert_eq!(memory.read(&bytes).kind, NONE, "{what}");
    }
    // Bytes that nobody expects: for port 53 a query, for any other none.
    for bytes in [[&good[..], b"x"].concat(), with(11, 1), with(3, 0x40)] {
        let read = memory.read(&bytes);
        assert_eq!((read.kind, read.plausible), (QUERY, 0));
    }
}

#[test]
fn names_are_written_as_in_zone_files() {
    for (name, expected) in [
        (&b"\x03WWW\x07example\x03com\0"[..], "www.example.com"),
        (b"\0", "."),
        (b"", "."),
        (b"\x04a.b\\\0", "a\\.b\\\\"),
        (b"\x05\"\n\x00\xff \0", "\"\\010\\000\\255\\032"),
        (b"\x3fshort", "short"),
    ] {
        assert_eq!(text(name), expected, "{name:?}");
    }
}

#[test]
fn lookups_are_paired_by_id_and_question() {
    let mut client = Memory::default();
    // Both of one call, and answered the other way round.
    client.datagram(true, &query(7, "a.example", 1), 1000);
    client.datagram(true, &query(8, "a.example", 28), 1100);
    client.datagram(false, &answer(8, "A.EXAMPLE", 28, 0), 2100);
    client.datagram(false, &answer(7, "a.example", 1, 3), 4000);
    assert_eq!(outcomes(&client), [("AAAA", "NOERROR", 1000), ("A", "NXDOMAIN", 3000)]);
    // The same id for two questions at once, and an answer to neither.
    client.datagram(true, &query(9, "b.example", 1), 5000);
    client.datagram(true, &query(9, "c.example", 1), 5001);
    client.datagram(false, &answer(9, "d.example", 1, 0), 5002);
    client.datagram(false, &answer(9, "c.example", 1, 2), 6001);
    client.datagram(false, &answer(9, "b.example", 1, 5), 7000);
    assert_eq!(outcomes(&client)[2..], [("A", "SERVFAIL", 1000), ("A", "REFUSED", 2000)]);
    client.expire(u64::MAX, TIMEOUT_NS);
    assert_eq!((client.books.seen, &client.books.dropped[..]), (5, &[Reason::NoRequest][..]));
    assert!(client.flights.is_empty());
}

#[test]
fn an_answer_without_its_question_ends_the_oldest() {
    let mut client = Memory::default();
    client.datagram(true, &query(7, "a.example", 15), 1000);
    client.datagram(false, &answer(7, "", 0, 1)[..12], 1500);
    assert!(client.books.recorded.is_empty(), "its header promised a question");
    let mut bare = answer(7, "", 0, 1)[..12].to_vec();
    bare[5] = 0;
    assert_eq!(client.datagram(false, &bare, 2000), Outcome::Matched);
    assert_eq!(outcomes(&client), [("MX", "FORMERR", 1000)]);
}

#[test]
fn what_is_sent_again_is_one_lookup_from_the_first_time_on() {
    let mut client = Memory::default();
    for now in [1000, 2000, 3000] {
        client.datagram(true, &query(7, "a.example", 1), now);
    }
    client.datagram(false, &answer(7, "a.example", 1, 0), 3500);
    assert_eq!(outcomes(&client), [("A", "NOERROR", 2500)]);
    assert_eq!((client.books.recorded[0].retransmits, client.books.seen), (2, 1));
    // A server gets the same from two clients and answers both.
    let mut server = Memory::default();
    server.datagram(false, &query(7, "a.example", 1), 1000);
    server.datagram(false, &query(7, "a.example", 1), 2000);
    server.datagram(true, &answer(7, "a.example", 1, 0), 3000);
    server.datagram(true, &answer(7, "a.example", 1, 0), 3000);
    assert_eq!(outcomes(&server), [("A", "NOERROR", 2000), ("A", "NOERROR", 1000)]);
}

#[test]
fn without_an_answer_in_five_seconds_it_timed_out() {
    let mut client = Memory::default();
    client.datagram(true, &query(7, "a.example", 1), 1000);
    client.expire(1000 + TIMEOUT_NS, TIMEOUT_NS);
    assert!(client.books.recorded.is_empty());
    // Sent again after that: a timeout, and a lookup of its own.
    client.datagram(true, &query(7, "a.example", 1), 1001 + TIMEOUT_NS);
    client.datagram(false, &answer(7, "a.example", 1, 0), 1501 + TIMEOUT_NS);
    assert_eq!(outcomes(&client), [("A", "timeout", TIMEOUT_NS + 1), ("A", "NOERROR", 500)]);
    assert_eq!(client.books.seen, 2);
    // A late answer answers nothing.
    client.datagram(true, &query(8, "a.example", 1), 0);
    client.datagram(false, &answer(8, "a.example", 1, 0), TIMEOUT_NS + 1);
    client.expire(3 * TIMEOUT_NS, TIMEOUT_NS);
    assert_eq!(client.books.recorded.len(), 3);
    assert_eq!(client.books.seen as usize, 3 + client.books.dropped.len());
}

#[test]
fn an_answer_can_be_faster_than_the_call_that_sent_its_query() {
    let mut client = Memory::default();
    client.datagram(false, &answer(7, "a.example", 1, 3), 1000);
    client.datagram(true, &query(7, "a.example", 1), 1001);
    assert_eq!(outcomes(&client), [("A", "NXDOMAIN", 0)]);
    assert_eq!((client.books.seen, client.flights.len()), (1, 0));
}

#[test]
fn a_query_was_sent_before_its_server_read_it() {
    let message = Memory::default().read(&query(7, "a.example", 1));
    let tag = super::flight::Heard::tag(&message);
    let heard = super::flight::Heard { tag, at: 1000 };
    assert_eq!((heard.begin(tag, 1500), heard.begin(tag + 1, 1500)), (1000, 1500));
    // Somebody else's, and another time's.
    assert_eq!((heard.begin(tag, 500), heard.begin(tag, 20_000_000)), (500, 20_000_000));
    assert_ne!(tag, super::flight::Heard::tag(&Memory::default().read(&query(8, "a.example", 1))));
}

#[test]
fn on_other_ports_only_what_is_answered_counts() {
    let mut client = Memory::on_another_port();
    for txid in 0..100 {
        client.datagram(true, &query(txid, "a.example", 1), 1000);
    }
    client.datagram(false, &answer(50, "a.example", 1, 0), 2000);
    client.datagram(false, &answer(500, "a.example", 1, 0), 2000);
    client.expire(u64::MAX, TIMEOUT_NS);
    assert_eq!((client.books.seen, outcomes(&client).len(), client.books.dropped.len()), (1, 1, 0));
    // Hardly a query at all.
    assert_eq!(client.datagram(true, &[&query(1, "a", 1)[..], b"x"].concat(), 0), Outcome::Stray);
}

#[test]
fn a_fifth_question_with_one_id_is_dropped_by_name() {
    let mut client = Memory::default();
    for n in 0..6 {
        client.datagram(true, &query(7, &format!("{n}.example"), 1), 1000);
    }
    for n in 0..6 {
        client.datagram(false, &answer(7, &format!("{n}.example"), 1, 0), 2000);
    }
    client.expire(u64::MAX, TIMEOUT_NS);
    assert_eq!(outcomes(&client).len(), 4);
    assert_eq!(client.books.seen as usize, 4 + client.books.dropped.len());
}

/// A message with its length before it.
fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

#[test]
fn over_tcp_the_answer_does_not_depend_on_the_cuts() {
    let mut long = answer(8, "b.example", 16, 0);
    long[7] = 1;
    long.extend(vec![0xaa; 3000]);
    let queries = [framed(&query(7, "a.example", 1)), framed(&query(8, "b.example", 16))].concat();
    let answers = [framed(&answer(7, "a.example", 1, 0)), framed(&long)].concat();
    for piece in [1, 2, 3, 5, 14, 100, 271, 4000] {
        let mut client = Memory::default();
        queries.chunks(piece).for_each(|bytes| client.call(true, bytes, 1000));
        answers.chunks(piece).for_each(|bytes| client.call(false, bytes, 3000));
        // And the stream is still framed.
        client.call(true, &framed(&query(9, "c.example", 1)), 4000);
        client.call(false, &framed(&answer(9, "c.example", 1, 0)), 5000);
        assert_eq!(
            outcomes(&client),
            [("A", "NOERROR", 2000), ("TXT", "NOERROR", 2000), ("A", "NOERROR", 1000)],
            "in pieces of {piece}"
        );
        assert_eq!(client.books.dropped, []);
    }
}

#[test]
fn a_stream_that_is_none_is_left_alone() {
    let mut client = Memory::default();
    client.call(true, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 0);
    client.call(true, &vec![b'x'; 30_000], 0);
    client.call(true, &framed(&query(7, "a.example", 1)), 0);
    assert_eq!(client.books.seen, 0);
}

proptest! {
    #[test]
    fn any_bytes_do(messages in proptest::collection::vec((any::<bool>(), any::<bool>(), proptest::collection::vec(any::<u8>(), 0..80), 0_u64..10), 0..60)) {
        let mut memory = Memory::default();
        let mut now = 0;
        for (sent, prefix, mut bytes, seconds) in messages {
            now += seconds * 1_000_000_000;
            if prefix && bytes.len() > 12 {
                // Otherwise nearly nothing is a message at all.
                let (id, flags) = (bytes[0] & 3, bytes[1] & 0x80);
                bytes[..12].copy_from_slice(&[0, id, flags, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
                bytes.splice(12.., [1, b'a' + bytes[12] % 3, 0, 0, 1, 0, 1]);
            }
            memory.datagram(sent, &bytes, now);
            memory.call(sent, &bytes, now);
        }
        memory.expire(u64::MAX, TIMEOUT_NS);
        prop_assert_eq!(memory.books.seen as usize, memory.books.recorded.len() + memory.books.dropped.len());
        prop_assert!(memory.flights.is_empty());
    }

    #[test]
    fn same_text_is_same_fingerprint(a in "[a-cA-C]{1,3}(\\.[a-c]{1,3}){0,2}", b in "[a-cA-C]{1,3}(\\.[a-c]{1,3}){0,2}") {
        let mut memory = Memory::default();
        let same = memory.read(&query(1, &a, 1)).name == memory.read(&query(1, &b, 1)).name;
        prop_assert_eq!(text(&wire(&a)) == text(&wire(&b)), same);
    }

    #[test]
    fn what_is_read_is_what_was_written(labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..64), 0..4), qtype in 1_u16.., txid in any::<u16>()) {
        let mut bytes = query(txid, "", qtype)[..12].to_vec();
        let mut name = Vec::new();
        for label in &labels {
            name.push(label.len() as u8);
            name.extend_from_slice(label);
        }
        name.push(0);
        bytes.extend_from_slice(&name);
        bytes.extend_from_slice(&qtype.to_be_bytes());
        bytes.extend_from_slice(&[0, 1]);
        let read = Memory::default().read(&bytes);
        if name.len() > MAX_NAME {
            prop_assert_eq!(read.kind, NONE);
        } else {
            prop_assert_eq!((read.kind, read.qtype, read.txid, read.plausible), (QUERY, qtype, txid, 1));
            prop_assert_eq!(read.name_len as usize, name.len());
        }
    }
}
