//! HTTP, message by message: however a program cuts, frames or strings together what it says, each request is counted
//! once, by its own method, route and status, on both sides.
//!
//! The test holds both ends of each connection, so it knows to the byte what every call moved.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which a float holds exactly")]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{Shutdown, TcpListener};
use std::thread::sleep;
use std::time::{Duration, Instant};

use live_tests::{Agent, Page, Pair, listener};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// What both sides should have counted, and the server to count it with.
struct Ledger {
    agent: Agent,
    listener: TcpListener,
    destination: String,
    /// By method, route and status.
    expected: BTreeMap<(String, String, u16), f64>,
}

impl Ledger {
    fn open() -> Self {
        let (listener, destination) = listener();
        Self { agent: Agent::start(), listener, destination, expected: BTreeMap::new() }
    }

    fn pair(&self) -> Pair {
        Pair::open(&self.listener)
    }

    fn expect(&mut self, method: &str, route: &str, status: u16) {
        *self.expected.entry((method.to_owned(), route.to_owned(), status)).or_default() += 1.0;
    }

    /// Compares each count, both totals, and that nothing was lost beside `losses`.
    fn settle(&self, losses: &[&str]) -> Page {
        let statuses: Vec<String> = self.expected.keys().map(|key| key.2.to_string()).collect();
        let mut client = BTreeMap::new();
        let mut checks = Vec::new();
        let mut labels = Vec::new();
        for (((method, route, _), count), status) in self.expected.iter().zip(&statuses) {
            labels.push((vec![("method", method.as_str()), ("route", route), ("status", status)], *count));
            *client.entry((method.as_str(), status.as_str())).or_insert(0.0) += count;
        }
        for (labels, count) in &labels {
            checks.push(("http_requests_total", labels.as_slice(), *count));
        }
        let client: Vec<_> = client
            .into_iter()
            .map(|((method, status), count)| {
                (
                    vec![("destination", self.destination.as_str()), ("method", method), ("status", status)],
                    count,
                )
            })
            .collect();
        for (labels, count) in &client {
            checks.push(("http_client_requests_total", labels.as_slice(), *count));
        }
        let all = self.expected.values().sum();
        let (server, destination) = (live_tests::comm(), [("destination", self.destination.as_str())]);
        let server = [("service", server.as_str())];
        checks.push(("http_requests_total", &server, all));
        checks.push(("http_client_requests_total", &destination, all));
        let page = self.agent.expect_all(&checks);
        assert_eq!(page.losses(), losses);
        page
    }
}

const REQUESTS: [(&str, &[u8]); 3] = [
    ("GET", b"GET /cut/plain?q=1 HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n"),
    ("POST", b"POST /cut/length HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello world"),
    ("PUT", b"PUT /cut/chunks HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\nb\r\n, the world\r\n0\r\n\r\n"),
];

