//! DNS under hostile servers and clients, with more names than anybody can keep, and by the clock.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which a float holds exactly")]
#![allow(clippy::print_stdout, reason = "how near the numbers are is worth seeing")]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use live_tests::dns::{Dnsmasq, answer, query};
use live_tests::{Agent, PATIENCE, Proc, comm};
use perf_common::histogram::{BOUNDS_NS, index};

const A: u16 = 1;
const MX: u16 = 15;
/// An address of loopback that nobody else has, so that its port 53 is free.
const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 53, 78), 53);

/// Both ends in one hand.
struct Pair {
    client: UdpSocket,
    server: UdpSocket,
}

impl Pair {
    fn open(address: (Ipv4Addr, u16)) -> Self {
        let server = UdpSocket::bind(address).unwrap();
        let client = UdpSocket::bind((Ipv4Addr::new(127, 0, 53, 2), 0)).unwrap();
        client.connect(address).unwrap();
        server.connect(client.local_addr().unwrap()).unwrap();
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        Self { client, server }
    }

    fn to_server(&self, message: &[u8]) {
        self.client.send(message).unwrap();
        self.server.recv(&mut [0; 4096]).unwrap();
    }

    fn to_client(&self, message: &[u8]) {
        self.server.send(message).unwrap();
        self.client.recv(&mut [0; 4096]).unwrap();
    }

    fn exchange(&self, query: &[u8], rcode: u8) {
        self.to_server(query);
        self.to_client(&answer(query, rcode));
    }
}

/// Messages that are none, or lie.
fn hostile(id: u16) -> Vec<Vec<u8>> {
    let good = query(id, b"www.example.test", A);
    let with = |at: usize, bytes: &[u8]| {
        let mut message = good.clone();
        message[at..at + bytes.len()].copy_from_slice(bytes);
        message
    };
    let mut all = vec![
        // A name that points to itself, to the header, past the end, and two that point to each other.
        with(12, b"\xc0\x0c"),
        with(12, b"\xc0\x00"),
        with(12, b"\xff\xff"),
        [&good[..12], b"\xc0\x0e\xc0\x0c\0\x01\0\x01"].concat(),
        // Labels that are too long, or longer than the message.
        with(12, b"\x40"),
        with(12, b"\x80"),
        with(12, b"\x3f"),
        // 65,535 questions in twelve bytes, and in more.
        [&good[..4], b"\xff\xff\0\0\0\0\0\0"].concat(),
        with(4, b"\xff\xff"),
        with(4, b"\xff\xff\xff\xff\xff\xff\xff\xff"),
        with(4, b"\0\0"),
        // A name of 300 bytes, and one without an end.
        [&good[..12], &b"\x01a".repeat(150)[..], b"\0\0\x01\0\x01"].concat(),
        [&good[..12], &b"\x01a".repeat(1000)[..]].concat(),
        // Updates, notifications, and an operation that nobody knows.
        with(2, b"\x28"),
        with(2, b"\x20"),
        with(2, b"\x78"),
        vec![0; 12],
        vec![0xff; 600],
        vec![0; 4000],
    ];
    all.extend((1..good.len()).map(|cut| good[..cut].to_vec()));
    all
}

