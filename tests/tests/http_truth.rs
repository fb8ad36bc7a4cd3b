//! HTTP, in seconds: the latencies that the agent reports are those that the programs themselves measure.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "how near the numbers are is worth seeing")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread::{self, ScopedJoinHandle, sleep};
use std::time::{Duration, Instant};

use live_tests::{Agent, listener};
use perf_common::histogram::{BOUNDS_NS, index};

/// Delay in milliseconds, requests, and over how many connections at once.
const PATHS: [(u64, usize, usize); 4] = [(1, 2000, 2), (5, 800, 2), (50, 160, 4), (500, 32, 8)];

#[test]
fn latencies_are_those_that_client_and_server_measure_themselves() {
    let bounds: Vec<String> = BOUNDS_NS.iter().map(|&ns| (ns as f64 / 1e9).to_string()).collect();
    let agent = Agent::with(&format!("histogram: {{buckets: [{}]}}\n", bounds.join(", ")));
    for (delay, requests, connections) in PATHS {
        // A server each: on the client's side paths are told apart by destination.
        let (listener, destination) = listener();
        let route = format!("/delay-{delay}-ms");
        let Measured { client, server } =
            measure(&listener, &route, Duration::from_millis(delay), requests / connections, connections);
        let count = requests as f64;
        let labels = [("route", route.as_str())];
        let destination = [("destination", destination.as_str())];
        let page = agent.expect_all(&[
            ("http_request_duration_seconds_count", &labels, count),
            ("http_client_request_duration_seconds_count", &destination, count),
        ]);
        // The client knows to the call. The server cannot see how long a request waited for it to read, which the agent
        // counts; so the truth lies between its own clock and its client's.
        for (histogram, labels, least, most) in [
            ("http_request_duration_seconds", &labels, &server, &client),
            ("http_client_request_duration_seconds", &destination, &client, &client),
        ] {
            for q in [0.5, 0.99] {
                let reported = index((page.quantile(histogram, labels, q) * 1e9).round() as u64);
                let step = |truth: &[Duration]| index(truth[(q * (count - 1.0)) as usize].as_nanos() as u64);
                let (least, most) = (step(least), step(most));
                assert!(
                    reported + 1 >= least && reported <= most + 1,
                    "{histogram} {labels:?}: q{q} is in the step up to {} ns, by the programs' own clocks up to {} or {} ns",
                    BOUNDS_NS[reported],
                    BOUNDS_NS[least],
                    BOUNDS_NS[most]
                );
            }
            let sum = page.sum(&format!("{histogram}_sum"), labels);
            let (least, most) = (total(least), total(most));
            println!("{histogram} {delay} ms: {sum:.6} s reported, {least:.6} to {most:.6} s measured");
            assert!(
                sum > least * 0.98 && sum < most * 1.02,
                "{histogram} {labels:?}: {sum} s, not {least} to {most} s"
            );
        }
    }
    assert_eq!(agent.page().losses(), [""; 0]);
}

/// Every request's duration by the programs' own clocks, ascending.
struct Measured {
    client: Vec<Duration>,
    server: Vec<Duration>,
}

fn measure(
    listener: &TcpListener,
    route: &str,
    delay: Duration,
    requests: usize,
    connections: usize,
) -> Measured {
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        let mut clients = Vec::new();
        let mut servers = Vec::new();
        for _ in 0..connections {
            let stream = TcpStream::connect(address).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            servers.push(scope.spawn(move || serve(&accepted, delay)));
            clients.push(scope.spawn(move || ask(&stream, route, requests)));
        }
        Measured { client: sorted(clients), server: sorted(servers) }
    })
}

/// Answers until the client hangs up; how long each answer took, from when the request was there.
fn serve(mut stream: &TcpStream, delay: Duration) -> Vec<Duration> {
    stream.set_nodelay(true).unwrap();
    let mut took = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let read = stream.read(&mut buffer).unwrap();
        let begin = Instant::now();
        if read == 0 {
            return took;
        }
        assert!(buffer[..read].ends_with(b"\r\n\r\n"), "a request in pieces");
        sleep(delay);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        took.push(begin.elapsed());
    }
}

/// Asks one request after the other; how long each took.
fn ask(mut stream: &TcpStream, route: &str, requests: usize) -> Vec<Duration> {
    stream.set_nodelay(true).unwrap();
    let request = format!("GET {route} HTTP/1.1\r\nHost: test\r\n\r\n");
    let mut buffer = [0; 1024];
    let one = |_| {
        let begin = Instant::now();
        stream.write_all(request.as_bytes()).unwrap();
        let read = stream.read(&mut buffer).unwrap();
        assert!(buffer[..read].ends_with(b"ok"), "an answer in pieces");
        begin.elapsed()
    };
    (0..requests).map(one).collect()
}

fn total(durations: &[Duration]) -> f64 {
    durations.iter().sum::<Duration>().as_secs_f64()
}

fn sorted(threads: Vec<ScopedJoinHandle<'_, Vec<Duration>>>) -> Vec<Duration> {
    let mut all: Vec<Duration> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    all.sort();
    all
}
