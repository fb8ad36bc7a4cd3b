//! DNS, in numbers: what real resolvers ask and a real server logs, the agent counts, to the lookup.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which a float holds exactly")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use live_tests::dns::{Dnsmasq, Namespace, answer, framed, query};
use live_tests::{Agent, PATIENCE, comm, run, wait_until};

const A: u16 = 1;
const AAAA: u16 = 28;
/// An address of loopback that nobody else has, so that its port 53 is free.
const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 53, 77), 53);

/// Resolves each of its arguments, as C programs do.
const RESOLVER: &str = r#"
#include <netdb.h>
#include <stdio.h>
int main(int count, char **names) {
    for (int i = 1; i < count; i++) {
        struct addrinfo *found, hints = {.ai_socktype = SOCK_STREAM};
        int error = getaddrinfo(names[i], "80", &hints, &found);
        if (error) { fprintf(stderr, "%s: %s\n", names[i], gai_strerror(error)); return 1; }
        freeaddrinfo(found);
    }
    return 0;
}
"#;

#[test]
fn what_real_resolvers_ask_is_what_the_server_logs() {
    let namespace = Namespace::new("nameserver 127.0.0.1\n");
    let dnsmasq = Dnsmasq::inside(&namespace);
    let dir = tempfile::tempdir().unwrap();
    let musl: PathBuf = dir.path().join("lt-musl");
    fs::write(dir.path().join("resolver.c"), RESOLVER).unwrap();
    run(Command::new("musl-gcc").arg("-o").arg(&musl).arg(dir.path().join("resolver.c")));

    let agent = Agent::start();
    let names: Vec<String> = (0..20).map(|n| format!("name-{n}.example.test")).collect();
    // glibc: both types in one sendmmsg on a connected socket.
    run(namespace.command("getent").arg("ahosts").args(&names));
    // musl: one sendto each on a socket that is not connected.
    run(namespace.command(musl.to_str().unwrap()).args(&names));
    // dig: sendmsg and recvmsg, and TCP.
    for (qtype, name) in [("A", "a.example.test"), ("AAAA", "a.example.test"), ("MX", "none.test")] {
        run(namespace.command("dig").args(["+tries=1", qtype, name]));
        run(namespace.command("dig").args(["+tries=1", "+tcp", qtype, name]));
    }
    for qtype in ["TXT", "SRV", "NS", "SOA", "CNAME", "PTR", "HTTPS", "ANY", "CAA"] {
        run(namespace.command("dig").args(["+tries=1", "+notcp", "-t", qtype, "none.test"]));
    }
    // An iterating resolver's command-line: several lookups on one socket each.
    run(namespace.command("busybox").args(["nslookup", "b.example.test"]));

    let mut expected = Vec::new();
    for (qtype, logged) in [
        ("A", &["A"][..]),
        ("AAAA", &["AAAA"]),
        ("MX", &["MX"]),
        ("TXT", &["TXT"]),
        ("SRV", &["SRV"]),
        ("NS", &["NS"]),
        ("SOA", &["SOA"]),
        ("CNAME", &["CNAME"]),
        ("PTR", &["PTR"]),
        ("ANY", &["ANY"]),
        // By number where dnsmasq is too old to know the name.
        ("HTTPS", &["HTTPS", "type=65"]),
        ("other", &["CAA", "type=257"]),
    ] {
        let count: usize = logged.iter().map(|logged| dnsmasq.logged(logged)).sum();
        assert!(count > 0, "dnsmasq has logged no {logged:?}");
        expected.push(("dns_server_queries_total", [("service", "dnsmasq"), ("qtype", qtype)], count as f64));
    }
    for (qtype, count) in [("A", 20.0), ("AAAA", 20.0)] {
        expected.push(("dns_lookups_total", [("service", "getent"), ("qtype", qtype)], count));
        expected.push(("dns_lookups_total", [("service", "lt-musl"), ("qtype", qtype)], count));
        expected.push(("dns_lookups_total", [("service", "dig"), ("qtype", qtype)], 2.0));
        expected.push(("dns_lookups_total", [("service", "busybox"), ("qtype", qtype)], 1.0));
    }
    expected.push(("dns_lookups_total", [("service", "dig"), ("rcode", "NXDOMAIN")], 11.0));
    let expected: Vec<_> =
        expected.iter().map(|(metric, labels, count)| (*metric, &labels[..], *count)).collect();
    let page = agent.expect_all(&expected);
    for metric in
        ["dns_lookups_total", "dns_lookup_duration_seconds_count", "dns_server_query_duration_seconds_count"]
    {
        assert_eq!(page.sum(metric, &[]), page.sum("dns_server_queries_total", &[]), "{metric}");
    }
    for metric in ["dns_lookup_timeouts_total", "dns_lookup_retransmits_total", "dns_server_unanswered_total"]
    {
        assert_eq!(page.sum(metric, &[]), 0.0, "{}", page.lines(&[metric]));
    }
    assert!(!page.text.contains("domain="), "names are only for those who ask for them");
    assert_eq!(page.losses_of("dns"), [""; 0]);
    agent.expect_no_loss("dns");
}

