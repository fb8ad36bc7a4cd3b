//! HTTP, in numbers: what real servers and real load generators count, the agent counts, to the request.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which a float holds exactly")]

use std::net::TcpStream;
use std::time::{Duration, Instant};

use live_tests::{Agent, Labels, Nginx, PATIENCE, ab, curl, endless_wrk, wait_until, wrk};

const MILLION: u64 = 1_000_000;
/// As many as wrk has here.
const CONNECTIONS: f64 = 16.0;

#[test]
fn a_million_keep_alive_requests_are_counted_to_the_request() {
    let nginx = Nginx::start("location = /exact { return 200 'ok'; }");
    let agent = Agent::start();
    let before = nginx.count();
    assert_eq!(wrk(&nginx.url("/exact"), MILLION), MILLION, "by wrk");
    assert_eq!(nginx.count().requests - before.requests - 1, MILLION, "by nginx");
    assert_exact(&agent, &nginx, "wrk", MILLION);
}

#[test]
fn a_hundred_thousand_connections_with_a_request_each_are_counted_to_the_request() {
    const REQUESTS: u64 = 100_000;
    let nginx = Nginx::start("location = /exact { return 200 'ok'; }");
    let agent = Agent::start();
    let before = nginx.count();
    assert_eq!(ab(&nginx.url("/exact"), REQUESTS, false), REQUESTS, "by ab");
    let after = nginx.count();
    assert_eq!(after.requests - before.requests - 1, REQUESTS, "by nginx");
    assert_exact(&agent, &nginx, "ab", REQUESTS);

    // ab may open one more than it needs, so nginx has the last word on connections.
    let connections = (after.connections - before.connections - 1) as f64;
    assert!(connections >= REQUESTS as f64, "{connections}");
    let destination = nginx.address();
    agent.expect_all(&[
        (
            "tcp_connects_total",
            &[("service", "ab"), ("destination", &destination), ("result", "ok")],
            connections,
        ),
        ("tcp_connects_total", &[("service", "ab")], connections),
        // Both questions were connections as well.
        ("tcp_accepts_total", &[("service", "nginx")], connections + 2.0),
    ]);
}

/// Both ends counted as many and nothing was lost.
fn assert_exact(agent: &Agent, nginx: &Nginx, client: &str, requests: u64) {
    let requests = requests as f64;
    let server: Labels<'_> = &[("service", "nginx"), ("route", "/exact"), ("method", "GET")];
    let destination = nginx.address();
    let client: Labels<'_> = &[("service", client), ("destination", &destination), ("method", "GET")];
    let page = agent.expect_all(&[
        ("http_requests_total", server, requests),
        ("http_request_duration_seconds_count", server, requests),
        ("http_client_requests_total", client, requests),
        ("http_client_request_duration_seconds_count", client, requests),
    ]);
    for (metric, labels) in [("http_requests_total", server), ("http_client_requests_total", client)] {
        let statuses: Vec<_> =
            page.select(metric, labels).map(|sample| sample.labels["status"].as_str()).collect();
        assert_eq!(statuses, ["200"], "{metric}");
    }
    assert_eq!(page.losses(), [""; 0], "nothing was lost");
}

#[test]
fn a_file_sent_by_the_kernel_itself_is_followed_to_its_end() {
    let nginx = Nginx::start("");
    nginx.put("file", &vec![b'x'; 1 << 20]);
    let agent = Agent::start();
    // Three on one connection: the second is only found when the first one's megabyte was passed over exactly.
    let url = nginx.url("/file");
    for _ in 0..10 {
        let body = curl(&[&url, &url, &url]);
        assert_eq!(body.len(), 3 << 20);
    }
    let destination = nginx.address();
    let page = agent.expect_all(&[
        ("http_requests_total", &[("service", "nginx"), ("route", "/file"), ("status", "200")], 30.0),
        (
            "http_client_requests_total",
            &[("service", "curl"), ("destination", &destination), ("status", "200")],
            30.0,
        ),
        ("tcp_accepts_total", &[("service", "nginx")], 10.0),
    ]);
    assert_eq!(page.losses(), [""; 0]);
}

