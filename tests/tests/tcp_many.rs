//! TCP: many connections, one after the other and at once.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "how fast it goes is worth seeing")]

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use live_tests::{Agent, Labels, PATIENCE, Page, Proc, Running, comm, free_port, listener, wait_until};
use socket2::SockRef;

/// As fast as they go, for so long.
const STORM: Duration = Duration::from_secs(10);
/// Connections that one process holds open; a process may have 20,000 descriptors on most hosts.
const HELD: usize = 18_000;
const HOLDERS: usize = 3;

#[test]
fn a_storm_of_short_connections_is_counted_to_the_connection_and_leaves_no_memory_behind() {
    let agent = Agent::start();
    // One of each kind first, so that what is kept for them is there before memory is looked at.
    let (listener, destination) = listener();
    // Room for as many as the client can be ahead.
    SockRef::from(&listener).listen(4096).unwrap();
    let mut opened = storm(&listener, Duration::from_millis(500));
    let before = (agent.page(), Proc::of(agent.pid()).resident());
    let begun = Instant::now();
    let more = storm(&listener, STORM);
    opened += more;
    println!("{:.0} connections a second", more as f64 / begun.elapsed().as_secs_f64());
    let service = comm();
    let client: Labels<'_> = &[("service", &service), ("destination", &destination)];
    let server: Labels<'_> = &[("service", &service), ("destination", "loopback")];
    let page = agent.expect_all(&[
        ("tcp_connects_total", client, opened as f64),
        ("tcp_connect_duration_seconds_count", client, opened as f64),
        ("tcp_connection_duration_seconds_count", client, opened as f64),
        ("tcp_accepts_total", server, opened as f64),
        ("tcp_connections", client, 0.0),
        ("tcp_connections", server, 0.0),
        ("tcp_resets_total", &[client, &[("direction", "received")]].concat(), 0.0),
    ]);
    let grown = Proc::of(agent.pid()).resident() - before.1;
    println!("{:.1} MiB more", grown / f64::from(1 << 20));
    assert!(grown < f64::from(4 << 20), "{grown} bytes more after {more} connections");
    let series =
        |page: &Page| page.samples.iter().filter(|sample| sample.name == "tcp_connects_total").count();
    assert_eq!(series(&page), series(&before.0), "{}", page.lines(&["tcp_connects_total"]));
    agent.expect_no_loss("tcp");
}

/// Connects, accepts and closes for so long, on two threads; how often.
fn storm(listener: &TcpListener, span: Duration) -> usize {
    let address = listener.local_addr().unwrap();
    let end = Instant::now() + span;
    thread::scope(|scope| {
        let accept = scope.spawn(|| {
            let mut accepted = 0;
            loop {
                let (stream, from) = listener.accept().unwrap();
                accepted += 1;
                // The client closes first, and without a state that keeps its port for a minute.
                drop(stream);
                if from.ip() != address.ip() {
                    return accepted - 1;
                }
            }
        });
        let mut opened = 0;
        while Instant::now() < end {
            for _ in 0..64 {
                let stream = TcpStream::connect(address).unwrap();
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                drop(stream);
                opened += 1;
            }
        }
        // One from another address ends it.
        let last = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        last.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
        last.connect(&address.into()).unwrap();
        assert_eq!(accept.join().unwrap(), opened);
        drop(last);
        opened + 1
    })
}

#[test]
fn a_hundred_thousand_open_sockets_are_a_gauge_to_the_socket() {
    let agent = Agent::start();
    let scrape = |what: &str| {
        let (begun, ran) = (Instant::now(), Proc::of(agent.pid()).schedstat().0);
        let page = agent.page();
        let ran = Proc::of(agent.pid()).schedstat().0 - ran;
        println!("{what}: scraped in {:?}, {:.1} ms of it on the main thread", begun.elapsed(), ran * 1e3);
        page
    };
    scrape("at first");
    let mut pairs = Vec::new();
    for n in 1..=HOLDERS {
        let port = free_port().to_string();
        let swallower = Holder::start(&["swallow", "lt-swallower", &port]);
        pairs.push((swallower, Holder::start(&["open", "lt-opener", &port, &HELD.to_string()])));
        let open = (n * HELD) as f64;
        let established = ("state", "established");
        agent.expect_all(&[
            ("tcp_connections", &[("service", "lt-opener"), established], open),
            ("tcp_connections", &[("service", "lt-swallower"), established], open),
        ]);
        scrape(&format!("{} sockets", 2 * n * HELD));
    }
    drop(pairs);
    // Where thousands end at once, some segments are lost, and the last states of those take until they are sent again.
    for service in ["lt-opener", "lt-swallower"] {
        wait_until("nothing is left of any", PATIENCE, || {
            agent.page().sum("tcp_connections", &[("service", service)]) == 0.0
        });
    }
    agent.expect_no_loss("tcp");
}

/// A process that holds connections open.
struct Holder {
    _process: Running,
    _output: BufReader<ChildStdout>,
}

impl Holder {
    /// Returns when it has them, or listens for them.
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_traffic"));
        let mut process =
            Running::spawn(command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()));
        let mut output = BufReader::new(process.0.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self { _process: process, _output: output }
    }
}