#[test]
fn a_load_generators_lookups_are_counted_to_the_lookup() {
    const ROUNDS: u64 = 50;
    let dir = tempfile::tempdir().unwrap();
    let names = dir.path().join("names");
    let lines: Vec<String> =
        (0..1000).map(|n| format!("name-{n}.example.test A\nname-{n}.test AAAA\n")).collect();
    fs::write(&names, lines.concat()).unwrap();
    let dnsmasq = Dnsmasq::start();
    let agent = Agent::start();
    let before = dnsmasq.answered();
    // It sends and receives by different threads: answers can be read before the call that asked returns.
    let report = run(Command::new("dnsperf")
        .args([
            "-s",
            "127.0.0.1",
            "-p",
            &dnsmasq.port.to_string(),
            "-c",
            "8",
            "-q",
            "40",
            "-n",
            &ROUNDS.to_string(),
            "-d",
        ])
        .arg(&names));
    let number = |what: &str| -> u64 {
        let rest = report.split(what).nth(1).unwrap_or_else(|| panic!("no {what:?} in {report}"));
        rest.split_whitespace().next().unwrap().parse().unwrap()
    };
    let completed = number("Queries completed:");
    assert_eq!((number("Queries sent:"), completed), (ROUNDS * 2000, ROUNDS * 2000), "{report}");
    assert_eq!(dnsmasq.answered() - before, completed, "by dnsmasq");
    let half = completed as f64 / 2.0;
    let mut expected = Vec::new();
    for (metric, service) in [
        ("dns_lookups_total", "dnsperf"),
        ("dns_lookup_duration_seconds_count", "dnsperf"),
        ("dns_server_queries_total", "dnsmasq"),
        ("dns_server_query_duration_seconds_count", "dnsmasq"),
    ] {
        for (qtype, rcode) in [("A", "NOERROR"), ("AAAA", "NXDOMAIN")] {
            expected.push((metric, [("service", service), ("qtype", qtype), ("rcode", rcode)], half));
        }
    }
    let expected: Vec<_> =
        expected.iter().map(|(metric, labels, count)| (*metric, &labels[..], *count)).collect();
    let page = agent.expect_all(&expected);
    assert_eq!(page.sum("dns_lookups_total", &[("service", "dnsperf")]), completed as f64);
    assert_eq!(page.losses_of("dns"), [""; 0]);
    agent.expect_no_loss("dns");
}

#[test]
fn a_server_that_never_answers_shows_as_timeouts() {
    let silent = UdpSocket::bind(SERVER).unwrap();
    let agent = Agent::start();
    let client = Client::open(SERVER.into());
    for id in 0..5 {
        // The second of each is the same lookup, sent again.
        client.send(&query(id, b"black.hole", A));
        client.send(&query(id, b"black.hole", A));
    }
    client.send(&query(9, b"black.hole", AAAA));
    let page = agent.page();
    let seen = page.sum("perf_agent_events_total", &[("probe", "dns")]);
    assert_eq!((seen, page.unaccounted("dns")), (6.0, 6.0), "all are in flight");
    let me = comm();
    wait_until("the timeouts are counted", Duration::from_secs(9), || {
        agent.page().sum("dns_lookup_timeouts_total", &[("service", &me)]) == 6.0
    });
    let page = agent.expect_all(&[
        ("dns_lookup_timeouts_total", &[("service", &me), ("qtype", "A")], 5.0),
        ("dns_lookup_timeouts_total", &[("service", &me), ("qtype", "AAAA")], 1.0),
        ("dns_lookup_retransmits_total", &[("service", &me), ("qtype", "A")], 5.0),
        ("dns_lookups_total", &[("service", &me)], 0.0),
        ("dns_server_unanswered_total", &[], 0.0),
    ]);
    assert_eq!(page.losses_of("dns"), [""; 0]);
    assert_eq!(page.unaccounted("dns"), 0.0);
    drop(silent);
}

