mod recorded;

use super::memory::Memory;
use super::*;
use crate::l7::Direction::{Received, Sent};
use proptest::prelude::*;
use recorded::{WITH_MARKERS, WITHOUT_MARKERS};

/// A packet.
fn p(seq: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = (body.len() as u32).to_le_bytes()[..3].to_vec();
    packet.push(seq);
    packet.extend(body);
    packet
}

fn query(text: &str) -> Vec<u8> {
    p(0, &[b"\x03", text.as_bytes()].concat())
}

fn ok(seq: u8) -> Vec<u8> {
    p(seq, b"\0\0\0\x02\0\0\0")
}

fn error(seq: u8) -> Vec<u8> {
    p(seq, b"\xff\x7a\x04#42S02no such table")
}

fn marker(seq: u8) -> Vec<u8> {
    p(seq, b"\xfe\0\0\x02\0")
}

/// One column and so many rows.
fn rows(count: usize) -> Vec<u8> {
    let rows = (0..count).flat_map(|n| p(4 + (n % 200) as u8, b"\x05hello"));
    [p(1, b"\x01"), p(2, b"\x03def\0\0\0\x01a\0\x0c?\0\x01\0\0\0\x03\x81\0\0\0\0"), marker(3)]
        .concat()
        .into_iter()
        .chain(rows)
        .chain(marker(9))
        .collect()
}

/// How every conversation begins: greeting, answer, OK.
fn hello() -> Vec<(bool, Vec<u8>)> {
    WITH_MARKERS[..3].iter().map(|(client, bytes)| (*client, bytes.to_vec())).collect()
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

    fn say(&mut self, turns: &'a [(bool, Vec<u8>)]) {
        for (from_client, bytes) in turns {
            self.call(*from_client, bytes);
        }
    }

    /// Each statement or command with how often it was answered so.
    fn counts(&self) -> Vec<(String, bool, u32)> {
        let mut counts: Vec<(String, bool, u32)> = Vec::new();
        for exchange in &self.io.recorded {
            let text =
                self.io.statements.iter().find(|(fingerprint, _)| *fingerprint == exchange.fingerprint);
            let name = text.map_or(command_name(exchange.fingerprint).unwrap_or("other"), |(_, text)| text);
            match counts.iter_mut().find(|count| count.0 == name && count.1 == (exchange.error != 0)) {
                Some(count) => count.2 += 1,
                None => counts.push((name.to_owned(), exchange.error != 0, 1)),
            }
        }
        counts.sort();
        counts
    }

    fn durations(&self) -> Vec<(u64, u64)> {
        self.io.recorded.iter().map(|e| (e.start, e.end)).collect()
    }
}

#[test]
fn what_passes_by_unseen_shifts_nothing() {
    let (hello, one, answer, row) = (hello(), query("select 1"), ok(1), p(4, &[99; 100]));
    let columns = rows(0);
    let head = [&columns[..columns.len() - marker(9).len()], &row[..50]].concat();
    let tail = [&row[90..], &marker(5)].concat();
    for client in [false, true] {
        let mut end = End::new(client);
        end.say(&hello);
        // A part of a row.
        end.call(true, &one);
        end.call(false, &head);
        end.unseen(false, 40);
        end.call(false, &tail);
        // An answer: the last command that waits is the one that is answered. Then a command.
        end.call(true, &one);
        end.call(true, &one);
        end.unseen(false, answer.len() as u32);
        end.call(false, &answer);
        end.unseen(true, one.len() as u32);
        end.call(true, &one);
        end.call(false, &answer);
        let lasted: Vec<_> = end.io.recorded.iter().map(|e| e.end - e.start).collect();
        assert_eq!((lasted, end.io.dropped.as_slice()), (vec![21, 11, 11], &[(Reason::Desync, 1)][..]));
    }
}

const COUNTED: &[(&str, bool, u32)] = &[
    ("FETCH", false, 2),
    ("FIELD_LIST", false, 1),
    ("PING", false, 1),
    ("PREPARE", false, 2),
    ("PREPARE", true, 1),
    ("RESET_CONNECTION", false, 1),
    ("SET_OPTION", false, 1),
    ("STATISTICS", false, 1),
    ("STMT_RESET", false, 1),
    ("USE", false, 1),
    ("create temporary table test.t select ? a,? b", false, 1),
    ("create temporary table test.t(a int,b varchar(?))", false, 1),
    ("do ?", false, 1),
    ("insert into test.t values(?)", false, 1),
    ("load data local infile ? into table test.t fields terminated by ?", false, 1),
    ("other", true, 1),
    ("select ?;select a from test.t;do ?", false, 1),
    ("select a from test.t where a>? and b<>?", false, 2),
    ("select a,b from test.t where b<>?", false, 1),
    ("select*from test.nosuch", true, 1),
];

