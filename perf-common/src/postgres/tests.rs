use super::memory::Memory;
use super::*;
use crate::http::Direction::{Received, Sent};
use proptest::prelude::*;

/// A message with a type.
fn m(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![kind];
    message.extend((body.len() as u32 + 4).to_be_bytes());
    message.extend(body);
    message
}

/// A packet without one.
fn packet(code: u32, body: &[u8]) -> Vec<u8> {
    let mut packet = (body.len() as u32 + 8).to_be_bytes().to_vec();
    packet.extend(code.to_be_bytes());
    packet.extend(body);
    packet
}

fn query(text: &str) -> Vec<u8> {
    m(b'Q', format!("{text}\0").as_bytes())
}
fn parse(name: &str, text: &str) -> Vec<u8> {
    m(b'P', format!("{name}\0{text}\0\0\0").as_bytes())
}
fn bind(portal: &str, name: &str) -> Vec<u8> {
    m(b'B', format!("{portal}\0{name}\0\0\0\0\x01\0\0\0\x01x\0\0").as_bytes())
}
fn execute(portal: &str) -> Vec<u8> {
    m(b'E', format!("{portal}\0\0\0\0\0").as_bytes())
}
fn sync() -> Vec<u8> {
    m(b'S', b"")
}
fn startup_packet() -> Vec<u8> {
    packet(196_608, b"user\0x\0database\0y\0\0")
}
fn complete() -> Vec<u8> {
    m(b'C', b"SELECT 1\0")
}
fn ready() -> Vec<u8> {
    m(b'Z', b"I")
}
fn error() -> Vec<u8> {
    m(b'E', b"SERROR\0VERROR\0C42P01\0Mrelation does not exist\0\0")
}
fn row() -> Vec<u8> {
    m(b'D', b"\0\x01\0\0\0\x01Z")
}
fn welcome() -> Vec<u8> {
    [m(b'R', &[0; 4]), m(b'S', b"server_version\x0015\0"), m(b'K', &[7; 8]), ready()].concat()
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

    /// Each text with how often it was answered so.
    fn counts(&self) -> Vec<(String, bool, u32)> {
        let mut counts: Vec<(String, bool, u32)> = Vec::new();
        for exchange in &self.io.recorded {
            let text =
                self.io.statements.iter().find(|(fingerprint, _)| *fingerprint == exchange.fingerprint);
            let text = text.map_or("other", |(_, text)| text).to_owned();
            match counts.iter_mut().find(|count| count.0 == text && count.1 == (exchange.error != 0)) {
                Some(count) => count.2 += exchange.count,
                None => counts.push((text, exchange.error != 0, exchange.count)),
            }
        }
        counts.sort();
        counts
    }
}

