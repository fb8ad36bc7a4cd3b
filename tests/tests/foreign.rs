//! Which protocol a connection speaks, told by its content: foreign ones are not taken for ours, whatever their port, and old
//! connections are recognised in the middle.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which a float holds exactly")]

use live_tests::{Agent, Page, Pair, Protocol, listener, protocols};

/// Numbers that look random and are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..=self.below(most)).map(|_| self.below(256) as u8).collect()
    }

    fn word(&mut self) -> String {
        (0..=self.below(9)).map(|_| char::from(b'a' + self.below(26) as u8)).collect()
    }
}

type Turns = Vec<(bool, Vec<u8>)>;

/// Protocols of lines: what clients begin one with, and how servers begin their answer to it.
const LINES: [&[(&str, &str)]; 9] = [
    // SMTP, FTP, POP3, IMAP, IRC, memcached, NATS, STOMP, a shell.
    &[("EHLO", "250-"), ("MAIL FROM:", "250"), ("DATA", "354"), ("AUTH PLAIN", "535"), ("QUIT", "221")],
    &[("USER", "331"), ("PASS", "230"), ("PASV", "227"), ("TYPE I", "200"), ("RETR", "150"), ("QUIT", "221")],
    &[
        ("USER", "+OK"),
        ("PASS", "-ERR"),
        ("AUTH", "+OK"),
        ("LIST", "+OK 2"),
        ("RETR 1", "+OK"),
        ("QUIT", "+OK"),
    ],
    &[("a1 LOGIN", "a1 OK"), ("a2 SELECT", "* 18 EXISTS"), ("a3 FETCH", "* 1 FETCH"), ("a4 PING", "a4 BAD")],
    &[("NICK", ":server 001"), ("JOIN", ":me JOIN"), ("TIME", ":server 391"), ("PING", "PONG")],
    &[
        ("get", "VALUE k 0 5"),
        ("set k 0 0 5", "STORED"),
        ("incr", "5"),
        ("touch", "TOUCHED"),
        ("append", "STORED"),
    ],
    &[("CONNECT {}", "+OK"), ("SUB a 1", "+OK"), ("PUB a 5", "+OK"), ("PING", "PONG"), ("UNSUB", "-ERR")],
    &[("CONNECT", "CONNECTED"), ("SEND", "RECEIPT"), ("SUBSCRIBE", "MESSAGE"), ("ACK", "ERROR")],
    &[("ls", "$"), ("select", "*"), ("GET", "#"), ("type", ">"), ("ping", "PING"), ("*", "-")],
];

/// What two programs say that speak something else.
fn foreign(random: &mut Random) -> Turns {
    let kind = random.below(20);
    let (mut turns, mut answer) = (Vec::new(), "");
    for turn in 0..2 + random.below(5) {
        let client = turn % 2 == 0;
        let body = random.bytes(300);
        let length = body.len() as u32;
        let bytes = match kind {
            0..9 => {
                let mut begin = answer;
                if client {
                    (begin, answer) = LINES[kind][random.below(LINES[kind].len())];
                }
                let words = random.below(3);
                let rest = (0..words).map(|_| " ".to_owned() + &random.word()).collect::<String>();
                let end = ["\r\n", "\n", "\r\n\r\n", "\0\n"][random.below(4)];
                format!("{begin}{rest}{end}").into_bytes()
            }
            // Frames with a length before them: Thrift, Kafka, MongoDB, Cassandra, AMQP, MQTT, with and without a number.
            9 => [&length.to_be_bytes()[..], &body].concat(),
            10 => {
                [&(length + 14).to_be_bytes()[..], &[0, 3, 0, 9, 0, 0, 0, turn as u8, 0, 4], b"test", &body]
                    .concat()
            }
            11 => {
                [&(length + 16).to_le_bytes()[..], &[turn as u8, 0, 0, 0, 0, 0, 0, 0, 0xdd, 7, 0, 0], &body]
                    .concat()
            }
            12 => [&[if client { 4 } else { 0x84 }, 0, 0, turn as u8, 7][..], &length.to_be_bytes(), &body]
                .concat(),
            13 if turn == 0 => b"AMQP\0\0\x09\x01".to_vec(),
            13 => [&[1, 0, 1][..], &length.to_be_bytes(), &body, b"\xce"].concat(),
            14 => [&[0x10 << (turn & 3), (length & 127) as u8][..], b"\0\x04MQTT\x04\x02", &body].concat(),
            15 => [&length.to_le_bytes()[..3], &[turn as u8], &body].concat(),
            // SSH, TLS, HTTP/2.
            16 if turn < 2 => b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec(),
            17 => [&[[0x16, 0x17][turn.min(1)], 3, 3][..], &(length as u16).to_be_bytes(), &body].concat(),
            18 if turn == 0 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0".to_vec(),
            18 => [&length.to_be_bytes()[1..], &[turn as u8 & 7, 4, 0, 0, 0, 1], &body].concat(),
            _ => body,
        };
        turns.push((client, bytes));
    }
    turns
}

/// How many requests at this destination count as such of a protocol's.
fn counted(page: &Page, histogram: &str, destination: &str) -> f64 {
    page.sum(&format!("{histogram}_count"), &[("destination", destination)])
}

const HISTOGRAMS: [&str; 2] = ["http_client_request_duration_seconds", "db_query_duration_seconds"];

