//! Start and end: the log's one line, the lock, the port, the signals.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::agent::{Agent, PATIENCE, command, output};

#[test]
fn one_line_tells_what_was_started() {
    let agent = Agent::start(&[]);
    for field in [
        "level=info".to_owned(),
        format!("version={}", env!("CARGO_PKG_VERSION")),
        format!("kernel={}", std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim()),
        " attached=".to_owned(),
        " unsupported=".to_owned(),
        " failed=".to_owned(),
        format!("listen={}", agent.address),
        "path=/metrics".to_owned(),
        "startup_ms=".to_owned(),
    ] {
        assert!(agent.ready.contains(&field), "{field} is missing in {}", agent.ready);
    }
}

#[test]
fn the_log_is_json_on_demand() {
    let agent = Agent::start(&["--log.format=json"]);
    let line: serde_json::Value = serde_json::from_str(&agent.ready).unwrap();
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["listen"], agent.address.to_string());
    assert!(line["attached"].is_u64(), "{line}");
}

#[test]
fn both_signals_end_it_cleanly_in_time_even_under_a_client() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut agent = Agent::start(&[]);
        // One that is idle, and one in the middle of its request.
        let idle = agent.connect();
        let mut half = agent.connect();
        half.write_all(b"GET /metrics HTTP/1.1\r\nHo").unwrap();
        assert_eq!(agent.get("/healthz").status, 200);
        let begin = Instant::now();
        agent.signal(signal);
        assert_eq!(agent.wait().code(), Some(0));
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        assert!(agent.line("level=info msg=stopped").contains("stopped"));
        assert!(TcpStream::connect(agent.address).is_err(), "the port is still open");
        drop((idle, half));
    }
}

/// A log that says nothing tells no port either, so this one is given one.
#[test]
fn an_agent_that_logs_nothing_runs_all_the_same() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let run = tempfile::tempdir().unwrap();
    let listen = format!("--web.listen-address={address}");
    let mut child = command(&[&listen, "--log.level=error", "--path.run"]).arg(run.path()).spawn().unwrap();
    let ready = || {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(())
    };
    let end = Instant::now() + PATIENCE;
    while ready().is_none() {
        assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
        assert!(Instant::now() < end, "it is never ready");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Ready, and still there for the next request.
    assert!(ready().is_some());
    assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
    // SAFETY: a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id().cast_signed(), libc::SIGTERM) }, 0);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_agent_is_refused_with_the_first_ones_pid() {
    let mut first = Agent::start(&[]);
    let mut second = command(&["--web.listen-address=127.0.0.1:0", "--path.run"]);
    second.arg(first.run_dir());
    let refused = output(second);
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    let holder = format!("another perf-agent runs on this host as process {}", first.pid());
    assert!(stderr.contains(&holder), "{stderr}");

    // Killed without a chance to clean up: the lock goes with the process.
    first.signal(libc::SIGKILL);
    first.wait();
    let mut third = Agent::start_in(first.run_dir(), &[]);
    let holder = std::fs::read_to_string(first.run_dir().join("perf-agent.lock")).unwrap();
    assert_eq!(holder, format!("{}\n", third.pid()));
    third.signal(libc::SIGTERM);
    assert_eq!(third.wait().code(), Some(0));
}

#[test]
fn a_port_in_use_and_a_missing_run_directory_are_one_line_with_the_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let run = tempfile::tempdir().unwrap();
    let missing = run.path().join("missing");
    for (listen, directory, expected) in [
        (address.as_str(), run.path(), [address.as_str(), "--web.listen-address", "Address already in use"]),
        (
            "127.0.0.1:0",
            missing.as_path(),
            ["perf-agent.lock cannot be locked", "--path.run", "No such file"],
        ),
    ] {
        let mut agent = command(&["--web.listen-address", listen, "--path.run"]);
        agent.arg(directory);
        let refused = output(agent);
        let stderr = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        for part in expected {
            assert!(stderr.contains(part), "{part} is missing in {stderr}");
        }
    }
}

#[test]
fn it_listens_on_every_address_it_is_given() {
    let agent = Agent::start(&["--web.listen-address=:0", "--web.telemetry-path=/m"]);
    let listen = agent.ready.split("listen=").nth(1).unwrap().split(' ').next().unwrap();
    let any = listen.split(',').nth(1).expect("two addresses");
    let port: u16 = any.rsplit(':').next().unwrap().parse().unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET /m HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.contains("perf_agent_build_info"), "{page}");
    assert_eq!(agent.get("/metrics").status, 404);
}
