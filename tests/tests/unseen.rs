//! Calls that no hook tells of: bytes that a program splices away, or, on kernels that preempt programs, a call for which the
//! kernel ran none. Sequence numbers show the gap; it costs what was in it, and shifts nothing.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which a float holds exactly")]

use std::thread::sleep;
use std::time::Duration;

use live_tests::{Agent, Pair, comm, listener};

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

/// A protocol: what opens a connection, a request, its response, and which metric counts them at a client.
struct Protocol {
    hello: Vec<(bool, Vec<u8>)>,
    request: Vec<u8>,
    response: Vec<u8>,
    histogram: &'static str,
    loss: &'static str,
    /// How many requests a response takes along that nobody saw.
    lost: u32,
}

fn protocols() -> [Protocol; 4] {
    let db = "db_query_duration_seconds";
    let packet = |number: u8, body: &[u8]| [&[body.len() as u8, 0, 0, number], body].concat();
    let greeting =
        b"\x0a8.0.0\0\x01\0\0\0saltsalt\0\xff\xf7\x21\x02\0\xff\x81\x15\0\0\0\0\0\0\0\0\0\0saltsaltsalt\0";
    let login = [b"\x05\xa2\x08\0\0\0\0\x01!".as_slice(), &[0; 23], b"me\0\0"].concat();
    [
        Protocol {
            hello: vec![],
            request: GET.to_vec(),
            response: OK.to_vec(),
            histogram: "http_client_request_duration_seconds",
            loss: "http/desync",
            lost: 1,
        },
        Protocol {
            hello: vec![
                (true, b"\0\0\0\x11\0\x03\0\0user\0me\0\0".to_vec()),
                (false, b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I".to_vec()),
            ],
            request: b"Q\0\0\0\x0dselect 1\0".to_vec(),
            response: b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I".to_vec(),
            histogram: db,
            loss: "postgres/desync",
            lost: 2,
        },
        Protocol {
            hello: vec![],
            request: b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n".to_vec(),
            response: b"$5\r\nvalue\r\n".to_vec(),
            histogram: db,
            loss: "redis/desync",
            lost: 2,
        },
        Protocol {
            hello: vec![
                (false, packet(0, greeting)),
                (true, packet(1, &login)),
                (false, packet(2, b"\0\0\0\x02\0\0\0")),
            ],
            request: packet(0, b"\x03delete from t"),
            response: packet(1, b"\0\x01\0\x02\0\0\0"),
            histogram: db,
            loss: "mysql/desync",
            lost: 1,
        },
    ]
}

#[test]
fn a_response_that_nobody_saw_shifts_none_of_the_others() {
    const PAUSE: Duration = Duration::from_millis(40);
    const ROUNDS: u32 = 10;
    let agent = Agent::start();
    let mut expected = Vec::new();
    for protocol in protocols() {
        let Protocol { hello, request, response, .. } = &protocol;
        let (listener, destination) = listener();
        let mut pair = Pair::open(&listener);
        for (from_client, bytes) in hello {
            if *from_client { pair.request(&[bytes]) } else { pair.response(&[bytes]) }
        }
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
    for (Protocol { histogram, lost, .. }, destination) in &expected {
        let labels = [("destination", destination.as_str())];
        let counted = f64::from(ROUNDS * (5 - lost));
        let page = agent.expect(&format!("{histogram}_count"), &labels, counted);
        let mean = page.sum(&format!("{histogram}_sum"), &labels) / counted;
        assert!(mean < PAUSE.as_secs_f64() / 4.0, "{histogram} {destination}: {mean} s");
    }
    let losses = agent.page().losses();
    for (Protocol { loss, lost, .. }, _) in &expected {
        let line = format!("{loss} {}", ROUNDS * lost);
        assert!(losses.contains(&line), "no {line} in {losses:?}");
    }
    assert_eq!(losses.len(), expected.len(), "{losses:?}");
}