#[test]
fn hostile_servers_and_clients_harm_nobody() {
    const GROWTH: f64 = 2.0 * 1024.0 * 1024.0;
    let pair = Pair::open(SERVER);
    let agent = Agent::with("probes: {dns: {domains: true}}\n");
    let me = comm();
    pair.exchange(&query(1, b"first.test", A), 0);
    let mut count = 1.0;
    agent.page();
    let before = Proc::of(agent.pid()).resident();
    for round in 0..20 {
        for (n, message) in hostile(round).iter().enumerate() {
            let good = query(n as u16 + 1000, b"good.test", A);
            // A hostile client before a good one.
            pair.to_server(message);
            pair.exchange(&good, 0);
            // A hostile server answers before the good answer comes.
            pair.to_server(&good);
            let mut lie = message.clone();
            if lie.len() > 2 {
                lie[..2].copy_from_slice(&good[..2]);
                lie[2] |= 0x80;
            }
            // An answer without a question would be one: FORMERR and its like.
            if lie.len() < 12 || lie[4..6] != [0, 0] {
                pair.to_client(&lie);
            }
            pair.to_client(&answer(&good, 0));
            count += 2.0;
        }
    }
    // Bytes of all kinds in a name.
    let strange = [&b"quote\"back\\slash\x00\x01\n\x7f\xff"[..], b".CASE.test"].concat();
    pair.exchange(&query(7, &strange, A), 0);
    let longest = [&[b'x'; 63][..], &[b'"'; 63], &[b'\n'; 63], &[0xff; 61]].join(&b'.');
    pair.exchange(&query(8, &longest, MX), 0);
    count += 1.0;
    let page = agent.expect_all(&[
        ("dns_lookups_total", &[("service", &me), ("qtype", "A"), ("rcode", "NOERROR")], count),
        ("dns_server_queries_total", &[("service", &me), ("qtype", "A"), ("rcode", "NOERROR")], count),
        ("dns_lookups_total", &[("service", &me), ("domain", "good.test")], count - 2.0),
        ("dns_lookups_total", &[("domain", "quote\"back\\\\slash\\000\\001\\010\\127\\255.case.test")], 1.0),
        ("dns_lookups_total", &[("qtype", "MX")], 1.0),
    ]);
    let domains: BTreeSet<&str> =
        page.select("dns_lookups_total", &[]).map(|sample| sample.labels["domain"].as_str()).collect();
    assert_eq!(domains.len(), 4, "{domains:?}");
    let unexpected: Vec<_> =
        page.losses_of("dns").into_iter().filter(|loss| !loss.starts_with("dns/no_request ")).collect();
    assert_eq!(unexpected, [""; 0]);
    let grown = Proc::of(agent.pid()).resident() - before;
    println!("the agent grew by {:.0} KiB", grown / 1024.0);
    assert!(grown < GROWTH, "the agent grew by {grown} bytes");
    // Queries that were none but for a wrong length at the end wait in vain.
    live_tests::wait_until("all is accounted for", Duration::from_secs(9), || {
        agent.page().unaccounted("dns") == 0.0
    });
}

#[test]
fn two_hundred_thousand_names_are_a_hundred_series() {
    const NAMES: u32 = 200_000;
    let pair = Pair::open(SERVER);
    let agent = Agent::with("probes: {dns: {domains: true}}\n");
    let me = comm();
    let begin = Instant::now();
    for n in 0..NAMES {
        // Every second one does not exist.
        let query = query(n as u16, format!("name-{n}.example.test").as_bytes(), A);
        pair.exchange(&query, if n % 2 == 0 { 0 } else { 3 });
    }
    for round in 0..20 {
        for n in 0..20 {
            pair.exchange(&query(round, format!("fixed-{n}.test").as_bytes(), A), 0);
        }
    }
    println!("{} lookups took {:.1} s", NAMES + 400, begin.elapsed().as_secs_f64());
    let (half, noerror) = (f64::from(NAMES) / 2.0, f64::from(NAMES) / 2.0 + 400.0);
    let mine = |metric, rcode, count| (metric, [("service", me.as_str()), ("rcode", rcode)], count);
    let expected = [
        mine("dns_lookups_total", "NOERROR", noerror),
        mine("dns_lookups_total", "NXDOMAIN", half),
        mine("dns_lookup_duration_seconds_count", "NOERROR", noerror),
        mine("dns_server_queries_total", "NOERROR", noerror),
        mine("dns_server_queries_total", "NXDOMAIN", half),
    ];
    let expected: Vec<_> =
        expected.iter().map(|(metric, labels, count)| (*metric, &labels[..], *count)).collect();
    let page = agent.expect_all(&expected);
    let domains: BTreeSet<&str> =
        page.select("dns_lookups_total", &[]).map(|sample| sample.labels["domain"].as_str()).collect();
    assert_eq!(domains.len(), 101, "a hundred and other");
    for n in 0..100 {
        let name = format!("name-{}.example.test", 2 * n);
        assert_eq!(page.sum("dns_lookups_total", &[("domain", &name), ("rcode", "NOERROR")]), 1.0, "{name}");
    }
    assert_eq!(page.sum("dns_lookups_total", &[("domain", "other"), ("rcode", "NXDOMAIN")]), half);
    assert!(page.text.len() < 4 << 20, "{} bytes", page.text.len());
    assert_eq!(page.losses_of("dns"), [""; 0]);
    agent.expect_no_loss("dns");
}

