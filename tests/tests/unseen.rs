//! Calls that no hook tells of: bytes that a program splices away, or, on kernels that preempt programs, a call for which the
//! kernel ran none. Sequence numbers show the gap; it costs what was in it, and shifts nothing.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which a float holds exactly")]

use std::thread::sleep;
use std::time::Duration;

use live_tests::{Agent, Pair, Protocol, comm, listener, protocols};

const GET: &[u8] = b"GET /spliced HTTP/1.1\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn bodies_that_are_spliced_are_passed_over() {
    const ROUNDS: u32 = 20;
    let agent = Agent::start();
    let (listener, destination) = listener();
    let mut pair = Pair::open(&listener);
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n";
    let body = [b'x'; 3000];
    for _ in 0..ROUNDS {
        // To the end, in the middle, and of a request.
        pair.request(&[GET]);
        pair.response(&[head]);
        pair.response_spliced(&body);
        pair.exchange(GET, OK);
        pair.request(&[GET]);
        pair.response(&[head, &body[..100]]);
        pair.response_spliced(&body[100..2000]);
        pair.response(&[&body[2000..]]);
        pair.request(&[b"POST /spliced HTTP/1.1\r\nContent-Length: 3000\r\n\r\n"]);
        pair.request_spliced(&body);
        pair.response(&[OK]);
    }
    let each = f64::from(ROUNDS);
    let (service, destination) = (comm(), destination.as_str());
    let server = [("service", service.as_str()), ("route", "/spliced"), ("status", "200")];
    let page = agent.expect_all(&[
        ("http_requests_total", &[server.as_slice(), &[("method", "GET")]].concat(), 3.0 * each),
        ("http_requests_total", &[server.as_slice(), &[("method", "POST")]].concat(), each),
        ("http_client_requests_total", &[("destination", destination), ("status", "200")], 4.0 * each),
    ]);
    assert_eq!(page.losses(), [""; 0]);
}

/// How many requests a response takes along that nobody saw: of HTTP and MySQL, responses to the last request can be told.
fn lost(protocol: &Protocol) -> u32 {
    if matches!(protocol.probe, "http" | "mysql") { 1 } else { 2 }
}

#[test]
fn a_response_that_nobody_saw_shifts_none_of_the_others() {
    const PAUSE: Duration = Duration::from_millis(40);
    const ROUNDS: u32 = 10;
    let agent = Agent::start();
    let mut expected = Vec::new();
    for protocol in protocols() {
        let Protocol { request, response, .. } = &protocol;
        let (listener, destination) = listener();
        let mut pair = Pair::open(&listener);
        pair.say(&protocol.hello);
        for _ in 0..ROUNDS {
            // The first one of a connection, too.
            pair.request(&[request]);
            pair.response_spliced(response);
            for _ in 0..4 {
                // This is the traffic: a request that got the next one's response would last as long as this.
                sleep(PAUSE);
                pair.exchange(request, response);
            }
        }
        expected.push((protocol, destination));
    }
    for (protocol, destination) in &expected {
        let (histogram, labels) = (protocol.histogram, [("destination", destination.as_str())]);
        let counted = f64::from(ROUNDS * (5 - lost(protocol)));
        let page = agent.expect(&format!("{histogram}_count"), &labels, counted);
        let mean = page.sum(&format!("{histogram}_sum"), &labels) / counted;
        assert!(mean < PAUSE.as_secs_f64() / 4.0, "{histogram} {destination}: {mean} s");
    }
    let losses = agent.page().losses();
    for (protocol, _) in &expected {
        let line = format!("{}/desync {}", protocol.probe, ROUNDS * lost(protocol));
        assert!(losses.contains(&line), "no {line} in {losses:?}");
    }
    assert_eq!(losses.len(), expected.len(), "{losses:?}");
}