#[test]
fn status_and_method_are_what_went_over_the_wire() {
    let nginx = Nginx::start(
        "location = /missing { return 404; } location = /moved { return 301 /; } location = /broken { return 503; }
         location = /empty { return 204; } location ~ ^/api/items/ { return 200 'ok'; }",
    );
    let agent = Agent::start();
    for (method, path) in [
        ("GET", "/missing"),
        ("GET", "/moved"),
        ("POST", "/broken"),
        ("DELETE", "/empty"),
        ("PATCH", "/api/items/17"),
        ("PUT", "/api/items/4711"),
        ("OPTIONS", "/api/items/550e8400-e29b-41d4-a716-446655440000"),
        ("PURGE", "/api/items/9?secret=4711"),
    ] {
        curl(&["-X", method, &nginx.url(path)]);
    }
    curl(&["-I", &nginx.url("/api/items/1")]);
    curl(&["-d", "a=b", &nginx.url("/api/items/2")]);
    let one = |method, route, status| {
        agent.expect(
            "http_requests_total",
            &[("service", "nginx"), ("method", method), ("route", route), ("status", status)],
            1.0,
        )
    };
    one("GET", "/missing", "404");
    one("GET", "/moved", "301");
    one("POST", "/broken", "503");
    one("DELETE", "/empty", "204");
    for method in ["PATCH", "PUT", "OPTIONS", "_OTHER", "HEAD", "POST"] {
        let page = one(method, "/api/items/{id}", "200");
        assert!(!page.text.contains("4711"), "an id or a query is on the page");
    }
}

#[test]
fn requests_of_connections_that_were_there_before_are_counted_from_the_next_one_on() {
    let nginx = Nginx::start("location = /before { return 200 'ok'; }");
    let connections: Vec<_> = (0..50).map(|_| Kept::open(&nginx)).collect();
    let ask = || {
        for connection in &connections {
            connection.ask(&nginx);
        }
    };
    ask();
    let agent = Agent::start();
    for _ in 0..3 {
        ask();
    }
    let page = agent.expect("http_requests_total", &[("service", "nginx"), ("route", "/before")], 150.0);
    assert_eq!(page.sum("http_client_requests_total", &[("destination", &nginx.address())]), 150.0);
    assert_eq!(page.losses(), [""; 0]);
}

#[test]
fn connections_that_are_busy_while_it_starts_are_counted_right_from_then_on() {
    const REQUESTS: u64 = 50_000;
    let nginx = Nginx::start("location = /busy { return 200 'ok'; }");
    let load = endless_wrk(&nginx.url("/busy"));
    wait_until("wrk is under way", PATIENCE, || nginx.count().requests > 1000);
    let agent = Agent::start();
    let account = || (Instant::now(), agent.page(), nginx.count().requests);
    let (begin, page, requests) = account();
    wait_until("nginx has answered enough", PATIENCE, || nginx.count().requests > requests + REQUESTS);
    let (end, later, requests_later) = account();
    drop(load);
    let ours: Labels<'_> = &[("service", "nginx"), ("route", "/busy")];
    let grown = |metric: &str| later.sum(metric, ours) - page.sum(metric, ours);
    let (counted, served) = (grown("http_requests_total"), (requests_later - requests) as f64);
    // The two counters are read one after the other while both run.
    assert!(
        (counted / served - 1.0).abs() < 0.05,
        "{counted} of {served} were counted; losses: {:?}",
        later.losses()
    );
    assert_eq!(later.losses(), [""; 0]);
    // A connection has one request at a time. Answers that are taken for those of later requests would add up to more.
    let busy = grown("http_request_duration_seconds_sum") / (end - begin).as_secs_f64();
    assert!(busy <= CONNECTIONS * 1.02, "{busy} requests at a time on {CONNECTIONS} connections");
}

/// A connection that outlives its requests.
struct Kept(TcpStream);

impl Kept {
    fn open(nginx: &Nginx) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", nginx.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    fn ask(&self, nginx: &Nginx) {
        use std::io::{Read as _, Write as _};
        let mut stream = &self.0;
        write!(stream, "GET /before HTTP/1.1\r\nHost: {}\r\n\r\n", nginx.address()).unwrap();
        let mut answer = Vec::new();
        let mut buffer = [0; 1024];
        while !answer.ends_with(b"\r\n\r\nok") {
            let read = stream.read(&mut buffer).unwrap();
            assert!(read > 0, "nginx hung up");
            answer.extend_from_slice(&buffer[..read]);
        }
    }
}

#[test]
fn what_a_client_abandons_is_dropped_with_a_reason_and_not_counted() {
    let agent = Agent::start();
    let (listener, destination) = live_tests::listener();
    let mut pair = live_tests::Pair::open(&listener);
    pair.exchange(b"GET /answered HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    pair.request(&[b"GET /abandoned HTTP/1.1\r\n\r\n"]);
    drop(pair);
    let page = agent.expect_all(&[
        ("http_requests_total", &[("route", "/answered")], 1.0),
        ("http_requests_total", &[("route", "/abandoned")], 0.0),
        ("http_client_requests_total", &[("destination", &destination)], 1.0),
    ]);
    wait_until("both ends say that it got no answer", Duration::from_secs(3), || {
        agent.page().sum("perf_agent_events_dropped_total", &[("probe", "http"), ("reason", "no_response")])
            == 2.0
    });
    assert_eq!(page.sum("http_request_duration_seconds_count", &[("route", "/abandoned")]), 0.0);
    agent.expect_no_loss("http");
}
