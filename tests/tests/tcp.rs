//! TCP: connections as the kernel's own counters and the test's own sockets have them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "how near the numbers are is worth seeing")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which a float holds exactly")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use live_tests::space::{inside, netstat, snmp};
use live_tests::{Agent, Labels, PATIENCE, Pair, comm, free_port, listener, run, wait_until};
use socket2::{Domain, SockRef, Socket, Type};

#[test]
fn connects_and_accepts_are_counted_to_the_connection() {
    const CONNECTIONS: usize = 1000;
    const REFUSALS: usize = 100;
    let agent = Agent::start();
    let (listener, destination) = listener();
    let open = |n: usize| {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        // Either end may be the first to close.
        if n.is_multiple_of(2) { drop((client, server)) } else { drop((server, client)) }
    };
    (0..CONNECTIONS).for_each(open);
    let closed = format!("127.0.0.1:{}", free_port());
    for _ in 0..REFUSALS {
        assert_eq!(TcpStream::connect(&closed).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    let service = comm();
    let client: Labels<'_> = &[("service", &service), ("destination", &destination)];
    let refused: Labels<'_> = &[("service", &service), ("destination", &closed)];
    let page = agent.expect_all(&[
        ("tcp_connects_total", client, CONNECTIONS as f64),
        ("tcp_connects_total", &[client, &[("result", "ok")]].concat(), CONNECTIONS as f64),
        ("tcp_connect_duration_seconds_count", client, CONNECTIONS as f64),
        ("tcp_connection_duration_seconds_count", client, CONNECTIONS as f64),
        ("tcp_connections", client, 0.0),
        ("tcp_connects_total", refused, REFUSALS as f64),
        ("tcp_connects_total", &[refused, &[("result", "refused")]].concat(), REFUSALS as f64),
        ("tcp_connect_duration_seconds_count", refused, 0.0),
        ("tcp_accepts_total", &[("service", &service), ("destination", "loopback")], CONNECTIONS as f64),
        ("tcp_resets_total", &[refused, &[("direction", "received")]].concat(), REFUSALS as f64),
    ]);
    // Connecting through loopback takes microseconds; milliseconds would be another unit.
    let mean = page.sum("tcp_connect_duration_seconds_sum", client) / CONNECTIONS as f64;
    assert!(mean > 1e-6 && mean < 1e-2, "{mean} s for a connect");
    agent.expect_no_loss("tcp");
}

#[test]
fn open_connections_are_a_gauge_that_knows_those_from_before() {
    const HALF: usize = 250;
    let (listener, destination) = listener();
    let open = || {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    };
    let mut before: Vec<_> = (0..HALF).map(|_| open()).collect();
    let agent = Agent::start();
    let mut after: Vec<_> = (0..HALF).map(|_| open()).collect();
    let service = comm();
    let client: Labels<'_> = &[("service", &service), ("destination", &destination)];
    let server: Labels<'_> = &[("service", &service), ("destination", "loopback")];
    let both = |open: usize| {
        agent
            .expect_all(&[("tcp_connections", client, open as f64), ("tcp_connections", server, open as f64)])
    };
    both(2 * HALF);
    // Some of each kind, then all.
    before.truncate(HALF - 50);
    after.truncate(HALF - 30);
    both(2 * HALF - 80);
    // Closed by one end only: there until that one's peer closes as well.
    let lingering: Vec<_> = after
        .drain(..20)
        .map(|(client, server)| {
            drop(client);
            server
        })
        .collect();
    agent.expect_all(&[
        ("tcp_connections", client, (2 * HALF - 100) as f64),
        ("tcp_connections", server, (2 * HALF - 80) as f64),
        ("tcp_connections", &[server, &[("state", "close_wait")]].concat(), 20.0),
        ("tcp_connections", &[server, &[("state", "established")]].concat(), (2 * HALF - 100) as f64),
    ]);
    drop((before, after, lingering));
    let page = both(0);
    assert_eq!(
        page.sum("tcp_connects_total", client),
        HALF as f64,
        "those from before were not opened again"
    );
    assert_eq!(
        page.sum("tcp_connection_duration_seconds_count", client),
        HALF as f64,
        "and their age is not known"
    );
}

#[test]
fn a_connection_lives_as_long_as_it_lived() {
    const LIVES: Duration = Duration::from_millis(300);
    let agent = Agent::start();
    let (listener, destination) = listener();
    let begin = Instant::now();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap();
    thread::sleep(LIVES);
    drop(client);
    drop(server);
    let most = begin.elapsed().as_secs_f64();
    let labels = [("destination", destination.as_str())];
    let page = agent.expect("tcp_connection_duration_seconds_count", &labels, 1.0);
    let lived = page.sum("tcp_connection_duration_seconds_sum", &labels);
    assert!(lived >= LIVES.as_secs_f64() && lived <= most, "{lived} s, between {LIVES:?} and {most} s");
}

#[test]
fn resets_are_counted_by_who_sent_them() {
    const RESETS: usize = 50;
    let agent = Agent::start();
    let (listener, destination) = listener();
    for _ in 0..RESETS {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        // Closing without lingering throws the connection away.
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        assert_eq!(server.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    let service = comm();
    agent.expect_all(&[
        (
            "tcp_resets_total",
            &[("service", &service), ("destination", "loopback"), ("direction", "received")],
            RESETS as f64,
        ),
        ("tcp_connections", &[("service", &service), ("destination", "loopback")], 0.0),
        ("tcp_connections", &[("service", &service), ("destination", &destination)], 0.0),
        (
            "tcp_connection_duration_seconds_count",
            &[("service", &service), ("destination", &destination)],
            RESETS as f64,
        ),
    ]);
}

#[test]
fn retransmits_and_timeouts_are_those_of_the_kernels_own_counter() {
    const ATTEMPTS: u32 = 2;
    let agent = Agent::start();
    let service = comm();
    let spaces = Spaces::new();
    let retransmits = spaces.near(|| {
        let before = kernel_retransmits();
        for _ in 0..ATTEMPTS {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            set_syn_retries(&socket, 1);
            let nobody: SocketAddr = NOBODY.parse().unwrap();
            let error = socket.connect(&nobody.into()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        }
        kernel_retransmits() - before
    });
    assert!(retransmits >= f64::from(ATTEMPTS), "the kernel sent nothing again");
    let labels = [("service", service.as_str()), ("destination", NOBODY)];
    agent.expect_all(&[
        ("tcp_retransmits_total", &labels, retransmits),
        ("tcp_retransmits_total", &[&labels[..], &[("kind", "timeout")]].concat(), retransmits),
        ("tcp_connects_total", &[&labels[..], &[("result", "timed_out")]].concat(), f64::from(ATTEMPTS)),
        ("tcp_connects_total", &labels, f64::from(ATTEMPTS)),
    ]);
}

#[test]
fn retransmits_of_an_open_connection_are_counted() {
    let agent = Agent::start();
    let service = comm();
    let spaces = Spaces::new();
    let listener = spaces.far(|| TcpListener::bind(FAR).unwrap());
    let retransmits = spaces.near(|| {
        let mut client = TcpStream::connect(FAR).unwrap();
        let server = listener.accept().unwrap();
        let before = kernel_retransmits();
        // From here on the other end answers nothing.
        spaces.lose_far_address();
        client.write_all(b"is anybody there?").unwrap();
        wait_until("the kernel sends it again", Duration::from_secs(10), || {
            kernel_retransmits() - before >= 3.0
        });
        // A reset is lost as well, but it stops the timer, so that the counters stand still.
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop((client, server));
        kernel_retransmits() - before
    });
    agent.expect("tcp_retransmits_total", &[("service", &service), ("destination", FAR)], retransmits);
}

#[test]
fn where_one_packet_in_twenty_is_lost_retransmits_and_bytes_are_still_exact() {
    const BYTES: usize = 8 << 20;
    const CONNECTIONS: usize = 4;
    let agent = Agent::start();
    let service = comm();
    let spaces = Spaces::new();
    let listener = spaces.far(|| TcpListener::bind(FAR).unwrap());
    spaces.lose_one_in(20);
    let before = (spaces.near(kernel_retransmits), spaces.far(kernel_retransmits));
    for _ in 0..CONNECTIONS {
        let mut client = spaces.near(|| TcpStream::connect(FAR).unwrap());
        let (mut server, _) = listener.accept().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || client.write_all(&vec![b'x'; BYTES]).unwrap());
            let mut have = Vec::new();
            server.read_to_end(&mut have).unwrap();
            assert_eq!(have.len(), BYTES);
        });
    }
    let to = [("service", service.as_str()), ("destination", FAR)];
    let from = [("service", service.as_str()), ("destination", "private")];
    // The last acknowledgements can be lost as well.
    wait_until("all connections are closed", PATIENCE, || {
        let page = agent.page();
        page.sum("tcp_connections", &to) == 0.0 && page.sum("tcp_connections", &from) == 0.0
    });
    let near = spaces.near(kernel_retransmits) - before.0;
    let far = spaces.far(kernel_retransmits) - before.1;
    let page = agent.expect_all(&[
        ("tcp_retransmits_total", &to, near),
        ("tcp_retransmits_total", &from, far),
        ("tcp_sent_bytes_total", &to, (CONNECTIONS * BYTES) as f64),
        ("tcp_received_bytes_total", &from, (CONNECTIONS * BYTES) as f64),
    ]);
    println!("{near} and {far} segments sent again\n{}", page.lines(&["tcp_retransmits_total", FAR]));
    assert!(near > 100.0, "only {near} of {} MiB were sent again", (CONNECTIONS * BYTES) >> 20);
    let fast = page.sum("tcp_retransmits_total", &[&to[..], &[("kind", "fast")]].concat());
    assert!(fast > near / 2.0, "{fast} of {near} because acknowledgements told of it");
}

#[test]
fn connects_and_accepts_are_those_of_the_kernels_own_counters() {
    const CONNECTIONS: usize = 500;
    const REFUSALS: usize = 20;
    let agent = Agent::start();
    let service = comm();
    let spaces = Spaces::new();
    let active = || snmp("Tcp", "ActiveOpens");
    let passive = || snmp("Tcp", "PassiveOpens");
    let (active_before, passive_before) = (spaces.near(active), spaces.far(passive));
    let listener = spaces.far(|| TcpListener::bind(FAR).unwrap());
    spaces.near(|| {
        for _ in 0..CONNECTIONS {
            let client = TcpStream::connect(FAR).unwrap();
            drop((listener.accept().unwrap(), client));
        }
        for _ in 0..REFUSALS {
            assert_eq!(TcpStream::connect(CLOSED).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
    });
    let (active, passive) = (spaces.near(active) - active_before, spaces.far(passive) - passive_before);
    assert_eq!(
        (active, passive),
        ((CONNECTIONS + REFUSALS) as f64, CONNECTIONS as f64),
        "somebody else connects"
    );
    let to = |destination| [("service", service.as_str()), ("destination", destination)];
    agent.expect_all(&[
        ("tcp_connects_total", &to(FAR), active - REFUSALS as f64),
        ("tcp_connects_total", &[&to(CLOSED)[..], &[("result", "refused")]].concat(), REFUSALS as f64),
        ("tcp_accepts_total", &to("private"), passive),
    ]);
}

#[test]
fn bytes_and_round_trips_are_those_of_ss_while_a_connection_is_open_and_when_it_is_closed() {
    let agent = Agent::start();
    let (listener, destination) = listener();
    let service = comm();
    let client: Labels<'_> = &[("service", &service), ("destination", &destination)];
    let server: Labels<'_> = &[("service", &service), ("destination", "loopback")];
    let page = agent.page();
    // Scrapes are connections of loopback as well, but of other programs.
    let at = page.sum("tcp_received_bytes_total", server);
    let mut pair = Pair::open(&listener);
    pair.request(&[&[b'x'; 1000]]);
    pair.response(&[&vec![b'y'; 70_000]]);
    let ss = Ss::of(&destination);
    let page = agent.expect_all(&[
        ("tcp_sent_bytes_total", client, 1000.0),
        ("tcp_received_bytes_total", client, 70_000.0),
        ("tcp_rtt_seconds_count", client, 1.0),
    ]);
    assert_eq!((ss.sent, ss.received), (1000.0, 70_000.0));
    assert!(page.sum("tcp_received_bytes_total", server) - at >= 1000.0);
    let rtt = page.sum("tcp_rtt_seconds_sum", client);
    println!("{:.1} µs, and {:.1} µs by ss", rtt * 1e6, ss.rtt * 1e6);
    // It prints milliseconds to the third digit.
    assert!((rtt - ss.rtt).abs() <= 1e-6, "{rtt} s, not {} s", ss.rtt);
    // Nothing moved: no more round trips, however often somebody looks.
    let page = agent.page();
    assert_eq!(page.sum("tcp_rtt_seconds_count", client), 1.0);

    pair.request(&[&[b'x'; 24]]);
    let Pair { client: mut near, server: mut far, .. } = pair;
    // What is on its way when an end is closed counts as well, and its end is no byte.
    far.write_all(&[b'z'; 3000]).unwrap();
    drop(far);
    near.read_to_end(&mut Vec::new()).unwrap();
    drop(near);
    agent.expect_all(&[
        ("tcp_sent_bytes_total", client, 1024.0),
        ("tcp_received_bytes_total", client, 73_000.0),
        ("tcp_connections", client, 0.0),
    ]);
    agent.expect_no_loss("tcp");
}

#[test]
fn short_connections_leave_their_bytes() {
    const CONNECTIONS: usize = 1000;
    let agent = Agent::start();
    let (listener, destination) = listener();
    for n in 0..CONNECTIONS {
        let mut pair = Pair::open(&listener);
        pair.request(&[&[b'x'; 100]]);
        pair.response(&[&[b'y'; 1000]]);
        // Either end may be the first to close.
        let Pair { client, server, .. } = pair;
        if n.is_multiple_of(2) { drop((client, server)) } else { drop((server, client)) }
    }
    let service = comm();
    let client: Labels<'_> = &[("service", &service), ("destination", &destination)];
    agent.expect_all(&[
        ("tcp_sent_bytes_total", client, (100 * CONNECTIONS) as f64),
        ("tcp_received_bytes_total", client, (1000 * CONNECTIONS) as f64),
        ("tcp_rtt_seconds_count", client, CONNECTIONS as f64),
    ]);
}

#[test]
fn a_listener_that_nobody_serves_fills_up_and_turns_away_as_the_kernel_counts() {
    let agent = Agent::start();
    let service = comm();
    let spaces = Spaces::new();
    let socket = spaces.far(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&FAR.parse::<SocketAddr>().unwrap().into()).unwrap();
        socket.listen(4).unwrap();
        socket
    });
    let drops = || netstat("TcpExt", "ListenDrops");
    let before = spaces.far(drops);
    let waiting = spaces.near(|| (0..3).map(|_| TcpStream::connect(FAR).unwrap()).collect::<Vec<_>>());
    let listener: Labels<'_> = &[("service", &service), ("port", "8081")];
    agent.expect_all(&[
        ("tcp_listen_backlog", listener, 3.0),
        ("tcp_listen_backlog_max", listener, 4.0),
        ("tcp_listen_drops_total", listener, 0.0),
    ]);
    // The kernel lets in one more than the limit.
    let more = spaces.near(|| {
        let to: SocketAddr = FAR.parse().unwrap();
        (0..6).map(|_| TcpStream::connect_timeout(&to, Duration::from_millis(300))).collect::<Vec<_>>()
    });
    let dropped = spaces.far(drops) - before;
    assert!(dropped > 0.0, "nothing was turned away");
    agent.expect_all(&[("tcp_listen_backlog", listener, 5.0), ("tcp_listen_drops_total", listener, dropped)]);
    drop((waiting, more, socket));
    let page = agent.page();
    assert_eq!(page.select("tcp_listen_backlog", listener).count(), 0, "it listens no more");
}

#[test]
fn a_peer_that_takes_nothing_more_shows_while_it_does() {
    let agent = Agent::start();
    let (listener, destination) = listener();
    let service = comm();
    let labels = [("service", service.as_str()), ("destination", destination.as_str())];
    let Pair { client: mut near, server: far, .. } = Pair::open(&listener);
    near.set_nonblocking(true).unwrap();
    let mut written = 0;
    // Full for a while: both ends' buffers grow at first.
    wait_until("nothing more can be written", PATIENCE, || {
        while let Ok(more) = near.write(&[0; 4096]) {
            written += more;
        }
        agent.page().sum("tcp_zero_window_connections", &labels) == 1.0
    });
    std::io::copy(&mut (&far).take(written as u64), &mut std::io::sink()).unwrap();
    agent.expect("tcp_zero_window_connections", &labels, 0.0);
}

/// What `ss` tells of the client's end of a connection.
struct Ss {
    sent: f64,
    received: f64,
    /// Seconds.
    rtt: f64,
}

impl Ss {
    fn of(destination: &str) -> Self {
        let text = run(Command::new("ss").args(["-tinH", "dst", destination]));
        let field = |name: &str| {
            let value = text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix(':'));
            let value = value.unwrap_or_else(|| panic!("ss tells no {name}: {text}"));
            value.split('/').next().unwrap().parse::<f64>().unwrap()
        };
        Self { sent: field("bytes_sent"), received: field("bytes_received"), rtt: field("rtt") / 1e3 }
    }
}

const CLOSED: &str = "10.99.0.2:8082";
const FAR: &str = "10.99.0.2:8081";
/// An address on the same wire that nobody has.
const NOBODY: &str = "10.99.0.3:8080";

/// Two network namespaces with a wire between them.
struct Spaces {
    near: String,
    far: String,
}

impl Spaces {
    fn new() -> Self {
        let name = |end: &str| format!("live-tests-{end}-{}", std::process::id());
        let spaces = Self { near: name("near"), far: name("far") };
        let Self { near, far } = &spaces;
        let ip = |line: String| _ = run(Command::new("ip").args(line.split(' ')));
        ip(format!("netns add {near}"));
        ip(format!("netns add {far}"));
        ip(format!("-n {near} link add wire type veth peer name wire netns {far}"));
        for (space, address) in [(near, "10.99.0.1"), (far, "10.99.0.2")] {
            ip(format!("-n {space} addr add {address}/24 dev wire"));
            ip(format!("-n {space} link set wire up"));
        }
        // Else the kernel would ask who has it and never send the SYN.
        ip(format!("-n {near} neigh add 10.99.0.3 lladdr 02:00:00:00:00:03 dev wire nud permanent"));
        spaces
    }

    fn near<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(&self.near, work)
    }

    fn far<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(&self.far, work)
    }

    /// From here on, of what comes to the far end: what is lost at the sender's is not sent again but held back.
    fn lose_one_in(&self, packets: u32) {
        let nft = |rule: &str| {
            run(Command::new("ip").args(["netns", "exec", &self.far, "nft"]).args(rule.split(' ')));
        };
        nft("add table ip loss");
        nft("add chain ip loss in { type filter hook input priority 0 ; }");
        nft(&format!("add rule ip loss in numgen random mod {packets} == 0 drop"));
    }

    fn lose_far_address(&self) {
        run(Command::new("ip").args(["-n", &self.far, "addr", "flush", "dev", "wire"]));
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        for space in [&self.near, &self.far] {
            _ = Command::new("ip").args(["netns", "del", space]).status();
        }
    }
}

/// How often a SYN is sent again.
fn set_syn_retries(socket: &Socket, retries: libc::c_int) {
    // SAFETY: a live descriptor, and a pointer to an int with its size.
    let set = unsafe {
        let size = size_of_val(&retries) as libc::socklen_t;
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_SYNCNT,
            (&raw const retries).cast(),
            size,
        )
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// `RetransSegs` of the calling thread's network namespace.
fn kernel_retransmits() -> f64 {
    snmp("Tcp", "RetransSegs")
}
