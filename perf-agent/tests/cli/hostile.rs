//! Clients that mean ill, or are merely broken: each is bounded, and none keeps the others from being served.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::agent::{Agent, Answer, PATIENCE};

/// As in `serve.rs`.
const MAX_CONNECTIONS: usize = 256;
const MAX_SCRAPES: usize = 40;
const READ_TIMEOUT: Duration = Duration::from_secs(10);
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Polls until the condition holds, and says how long that took.
fn wait_until(what: &str, condition: impl Fn() -> bool) -> Duration {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "{what}: not after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    begin.elapsed()
}

/// Reads to the end, which may be a reset: the agent closes without reading what it does not want.
fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => bytes,
    }
}

#[test]
fn connections_beyond_the_limit_are_closed_and_counted() {
    let agent = Agent::bare();
    let mut idle: Vec<_> = (0..MAX_CONNECTIONS).map(|_| agent.connect()).collect();
    // Accepted in order, so by then all of those before it are.
    let mut beyond = agent.connect();
    assert_eq!(read_all(&mut beyond), b"");
    // One of those that came in time is still served.
    let mut last = idle.pop().unwrap();
    last.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(Answer::parse(&read_all(&mut last)).status, 200);
    drop(idle);
    wait_until("a free connection", || {
        let mut stream = agent.connect();
        _ = stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n");
        !read_all(&mut stream).is_empty()
    });
    assert!(agent.value("perf_agent_http_rejected_total{reason=\"connections\"}") >= 1.0);
}

#[test]
fn a_request_that_never_ends_is_cut_off() {
    let agent = Agent::bare();
    let begin = Instant::now();
    let mut slow = agent.connect();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nX-Slow: ").unwrap();
    let mut silent = agent.connect();
    assert_eq!(agent.get("/healthz").status, 200);
    read_all(&mut slow);
    read_all(&mut silent);
    let took = begin.elapsed();
    assert!((READ_TIMEOUT..READ_TIMEOUT * 2).contains(&took), "{took:?}");
}

#[test]
fn readers_that_never_read_are_cut_off_and_bounded_until_then() {
    let agent = Agent::bare();
    let before = agent.value("process_resident_memory_bytes");
    let requests = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1_000);
    let mut stuck = Vec::new();
    let mut sent = 0_usize;
    for _ in 0..MAX_SCRAPES + 10 {
        let mut stream = agent.connect();
        stream.set_nonblocking(true).unwrap();
        stuck.push(stream.try_clone().unwrap());
        // As many requests as the kernel takes; the agent stops reading them when the answers are not taken.
        for _ in 0..200 {
            match stream.write(&requests) {
                Ok(taken) => sent += taken,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(sent > requests.len());
    // Health needs no scrape, and must not wait for one.
    for _ in 0..20 {
        let begin = Instant::now();
        assert_eq!(agent.get("/healthz").status, 200);
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    }
    let busy = wait_until("a scrape turned away", || agent.get("/metrics").status == 503);
    assert!(busy < WRITE_TIMEOUT, "{busy:?}");
    let answer = agent.get("/metrics");
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    let took = wait_until("a scrape again", || agent.get("/metrics").status == 200);
    assert!(took < WRITE_TIMEOUT + Duration::from_secs(10), "{took:?}");
    assert!(agent.value("perf_agent_http_rejected_total{reason=\"scrapes\"}") >= 2.0);
    let grown = agent.value("process_resident_memory_bytes") - before;
    assert!(grown < 64e6, "{grown} bytes more than before");
    drop(stuck);
}

#[test]
fn heads_beyond_measure_and_rubbish_get_an_error_and_the_next_client_an_answer() {
    let agent = Agent::bare();
    let long_line = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(1_000));
    let huge = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(1 << 20));
    for (name, request) in [
        ("a long path", long_line.as_bytes()),
        ("many headers", many.as_bytes()),
        ("a huge header", huge.as_bytes()),
        ("rubbish", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
        ("no method", b" / HTTP/1.1\r\n\r\n"),
        ("HTTP/2 in the clear", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("nothing", b""),
    ] {
        let mut stream = agent.connect();
        // It may be closed before all is written.
        _ = stream.write_all(request);
        _ = stream.shutdown(Shutdown::Write);
        let answer = read_all(&mut stream);
        assert!(
            answer.is_empty() || (400..506).contains(&Answer::parse(&answer).status),
            "{name}: {}",
            String::from_utf8_lossy(&answer)
        );
        assert_eq!(agent.get("/healthz").status, 200, "after {name}");
    }
}

#[test]
fn many_scrapes_at_once_are_all_answered_up_to_the_limit() {
    let agent = Agent::start(&[]);
    let mut streams: Vec<_> = (0..MAX_SCRAPES).map(|_| agent.connect()).collect();
    for stream in &mut streams {
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    }
    for stream in &mut streams {
        let answer = Answer::parse(&read_all(stream));
        assert_eq!(answer.status, 200);
        let length: usize = answer.header("content-length").unwrap().parse().unwrap();
        assert_eq!(answer.body.len(), length);
    }
}