/// A conversation: who speaks, what, and what should have been counted.
struct Conversation {
    turns: Vec<(bool, Vec<u8>)>,
    counted: Vec<(&'static str, bool, u32)>,
}

#[expect(clippy::too_many_lines, reason = "a list of conversations, to be read from top to bottom")]
fn conversations() -> Vec<Conversation> {
    let client = |parts: Vec<Vec<u8>>| (true, parts.concat());
    let server = |parts: Vec<Vec<u8>>| (false, parts.concat());
    let begin = || vec![client(vec![startup_packet()]), server(vec![welcome()])];
    let with = |turns: Vec<(bool, Vec<u8>)>, counted| Conversation {
        turns: begin().into_iter().chain(turns).collect(),
        counted,
    };
    vec![
        with(
            vec![
                client(vec![query("SELECT 'a;b', 1 FROM t WHERE x IN (1, 2)")]),
                server(vec![m(b'T', b"\0\0"), row(), row(), complete(), ready()]),
                client(vec![query("select nothing")]),
                server(vec![error(), ready()]),
                client(vec![query("")]),
                server(vec![m(b'I', b""), ready()]),
            ],
            vec![("", false, 1), ("select ? from t where x in(?)", false, 1), ("select nothing", true, 1)],
        ),
        // Unnamed and named statements, in one group each.
        with(
            vec![
                client(vec![parse("", "select $1"), bind("", ""), m(b'D', b"P\0"), execute(""), sync()]),
                server(vec![m(b'1', b""), m(b'2', b""), m(b'n', b""), row(), complete(), ready()]),
                client(vec![parse("s1", "update t set a=$1"), m(b'D', b"Ss1\0"), sync()]),
                server(vec![m(b'1', b""), m(b't', b"\0\0"), ready()]),
                client(vec![bind("", "s1"), execute(""), sync()]),
                server(vec![m(b'2', b""), complete(), ready()]),
                client(vec![bind("c", "s1"), execute("c"), sync()]),
                server(vec![m(b'2', b""), m(b's', b""), ready()]),
                client(vec![bind("", ""), execute("c"), execute(""), m(b'C', b"Sx\0"), sync()]),
                server(vec![m(b'2', b""), complete(), complete(), m(b'3', b""), ready()]),
                client(vec![bind("", "unheard of"), execute(""), sync()]),
                server(vec![error(), ready()]),
            ],
            vec![("other", true, 1), ("select ?", false, 2), ("update t set a=?", false, 3)],
        ),
        // A pipeline: two groups, an error in the first that takes what follows with it.
        with(
            vec![
                client(vec![
                    parse("", "begin"),
                    bind("", ""),
                    execute(""),
                    parse("", "insert into t values($1)"),
                    bind("", ""),
                    execute(""),
                    bind("", ""),
                    execute(""),
                    sync(),
                    parse("", "commit"),
                    bind("", ""),
                    execute(""),
                    sync(),
                ]),
                server(vec![m(b'1', b""), m(b'2', b""), complete(), error(), ready()]),
                server(vec![m(b'1', b""), m(b'2', b""), complete(), ready()]),
            ],
            vec![("begin", false, 1), ("commit", false, 1), ("insert into t values(?)", true, 2)],
        ),
        // The commit behind the last one fails.
        with(
            vec![
                client(vec![
                    parse("", "a"),
                    bind("", ""),
                    execute(""),
                    parse("", "b"),
                    bind("", ""),
                    execute(""),
                    sync(),
                ]),
                server(vec![
                    m(b'1', b""),
                    m(b'2', b""),
                    complete(),
                    m(b'1', b""),
                    m(b'2', b""),
                    complete(),
                    error(),
                    ready(),
                ]),
            ],
            vec![("a", false, 1), ("b", true, 1)],
        ),
        // COPY in and out, a notice, a notification.
        with(
            vec![
                client(vec![query("COPY t FROM STDIN")]),
                server(vec![m(b'G', b"\0\0\0")]),
                client(vec![m(b'd', b"Q\0\0\0\x051\t2\n"), m(b'd', b"3\t4\n"), m(b'c', b"")]),
                server(vec![m(b'N', b"SNOTICE\0\0"), complete(), ready()]),
                client(vec![query("COPY t TO STDOUT")]),
                server(vec![m(b'H', b"\0\0\0"), m(b'd', b"1\t2\n"), m(b'c', b""), complete(), ready()]),
                client(vec![query("COPY t FROM STDIN")]),
                server(vec![m(b'G', b"\0\0\0")]),
                client(vec![m(b'f', b"no more\0")]),
                server(vec![error(), m(b'A', b"\0\0\0\x01x\0y\0"), ready()]),
            ],
            vec![
                ("copy t from stdin", false, 1),
                ("copy t from stdin", true, 1),
                ("copy t to stdout", false, 1),
            ],
        ),
        // Encryption refused, twice.
        Conversation {
            turns: vec![
                client(vec![packet(80_877_104, b"")]),
                server(vec![b"N".to_vec()]),
                client(vec![packet(80_877_103, b"")]),
                server(vec![b"N".to_vec()]),
                client(vec![startup_packet()]),
                server(vec![m(b'R', b"\0\0\0\x05salt")]),
                client(vec![m(b'p', b"md5\0")]),
                server(vec![welcome()]),
                client(vec![query("select 1")]),
                server(vec![complete(), ready()]),
                client(vec![m(b'F', b"\0\0\0\0\0\0\0\0\0\0")]),
                server(vec![m(b'V', b"\0\0\0\0"), ready()]),
            ],
            counted: vec![("other", false, 1), ("select ?", false, 1)],
        },
    ]
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
                self.counted.iter().map(|&(text, failed, n)| (text.to_owned(), failed, n)).collect();
            assert_eq!(end.counts(), expected, "{how}, client: {client}");
            assert_eq!(end.io.seen, end.io.counted(), "{how}, client: {client}");
            assert_eq!(end.io.dropped, [], "{how}, client: {client}");
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
            for cut in 1..conversation.turns[turn].1.len() {
                let how = format!("conversation {number}, turn {turn} cut at {cut}");
                conversation.check(&how, |at, _| if at == turn { vec![cut] } else { vec![] });
            }
        }
    }
}