/// Says the recorded conversation with each turn in pieces, and checks what both ends counted.
fn check(turns: &[(bool, &[u8])], how: &str, pieces: impl Fn(usize, &[u8]) -> Vec<usize>) {
    for client in [false, true] {
        let mut end = End::new(client);
        for (at, (from_client, bytes)) in turns.iter().enumerate() {
            let mut rest = *bytes;
            for piece in pieces(at, bytes) {
                let (now, later) = rest.split_at(piece.min(rest.len()));
                end.call(*from_client, now);
                rest = later;
            }
            end.call(*from_client, rest);
        }
        let expected: Vec<_> =
            COUNTED.iter().map(|&(text, failed, n)| (text.to_owned(), failed, n)).collect();
        assert_eq!(end.counts(), expected, "{how}, client: {client}");
        assert_eq!(end.io.seen, end.io.counted(), "{how}, client: {client}");
        assert_eq!(end.io.dropped, [], "{how}, client: {client}");
        assert_eq!(end.conn.waiting(), 0);
        for exchange in &end.io.recorded {
            assert!(exchange.start < exchange.end, "{how}: {exchange:?}");
        }
    }
}

#[test]
fn recorded_conversations_are_counted_in_whole_turns_and_in_bytes() {
    for (name, turns) in [("with markers", WITH_MARKERS), ("without", WITHOUT_MARKERS)] {
        check(turns, name, |_, _| vec![]);
        check(turns, &format!("{name}, in bytes"), |_, bytes| vec![1; bytes.len()]);
        check(turns, &format!("{name}, in sevens"), |_, bytes| vec![7; bytes.len() / 7]);
        // As the server reads: a header in a call of its own.
        check(turns, &format!("{name}, headers apart"), |_, _| vec![4]);
    }
}

#[test]
fn a_turn_cut_at_any_byte_is_the_same() {
    for (name, turns) in [("with markers", WITH_MARKERS), ("without", WITHOUT_MARKERS)] {
        for turn in 0..turns.len() {
            for cut in 1..turns[turn].1.len() {
                let how = format!("{name}, turn {turn} cut at {cut}");
                check(turns, &how, |at, _| if at == turn { vec![cut] } else { vec![] });
            }
        }
    }
}

#[test]
fn a_command_lasts_from_its_first_byte_to_its_answers_last() {
    let turns = hello();
    let (ask, answer) = (query("select a from t"), rows(3000));
    for client in [true, false] {
        let mut end = End::new(client);
        end.say(&turns);
        end.call(true, &ask[..4]);
        end.call(true, &ask[4..]);
        for part in answer.chunks(7000) {
            end.call(false, part);
        }
        let calls = answer.chunks(7000).len() as u64;
        assert_eq!(end.durations(), [(40, 50 + 10 * calls + 1)]);
    }
}

#[test]
fn results_of_any_size_are_passed_over() {
    let turns = hello();
    let ask = query("select a from t");
    // A row of 16 MiB and more takes two packets, the second of which can look like an error or a marker.
    for rest in [&b"\xff\xff\0 no error"[..], b"\xfe\0\0\0\0", b""] {
        let large = [p(4, &vec![b'x'; 0x00ff_ffff]), p(5, rest)].concat();
        let answer = rows(0);
        let (front, back) = answer.split_at(answer.len() - 9);
        let answer = [front, &large, back].concat();
        let mut end = End::new(true);
        end.say(&turns);
        end.call(true, &ask);
        for part in answer.chunks(100_001) {
            end.call(false, part);
        }
        end.call(true, &ask);
        let next = ok(1);
        end.io.call(&mut end.conn, Received, &next.clone().leak()[..], 9_000_000);
        assert_eq!(end.counts(), [("select a from t".to_owned(), false, 2)]);
        assert_eq!((end.conn.waiting(), end.io.lost()), (0, 0));
    }
}

