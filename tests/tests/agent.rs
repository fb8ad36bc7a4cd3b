//! The agent itself, under load and under attack: what it leaves behind, what it admits to have lost, what it survives.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which a float holds exactly")]
#![allow(clippy::print_stdout, reason = "how near the numbers are is worth seeing")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use live_tests::dns::{answer, query};
use live_tests::{
    Agent, Nginx, PATIENCE, Pair, Proc, Running, ab, bpf_loaded, curl, endless_wrk, listener, wait_until, wrk,
};

const KINDS: [&str; 3] = ["prog", "map", "link"];
const SERVER: &str = "location / { return 200 'ok'; }";

#[test]
fn killed_twenty_times_under_load_it_leaves_nothing_in_the_kernel() {
    let nginx = Nginx::start(SERVER);
    let _load = endless_wrk(&nginx.url("/"));
    let pinned = pins();
    let mut agent = Agent::start();
    for round in 1..=20 {
        let objects = KINDS.map(|kind| (kind, Proc::of(agent.pid()).bpf_ids(kind)));
        for (kind, ids) in &objects {
            assert!(
                ids.len() >= 5,
                "the agent holds only {} of kind {kind}; does /proc/PID/fdinfo tell?",
                ids.len()
            );
            assert!(ids.is_subset(&bpf_loaded(kind)), "fdinfo and the kernel do not agree on {kind} ids");
        }
        wait_until("it measures", PATIENCE, || {
            agent.page().sum("http_requests_total", &[("service", "nginx")]) > 0.0
        });
        // The next one starts while the kernel still takes the old one's objects away, as after a crash.
        agent = agent.killed_and_again();
        wait_until(
            &format!("all objects of the one killed in round {round} are gone"),
            Duration::from_secs(2),
            || objects.iter().all(|(kind, ids)| ids.is_disjoint(&bpf_loaded(kind))),
        );
        assert_eq!(pins(), pinned, "something is pinned");
    }
}

#[test]
fn told_to_end_under_load_it_ends_in_time_and_leaves_nothing_in_the_kernel() {
    let nginx = Nginx::start(SERVER);
    let _load = endless_wrk(&nginx.url("/"));
    let mut agent = Agent::start();
    let objects = KINDS.map(|kind| (kind, Proc::of(agent.pid()).bpf_ids(kind)));
    // A client in the middle of its request must not hold it up.
    let mut half = TcpStream::connect(agent.address).unwrap();
    half.write_all(b"GET /metrics HTTP/1.1\r\nHo").unwrap();
    let begin = Instant::now();
    agent.signal(libc::SIGTERM);
    let status = agent.wait();
    let took = begin.elapsed();
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    wait_until("all its objects are gone", Duration::from_secs(2), || {
        objects.iter().all(|(kind, ids)| ids.is_disjoint(&bpf_loaded(kind)))
    });
}

#[test]
fn a_second_one_is_refused_and_does_not_disturb_the_first() {
    let agent = Agent::start();
    let refused = agent.second();
    assert_eq!(refused.status.code(), Some(1), "{}", refused.stderr);
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    assert!(refused.stderr.contains(&format!("process {}", agent.pid())), "{}", refused.stderr);
    let nginx = Nginx::start(SERVER);
    curl(&[&nginx.url("/after")]);
    agent.expect("http_requests_total", &[("service", "nginx"), ("route", "/after")], 1.0);
}

#[test]
fn what_was_seen_is_recorded_or_dropped_by_name() {
    let nginx = Nginx::start(SERVER);
    let agent = Agent::start();
    wrk(&nginx.url("/a"), 50_000);
    ab(&nginx.url("/b"), 2_000, false);
    // Ends in the middle of its requests.
    let load = endless_wrk(&nginx.url("/c"));
    wait_until("it is under way", PATIENCE, || {
        agent.page().sum("http_requests_total", &[("route", "/c")]) > 10_000.0
    });
    drop(load);
    let (listener, _) = listener();
    let mut pair = Pair::open(&listener);
    pair.request(&[&b"GET /d HTTP/1.1\r\n\r\n".repeat(20)]);
    drop(pair);
    for probe in ["tcp", "http"] {
        agent.expect_no_loss(probe);
    }
    let page = agent.page();
    let dropped =
        |reason| page.sum("perf_agent_events_dropped_total", &[("probe", "http"), ("reason", reason)]);
    assert_eq!(dropped("pipeline_depth"), 24.0);
    // Of the twenty, eight at each end waited for an answer.
    assert!(dropped("no_response") >= 16.0, "{:?}", page.losses());
    // Switches never rest: a scrape reads counters that move. What leaks would stay, and grow.
    let open: Vec<f64> = (0..20).map(|_| agent.page().unaccounted("sched")).collect();
    assert!(open.contains(&0.0), "{open:?}");
}

