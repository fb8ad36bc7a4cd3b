//! TCP: connections as the kernel's own counters and the test's own sockets have them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which a float holds exactly")]

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use live_tests::{Agent, Labels, comm, free_port, listener, run, wait_until};
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

/// Does something in a network namespace; in a thread of its own, because it is threads that are in one.
fn inside<T: Send>(space: &str, work: impl FnOnce() -> T + Send) -> T {
    let enter = || {
        let space = File::open(format!("/run/netns/{space}")).unwrap();
        // SAFETY: a live descriptor of a network namespace.
        let entered = unsafe { libc::setns(space.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(entered, 0, "{}", std::io::Error::last_os_error());
    };
    thread::scope(|scope| {
        scope
            .spawn(|| {
                enter();
                work()
            })
            .join()
            .unwrap()
    })
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
    let snmp = fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|name| name == "RetransSegs").unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}
