mod conversations;

use super::memory::Memory;
use super::verb::VERBS;
use super::*;
use crate::l7::Direction::{Received, Sent};
use conversations::conversations;
use proptest::prelude::*;

/// A request as an array of strings.
fn ask(line: &str) -> Vec<u8> {
    let words: Vec<_> = line.split(' ').collect();
    let mut request = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        request.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
    }
    request
}

/// One end of a conversation, and what it counted.
struct End<'a> {
    conn: Conn,
    io: Memory<'a>,
    client: bool,
    now: u64,
}

impl<'a> End<'a> {
    fn new(client: bool) -> Self {
        Self { conn: Conn::default(), io: Memory::default(), client, now: 0 }
    }

    /// Bytes from the client (or the server) in one call.
    fn call(&mut self, from_client: bool, bytes: &'a [u8]) {
        self.now += 10;
        let direction = if from_client == self.client { Sent } else { Received };
        self.io.call(&mut self.conn, direction, bytes, self.now);
    }

    /// Bytes before the next call from there that nobody told of.
    fn unseen(&mut self, from_client: bool, count: u32) {
        let direction = if from_client == self.client { Sent } else { Received };
        self.io.unseen(&mut self.conn, direction, count, self.now);
    }

    /// Each verb with how often it was answered so; a blocking one with a `!`.
    fn counts(&self) -> Vec<(String, bool, u32)> {
        let mut counts: Vec<(String, bool, u32)> = Vec::new();
        for exchange in &self.io.recorded {
            let blocks = verb::is_blocking(exchange.verb);
            let name = format!("{}{}", VERBS[exchange.verb as usize], if blocks { "!" } else { "" });
            match counts.iter_mut().find(|count| count.0 == name && count.1 == exchange.failed) {
                Some(count) => count.2 += exchange.count,
                None => counts.push((name, exchange.failed, exchange.count)),
            }
        }
        counts.sort();
        counts
    }

    fn durations(&self) -> Vec<(u64, u64)> {
        self.io.recorded.iter().flat_map(|e| vec![(e.start, e.end); e.count as usize]).collect()
    }
}