const RESPONSES: [(u16, &[u8]); 3] = [
    (200, b"HTTP/1.1 200 OK\r\nServer: test\r\nContent-Length: 5\r\n\r\nhello"),
    (201, b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\nX: y\r\n\r\n"),
    (204, b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n"),
];

fn route(request: &[u8]) -> &str {
    let path = std::str::from_utf8(request).unwrap().split(' ').nth(1).unwrap();
    path.split('?').next().unwrap()
}

#[test]
fn a_message_cut_at_any_byte_is_counted_once() {
    let mut ledger = Ledger::open();
    for (i, (method, request)) in REQUESTS.into_iter().enumerate() {
        let (status, response) = RESPONSES[i];
        // A connection that lives on has a known role and a half-read line; a new one has to be recognised by its pieces.
        let mut kept = ledger.pair();
        for cut in 1..request.len() {
            let pieces = [&request[..cut], &request[cut..]];
            for pair in [&mut kept, &mut ledger.pair()] {
                pair.request(&pieces);
                pair.response(&[response]);
                ledger.expect(method, route(request), status);
            }
        }
        for cut in 1..response.len() {
            let pieces = [&response[..cut], &response[cut..]];
            for pair in [&mut kept, &mut ledger.pair()] {
                pair.request(&[request]);
                pair.response(&pieces);
                ledger.expect(method, route(request), status);
            }
        }
    }
    ledger.settle(&[]);
}

#[test]
fn a_message_in_single_bytes_is_counted_once() {
    let mut ledger = Ledger::open();
    for (method, request) in REQUESTS {
        for (status, response) in RESPONSES {
            let mut pair = ledger.pair();
            for _ in 0..3 {
                pair.request(&request.chunks(1).collect::<Vec<_>>());
                pair.response(&response.chunks(1).collect::<Vec<_>>());
                ledger.expect(method, route(request), status);
            }
        }
    }
    ledger.settle(&[]);
}

#[test]
fn a_message_read_in_small_bites_is_counted_once() {
    let mut ledger = Ledger::open();
    for reads in [1, 2, 3, 7, 16, 61] {
        for (method, request) in REQUESTS {
            for (status, response) in RESPONSES {
                let mut pair = ledger.pair();
                pair.reads = reads;
                for _ in 0..2 {
                    pair.exchange(request, response);
                    ledger.expect(method, route(request), status);
                }
            }
        }
    }
    ledger.settle(&[]);
}

#[test]
fn gathered_writes_are_read_across_their_pieces() {
    let mut ledger = Ledger::open();
    for (method, request) in REQUESTS {
        for (status, response) in RESPONSES {
            for size in [1, 2, 5, 9, 20] {
                // The kernel takes 1024 pieces at most; these messages have fewer bytes.
                let mut pair = ledger.pair();
                for _ in 0..2 {
                    pair.gather(
                        &request.chunks(size).collect::<Vec<_>>(),
                        &response.chunks(size).collect::<Vec<_>>(),
                    );
                    ledger.expect(method, route(request), status);
                }
            }
        }
    }
    ledger.settle(&[]);
}

#[test]
fn every_kind_of_body_ends_where_it_ends() {
    let mut ledger = Ledger::open();
    let mut pair = ledger.pair();
    for (request, response) in [
        (&b"GET /body/none HTTP/1.1\r\n\r\n"[..], &b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"[..]),
        (b"POST /body/zero HTTP/1.1\r\nContent-Length: 0\r\n\r\n", OK),
        (b"GET /body/no-content HTTP/1.1\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"),
        // These three announce a body that does not follow.
        (b"HEAD /body/head HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        (b"HEAD /body/head-chunked HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (b"GET /body/not-modified HTTP/1.1\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n"),
        (b"GET /body/early HTTP/1.1\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        // Bodies that look like messages.
        (b"POST /body/nested HTTP/1.1\r\nContent-Length: 26\r\n\r\nGET /inside HTTP/1.1\r\n\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\nHTTP/1.1 500 Bad\r\n\r\n"),
        (b"POST /body/chunked HTTP/1.1\r\ntransfer-encoding: gzip, CHUNKED\r\n\r\n1A;ext=\"v\"\r\nGET /inside HTTP/1.1\r\n\r\n\r\n\r\n0\r\nTrailer: x\r\n\r\n", OK),
        (b"GET /body/last HTTP/1.1\r\n\r\n", OK),
    ] {
        pair.exchange(request, response);
        let text = String::from_utf8_lossy(request).into_owned();
        let mut words = text.split(' ');
        let (method, route) = (words.next().unwrap(), words.next().unwrap());
        let status = String::from_utf8_lossy(response).rsplit("HTTP/1.1 ").next().unwrap()[..3].parse().unwrap();
        ledger.expect(method, route, if route == "/body/nested" { 200 } else { status });
    }
    ledger.settle(&[]);
}

#[test]
fn a_client_that_waits_for_100_continue_is_one_request() {
    let mut ledger = Ledger::open();
    let mut pair = ledger.pair();
    for _ in 0..3 {
        pair.request(&[b"POST /continue HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"]);
        pair.response(&[b"HTTP/1.1 100 Continue\r\n\r\n"]);
        pair.request(&[b"body"]);
        pair.response(&[OK]);
        ledger.expect("POST", "/continue", 200);
    }
    ledger.settle(&[]);
}

#[test]
fn a_body_that_the_connection_ends_is_one_response() {
    let mut ledger = Ledger::open();
    for head in ["HTTP/1.0 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"] {
        let mut pair = ledger.pair();
        pair.request(&[b"GET /until-close HTTP/1.0\r\n\r\n"]);
        pair.response(&[head.as_bytes(), b"some", b"HTTP/1.1 500 no status of a response\r\n\r\n", b"end"]);
        let Pair { mut client, server, .. } = pair;
        drop(server);
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
        ledger.expect("GET", "/until-close", 200);
    }
    ledger.settle(&[]);
}

#[test]
fn a_client_that_is_done_sending_still_gets_its_answer_counted() {
    let mut ledger = Ledger::open();
    let mut pair = ledger.pair();
    pair.request(&[b"GET /half-closed HTTP/1.1\r\n\r\n"]);
    pair.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(pair.server.read(&mut [0; 1]).unwrap(), 0);
    pair.response(&[OK]);
    drop(pair);
    ledger.expect("GET", "/half-closed", 200);
    ledger.settle(&[]);
}

#[test]
fn eight_pipelined_requests_are_exact_and_of_twenty_twelve_are_dropped_by_name() {
    let mut ledger = Ledger::open();
    let paths: Vec<String> = (0..20).map(|n| format!("/pipeline/{}", char::from(b'a' + n))).collect();
    let requests: Vec<Vec<u8>> =
        paths.iter().map(|path| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").into()).collect();
    let mut pair = ledger.pair();
    // In one call, in a call each, and cut where no message ends.
    let eight = requests[..8].concat();
    let slices: Vec<&[u8]> = requests[..8].iter().map(Vec::as_slice).collect();
    for pieces in [vec![eight.as_slice()], slices, eight.chunks(50).collect()] {
        pair.request(&pieces);
        pair.response(&[&OK.repeat(8)]);
        paths[..8].iter().for_each(|path| ledger.expect("GET", path, 200));
    }
    ledger.settle(&[]);

    let twenty = requests.concat();
    pair.request(&[&twenty]);
    pair.response(&[&OK.repeat(20)]);
    paths[..8].iter().for_each(|path| ledger.expect("GET", path, 200));
    // Twelve by each end; and the connection is as good as before.
    ledger.settle(&["http/pipeline_depth 24"]);
    pair.exchange(&requests[19], OK);
    ledger.expect("GET", &paths[19], 200);
    ledger.settle(&["http/pipeline_depth 24"]);
    ledger.agent.expect_no_loss("http");
}

#[test]
fn a_large_head_is_read_to_its_end() {
    let mut ledger = Ledger::open();
    let cookie = "session=".to_owned() + &"0123456789abcdef".repeat(256);
    let request =
        format!("GET /cookies HTTP/1.1\r\nCookie: {cookie}\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    let response = format!("HTTP/1.1 200 OK\r\nSet-Cookie: {cookie}\r\nContent-Length: 2\r\n\r\nok");
    let many = (0..60).map(|n| format!("X-Header-{n}: {}\r\n", "v".repeat(60))).collect::<Vec<_>>().concat();
    let second = format!("POST /many-headers HTTP/1.1\r\n{many}Content-Length: 5\r\n\r\nhello");
    let third = format!("HTTP/1.1 201 Created\r\n{many}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    for reads in [65_536, 1000, 512, 100] {
        let mut pair = ledger.pair();
        pair.reads = reads;
        for _ in 0..3 {
            pair.exchange(request.as_bytes(), response.as_bytes());
            ledger.expect("GET", "/cookies", 200);
            pair.exchange(second.as_bytes(), third.as_bytes());
            ledger.expect("POST", "/many-headers", 201);
        }
    }
    ledger.settle(&[]);
}

#[test]
fn a_slow_body_counts_to_its_last_byte() {
    const PAUSE: Duration = Duration::from_millis(100);
    let mut ledger = Ledger::open();
    let mut pair = ledger.pair();
    let begin = Instant::now();
    pair.request(&[b"GET /slow HTTP/1.1\r\n\r\n"]);
    pair.response(&[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]);
    for _ in 0..5 {
        // This is the traffic and no wait for something.
        sleep(PAUSE);
        pair.response(&[b"4\r\nslow\r\n"]);
    }
    pair.response(&[b"0\r\n\r\n"]);
    let took = begin.elapsed().as_secs_f64();
    ledger.expect("GET", "/slow", 200);
    let page = ledger.settle(&[]);
    let destination = [("destination", ledger.destination.as_str())];
    for sum in [
        page.sum("http_request_duration_seconds_sum", &[("route", "/slow")]),
        page.sum("http_client_request_duration_seconds_sum", &destination),
    ] {
        assert!(sum <= took && sum > took - 0.01, "{sum} s counted, {took} s measured");
    }
}