#[test]
fn a_query_lasts_from_its_first_byte_to_ready_and_one_of_a_pipeline_to_its_completion() {
    let (ask, tail) = (query("select 1"), [complete(), ready()].concat());
    let pipeline =
        [parse("", "a"), bind("", ""), execute(""), parse("", "b"), bind("", ""), execute(""), sync()]
            .concat();
    let (start, hello) = (startup_packet(), welcome());
    let one = complete();
    let mut end = End::new(true);
    end.call(true, &start);
    end.call(false, &hello);
    // Begins at 30, its rest at 40; the answer at 50, the last byte of it at 60.
    end.call(true, &ask[..3]);
    end.call(true, &ask[3..]);
    end.call(false, &tail[..15]);
    end.call(false, &tail[15..]);
    let times: Vec<_> = end.io.recorded.iter().map(|e| (e.start, e.end)).collect();
    assert_eq!(times, [(30, 61)]);
    // The first of two at its completion, the second with its group.
    end.call(true, &pipeline);
    end.call(false, &one);
    end.call(false, &one);
    end.call(false, &tail[one.len()..]);
    let times: Vec<_> = end.io.recorded.iter().map(|e| (e.start, e.end)).collect();
    assert_eq!(times, [(30, 61), (70, 81), (70, 101)]);
}

#[test]
fn equal_requests_of_one_call_take_one_place_and_others_beyond_the_depth_are_dropped() {
    let (start, hello) = (startup_packet(), welcome());
    let batch =
        [parse("", "insert into t values($1)"), [bind("", ""), execute("")].concat().repeat(500), sync()]
            .concat();
    let done = [complete().repeat(500), ready()].concat();
    let many: Vec<u8> = (0..20)
        .flat_map(|n| [parse("", &format!("select c{n}")), bind("", ""), execute("")].concat())
        .collect();
    let many = [many, sync()].concat();
    let all = [complete().repeat(20), ready()].concat();
    let one = query("select 1");
    let answer = [complete(), ready()].concat();
    let mut end = End::new(false);
    end.call(true, &start);
    end.call(false, &hello);
    end.call(true, &batch);
    end.call(false, &done);
    assert_eq!((end.io.seen, end.io.counted(), end.io.lost()), (500, 500, 0));
    end.call(true, &many);
    end.call(false, &all);
    assert_eq!(end.io.dropped, [(Reason::PipelineDepth, 1); 4]);
    assert_eq!((end.io.seen, end.io.counted()), (520, 516));
    end.call(true, &one);
    end.call(false, &answer);
    assert_eq!((end.io.seen, end.io.counted()), (521, 517));
    assert_eq!(end.conn.waiting(), 0);
}

#[test]
fn an_old_connection_is_picked_up_at_its_next_request() {
    let rest = [row().repeat(3), complete(), ready()].concat();
    let answer = [m(b'2', b""), complete(), ready()].concat();
    for (request, text) in [
        (query("select 1"), "select ?"),
        ([parse("", "select 2"), bind("", ""), execute(""), sync()].concat(), "select ?"),
        ([bind("", "s9"), m(b'D', b"P\0"), execute(""), sync()].concat(), "other"),
    ] {
        for client in [true, false] {
            let mut end = End::new(client);
            end.call(false, &rest[5..]);
            end.call(true, &request);
            end.call(false, &answer);
            assert_eq!(end.counts(), [(text.to_owned(), false, 1)]);
        }
    }
}

#[test]
fn answers_to_requests_that_were_missed_shift_nothing() {
    let (one, answer) = (query("select 1"), [complete(), ready()].concat());
    let mut end = End::new(true);
    end.call(true, &one);
    // Two answers to earlier requests, then ours.
    end.call(false, &answer);
    end.call(false, &answer);
    end.call(false, &answer);
    for _ in 0..3 {
        end.call(true, &one);
        end.call(false, &answer);
    }
    let times: Vec<_> = end.io.recorded.iter().map(|e| e.end - e.start).collect();
    assert_eq!(times, [11; 4]);
    assert_eq!(end.io.dropped, []);
}