#[test]
fn alone_on_the_hooks_it_counts_the_same() {
    let udp = UdpSocket::bind(SERVER).unwrap();
    let tcp = TcpListener::bind(SERVER).unwrap();
    let none = "probes: {http: {enabled: false}, postgres: {enabled: false}, redis: {enabled: false}, mysql: {enabled: false}, sockets: {enabled: false}}\n";
    for (config, is_alone) in [(none, true), ("", false)] {
        let agent = Agent::with(config);
        let up = |probe| agent.page().sum("perf_agent_probe_up", &[("probe", probe)]);
        assert_eq!((up("l7") == 0.0, up("dns") == 0.0), (is_alone, false));
        let client = Client::open(SERVER.into());
        for id in 0..10 {
            client.send(&query(id, b"alone.test", A));
            let mut message = [0; 512];
            let (length, from) = udp.recv_from(&mut message).unwrap();
            udp.send_to(&answer(&message[..length], 0), from).unwrap();
            client.socket.recv(&mut message).unwrap();
        }
        let mut stream = TcpStream::connect(SERVER).unwrap();
        let (mut accepted, _) = tcp.accept().unwrap();
        let question = framed(&query(99, b"alone.test", AAAA));
        stream.write_all(&question).unwrap();
        accepted.read_exact(&mut vec![0; question.len()]).unwrap();
        let reply = framed(&answer(&query(99, b"alone.test", AAAA), 0));
        accepted.write_all(&reply).unwrap();
        stream.read_exact(&mut vec![0; reply.len()]).unwrap();
        let me = comm();
        let page = agent.expect_all(&[
            ("dns_lookups_total", &[("service", &me), ("qtype", "A")], 10.0),
            ("dns_lookups_total", &[("service", &me), ("qtype", "AAAA")], 1.0),
            ("dns_server_queries_total", &[("service", &me)], 11.0),
        ]);
        assert_eq!(page.losses_of("dns"), [""; 0]);
        agent.expect_no_loss("dns");
    }
}

#[test]
fn a_query_that_a_resolver_sends_again_is_one_lookup_with_its_first_time() {
    let namespace = Namespace::new("nameserver 127.0.0.1\noptions timeout:1 attempts:3\n");
    let server = namespace.inside(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let agent = Agent::start();
    let resolver = thread::spawn(move || {
        let mut message = [0; 512];
        let mut ask = || {
            let (length, from) = server.recv_from(&mut message).unwrap();
            (message[..length].to_vec(), from)
        };
        // Both types, which nobody answers; then both again.
        let ignored = [ask(), ask()];
        for _ in 0..2 {
            let (message, from) = ask();
            assert!(ignored.iter().any(|(query, _)| query[..2] == message[..2]), "it took another id");
            server.send_to(&answer(&message, 3), from).unwrap();
        }
    });
    // It does not find the name, and says so.
    assert!(!namespace.command("getent").args(["ahosts", "again.test"]).status().unwrap().success());
    resolver.join().unwrap();
    let page = agent.expect_all(&[
        ("dns_lookups_total", &[("service", "getent"), ("rcode", "NXDOMAIN")], 2.0),
        ("dns_lookup_retransmits_total", &[("service", "getent")], 2.0),
        ("dns_lookup_timeouts_total", &[("service", "getent")], 0.0),
        ("dns_server_queries_total", &[], 2.0),
    ]);
    let sum = page.sum("dns_lookup_duration_seconds_sum", &[("service", "getent")]);
    assert!(
        sum > 1.0 && sum < 3.0,
        "{sum} s for two lookups of a second each, or a bit less for the second one"
    );
}

#[test]
fn a_call_for_many_messages_is_as_many_lookups() {
    const MANY: usize = 8;
    let server = UdpSocket::bind(SERVER).unwrap();
    let agent = Agent::start();
    let client = Client::open(SERVER.into());
    server.connect(client.socket.local_addr().unwrap()).unwrap();
    let me = comm();
    for round in 0..50_u16 {
        let queries: Vec<Vec<u8>> =
            (0..MANY as u16).map(|n| query(round * 8 + n, format!("n{n}.many").as_bytes(), A)).collect();
        send_many(&client.socket, &queries);
        // The other way round, so that order tells nothing.
        let answers: Vec<_> =
            receive_many(&server, MANY).iter().rev().map(|query| answer(query, 0)).collect();
        send_many(&server, &answers);
        assert_eq!(receive_many(&client.socket, MANY).len(), MANY);
    }
    let count = 50.0 * MANY as f64;
    let page = agent.expect_all(&[
        ("dns_lookups_total", &[("service", &me), ("rcode", "NOERROR")], count),
        ("dns_server_queries_total", &[("service", &me), ("rcode", "NOERROR")], count),
        ("dns_lookup_retransmits_total", &[], 0.0),
    ]);
    assert_eq!(page.losses_of("dns"), [""; 0]);
    agent.expect_no_loss("dns");
}

#[test]
fn over_tcp_the_count_does_not_depend_on_the_cuts() {
    let listener = TcpListener::bind(SERVER).unwrap();
    let agent = Agent::start();
    let me = comm();
    let mut count = 0.0;
    for piece in [1, 2, 3, 7, 40, 5000] {
        let mut pair = live_tests::Pair::open(&listener);
        // Three at once, the second with a long tail.
        let queries: Vec<Vec<u8>> = (0..3).map(|n| query(n, b"tcp.test", A)).collect();
        let mut answers: Vec<Vec<u8>> = queries.iter().map(|query| answer(query, 0)).collect();
        answers[1][7] = 1;
        answers[1].extend([0xaa; 2000]);
        let join =
            |messages: &[Vec<u8>]| messages.iter().flat_map(|message| framed(message)).collect::<Vec<u8>>();
        let (queries, answers) = (join(&queries), join(&answers));
        pair.reads = piece;
        pair.request(&queries.chunks(piece).collect::<Vec<_>>());
        pair.response(&answers.chunks(piece).collect::<Vec<_>>());
        count += 3.0;
    }
    let page = agent.expect_all(&[
        ("dns_lookups_total", &[("service", &me), ("rcode", "NOERROR")], count),
        ("dns_server_queries_total", &[("service", &me), ("rcode", "NOERROR")], count),
    ]);
    assert_eq!(page.losses_of("dns"), [""; 0]);
    agent.expect_no_loss("dns");
    // What is no DNS on this port is none.
    let mut stream = TcpStream::connect(SERVER).unwrap();
    std::io::Write::write_all(&mut stream, &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(50)).unwrap();
    drop(stream);
    agent.expect("dns_lookups_total", &[("service", &me)], count);
}

#[test]
fn other_datagrams_are_nobodys_lookups() {
    let agent = Agent::start();
    let (one, other) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    one.connect(other.local_addr().unwrap()).unwrap();
    other.connect(one.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 2048];
    for n in 0..2000_u32 {
        let message: Vec<u8> = (0..40 + n % 900).map(|i| (i.wrapping_mul(n + 7) >> 3) as u8).collect();
        one.send(&message).unwrap();
        other.recv(&mut buffer).unwrap();
    }
    // Queries on a port of nobody's that nobody answers.
    for id in 0..50 {
        one.send(&query(id, b"unanswered", A)).unwrap();
        other.recv(&mut buffer).unwrap();
    }
    thread::sleep(Duration::from_secs(8));
    let page = agent.page();
    for metric in [
        "dns_lookups_total",
        "dns_lookup_timeouts_total",
        "dns_server_queries_total",
        "dns_server_unanswered_total",
    ] {
        assert_eq!(page.sum(metric, &[]), 0.0, "{}", page.lines(&[metric]));
    }
    assert_eq!(page.sum("perf_agent_events_total", &[("probe", "dns")]), 0.0);
    assert_eq!(page.losses_of("dns"), [""; 0]);
}

/// A connected socket.
struct Client {
    socket: UdpSocket,
}

impl Client {
    fn open(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 53, 1), 0)).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket }
    }

    fn send(&self, message: &[u8]) {
        assert_eq!(self.socket.send(message).unwrap(), message.len());
    }
}