#[test]
fn long_statements_are_read_to_what_counts() {
    let turns = hello();
    let text = format!("insert into t values {}", vec!["(1, 'it\\'s', null)"; 5000].join(","));
    let ask = query(&text);
    let done = ok(1);
    let mut fingerprints = vec![crate::sql::read_mysql(text.as_bytes()).fingerprint()];
    for piece in [usize::MAX, 16_384, 100, 3] {
        let mut end = End::new(false);
        end.say(&turns);
        for part in ask.chunks(piece.min(ask.len())) {
            end.call(true, part);
        }
        end.call(false, &done);
        // What is behind the bytes that are read is left out.
        assert!(end.io.statements[0].1.starts_with("insert into t values(?)"));
        assert_eq!(end.io.recorded.len(), 1);
        fingerprints.push(end.io.recorded[0].fingerprint);
    }
    assert!(fingerprints.windows(2).all(|two| two[0] == two[1]), "{fingerprints:?}");
}

#[test]
fn attributes_before_a_statement_are_no_text() {
    let turns = hello();
    let none = p(0, b"\x03\0\x01select 'x'");
    let some = p(0, b"\x03\x01\x01\0\x01\xfe\0\x03key\x06secret");
    let done = ok(1);
    let mut end = End::new(true);
    end.say(&turns);
    end.call(true, &none);
    end.call(false, &done);
    end.call(true, &some);
    end.call(false, &done);
    assert_eq!(end.counts(), [("other".to_owned(), false, 1), ("select ?".to_owned(), false, 1)]);
}

#[test]
fn servers_without_escapes_show_no_text() {
    let turns = hello();
    let ask = query("select 'a\\', secret, 'b'");
    let done = p(1, b"\0\0\0\x02\x02\0\0");
    let mut end = End::new(true);
    end.say(&turns);
    end.call(true, &ask);
    end.call(false, &done);
    assert_eq!(end.io.statements.len(), 1);
    end.call(true, &ask);
    end.call(false, &done);
    // Since the first answer.
    assert_eq!((end.io.statements.len(), end.io.recorded[1].fingerprint), (1, OTHER));
}

#[test]
fn definitions_that_the_client_knows_are_left_out() {
    let turns = hello();
    let ask = query("select a from t");
    let answer = [p(1, b"\x02\0"), marker(2), p(3, b"\0\0\x01\0\0\0"), marker(4)].concat();
    let full = [p(1, b"\x01\x01"), p(2, b"\x03def"), marker(3), p(4, b"\x01x"), marker(5)].concat();
    let mut end = End::new(false);
    end.say(&turns);
    for _ in 0..2 {
        end.call(true, &ask);
        end.call(false, &answer);
        end.call(true, &ask);
        end.call(false, &full);
    }
    assert_eq!(end.counts(), [("select a from t".to_owned(), false, 4)]);
    assert_eq!(end.conn.waiting(), 0);
}

#[test]
fn commands_that_are_sent_ahead_are_paired() {
    let turns = hello();
    // MariaDB's drivers execute what they prepare before they know its number.
    let ahead = [p(0, b"\x16insert into t values (?)"), p(0, b"\x17\xff\xff\xff\xff\0\x01\0\0\0")].concat();
    let prepared = [p(1, b"\0\x07\0\0\0\0\0\x01\0\0\0\0"), p(2, b"\x03def"), marker(3)].concat();
    let failed = error(1);
    let later = p(0, b"\x17\x07\0\0\0\0\x01\0\0\0");
    let done = ok(1);
    for client in [true, false] {
        let mut end = End::new(client);
        end.say(&turns);
        end.call(true, &ahead);
        end.call(false, &prepared);
        end.call(false, &failed);
        end.call(true, &later);
        end.call(false, &done);
        let text = "insert into t values(?)";
        assert_eq!(
            end.counts(),
            [("PREPARE".to_owned(), false, 1), (text.to_owned(), false, 1), (text.to_owned(), true, 1)]
        );
        assert_eq!(end.durations(), [(40, 51), (40, 61), (70, 81)]);
        assert_eq!((end.io.seen, end.io.lost()), (3, 0));
    }
}

#[test]
fn too_many_that_are_sent_ahead_end_the_count_but_not_the_connection() {
    let turns = hello();
    let many = query("do 1").repeat(20);
    let answers = ok(1).repeat(20);
    let (one, done) = (query("do 1"), ok(1));
    let mut end = End::new(false);
    end.say(&turns);
    end.call(true, &many);
    end.call(false, &answers);
    assert_eq!(end.io.recorded.len(), 0);
    assert_eq!(end.io.dropped, [(Reason::PipelineDepth, 1), (Reason::Desync, 8)]);
    end.call(true, &one);
    end.call(false, &done);
    assert_eq!((end.io.seen, end.io.recorded.len()), (10, 1));
}