/// A conversation: who speaks, what, and what should have been counted.
struct Conversation {
    turns: Vec<(bool, Vec<u8>)>,
    counted: Vec<(&'static str, bool, u32)>,
    /// Whether the connection is watched to its end.
    opaque: bool,
}

impl Conversation {
    /// Says it with each turn in pieces, and checks what both ends counted.
    fn check(&self, how: &str, pieces: impl Fn(usize, &[u8]) -> Vec<usize>) {
        for client in [false, true] {
            let mut end = End::new(client);
            for (at, (from_client, bytes)) in self.turns.iter().enumerate() {
                let mut rest = bytes.as_slice();
                for piece in pieces(at, bytes) {
                    let (now, later) = rest.split_at(piece.min(rest.len()));
                    end.call(*from_client, now);
                    rest = later;
                }
                end.call(*from_client, rest);
            }
            let expected: Vec<_> =
                self.counted.iter().map(|&(name, failed, n)| (name.to_owned(), failed, n)).collect();
            assert_eq!(end.counts(), expected, "{how}, client: {client}");
            assert_eq!(end.io.seen, end.io.counted(), "{how}, client: {client}");
            assert_eq!(end.io.dropped, [], "{how}, client: {client}");
            assert_eq!(end.conn.role == ROLE_OPAQUE, self.opaque, "{how}");
            assert_eq!(end.conn.waiting(), 0, "{how}");
            for exchange in &end.io.recorded {
                assert!(exchange.start < exchange.end, "{how}: {exchange:?}");
            }
        }
    }
}

#[test]
fn conversations_are_counted_in_whole_turns_and_in_bytes() {
    for (number, conversation) in conversations().iter().enumerate() {
        conversation.check(&format!("conversation {number}"), |_, _| vec![]);
        conversation.check(&format!("conversation {number} in bytes"), |_, bytes| vec![1; bytes.len()]);
        conversation.check(&format!("conversation {number} in sevens"), |_, bytes| vec![7; bytes.len() / 7]);
    }
}

#[test]
fn a_turn_cut_at_any_byte_is_the_same() {
    for (number, conversation) in conversations().iter().enumerate() {
        for turn in 0..conversation.turns.len() {
            for cut in
                (1..conversation.turns[turn].1.len()).filter(|&cut| cut < 200 || cut % 97 == 0 || cut > 9_990)
            {
                let how = format!("conversation {number}, turn {turn} cut at {cut}");
                conversation.check(&how, |at, _| if at == turn { vec![cut] } else { vec![] });
            }
        }
    }
}

#[test]
fn a_command_lasts_from_its_first_byte_to_its_replys_last() {
    let (one, three) = (ask("GET k"), ask("GET k").repeat(3));
    let mut end = End::new(true);
    end.call(true, &one[..9]);
    end.call(true, &one[9..]);
    end.call(false, b"$5\r\nhel");
    end.call(false, b"lo\r\n");
    assert_eq!(end.durations(), [(10, 41)]);
    // Two calls with three and a half, and replies in three.
    let mut end = End::new(false);
    end.call(true, &three[..50]);
    end.call(true, &three[50..]);
    end.call(false, b"$-1\r\n$-1");
    end.call(false, b"\r\n");
    end.call(false, b"$-1\r\n");
    assert_eq!(end.durations(), [(10, 31), (10, 41), (10, 51)]);
}

#[test]
fn commands_of_many_threads_on_one_connection_keep_their_own_times() {
    let requests: Vec<_> = (0..31).map(|n| ask(if n % 2 == 0 { "GET k" } else { "TTL k" })).collect();
    let mut end = End::new(true);
    for request in &requests {
        end.call(true, request);
    }
    for _ in &requests {
        end.call(false, b":1\r\n");
    }
    let expected: Vec<_> = (1..=31).map(|n| (10 * n, 10 * (n + 31) + 1)).collect();
    assert_eq!(end.durations(), expected);
    assert_eq!(end.io.dropped, []);
}

#[test]
fn pipelines_of_any_depth_shift_nothing() {
    for depth in [1, 16, 512, 5000] {
        for lines in [&["PING"][..], &["SET k v", "EXPIRE k 9"], &["GET k"]] {
            let request: Vec<u8> = (0..depth).flat_map(|n| ask(lines[n % lines.len()])).collect();
            let replies = b":1\r\n".repeat(depth);
            let last = ask("INCR z");
            for client in [true, false] {
                let mut end = End::new(client);
                for _ in 0..3 {
                    end.call(true, &request);
                    end.call(false, &replies);
                    end.call(true, &last);
                    end.call(false, b":2\r\n");
                }
                assert_eq!(end.io.seen as usize, 3 * (depth + 1));
                assert_eq!(end.io.counted() + end.io.lost(), end.io.seen);
                let incr = end.counts().into_iter().find(|count| count.0 == "INCR");
                assert_eq!(incr, Some(("INCR".to_owned(), false, 3)), "{depth} {lines:?}");
                assert!(end.io.dropped.iter().all(|dropped| dropped.0 == Reason::PipelineDepth));
                if depth <= 16 || lines.len() == 1 {
                    assert_eq!(end.io.lost(), 0, "{depth} {lines:?}");
                } else {
                    assert_eq!(end.io.counted(), 3 * (31 + 1), "{depth} {lines:?}");
                }
            }
        }
    }
}

#[test]
fn a_gap_among_requests_that_wait_costs_only_what_is_in_it() {
    let requests: Vec<_> = (0..200).map(|n| ask(if n % 2 == 0 { "GET k" } else { "TTL k" })).collect();
    let mut end = End::new(true);
    for request in &requests[..40] {
        end.call(true, request);
    }
    assert_eq!(end.io.lost(), 9);
    // As many as come are answered: what comes now finds places behind the gap.
    for request in &requests[40..] {
        end.call(false, b":1\r\n");
        end.call(false, b":1\r\n");
        end.call(true, request);
    }
    end.conn.finish(&mut end.io);
    assert_eq!(end.io.seen, 200);
    assert_eq!(end.io.counted() + end.io.lost(), 200);
    assert!(end.io.counted() > 180, "{}", end.io.counted());
    for exchange in &end.io.recorded {
        // Each after its request, and the same verb at each place.
        assert!(exchange.start < exchange.end);
    }
}

#[test]
fn an_old_connection_is_picked_up_at_its_next_request() {
    for (request, name) in
        [(ask("GET k"), "GET"), (ask("HSET h f v"), "HSET"), ([ask("PING"), ask("PING")].concat(), "PING")]
    {
        for client in [true, false] {
            let mut end = End::new(client);
            end.call(false, b"lo\r\n");
            end.call(true, b"ue\r\n");
            end.call(false, b"+OK\r\n");
            end.call(true, &request);
            end.call(false, if name == "PING" { b"+PONG\r\n+PONG\r\n" } else { b"+OK\r\n" });
            assert_eq!(end.counts(), [(name.to_owned(), false, end.io.seen)]);
        }
    }
}

#[test]
fn replies_to_requests_that_were_missed_are_forgotten_once_nothing_waits() {
    let one = ask("GET k");
    for client in [true, false] {
        let mut end = End::new(client);
        end.call(true, &one);
        for _ in 0..3 {
            end.call(false, b"$-1\r\n");
        }
        for _ in 0..3 {
            end.call(true, &one);
            end.call(false, b"$-1\r\n");
        }
        assert_eq!(end.durations().iter().map(|(start, end)| end - start).collect::<Vec<_>>(), [11; 4]);
        assert_eq!(end.io.dropped, []);
    }
}

#[test]
fn a_reader_that_is_faster_than_the_return_of_send_is_paired() {
    let (hello, one) = (ask("PING"), ask("GET k"));
    let mut end = End::new(true);
    end.call(true, &hello);
    end.call(false, b"+PONG\r\n");
    end.io.call(&mut end.conn, Received, b"-ERR\r\n", 100);
    // The call that sent it began before.
    end.io.call(&mut end.conn, Sent, &one, 90);
    assert_eq!(end.durations()[1..], [(90, 101)]);
    assert!(end.io.recorded[1].failed);
    end.io.call(&mut end.conn, Sent, &one, 200);
    end.io.call(&mut end.conn, Received, b"+OK\r\n", 210);
    assert_eq!(end.durations()[2..], [(200, 211)]);
}

#[test]
fn what_passes_by_unseen_shifts_nothing() {
    let (get, answer) = (ask("GET a"), b"$100\r\n".iter().chain(&[b'x'; 100]).chain(b"\r\n").copied());
    let answer: Vec<u8> = answer.collect();
    for client in [false, true] {
        let mut end = End::new(client);
        // A part of a string.
        end.call(true, &get);
        end.call(false, &answer[..20]);
        end.unseen(false, 80);
        end.call(false, &answer[100..]);
        // A reply, which takes along the command whose reply shows that; then a command.
        end.call(true, &get);
        end.call(true, &get);
        end.unseen(false, answer.len() as u32);
        end.call(false, &answer);
        end.unseen(true, get.len() as u32);
        end.call(true, &get);
        end.call(false, &answer);
        assert_eq!(end.durations().iter().map(|(start, end)| end - start).collect::<Vec<_>>(), [21, 11]);
        assert_eq!(end.io.dropped, [(Reason::Desync, 2)]);
    }
}

#[test]
fn long_waits_keep_their_length_up_to_19_hours() {
    let pop = ask("BLPOP l 0");
    let hours = |n: u64| n * 3600 * 1_000_000_000;
    for begin in [1, hours(1000), START - 5, START] {
        for lasted in [0, 1, hours(1), hours(9)] {
            let mut end = End::new(false);
            end.io.call(&mut end.conn, Received, &pop, begin);
            end.io.call(&mut end.conn, Sent, b"*-1\r\n", begin + lasted);
            assert_eq!(end.durations(), [(begin, begin + lasted + 1)]);
        }
    }
}

#[test]
fn what_a_connection_leaves_unanswered_is_dropped() {
    let three = [ask("PING"), ask("GET k"), ask("BLPOP l 0")].concat();
    let mut end = End::new(false);
    end.call(true, &three);
    end.call(false, b"+PONG\r\n");
    end.conn.finish(&mut end.io);
    end.conn.finish(&mut end.io);
    assert_eq!((end.io.seen, end.io.dropped), (3, vec![(Reason::NoResponse, 2)]));
}

#[test]
fn hostile_bytes_end_a_connection_and_no_more() {
    let one = ask("GET k");
    for hostile in [
        &b"*99999999999\r\n"[..],
        b"*1\r\n$99999999999\r\n",
        b"*1\r\n:1\r\n",
        b"*1\r\n$-1\r\n",
        b"*\r\n",
        b"*1\r\n$\r\n",
        b"*1\rx",
        b"*1x\r\n",
        b"*--1\r\n",
        b"$4\r\nPING\r\n",
        b"\x16\x03\x01\x02\0",
        b"*2147483647\r\n*",
    ] {
        let mut end = End::new(false);
        end.call(true, &one);
        end.call(false, b"+OK\r\n");
        end.call(true, &one);
        end.call(true, hostile);
        assert_eq!(
            (end.conn.role, end.io.dropped.as_slice()),
            (ROLE_UNKNOWN, &[(Reason::Desync, 1)][..]),
            "{hostile:?}"
        );
        end.call(true, &one);
        end.call(false, b"+OK\r\n");
        assert_eq!((end.io.seen, end.io.counted()), (3, 2), "{hostile:?}");
    }
    for hostile in
        [&b"hello\r\n"[..], b"$x\r\n", b"*1073741823\r\n%1073741823\r\n%1073741823\r\n", b"?\r\n", b"$?\r\n"]
    {
        let mut end = End::new(true);
        end.call(true, &one);
        end.call(false, hostile);
        assert_eq!(
            (end.conn.role, end.io.dropped.as_slice()),
            (ROLE_UNKNOWN, &[(Reason::Desync, 1)][..]),
            "{hostile:?}"
        );
    }
}

#[test]
fn a_connection_that_begins_with_a_line_is_known_by_its_first_reply() {
    for (line, reply, is_ours) in [
        (&b"PING\r\n"[..], &b"+PONG\r\n"[..], true),
        (b"PING\r\n", b"-NOAUTH Authentication required.\r\n", true),
        (b"ping hello\r\n", b"$5\r\nhello\r\n", true),
        (b"DEL a\r\n", b":1\r\n", true),
        (b"INCR a\r\n", b"-ERR no\r\n", true),
        (b"PING\r\n", b"PONG\r\n", false),
        (b"PING\r\n", b"+OK\r\n", false),
        (b"PING me\r\n", b":server PONG me\r\n", false),
        (b"INCR a 5\r\n", b"6\r\n", false),
        (b"SELECT * FROM t\r\n", b"* 1\r\n", false),
        (b"SUBSCRIBE\r\n", b"MESSAGE\r\n", false),
    ] {
        // Of one byte, too little is known to be strict.
        let sizes = if is_ours { &[1, 3, 100][..] } else { &[3, 100] };
        for &size in sizes {
            let mut end = End::new(true);
            line.chunks(size).for_each(|piece| end.call(true, piece));
            reply.chunks(size).for_each(|piece| end.call(false, piece));
            let seen = u32::from(is_ours);
            assert_eq!((end.io.seen, end.io.counted()), (seen, seen), "{:?}", str::from_utf8(reply));
        }
    }
}

#[test]
fn foreign_protocols_become_opaque_and_count_nothing() {
    let turns: [(&[u8], &[u8]); 10] = [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc", b"\x16\x03\x03\0\x7a\x02"),
        // memcached, NATS, SMTP, POP3, FTP.
        (b"set k 0 0 1\r\nv\r\n", b"STORED\r\n"),
        (b"incr k 1\r\n", b"2\r\n"),
        (b"PING\r\n", b"PONG\r\n"),
        (b"AUTH PLAIN\r\n", b"334 go on\r\n"),
        (b"AUTH\r\n", b"+OK PLAIN\r\n"),
        (b"TYPE I\r\n", b"200 ok\r\n"),
        (b"*1\r\n$5\r\nHELO!\r\n", b"+OK\r\n"),
        (b"*12\r\nabc", b"*"),
    ];
    for (asked, answered) in turns {
        for client in [true, false] {
            let mut end = End::new(client);
            for _ in 0..200 {
                end.call(true, asked);
                end.call(false, answered);
            }
            end.conn.finish(&mut end.io);
            assert_eq!(
                (end.conn.role, end.io.seen, end.io.dropped.as_slice()),
                (ROLE_OPAQUE, 0, &[][..]),
                "{asked:?}"
            );
        }
    }
}

fn any_turn() -> impl Strategy<Value = (bool, Vec<u8>)> {
    let word = "[a-z$*\r\n]{0,30}";
    let from_client = prop_oneof![
        (prop::sample::select(&VERBS[1..]), prop::collection::vec(word, 0..4)).prop_map(|(verb, words)| {
            let mut line = vec![verb.to_owned()];
            line.extend(words);
            ask(&line.join(" "))
        }),
        Just(ask("PING")),
        Just(ask("XREAD BLOCK 0 STREAMS s $")),
        Just(b"INCR k\r\n".to_vec()),
        Just(b"\r\n".to_vec()),
    ];
    let element = prop_oneof![
        "[+:,(#_-][a-z0-9]{0,20}\r\n",
        "[a-z\r\n]{0,30}".prop_map(|text| format!("${}\r\n{text}\r\n", text.len())),
        Just("$-1\r\n".to_owned()),
        Just("*-1\r\n".to_owned()),
        Just("!3\r\nERR\r\n".to_owned()),
    ];
    let many = (prop::sample::select(&["*", "~", ">"][..]), prop::collection::vec(element.clone(), 0..5))
        .prop_map(|(kind, elements)| format!("{kind}{}\r\n{}", elements.len(), elements.concat()));
    let map = (prop::sample::select(&["%", "|"][..]), element.clone(), many.clone())
        .prop_map(|(kind, key, value)| format!("{kind}1\r\n{key}{value}"));
    let from_server = prop_oneof![4 => element, 2 => many, 1 => map].prop_map(String::into_bytes);
    let hostile = prop::collection::vec(any::<u8>(), 0..20);
    let turn = |client: bool, messages: Vec<Vec<u8>>| (client, messages.concat());
    prop_oneof![
        9 => prop::collection::vec(from_client, 1..5).prop_map(move |messages| turn(true, messages)),
        9 => prop::collection::vec(from_server, 1..5).prop_map(move |messages| turn(false, messages)),
        1 => (any::<bool>(), hostile),
    ]
}

proptest! {
    #[test]
    fn whatever_is_said_is_accounted_for(turns in prop::collection::vec(any_turn(), 0..40), client in any::<bool>()) {
        let hello = ask("PING");
        let mut end = End::new(client);
        end.call(true, &hello);
        for (from_client, bytes) in &turns {
            end.call(*from_client, bytes);
        }
        end.conn.finish(&mut end.io);
        prop_assert_eq!(end.io.seen, end.io.counted() + end.io.lost());
    }

    #[test]
    fn cuts_change_nothing(turns in prop::collection::vec(any_turn(), 0..12), cuts in prop::collection::vec(1_usize..30, 1..50)) {
        let hello = (true, ask("PING"));
        let turns: Vec<_> = core::iter::once(hello).chain(turns).collect();
        let mut whole = End::new(false);
        let mut cut = End::new(false);
        let mut sizes = cuts.iter().cycle();
        for (from_client, bytes) in &turns {
            whole.call(*from_client, bytes);
            if whole.conn.role != ROLE_SERVER {
                // Framing was lost, and where it is found again depends on calls.
                return Ok(());
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
                cut.call(*from_client, now);
                rest = later;
            }
        }
        whole.conn.finish(&mut whole.io);
        cut.conn.finish(&mut cut.io);
        // Equal requests of one call take one place, those of several calls several.
        let dropped_for_depth = |end: &End<'_>| end.io.dropped.iter().any(|d| d.0 == Reason::PipelineDepth);
        prop_assume!(!dropped_for_depth(&whole) && !dropped_for_depth(&cut));
        prop_assert_eq!(whole.counts(), cut.counts());
        prop_assert_eq!(whole.io.lost(), cut.io.lost());
    }

    #[test]
    fn numbers_are_what_they_say(value in 0_u32..10_000_000) {
        let reply = format!("*{value}\r\n");
        let (one, fast) = (ask("KEYS *"), reply.clone() + ":1\r\n");
        let mut end = End::new(true);
        end.call(true, &one);
        end.call(false, fast.as_bytes());
        prop_assert_eq!(end.conn.half[RESPONSE].open, value.saturating_sub(1));
    }
}