#[test]
fn fewer_than_one_in_a_thousand_foreign_connections_is_taken_for_one_of_ours() {
    const CONNECTIONS: u32 = 10_000;
    let agent = Agent::start();
    let (elsewhere, foreign_port) = listener();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..CONNECTIONS {
        Pair::open(&elsewhere).say(&foreign(&mut random));
    }
    // What is ours is still told, each by its own metric.
    let mut ours = Vec::new();
    for protocol in protocols() {
        let (listener, destination) = listener();
        let mut pair = Pair::open(&listener);
        pair.say(&protocol.hello);
        for _ in 0..20 {
            pair.exchange(&protocol.request, &protocol.response);
        }
        ours.push((protocol, destination));
    }
    for (Protocol { histogram, .. }, destination) in &ours {
        agent.expect(&format!("{histogram}_count"), &[("destination", destination)], 20.0);
    }
    let page = agent.page();
    let wrong: f64 = HISTOGRAMS.iter().map(|histogram| counted(&page, histogram, &foreign_port)).sum();
    assert!(wrong < f64::from(CONNECTIONS) / 1000.0, "{wrong}: {}", page.lines(&[&foreign_port]));
    // Nor may one be followed for long before it is given up: what was seen in it and was lost.
    let followed: f64 = page.select("perf_agent_events_dropped_total", &[]).map(|sample| sample.value).sum();
    assert!(followed < f64::from(CONNECTIONS) / 100.0, "{:?}", page.losses());
}

#[test]
fn each_connection_is_counted_by_what_it_speaks() {
    let agent = Agent::start();
    let hello = b"\x16\x03\x01\x00\x05hello".to_vec();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let (elsewhere, _) = listener();
    // Both ends of each.
    let both = |count: u32| f64::from(2 * count);
    let mut expected = vec![("tls", both(3)), ("http2", both(2)), ("opaque", both(4))];
    for (count, first) in [(3, &hello), (2, &preface)] {
        for _ in 0..count {
            let mut pair = Pair::open(&elsewhere);
            pair.exchange(first, b"\x16\x03\x03\x00\x05hello");
            pair.exchange(b"more", b"more");
        }
    }
    for protocol in protocols() {
        for _ in 0..4 {
            let mut pair = Pair::open(&elsewhere);
            pair.say(&protocol.hello);
            (0..3).for_each(|_| pair.exchange(&protocol.request, &protocol.response));
        }
        let name = if protocol.probe == "postgres" { "postgresql" } else { protocol.probe };
        expected.push((name, both(4)));
    }
    // PostgreSQL's question whether it may be encrypted, and yes: known first, opaque then.
    for _ in 0..4 {
        let mut pair = Pair::open(&elsewhere);
        pair.exchange(b"\0\0\0\x08\x04\xd2\x16\x2f", b"S");
    }
    for (protocol, count) in expected {
        let count = if protocol == "postgresql" { count + both(4) } else { count };
        let labels = [("protocol", protocol)];
        if protocol == "http" {
            // The scrapes are connections, too.
            let page = agent.page();
            assert!(page.sum("perf_agent_connections_recognised_total", &labels) >= count);
        } else {
            agent.expect("perf_agent_connections_recognised_total", &labels, count);
        }
    }
}

#[test]
fn old_connections_are_taken_for_what_they_are() {
    const EACH: usize = 100;
    const EXCHANGES: usize = 5;
    let mut random = Random(0x0123_4567_89ab_cdef);
    let mut all = Vec::new();
    for protocol in protocols() {
        let (listener, destination) = listener();
        let mut pairs = Vec::new();
        for _ in 0..EACH {
            let mut pair = Pair::open(&listener);
            pair.say(&protocol.hello);
            for _ in 0..random.below(3) {
                pair.exchange(&protocol.request, &protocol.response);
            }
            // The agent comes between two exchanges, before a response, or in the middle of either message.
            let (asked, answered) = match random.below(4) {
                0 => (0, 0),
                1 => (1 + random.below(protocol.request.len() - 1), 0),
                2 => (protocol.request.len(), 0),
                _ => (protocol.request.len(), 1 + random.below(protocol.response.len() - 1)),
            };
            pair.request(&[&protocol.request[..asked]]);
            pair.response(&[&protocol.response[..answered]]);
            pairs.push((pair, asked, answered));
        }
        all.push((protocol, destination, pairs));
    }
    let agent = Agent::start();
    for (Protocol { request, response, .. }, _, pairs) in &mut all {
        for (pair, asked, answered) in pairs {
            pair.request(&[&request[*asked..]]);
            pair.response(&[&response[*answered..]]);
            for _ in 0..EXCHANGES {
                pair.exchange(request, response);
            }
        }
    }
    for (protocol, destination, _) in &all {
        let most = (EACH * (EXCHANGES + 1)) as f64;
        let least = (EACH * EXCHANGES) as f64;
        // What was under way when the agent came may count or not.
        let page = agent.page();
        let right = counted(&page, protocol.histogram, destination);
        assert!(right >= least && right <= most, "{}: {right}; {:?}", protocol.probe, page.losses());
        for wrong in HISTOGRAMS.iter().filter(|histogram| **histogram != protocol.histogram) {
            assert_eq!(counted(&page, wrong, destination), 0.0, "{}", protocol.probe);
        }
        let system = match protocol.probe {
            "http" => continue,
            "postgres" => "postgresql",
            other => other,
        };
        let labels = [("destination", destination.as_str()), ("db_system", system)];
        assert_eq!(page.sum("db_query_duration_seconds_count", &labels), right, "{}", protocol.probe);
    }
}