/// Headers for these buffers.
fn headers(pieces: &mut [libc::iovec]) -> Vec<libc::mmsghdr> {
    let header = |piece| {
        // SAFETY: a struct of integers and pointers, for which zero is a value.
        let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        header.msg_hdr.msg_iov = piece;
        header.msg_hdr.msg_iovlen = 1;
        header
    };
    pieces.iter_mut().map(|piece| header(std::ptr::from_mut(piece))).collect()
}

/// All by one `sendmmsg`.
fn send_many(socket: &UdpSocket, messages: &[Vec<u8>]) {
    let piece = |message: &Vec<u8>| libc::iovec {
        iov_base: message.as_ptr().cast_mut().cast(),
        iov_len: message.len(),
    };
    let mut pieces: Vec<_> = messages.iter().map(piece).collect();
    let mut headers = headers(&mut pieces);
    // SAFETY: as many headers as it says, whose pieces live.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), headers.len() as u32, 0) };
    assert_eq!(sent, messages.len() as i32, "{}", std::io::Error::last_os_error());
}

/// As many by one `recvmmsg`.
fn receive_many(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
    let mut buffers = vec![vec![0_u8; 512]; count];
    let mut pieces: Vec<_> = buffers
        .iter_mut()
        .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() })
        .collect();
    let mut headers = headers(&mut pieces);
    // SAFETY: as many headers as it says, whose pieces live and may be written.
    let got = unsafe {
        libc::recvmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count as u32, 0, std::ptr::null_mut())
    };
    assert_eq!(got, count as i32, "{}", std::io::Error::last_os_error());
    buffers.iter().zip(&headers).map(|(buffer, header)| buffer[..header.msg_len as usize].to_vec()).collect()
}