#[test]
fn the_page_is_what_prometheus_expects() {
    let nginx = Nginx::start(SERVER);
    let agent = Agent::start();
    curl(&[&nginx.url("/quote\"backslash\\")]);
    agent.expect("http_requests_total", &[("service", "nginx"), ("route", "/quote\"backslash\\")], 1.0);
    let page = agent.page();

    let mut promtool = Running::spawn(
        Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    promtool.0.stdin.take().unwrap().write_all(page.text.as_bytes()).unwrap();
    let (mut said, mut complained) = (String::new(), String::new());
    promtool.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    promtool.0.stderr.take().unwrap().read_to_string(&mut complained).unwrap();
    assert!(promtool.0.wait().unwrap().success(), "{said}{complained}");
    assert_eq!(format!("{said}{complained}"), "", "promtool has something to say");

    let open_metrics = agent.get("/metrics", "Accept: application/openmetrics-text; version=1.0.0\r\n");
    assert!(open_metrics.ends_with("\n# EOF\n"), "{open_metrics}");
    assert!(!page.text.contains("# EOF"));
    // A counter's family has no `_total` in OpenMetrics; its sample has.
    assert!(open_metrics.contains("# TYPE http_requests counter\n"), "{}", page.lines(&["http_requests"]));
}

#[test]
fn every_sample_of_a_workload_names_it() {
    let nginx = Nginx::start(SERVER);
    let agent = Agent::start();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let query = query(1, b"name", 1);
    client.send_to(&query, server.local_addr().unwrap()).unwrap();
    let (_, from) = server.recv_from(&mut [0; 64]).unwrap();
    server.send_to(&answer(&query, 0), from).unwrap();
    client.recv(&mut [0; 64]).unwrap();
    curl(&[&nginx.url("/")]);
    let page = agent.expect("http_requests_total", &[("service", "nginx"), ("route", "/")], 1.0);
    let mut seen = BTreeMap::new();
    for sample in &page.samples {
        let slice = sample.name.split('_').next().unwrap();
        if !["http", "tcp", "sched", "dns", "process", "request", "block", "socket"].contains(&slice) {
            continue;
        }
        // The others of that prefix are about the agent itself, as with every exporter.
        if slice == "process" && !["process_exits_total", "process_oom_kills_total"].contains(&&*sample.name)
        {
            continue;
        }
        // Of the whole node.
        if sample.name == "sched_runnable_tasks" {
            continue;
        }
        *seen.entry(slice).or_insert(0) += 1;
        assert!(sample.labels.get("service").is_some_and(|service| !service.is_empty()), "{sample:?}");
        let more = match sample.name.as_str() {
            name if name.starts_with("http_client") => vec!["destination", "method"],
            name if name.starts_with("http") => vec!["route", "method"],
            name if name.starts_with("tcp_listen") => vec!["port"],
            "tcp_connections" => vec!["destination", "state"],
            name if name.starts_with("tcp") => vec!["destination"],
            "request_phase_seconds_total" => vec!["protocol", "phase"],
            name if name.starts_with("socket_") => vec!["protocol"],
            name if name.starts_with("block_io") => vec!["device", "operation"],
            "sched_off_cpu_seconds_total" | "sched_context_switches_total" => vec!["kind"],
            "dns_lookups_total" | "dns_server_queries_total" => vec!["qtype", "rcode"],
            name if name.starts_with("dns") => vec!["qtype"],
            _ => vec![],
        };
        for label in more {
            assert!(
                sample.labels.get(label).is_some_and(|value| !value.is_empty()),
                "{label} is missing: {sample:?}"
            );
        }
    }
    // Only where something was written to a disk or through such a socket meanwhile.
    seen.remove("block");
    seen.remove("socket");
    assert_eq!(seen.len(), 6, "{seen:?}");
}

#[test]
fn hostile_bytes_harm_nobody() {
    const GROWTH: f64 = 2.0 * 1024.0 * 1024.0;
    let nginx = Nginx::start(SERVER);
    let agent = Agent::start();
    let (listener, _) = listener();
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    // One round before measuring, so that what the agent allocates once is there.
    attack(&mut noise, &nginx, &listener, 200);
    agent.page();
    let before = Proc::of(agent.pid()).resident();
    attack(&mut noise, &nginx, &listener, 3000);
    curl(&[&nginx.url("/good")]);
    agent.expect("http_requests_total", &[("service", "nginx"), ("route", "/good")], 1.0);
    let mut pair = Pair::open(&listener);
    pair.exchange(b"GET /good-too HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let page = agent.expect("http_requests_total", &[("route", "/good-too"), ("status", "200")], 1.0);
    for sample in page.samples.iter().filter(|sample| sample.name.starts_with("http_")) {
        let method = &sample.labels["method"];
        assert!(
            ["GET", "POST", "HEAD", "PUT", "_OTHER", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"]
                .contains(&method.as_str()),
            "{sample:?}"
        );
    }
    agent.expect_no_loss("http");
    let grown = Proc::of(agent.pid()).resident() - before;
    println!("the agent grew by {:.0} KiB", grown / 1024.0);
    assert!(grown < GROWTH, "the agent grew by {grown} bytes");
}

/// Bytes that are no HTTP, or nearly HTTP, each on a connection of its own; half of them to nginx, half to a server that
/// answers in kind.
fn attack(noise: &mut Noise, nginx: &Nginx, listener: &std::net::TcpListener, connections: u32) {
    for n in 0..connections {
        let (request, answer) = (noise.message(), noise.message());
        if n % 2 == 0 {
            let mut stream = TcpStream::connect(("127.0.0.1", nginx.port)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            // nginx may hang up at any byte of it.
            if stream.write_all(&request).and_then(|()| stream.shutdown(Shutdown::Write)).is_ok() {
                _ = stream.read_to_end(&mut Vec::new());
            }
        } else {
            let mut pair = Pair::open(listener);
            let pieces: Vec<&[u8]> = request.chunks(1 + noise.below(200)).collect();
            pair.request(&pieces);
            let pieces: Vec<&[u8]> = answer.chunks(1 + noise.below(200)).collect();
            pair.response(&pieces);
        }
    }
}

/// The same disorder in each run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() % most as u64) as usize
    }

    fn message(&mut self) -> Vec<u8> {
        const NEARLY: [&[u8]; 12] = [
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST /p HTTP/1.1\r\nContent-Length: 18446744073709551616\r\n\r\nx",
            b"POST /p HTTP/1.1\r\nContent-Length: -1\r\n\r\nx",
            b"POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\nx",
            b"POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 99999 Odd\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 200\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            b"GET http://[::1:80/ HTTP/9.9\r\n\r\n",
            b"\r\n\r\n\r\nGET\t/\tHTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"GET /\x00\xff\x80 HTTP/1.1\r\n: \r\n\r\n",
        ];
        let mut message: Vec<u8> = match self.below(4) {
            0 => (0..=self.below(2000)).map(|_| self.next() as u8).collect(),
            _ => (0..=self.below(4)).flat_map(|_| NEARLY[self.below(NEARLY.len())]).copied().collect(),
        };
        for _ in 0..self.below(4) {
            let at = self.below(message.len());
            message[at] = self.next() as u8;
        }
        message.truncate(1 + self.below(message.len() * 2).min(message.len() - 1));
        message
    }
}

/// What is pinned in the BPF file system.
fn pins() -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir("/sys/fs/bpf") else { return Vec::new() };
    let mut pins: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    pins.sort();
    pins
}

#[test]
fn it_is_idle_when_the_host_is() {
    let agent = Agent::start();
    agent.page();
    let ticks = || Proc::of(agent.pid()).schedstat().0;
    let before = ticks();
    sleep(Duration::from_secs(2));
    let used = ticks() - before;
    assert!(used < 0.02, "{used} s of CPU in two seconds without a scrape");
}