/// Delay in milliseconds and lookups.
const DELAYS: [(u64, usize); 3] = [(1, 1000), (5, 300), (50, 60)];

#[test]
fn durations_are_those_that_client_and_server_measure_themselves() {
    let bounds: Vec<String> = BOUNDS_NS.iter().map(|&ns| (ns as f64 / 1e9).to_string()).collect();
    let config = format!("histogram: {{buckets: [{}]}}\n", bounds.join(", "));
    let me = comm();
    for (delay, lookups) in DELAYS {
        let agent = Agent::with(&config);
        let Pair { client, server } = Pair::open(SERVER);
        let served = thread::spawn(move || {
            let mut message = [0; 512];
            let mut serve = |_| {
                let length = server.recv(&mut message).unwrap();
                let begin = Instant::now();
                sleep(Duration::from_millis(delay));
                let handing_over = begin.elapsed();
                server.send(&answer(&message[..length], 0)).unwrap();
                (handing_over, begin.elapsed())
            };
            (0..lookups).map(&mut serve).unzip::<_, _, Vec<_>, Vec<_>>()
        });
        let asked = ask(&client, lookups);
        // The answer leaves between the two; who sends it can be interrupted once it has woken the client.
        let (mut least, mut most) = served.join().unwrap();
        least.sort();
        most.sort();
        let page = agent.expect("dns_lookups_total", &[("service", &me)], lookups as f64);
        let page = if page.sum("dns_server_queries_total", &[("service", &me)]) == lookups as f64 {
            page
        } else {
            agent.expect("dns_server_queries_total", &[("service", &me)], lookups as f64)
        };
        let labels = [("service", me.as_str())];
        compare(&page, "dns_lookup_duration_seconds", &labels, &asked, &asked, 1);
        compare(&page, "dns_server_query_duration_seconds", &labels, &least, &most, 1);
    }
    // And of a real server, as fast as it can.
    let agent = Agent::with(&config);
    let dnsmasq = Dnsmasq::start();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect((Ipv4Addr::LOCALHOST, dnsmasq.port)).unwrap();
    let asked = ask(&client, 20_000);
    let page = agent.expect("dns_lookups_total", &[("service", &me)], 20_000.0);
    // Where a lookup takes microseconds, the way into the kernel and out of it is a good part of what this program's own clock
    // says, more so where it loses its CPU there. The agent's says less, never more.
    compare(&page, "dns_lookup_duration_seconds", &[("service", &me)], &asked, &asked, 4);
    assert_eq!(page.losses_of("dns"), [""; 0]);
}

/// Asks one question after the other; how long each took, ascending.
fn ask(client: &UdpSocket, lookups: usize) -> Vec<Duration> {
    let mut buffer = [0; 512];
    let mut took: Vec<Duration> = (0..lookups)
        .map(|n| {
            let query = query(n as u16, b"timed.example.test", A);
            let begin = Instant::now();
            client.send(&query).unwrap();
            client.recv(&mut buffer).unwrap();
            begin.elapsed()
        })
        .collect();
    took.sort();
    took
}

/// Within one step of the ladder of what the programs' own clocks say, or between two of those; or up to `below` steps less.
fn compare(
    page: &live_tests::Page,
    histogram: &str,
    labels: &[(&str, &str)],
    least: &[Duration],
    most: &[Duration],
    below: usize,
) {
    for q in [0.5, 0.99] {
        let reported = (page.quantile(histogram, labels, q) * 1e9).round() as u64;
        let at = |truth: &[Duration]| truth[(q * (truth.len() - 1) as f64) as usize].as_nanos() as u64;
        let (least, most) = (at(least), at(most));
        println!("{histogram} q{q}: up to {reported} ns reported, {least} to {most} ns measured");
        assert!(
            index(reported) + below >= index(least) && index(reported) <= index(most) + 1,
            "{histogram} q{q}: in the step up to {reported} ns, by the program's own clock {least} to {most} ns"
        );
    }
}