#[test]
fn a_file_can_have_more_packets_than_there_are_numbers() {
    let turns = hello();
    let (ask, asked) = (query("load data local infile 'x' into table t"), p(1, b"\xfbx"));
    let file: Vec<u8> = (2..600_u32).flat_map(|n| p(n as u8, b"\x03not a query")).chain(p(88, b"")).collect();
    let (done, one, next) = (ok(89), query("do 1"), ok(1));
    for client in [true, false] {
        for piece in [file.len(), 16_384, 5] {
            let mut end = End::new(client);
            end.say(&turns);
            end.call(true, &ask);
            end.call(false, &asked);
            for part in file.chunks(piece) {
                end.call(true, part);
            }
            end.call(false, &done);
            end.call(true, &one);
            end.call(false, &next);
            let text = "load data local infile ? into table t";
            assert_eq!(end.counts(), [("do ?".to_owned(), false, 1), (text.to_owned(), false, 1)]);
            assert_eq!(end.io.lost(), 0);
        }
    }
}

#[test]
fn an_old_connection_is_picked_up_at_its_next_statement() {
    let (one, done, two) = (query("select 1"), ok(1), query("select 2"));
    let rest = [p(77, b"\x01x"), marker(78)].concat();
    let execute = p(0, b"\x17\x07\0\0\0\0\x01\0\0\0");
    for client in [true, false] {
        for ask in [&one, &execute] {
            let mut end = End::new(client);
            end.call(false, &rest);
            end.call(true, ask);
            assert_eq!(end.io.seen, 0);
            end.call(false, &done);
            // What escapes mean is known only now.
            end.call(true, &two);
            end.call(false, &done);
            assert_eq!(end.counts(), [("other".to_owned(), false, 1), ("select ?".to_owned(), false, 1)]);
            assert_eq!(end.durations()[0], (20, 31));
            assert_eq!(end.io.seen, 2);
        }
    }
}

#[test]
fn progress_is_no_end() {
    let turns = hello();
    let (ask, progress, done) =
        (query("alter table t force"), p(1, b"\xff\xff\xff\x01\x01\x02\x10\x27\0\x04copy"), ok(2));
    let mut end = End::new(true);
    end.say(&turns);
    end.call(true, &ask);
    end.call(false, &progress);
    end.call(false, &done);
    assert_eq!(end.durations(), [(40, 61)]);
}

#[test]
fn an_answer_that_was_read_before_its_question_was_known_shifts_nothing() {
    let turns = hello();
    let (ask, done) = (query("do 1"), ok(1));
    let mut end = End::new(true);
    end.say(&turns);
    end.io.call(&mut end.conn, Received, &done, 100);
    end.io.call(&mut end.conn, Sent, &ask, 90);
    end.io.call(&mut end.conn, Sent, &ask, 200);
    end.io.call(&mut end.conn, Received, &done, 210);
    assert_eq!((end.durations(), end.io.dropped), (vec![(200, 211)], vec![(Reason::Desync, 1)]));
}

#[test]
fn encrypted_compressed_and_replicating_connections_are_opaque() {
    let turns = hello();
    let answer = |capabilities: u32, more: usize| {
        p(1, &[&capabilities.to_le_bytes()[..], &vec![0; 28 + more]].concat())
    };
    for (answer, opaque) in [
        (answer(0x000f_aa85, 0), true),
        (answer(0x000f_a285, 30), false),
        (answer(0x000f_a2a5, 30), true),
        (answer(0x040f_a285, 30), true),
        (answer(0x0000_0085, 30), true),
    ] {
        for client in [true, false] {
            let mut end = End::new(client);
            end.call(false, &turns[0].1);
            end.call(true, &answer);
            assert_eq!(end.conn.role == ROLE_OPAQUE, opaque);
        }
    }
    let (one, dump) = (query("select 1"), p(0, b"\x12\x04\0\0\0\0\0\x01\0\0\0f"));
    let mut end = End::new(false);
    end.say(&turns);
    end.call(true, &one);
    end.call(true, &dump);
    assert_eq!((end.conn.role, end.io.dropped.as_slice()), (ROLE_OPAQUE, &[(Reason::Opaque, 1)][..]));
}

