//! The state machine against streams of bytes, however they are cut into calls.

use super::memory::Memory;
use super::*;
use proptest::prelude::*;

use Direction::{Received, Sent};

/// One end of a connection under test.
struct Wire<'a> {
    conn: Conn,
    io: Memory<'a>,
    now: u64,
}

impl<'a> Wire<'a> {
    fn new() -> Self {
        Self { conn: Conn::default(), io: Memory::default(), now: 0 }
    }

    fn call(&mut self, direction: Direction, bytes: &'a [u8]) {
        self.now += 10;
        self.io.call(&mut self.conn, direction, bytes, self.now);
    }

    /// Bytes before the next call in this direction that nobody told of.
    fn unseen(&mut self, direction: Direction, count: u32) {
        self.io.unseen(&mut self.conn, direction, count, self.now);
    }

    /// Method, route and status of what was recorded, with the contract of loss checked.
    fn found(mut self) -> Vec<String> {
        self.conn.finish(&mut self.io);
        assert_eq!(self.io.seen, self.io.recorded.len() as u32 + self.io.lost(), "{:?}", self.io.dropped);
        self.io
            .recorded
            .iter()
            .map(|e| {
                let route =
                    self.io.routes.iter().find(|(id, _)| *id == e.route).map_or("?", |(_, text)| text);
                format!("{} {route} {}", METHODS[e.method as usize], e.status)
            })
            .collect()
    }
}

fn server(script: &[(Direction, &[u8])]) -> Vec<String> {
    let mut wire = Wire::new();
    for (direction, bytes) in script {
        wire.call(*direction, bytes);
    }
    wire.found()
}

#[test]
fn sequence_numbers_tell_what_passed_by_unseen() {
    let mut conn = Conn::default();
    let mut unseen = |role, direction, seq, length| {
        conn.role = role;
        conn.unseen(direction, length, |of| if of == direction { seq } else { u32::MAX })
    };
    // Of an unknown connection, all that is known is where it stands.
    assert_eq!(unseen(ROLE_UNKNOWN, Received, 100, 50), 0);
    assert_eq!(unseen(ROLE_UNKNOWN, Received, 200, 50), 0);
    assert_eq!(unseen(ROLE_SERVER, Received, 250, 50), 0);
    assert_eq!(unseen(ROLE_SERVER, Received, 350, 30), 70);
    assert_eq!(unseen(ROLE_SERVER, Received, 360, 10), 0);
    // Across the wrap, and with the end of the stream in the same call.
    assert_eq!(unseen(ROLE_SERVER, Sent, 99, 40), 60);
    assert_eq!(unseen(ROLE_SERVER, Received, 371, 10), 0);
    // Two threads, each of whose calls is told after both.
    assert_eq!(unseen(ROLE_SERVER, Sent, 399, 100), 200);
    assert_eq!(unseen(ROLE_SERVER, Sent, 399, 200), 0);
    assert_eq!(unseen(ROLE_SERVER, Sent, 999, 10), 0);
}

#[test]
fn what_passes_by_unseen_is_passed_over_in_a_body_and_shifts_nothing_elsewhere() {
    let get: &[u8] = b"GET /a HTTP/1.1\r\n\r\n";
    let part: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc";
    let none: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";
    for client in [false, true] {
        let (asks, answers) = if client { (Sent, Received) } else { (Received, Sent) };
        let mut wire = Wire::new();
        wire.call(asks, get);
        wire.call(answers, part);
        // All but the last byte of the body, and then all of it.
        wire.unseen(answers, 5);
        wire.call(answers, b"d");
        wire.call(asks, get);
        wire.call(answers, part);
        wire.unseen(answers, 6);
        wire.call(asks, get);
        wire.call(answers, none);
        // A response, and then a request.
        wire.call(asks, get);
        wire.call(asks, get);
        wire.unseen(answers, 40);
        wire.call(answers, none);
        wire.call(answers, none);
        wire.unseen(asks, 40);
        wire.call(asks, get);
        wire.call(answers, none);
        let lasted: Vec<_> = wire.io.recorded.iter().map(|exchange| exchange.end - exchange.start).collect();
        let dropped: u32 =
            wire.io.dropped.iter().map(|(reason, count)| count * u32::from(*reason == Reason::Desync)).sum();
        assert_eq!((lasted, dropped), (vec![21, 11, 11, 11, 11], 1), "{:?}", wire.io.dropped);
        let statuses: Vec<_> = wire.io.recorded.iter().map(|exchange| exchange.status).collect();
        assert_eq!(statuses, [200, 200, 204, 204, 204]);
        wire.found();
    }
}