#[test]
fn a_reader_that_is_faster_than_the_return_of_send_is_paired() {
    let (start, hello, one, answer) =
        (startup_packet(), welcome(), query("select 1"), [complete(), ready()].concat());
    let mut end = End::new(true);
    end.call(true, &start);
    end.call(false, &hello);
    end.io.call(&mut end.conn, Received, &answer, 100);
    // The call that sent it began before.
    end.io.call(&mut end.conn, Sent, &one, 90);
    let times: Vec<_> = end.io.recorded.iter().map(|e| (e.start, e.end)).collect();
    assert_eq!(times, [(90, 101)]);
    end.io.call(&mut end.conn, Sent, &one, 200);
    end.io.call(&mut end.conn, Received, &answer, 210);
    assert_eq!(end.io.recorded.len(), 2);
}

#[test]
fn encryption_cancellation_and_replication_are_nobodys_queries() {
    let (ask, yes, tls) = (packet(80_877_103, b""), b"S".to_vec(), b"\x16\x03\x01\x02\0".to_vec());
    let (start, hello) = (startup_packet(), welcome());
    let cancel = packet(80_877_102, &[1; 8]);
    let (replicate, both) = (query("START_REPLICATION SLOT s LOGICAL 0/0"), m(b'W', b"\0\0\0"));
    for client in [true, false] {
        let mut end = End::new(client);
        end.call(true, &ask);
        end.call(false, &yes);
        end.call(true, &tls);
        assert_eq!((end.conn.role, end.io.seen), (ROLE_OPAQUE, 0));

        let mut end = End::new(client);
        end.call(true, &cancel);
        assert_eq!((end.conn.role, end.io.seen), (ROLE_OPAQUE, 0));

        let mut end = End::new(client);
        end.call(true, &start);
        end.call(false, &hello);
        end.call(true, &replicate);
        end.call(false, &both);
        assert_eq!((end.conn.role, end.io.dropped.as_slice()), (ROLE_OPAQUE, &[(Reason::Opaque, 1)][..]));
    }
}

#[test]
fn what_a_connection_leaves_unanswered_is_dropped_and_what_a_fatal_error_ends_has_failed() {
    let (start, hello, one, fatal) = (startup_packet(), welcome(), query("select pg_sleep(9)"), error());
    for killed in [false, true] {
        let mut end = End::new(false);
        end.call(true, &start);
        end.call(false, &hello);
        end.call(true, &one);
        if killed {
            end.call(false, &fatal);
        }
        end.conn.finish(&mut end.io);
        end.conn.finish(&mut end.io);
        let errors: Vec<_> = end.io.recorded.iter().map(|e| crate::db::sqlstate_class(e.error)).collect();
        assert_eq!(errors, [Some(*b"42")][..usize::from(killed)]);
        let expected: &[_] = if killed { &[] } else { &[(Reason::NoResponse, 1)] };
        assert_eq!(end.io.dropped, expected);
        assert_eq!(end.counts().len(), usize::from(killed));
    }
}

#[test]
fn nothing_is_completed_between_an_error_and_the_end_of_its_group() {
    let (start, hello, fatal, suspended, end_of_group) =
        (startup_packet(), welcome(), error(), m(b's', b""), ready());
    let group = [execute(""), execute(""), query("a")].concat();
    for calls in [vec![[suspended.clone(), end_of_group.clone()].concat()], vec![suspended, end_of_group]] {
        let mut end = End::new(false);
        end.call(true, &start);
        end.call(false, &hello);
        end.call(true, &group);
        end.call(false, &fatal);
        for call in &calls {
            end.call(false, call);
        }
        assert_eq!(end.counts(), [("a".to_owned(), true, 1), ("other".to_owned(), true, 2)]);
    }
}

#[test]
fn what_passes_by_unseen_shifts_nothing() {
    let (start, hello, one, answer) =
        (startup_packet(), welcome(), query("select 1"), [complete(), ready()].concat());
    let long = [m(b'D', &[0; 100]), complete(), ready()].concat();
    for client in [false, true] {
        let mut end = End::new(client);
        end.call(true, &start);
        end.call(false, &hello);
        // A part of a row.
        end.call(true, &one);
        end.call(false, &long[..20]);
        end.unseen(false, 60);
        end.call(false, &long[80..]);
        // An answer, which takes along the query whose answer shows that; then a query.
        end.call(true, &one);
        end.call(true, &one);
        end.unseen(false, answer.len() as u32);
        end.call(false, &answer);
        end.call(false, &answer);
        end.unseen(true, one.len() as u32);
        end.call(true, &one);
        end.call(false, &answer);
        let lasted: Vec<_> = end.io.recorded.iter().map(|e| e.end - e.start).collect();
        assert_eq!((lasted, end.io.dropped.as_slice()), (vec![21, 11], &[(Reason::Desync, 2)][..]));
    }
}