#[test]
fn what_a_connection_leaves_unanswered_is_dropped() {
    let turns = hello();
    let (one, fatal, quit) = (query("select sleep(9)"), error(1), p(0, b"\x01"));
    for killed in [false, true] {
        let mut end = End::new(false);
        end.say(&turns);
        end.call(true, &one);
        if killed {
            end.call(false, &fatal);
        }
        end.call(true, &quit);
        end.conn.finish(&mut end.io);
        end.conn.finish(&mut end.io);
        let expected: &[_] = if killed { &[] } else { &[(Reason::NoResponse, 1)] };
        assert_eq!(end.io.dropped, expected);
        assert_eq!(end.counts().len(), usize::from(killed));
    }
}

#[test]
fn what_begins_a_connection_is_offered_and_what_other_protocols_begin_with_is_not() {
    let begins = |bytes: &[u8]| {
        let mut head = [0; 8];
        let there = bytes.len().min(8);
        head[..there].copy_from_slice(&bytes[..there]);
        may_begin(u64::from_le_bytes(head), bytes.len() as u32)
    };
    let greeting = WITH_MARKERS[0].1;
    let large = query(&"x".repeat(100_000));
    for yes in [greeting, &greeting[..4], &query("select 1"), &query("select 1")[..4], &large[..16_384]] {
        assert!(begins(yes), "{yes:?}");
    }
    for no in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"*1\r\n$4\r\nPING\r\n",
        b"PING\r\n",
        b"Q\0\0\0\x16select a from table\0",
        b"Q\0\0\0\x0abegin\0",
        b"\0\0\0\x09\0\x03\0\0\0",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc",
        b"\0\0\0\0",
        b"\x01",
    ] {
        assert!(!begins(no), "{no:?}");
    }
}

#[test]
fn foreign_protocols_become_opaque_and_count_nothing() {
    let start = b"\0\0\0\x09\0\x03\0\0\0";
    let calls: [(&[u8], &[u8]); 6] = [
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc", b"\x16\x03\x03\0\x7a\x02"),
        (b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n"),
        (start, b"R\0\0\0\x08\0\0\0\0"),
        // Looks like a statement, but its answer does not.
        (b"\x0a\0\0\0\x03select 1;", b"\x0a\0\0\0\x03select 1;"),
        (b"\x0a\0\0\0\x03select 1;", b"\x02\0\0\x01\0\0"),
    ];
    for (asked, answered) in calls {
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
    let from_client = prop_oneof![
        3 => "[a-z '\"\\\\?]{0,30}".prop_map(|text| query(&text)),
        1 => "[a-z ?]{0,9}".prop_map(|text| p(0, &[b"\x16", text.as_bytes()].concat())),
        2 => (0_u8..3).prop_map(|id| p(0, &[0x17, id, 0, 0, 0, 0, 1, 0, 0, 0])),
        1 => prop::sample::select(&b"\x02\x04\x08\x09\x0e\x11\x19\x1a\x1b\x1c\x1f"[..])
            .prop_map(|command| p(0, &[command, 1, 0, 0, 0])),
    ];
    let from_server = prop_oneof![
        Just(ok(1)),
        Just(error(1)),
        Just(marker(5)),
        Just(p(1, b"\xfbf")),
        Just(p(1, b"\0\0\0\x0a\0\0\0")),
        Just(p(1, b"\0\x01\0\0\0\x01\0\x01\0\0\0\0")),
        Just(p(2, b"\x03def")),
        (0_usize..300).prop_map(rows),
    ];
    let hostile = prop::collection::vec(any::<u8>(), 0..20);
    prop_oneof![
        6 => from_client.prop_map(|packet| (true, packet)),
        6 => from_server.prop_map(|packet| (false, packet)),
        1 => (any::<bool>(), hostile),
    ]
}

proptest! {
    #[test]
    fn whatever_is_said_is_accounted_for(turns in prop::collection::vec(any_turn(), 0..40), client in any::<bool>()) {
        let hello = hello();
        let mut end = End::new(client);
        end.say(&hello);
        end.say(&turns);
        end.conn.finish(&mut end.io);
        prop_assert_eq!(end.io.seen, end.io.counted() + end.io.lost());
    }

    #[test]
    fn cuts_change_nothing(turns in prop::collection::vec(any_turn(), 0..12), cuts in prop::collection::vec(1_usize..30, 1..50)) {
        let turns: Vec<_> = hello().into_iter().chain(turns).collect();
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
        prop_assert_eq!(whole.counts(), cut.counts());
        prop_assert_eq!(whole.io.lost(), cut.io.lost());
    }
}