#[test]
fn keep_alive_with_every_kind_of_body() {
    let found = server(&[
        (Received, b"GET /a/1?x=1 HTTP/1.1\r\nHost: h\r\n\r\n"),
        (Sent, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        (Received, b"POST /b HTTP/1.1\r\ncontent-length: 4\r\n\r\nGET "),
        (Sent, b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        (
            Received,
            b"PUT /c HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n3;ext=1\r\nabc\r\n0\r\nX: y\r\n\r\n",
        ),
        (Sent, b"HTTP/1.1 204 No Content\r\n\r\n"),
        (Received, b"HEAD /d HTTP/1.0\r\n\r\n"),
        (Sent, b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"),
        (Received, b"POST /e HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"),
        (Sent, b"HTTP/1.1 100 Continue\r\n\r\n"),
        (Received, b"abc"),
        (Sent, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n"),
        (Received, b"PROPFIND /f HTTP/1.1\r\n\r\n"),
        (Sent, b"HTTP/1.1 207\r\nContent-Length:0\r\n\r\n"),
        (Received, b"GET http://host:80/g HTTP/1.1\r\n\r\n"),
        (Sent, b"HTTP/1.1 500 x\n\nuntil the end"),
        (Sent, b" of the connection"),
    ]);
    assert_eq!(
        found,
        [
            "GET /a/{id} 200",
            "POST /b 201",
            "PUT /c 204",
            "HEAD /d 200",
            "POST /e 304",
            "_OTHER /f 207",
            "GET /g 500"
        ]
    );
}

#[test]
fn client_side_and_body_by_length_alone() {
    let mut wire = Wire::new();
    wire.call(Sent, b"GET /x HTTP/1.1\r\n\r\n");
    wire.call(Received, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
    let body = vec![b'\n'; 1_000_000];
    wire.call(Received, &body);
    assert_eq!(wire.conn.role, ROLE_CLIENT);
    assert_eq!(wire.io.recorded[0].start, 10);
    assert_eq!(wire.io.recorded[0].end, 31);
}

#[test]
fn pipelining_to_the_depth_and_beyond() {
    for (depth, recorded) in [(8, 8), (20, 8)] {
        let requests = b"GET /p HTTP/1.1\r\n\r\n".repeat(depth);
        let responses = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".repeat(depth);
        let mut wire = Wire::new();
        wire.call(Received, &requests);
        wire.call(Sent, &responses);
        wire.call(Received, b"GET /after HTTP/1.1\r\n\r\n");
        wire.call(Sent, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(wire.io.seen as usize, depth + 1);
        let found = wire.found();
        assert_eq!(found.len(), recorded + 1);
        assert_eq!(found.last().unwrap(), "GET /after 200");
    }
}

#[test]
fn a_connection_seen_from_the_middle() {
    let found = server(&[
        (Sent, b"e end of some body"),
        (Sent, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        (Received, b"GET /next HTTP/1.1\r\n\r\n"),
        (Sent, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    ]);
    assert_eq!(found, ["GET /next 200"]);
}

#[test]
fn other_protocols_become_opaque_and_are_not_counted() {
    let mut wire = Wire::new();
    wire.call(Sent, b"\x16\x03\x01\x02\x00\x01");
    assert_eq!(wire.conn.role, ROLE_OPAQUE);
    let mut wire = Wire::new();
    wire.call(Received, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert_eq!(wire.conn.role, ROLE_OPAQUE);
    let mut wire = Wire::new();
    for _ in 0..300 {
        wire.call(Received, b"*1\r\n$4\r\nPING\r\n");
        wire.call(Sent, b"+PONG\r\n");
    }
    assert_eq!(wire.conn.role, ROLE_OPAQUE);
    assert_eq!(wire.io.seen, 0);
    let mut wire = Wire::new();
    wire.call(Received, b"EHLO relay.example\r\n");
    wire.call(Received, b"GET key HTTP\r\n");
    assert_eq!(wire.io.seen, 0);
}

#[test]
fn upgrade_counts_and_ends() {
    let mut wire = Wire::new();
    wire.call(Received, b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\n\r\n");
    wire.call(Sent, b"HTTP/1.1 101 Switching Protocols\r\n\r\n");
    assert_eq!(wire.conn.role, ROLE_OPAQUE);
    assert_eq!(wire.found(), ["GET /ws 101"]);
}

#[test]
fn loss_has_a_reason() {
    let mut wire = Wire::new();
    wire.call(Received, b"GET /a HTTP/1.1\r\n\r\n");
    wire.conn.finish(&mut wire.io);
    assert_eq!(wire.io.dropped, [(Reason::NoResponse, 1)]);
    // Bytes that are no response: the request is given up where the next one begins, which is counted right.
    let mut wire = Wire::new();
    wire.call(Received, b"GET /a HTTP/1.1\r\n\r\n");
    wire.call(Sent, b"nonsense");
    wire.call(Received, b"GET /b HTTP/1.1\r\n\r\n");
    wire.call(Sent, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(wire.io.dropped, [(Reason::Desync, 1)]);
    assert_eq!(wire.found(), ["GET /b 200"]);
}

#[test]
fn a_response_can_be_read_before_the_request_s_call_returns() {
    let mut wire = Wire::new();
    wire.now = 100;
    wire.conn.role = ROLE_CLIENT;
    wire.call(Received, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    // Its packet left before that.
    wire.now -= 15;
    wire.call(Sent, b"GET /a HTTP/1.1\r\n\r\n");
    assert_eq!(wire.io.recorded.len(), 1);
    assert_eq!(wire.io.recorded[0].status, 200);
}

#[test]
fn a_response_to_a_request_that_was_not_seen_does_not_answer_the_next_one() {
    let mut wire = Wire::new();
    wire.conn.role = ROLE_CLIENT;
    wire.call(Received, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    for _ in 0..3 {
        wire.call(Sent, b"GET /a HTTP/1.1\r\n\r\n");
        wire.call(Received, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    }
    assert_eq!(wire.io.dropped, [(Reason::NoRequest, 1)]);
    assert!(wire.io.recorded.iter().all(|exchange| exchange.status == 200 && exchange.end > exchange.start));
    assert_eq!(wire.io.recorded.len(), 3);
}

#[test]
fn odd_but_legal_heads() {
    let ok: (Direction, &[u8]) = (Sent, b"HTTP/1.1 200 OK\r\nContent-Length: \t 2\r\n\r\nok");
    let found = server(&[
        (Received, b"\r\nGET /a HTTP/1.1\r\n\r\n"),
        ok,
        (Received, b"POST /b HTTP/1.1\r\nContent-Length:   0000000000000000005\r\n\r\nhello\r\nGET /c;jsessionid=X HTTP/1.1\r\n\r\n"),
        ok,
        ok,
        (Received, b"GET http://host?card=/4111 HTTP/1.1\r\n\r\n"),
        ok,
    ]);
    assert_eq!(found, ["GET /a 200", "POST /b 200", "GET /c 200", "GET  200"]);
}

#[test]
fn a_long_line_has_to_look_like_a_request_to_be_believed() {
    let mut wire = Wire::new();
    let text = format!("ERROR /var/secret/token {}", "x".repeat(900));
    wire.call(Received, text.as_bytes());
    assert_eq!(wire.conn.role, ROLE_UNKNOWN);
    assert!(wire.io.routes.is_empty());
}

#[test]
fn a_length_that_is_no_number_costs_its_message_alone() {
    let found = server(&[
        (Received, b"POST /a HTTP/1.1\r\nContent-Length: x\r\n\r\nhello"),
        (Sent, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
        (Received, b"GET /b HTTP/1.1\r\n\r\n"),
        (Sent, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ]);
    assert_eq!(found, ["POST /a 400", "GET /b 200"]);
}

#[test]
fn long_lines() {
    let query = "q".repeat(3_000);
    let cookie = "c".repeat(5_000);
    let request = format!("GET /long?{query} HTTP/1.1\r\nCookie: {cookie}\r\nContent-Length: 3\r\n\r\nabc");
    let found = server(&[
        (Received, request.as_bytes()),
        (Sent, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        (Received, b"GET / HTTP/1.1\r\n\r\n"),
        (Sent, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    ]);
    assert_eq!(found, ["GET /long 200", "GET / 200"]);
}

/// A conversation whose bytes are cut at will.
fn conversation() -> Vec<(Direction, Vec<u8>)> {
    let long = "v".repeat(700);
    [
        (Received, "GET /api/bookings/123?secret=1 HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n\r\n".to_owned()),
        (Sent, "HTTP/1.1 200 OK\r\nServer: s\r\nContent-Length: 11\r\n\r\nhello\r\n\r\nxy".to_owned()),
        (Received, "POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\nT: t\r\n\r\n".to_owned()),
        (Sent, format!("HTTP/1.1 201 Created\r\nX-Long: {long}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n")),
        (Received, format!("DELETE /c?{long} HTTP/1.1\r\nContent-Length: 2\r\n\r\nxx")),
        (Sent, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned()),
    ]
    .map(|(direction, text)| (direction, text.into_bytes()))
    .into()
}

const ANSWER: [&str; 3] = ["GET /api/bookings/{id} 200", "POST /b 201", "DELETE /c 404"];

#[test]
fn cut_in_two_at_every_byte() {
    let conversation = conversation();
    for cut_message in 0..conversation.len() {
        for at in 0..=conversation[cut_message].1.len() {
            let mut wire = Wire::new();
            for (i, (direction, bytes)) in conversation.iter().enumerate() {
                let (head, tail) = bytes.split_at(if i == cut_message { at } else { 0 });
                wire.call(*direction, head);
                wire.call(*direction, tail);
            }
            assert_eq!(wire.found(), ANSWER, "message {cut_message} cut at {at}");
        }
    }
}

#[test]
fn in_one_byte_pieces() {
    let conversation = conversation();
    let mut wire = Wire::new();
    for (direction, bytes) in &conversation {
        for piece in bytes.chunks(1) {
            wire.call(*direction, piece);
        }
    }
    assert_eq!(wire.found(), ANSWER);
}

proptest! {
    #[test]
    fn cut_anywhere(cuts in proptest::collection::vec(1_usize..600, 1..60)) {
        let conversation = conversation();
        let mut wire = Wire::new();
        let mut cuts = cuts.iter().cycle();
        for (direction, bytes) in &conversation {
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let (piece, more) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                wire.call(*direction, piece);
                rest = more;
            }
        }
        prop_assert_eq!(wire.found(), ANSWER);
    }

    #[test]
    fn any_bytes_keep_the_contract(calls in proptest::collection::vec((any::<bool>(), hostile()), 0..20)) {
        let mut wire = Wire::new();
        for (sent, bytes) in &calls {
            wire.call(if *sent { Sent } else { Received }, bytes);
        }
        wire.found();
    }
}

/// Bytes that look enough like HTTP to get far.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        Just(b"GET ".to_vec()),
        Just(b"HEAD /".to_vec()),
        Just(b"CONNECT x HTTP/1.1\r\n\r\n".to_vec()),
        Just(b"HTTP/1.1 200 OK\r\n".to_vec()),
        Just(b"HTTP/1.1 101 \r\n\r\n".to_vec()),
        Just(b" HTTP/1.1\r\n".to_vec()),
        Just(b"Content-Length: 18446744073709551617\r\n".to_vec()),
        Just(b"Content-Length: -1\r\n".to_vec()),
        Just(b"Content-Length: 3\r\n".to_vec()),
        Just(b"Transfer-Encoding: chunked\r\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"ffffffffffffffff\r\n".to_vec()),
        Just(b"0\r\n\r\n".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..40),
        Just(vec![b'x'; 600]),
    ];
    proptest::collection::vec(word, 0..12).prop_map(|words| words.concat())
}
