//! Where the time went: a server that is made slow in one way has the added time in that phase, and all phases are the duration.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "how near the numbers are is worth seeing")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use live_tests::{Agent, Loop, PATIENCE, Page, Postgres, Redis, Running};

const REQUESTS: u32 = 25;
const MS: u32 = 20;
/// How long they all are made to take.
const ADDED: f64 = REQUESTS as f64 * MS as f64 / 1e3;

#[test]
fn computing_is_time_on_a_cpu() {
    let agent = Agent::start();
    let server = Server::start("any", "");
    server.ask_many("cpu", MS);
    let [queue, run_queue, cpu, other] = agent.phases(REQUESTS);
    assert!((cpu / ADDED - 1.0).abs() < 0.05, "{cpu} s on a CPU, not {ADDED} s");
    assert!(queue + run_queue + other < cpu / 2.0, "{queue} {run_queue} {other}");
}

#[test]
fn contention_is_time_in_the_run_queue() {
    let agent = Agent::start();
    let server = Server::start("0", "");
    let traffic = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_traffic"));
        Running::spawn(command.args(["spin", "lt-spinner"]).stdout(Stdio::null()))
    };
    let _others = [traffic(), traffic()];
    server.ask_many("cpu", MS);
    let [_, run_queue, cpu, other] = agent.phases(REQUESTS);
    assert!((cpu / ADDED - 1.0).abs() < 0.05, "{cpu} s on a CPU, not {ADDED} s");
    // The two others get two thirds of it.
    assert!(run_queue > ADDED && run_queue < 4.0 * ADDED, "{run_queue} s waiting for a CPU");
    assert!(other < run_queue / 2.0, "{other} s elsewhere");
}

#[test]
fn a_downstream_a_lock_and_sleep_are_time_elsewhere() {
    for what in ["downstream", "lock", "sleep"] {
        let agent = Agent::start();
        let server = Server::start("any", "");
        server.ask_many(what, MS);
        let [queue, run_queue, cpu, other] = agent.phases(REQUESTS);
        assert!(other > ADDED * 0.95 && other < ADDED * 1.5, "{what}: {other} s elsewhere, not {ADDED} s");
        assert!(queue + run_queue + cpu < other / 2.0, "{what}: {queue} {run_queue} {cpu}");
    }
}

#[test]
fn a_disk_is_time_elsewhere() {
    let device = Loop::new(None, 16 << 20);
    let agent = Agent::start();
    let server = Server::start("any", &device.path());
    server.ask_many("disk", 1000);
    let [.., other] = agent.phases(REQUESTS);
    let labels = [("service", SERVICE), ("device", device.name.as_str())];
    let waited = agent.page().sum("sched_off_cpu_seconds_total", &[("service", SERVICE), ("kind", "io")]);
    let disk = agent.page().sum("block_io_duration_seconds_sum", &labels);
    println!("{other:.4} s elsewhere, {waited:.4} s off the CPU for I/O, {disk:.4} s in the device");
    assert!(
        other > 0.8 * waited && other < 1.5 * waited + 0.05,
        "{other} s elsewhere, {waited} s waiting for the disk"
    );
    assert!(waited > 0.3 * disk, "{waited} s waiting for {disk} s of the disk");
}

#[test]
fn a_request_that_nobody_reads_yet_is_time_in_the_socket() {
    let agent = Agent::start();
    let server = Server::start("any", "");
    // The server has one connection at a time: the second's request waits until the first is done.
    let mut first = server.connect();
    first.write_all(b"GET /sleep/500 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let asked = Instant::now();
    thread::sleep(Duration::from_millis(100));
    let mut second = server.connect();
    let left = 0.5 - asked.elapsed().as_secs_f64();
    second.write_all(b"GET /sleep/0 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    answer(&mut first);
    drop(first);
    answer(&mut second);
    let [queue, _, _, other] = agent.phases(2);
    assert!((queue - left).abs() < 0.05, "{queue} s in the socket, not {left} s");
    assert!((other - 0.5).abs() < 0.05, "{other} s elsewhere, not 0.5 s");
}

#[test]
fn databases_have_phases_as_well() {
    let postgres = Postgres::start("");
    let agent = Agent::start();
    postgres.psql(&["select pg_sleep(0.5)"]);
    let redis = Redis::start();
    redis.benchmark(&["-t", "set", "-n", "2000", "-c", "5"]);
    let page = agent.page();
    for (protocol, system) in [("postgresql", "postgresql"), ("redis", "redis")] {
        let phases = all_phases(&page, &[("protocol", protocol)]);
        let took = page.sum("db_server_query_duration_seconds_sum", &[("db_system", system)]);
        println!("{protocol}: {phases:?} of {took} s");
        assert!(took > 0.0);
        assert!(
            (phases.iter().sum::<f64>() / took - 1.0).abs() < 0.001,
            "{protocol}: {phases:?} of {took} s"
        );
    }
    let slept = page.sum("request_phase_seconds_total", &[("protocol", "postgresql"), ("phase", "other")]);
    assert!((slept - 0.5).abs() < 0.05, "{slept} s elsewhere, not 0.5 s");
}

const SERVICE: &str = "lt-server";

fn all_phases(page: &Page, labels: &[(&str, &str)]) -> [f64; 4] {
    ["socket_queue", "run_queue", "cpu", "other"]
        .map(|phase| page.sum("request_phase_seconds_total", &[labels, &[("phase", phase)]].concat()))
}

trait Phases {
    fn phases(&self, requests: u32) -> [f64; 4];
}

impl Phases for Agent {
    /// Once so many requests are counted, whose duration they have to add up to.
    fn phases(&self, requests: u32) -> [f64; 4] {
        let labels = [("service", SERVICE)];
        let page = self.expect("http_request_duration_seconds_count", &labels, requests.into());
        let phases = all_phases(&page, &labels);
        let (sum, took) =
            (phases.iter().sum::<f64>(), page.sum("http_request_duration_seconds_sum", &labels));
        println!("{phases:?} of {took} s");
        assert!((sum / took - 1.0).abs() < 0.001, "{phases:?} are {sum} s, not {took} s");
        phases
    }
}

struct Server {
    port: u16,
    _process: Running,
}

impl Server {
    fn start(cpus: &str, disk: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_traffic"));
        let mut process = Running::spawn(command.args(["serve", SERVICE, cpus, disk]).stdout(Stdio::piped()));
        let mut line = String::new();
        BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { port: line.trim().parse().unwrap(), _process: process }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn ask_many(&self, what: &str, amount: u32) {
        let mut stream = self.connect();
        for _ in 0..REQUESTS {
            // In one piece: from a request's first byte on, waiting for the rest of it is its time as well.
            stream.write_all(format!("GET /{what}/{amount} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).unwrap();
            answer(&mut stream);
        }
    }
}

/// Reads the server's one answer.
fn answer(stream: &mut TcpStream) {
    let mut have = Vec::new();
    while !have.ends_with(b"\r\n\r\n") {
        let mut byte = [0; 64];
        let read = stream.read(&mut byte).unwrap();
        assert_ne!(read, 0, "the server hung up");
        have.extend(&byte[..read]);
    }
}