#[test]
fn hostile_lengths_end_a_connection_and_no_more() {
    let (start, hello, one, answer) =
        (startup_packet(), welcome(), query("select 1"), [complete(), ready()].concat());
    for length in [0_u32, 3, 0x4000_0000, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        for kind in *b"QPBEDSCX!" {
            let hostile = [&[kind][..], &length.to_be_bytes(), b"rest"].concat();
            let mut end = End::new(false);
            end.call(true, &start);
            end.call(false, &hello);
            end.call(true, &one);
            end.call(true, &hostile);
            assert_eq!(
                (end.conn.role, end.io.dropped.as_slice()),
                (ROLE_UNKNOWN, &[(Reason::Desync, 1)][..])
            );
            end.call(true, &one);
            end.call(false, &answer);
            assert_eq!((end.io.seen, end.io.counted()), (2, 1), "{length} {kind}");
        }
    }
}

#[test]
fn foreign_protocols_become_opaque() {
    let calls: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"QUIT\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc",
        b"*1\r\n$4\r\nPING\r\n",
        b"PUT /x",
    ];
    for bytes in calls {
        let mut end = End::new(true);
        for turn in 0..200 {
            end.call(turn % 2 == 0, bytes);
        }
        assert_eq!((end.conn.role, end.io.seen), (ROLE_OPAQUE, 0), "{bytes:?}");
    }
}

fn any_turn() -> impl Strategy<Value = (bool, Vec<u8>)> {
    let from_client = prop_oneof![
        "[a-z ']{0,9}".prop_map(|text| query(&text)),
        ("[a-b]{0,1}", "[a-z ']{0,9}").prop_map(|(name, text)| parse(&name, &text)),
        ("[a-b]{0,1}", "[a-b]{0,1}").prop_map(|(portal, name)| bind(&portal, &name)),
        "[a-b]{0,1}".prop_map(|portal| execute(&portal)),
        Just(sync()),
        Just(m(b'd', b"xyz")),
    ];
    let from_server = prop_oneof![
        Just(complete()),
        Just(ready()),
        Just(error()),
        Just(row()),
        Just(m(b's', b"")),
        Just(m(b'1', b"")),
    ];
    let hostile = prop::collection::vec(any::<u8>(), 0..20);
    let turn = |client: bool, messages: Vec<Vec<u8>>| (client, messages.concat());
    prop_oneof![
        6 => prop::collection::vec(from_client, 1..5).prop_map(move |messages| turn(true, messages)),
        6 => prop::collection::vec(from_server, 1..5).prop_map(move |messages| turn(false, messages)),
        1 => (any::<bool>(), hostile),
    ]
}

proptest! {
    #[test]
    fn whatever_is_said_is_accounted_for(turns in prop::collection::vec(any_turn(), 0..40), client in any::<bool>()) {
        let (start, hello) = (startup_packet(), welcome());
        let mut end = End::new(client);
        end.call(true, &start);
        end.call(false, &hello);
        for (from_client, bytes) in &turns {
            end.call(*from_client, bytes);
        }
        end.conn.finish(&mut end.io);
        prop_assert_eq!(end.io.seen, end.io.counted() + end.io.lost());
    }

    #[test]
    fn cuts_change_nothing(turns in prop::collection::vec(any_turn(), 0..12), cuts in prop::collection::vec(1_usize..30, 1..50)) {
        let hello_turns = [(true, startup_packet()), (false, welcome())];
        let mut whole = End::new(false);
        let mut cut = End::new(false);
        let mut sizes = cuts.iter().cycle();
        for (from_client, bytes) in hello_turns.iter().chain(&turns) {
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
        // Equal requests of one call are recorded together, those of several one by one.
        whole.conn.finish(&mut whole.io);
        cut.conn.finish(&mut cut.io);
        let dropped_for_depth = |end: &End<'_>| end.io.dropped.iter().any(|d| d.0 == Reason::PipelineDepth);
        prop_assume!(!dropped_for_depth(&whole) && !dropped_for_depth(&cut));
        prop_assert_eq!(whole.counts(), cut.counts());
        prop_assert_eq!(whole.io.lost(), cut.io.lost());
    }
}
