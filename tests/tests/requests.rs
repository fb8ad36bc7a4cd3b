//! Requests that failed or were slow, one by one: of real programs, with all that is told of them, and never too many.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which a float holds exactly")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use live_tests::dns::{answer, query};
use live_tests::{
    Agent, Nginx, PATIENCE, Postgres, Running, agent_binary, comm, free_port, listener, run, wait_until,
};
use serde_json::Value;

/// What no answer may hold: it stands in queries, statements and values here.
const SECRET: &str = "hunter2";
const FAILED: &[u8] = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\nno";

/// The requests that the agent shows for this query, once there are so many.
fn requests(agent: &Agent, query: &str, count: usize) -> Vec<Value> {
    let path = format!("/requests?{query}");
    let mut requests = Vec::new();
    let end = Instant::now() + Duration::from_secs(15);
    while requests.len() < count {
        assert!(Instant::now() < end, "{path} has not {count} requests but\n{requests:#?}");
        thread::sleep(Duration::from_millis(20));
        let text = agent.get(&path, "");
        assert!(!text.contains(SECRET), "{text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        answer["requests"].as_array().unwrap().clone_into(&mut requests);
    }
    assert_eq!(requests.len(), count, "{requests:#?}");
    requests
}

/// That a request has just these fields, besides its number, time and duration.
fn assert_fields(request: &Value, expected: &[(&str, &str)]) {
    let mut fields: Vec<(String, String)> = request
        .as_object()
        .unwrap()
        .iter()
        .filter(|(name, _)| !["sequence", "time", "duration_seconds"].contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        .collect();
    let mut expected: Vec<(String, String)> =
        expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    fields.sort();
    expected.sort();
    assert_eq!(fields, expected);
}

fn lasted(request: &Value) -> f64 {
    request["duration_seconds"].as_f64().unwrap()
}

/// Sends one request and reads its answer to the end of the connection; this end's address.
fn ask(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    stream.read_to_end(&mut Vec::new()).unwrap();
    stream.local_addr().unwrap().to_string()
}

/// Answers each request after a while, a connection after the other.
fn answer_slowly(listener: &TcpListener, after: Duration) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            if reader.read_line(&mut line).unwrap() == 0 {
                return;
            }
        }
        thread::sleep(after);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").unwrap();
    }
}

#[test]
fn http_requests_show_with_route_status_duration_and_both_ends() {
    const SLOW: Duration = Duration::from_millis(400);
    const SERVICE: &str = "lt-shop";
    let (upstream, upstream_address) = listener();
    thread::spawn(move || answer_slowly(&upstream, SLOW));
    let nginx = Nginx::named(
        SERVICE,
        &format!(
            "location /fail/ {{ return 503; }} location /fine {{ return 200; }}\n\
             location /slow/ {{ proxy_pass http://{upstream_address}; proxy_http_version 1.1; }}"
        ),
    );
    let agent = Agent::with("requests: {slower_than: 200ms}\n");
    let before = std::time::SystemTime::now();
    ask(nginx.port, "/fine");
    let failed_from = ask(nginx.port, &format!("/fail/17?token={SECRET}"));
    let slow_from = ask(nginx.port, &format!("/slow/0b5c8e5e-1f5b-4a53-9d1f-5d1f7e0c7c11?token={SECRET}"));

    let service = format!("service={SERVICE}");
    let seen = requests(&agent, &service, 3);
    let of = |side: &str, route: Option<&str>| {
        let found = seen.iter().find(|request| request["side"] == side && request["route"].as_str() == route);
        found.unwrap_or_else(|| panic!("no {side} {route:?} in {seen:#?}"))
    };
    let both = [("service", SERVICE), ("protocol", "http"), ("method", "GET"), ("count", "1")];
    let failed = of("server", Some("/fail/{id}"));
    assert_fields(
        failed,
        &[
            &both[..],
            &[("side", "server"), ("route", "/fail/{id}"), ("status", "503"), ("failed", "true")],
            &[("peer", &failed_from)],
        ]
        .concat(),
    );
    let slow = of("server", Some("/slow/{id}"));
    assert_fields(
        slow,
        &[
            &both[..],
            &[("side", "server"), ("route", "/slow/{id}"), ("status", "200"), ("failed", "false")],
            &[("peer", &slow_from)],
        ]
        .concat(),
    );
    // What nginx itself waited for.
    let asked = of("client", None);
    assert_fields(
        asked,
        &[
            &both[..],
            &[("side", "client"), ("status", "200"), ("failed", "false"), ("peer", &upstream_address)],
        ]
        .concat(),
    );
    assert!(lasted(failed) < 0.2, "{failed}");
    let least = SLOW.as_secs_f64();
    assert!((least..least + 1.0).contains(&lasted(slow)), "{slow}");
    assert!((least..=lasted(slow)).contains(&lasted(asked)), "{asked} within {slow}");

    // The time is UTC; the day is enough to tell that it is no other clock's, the order that it is one.
    let (failed_at, slow_at) = (failed["time"].as_str().unwrap(), slow["time"].as_str().unwrap());
    assert!(failed_at < slow_at, "{failed_at} {slow_at}");
    let seconds = before.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let date = run(Command::new("date").args(["-u", "-d", &format!("@{seconds}"), "+%Y-%m-%dT%H:%M:%S"]));
    let late =
        run(Command::new("date").args(["-u", "-d", &format!("@{}", seconds + 60), "+%Y-%m-%dT%H:%M:%S"]));
    assert!(date.trim() <= failed_at && failed_at < late.trim(), "{date} {failed_at} {late}");

    // Each filter alone, and by number.
    requests(&agent, &format!("{service}&errors=true"), 1);
    requests(&agent, &format!("{service}&slower=300ms"), 2);
    let last = seen.last().unwrap()["sequence"].as_u64().unwrap();
    requests(&agent, &format!("{service}&after={}", last - 1), 1);
    requests(&agent, "service=nobody", 0);
}

#[test]
fn queries_show_by_statement_and_table_and_never_with_a_literal() {
    let postgres = Postgres::start("ssl = off");
    let agent = Agent::with("requests: {slower_than: 200ms}\n");
    let failing = format!("select '{SECRET}'::int from pg_class");
    let failed = postgres.client("psql").args(["-X", "-c", &failing]).output().unwrap();
    assert!(!failed.status.success(), "{failed:?}");
    postgres
        .psql(&[&format!("select pg_sleep(0.4) from pg_am where amname <> '{SECRET}' limit 1"), "select 1"]);
    let address = postgres.address();
    for (side, service, peer) in [("client", "psql", Some(&address)), ("server", "postgres", None)] {
        let seen = requests(&agent, &format!("service={service}"), 2);
        // A text that is no number is of class 22; what did not fail has no such field.
        let [failed, slow] = [[("sqlstate_class", "22")].as_slice(), &[]];
        for (request, table, status, failed, class) in
            [(&seen[0], "pg_class", "error", "true", failed), (&seen[1], "pg_am", "ok", "false", slow)]
        {
            let peer = peer.map_or_else(|| request["peer"].as_str().unwrap().to_owned(), Clone::clone);
            // A server's is the port that psql happened to get.
            assert!(peer.starts_with("127.0.0.1:") && (side == "client" || peer != address), "{peer}");
            assert_fields(
                request,
                &[
                    &[
                        ("service", service),
                        ("side", side),
                        ("protocol", "postgresql"),
                        ("query_type", "SELECT"),
                        ("table", table),
                        ("status", status),
                        ("failed", failed),
                        ("peer", &peer),
                        ("count", "1"),
                    ],
                    class,
                ]
                .concat(),
            );
        }
        assert!((0.4..1.5).contains(&lasted(&seen[1])), "{}", seen[1]);
    }
}

#[test]
fn commands_show_where_they_fail_or_are_slow_and_not_where_they_wait() {
    let (port, dir) = (free_port(), tempfile::tempdir().unwrap());
    let mut server = Command::new("redis-server");
    server.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    let _redis = Running::spawn(server.arg("--dir").arg(dir.path()).stdout(Stdio::null()));
    wait_until("Redis takes connections", PATIENCE, || TcpStream::connect(("127.0.0.1", port)).is_ok());
    let cli =
        |arguments: &[&str]| run(Command::new("redis-cli").args(["-p", &port.to_string()]).args(arguments));
    let agent = Agent::with("requests: {slower_than: 100ms, max_per_second: 100}\n");
    cli(&["SET", SECRET, SECRET]);
    cli(&["INCR", SECRET]);
    // Nothing comes: it is there to wait.
    cli(&["BLPOP", "nothing", "0.3"]);
    cli(&["EVAL", "for i = 1, 1e8 do end", "0"]);
    // However they are told apart or together, all of them are there.
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("LPUSH {SECRET} x\r\n").repeat(5).as_bytes()).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap()).lines();
    assert!((0..5).all(|_| answers.next().unwrap().unwrap().starts_with("-WRONGTYPE")));

    let destination = format!("127.0.0.1:{port}");
    let seen = requests(&agent, "service=redis-cli", 2);
    for (request, verb, status, failed) in
        [(&seen[0], "INCR", "error", "true"), (&seen[1], "EVAL", "ok", "false")]
    {
        assert_fields(
            request,
            &[
                ("service", "redis-cli"),
                ("side", "client"),
                ("protocol", "redis"),
                ("query_type", verb),
                ("status", status),
                ("failed", failed),
                ("peer", &destination),
                ("count", "1"),
            ],
        );
    }
    let mut pushed = 0;
    wait_until("the server's failed commands are all there", PATIENCE, || {
        let answer = agent.get("/requests?service=redis-server&errors=true", "");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let of = |request: &&Value| request["query_type"] == "LPUSH";
        let ours = stream.local_addr().unwrap().to_string();
        let pushes: Vec<&Value> = answer["requests"].as_array().unwrap().iter().filter(of).collect();
        assert!(pushes.iter().all(|push| push["peer"] == ours.as_str()), "{pushes:#?}");
        pushed = pushes.iter().map(|push| push["count"].as_u64().unwrap()).sum();
        pushed >= 5
    });
    assert_eq!(pushed, 5);
}

#[test]
fn lookups_show_where_they_fail_and_by_name_only_on_request() {
    const SERVFAIL: u8 = 2;
    const NXDOMAIN: u8 = 3;
    let service = comm();
    for domains in [false, true] {
        let server = UdpSocket::bind((Ipv4Addr::new(127, 0, 53, 78), 53)).unwrap();
        let address = server.local_addr().unwrap();
        let agent = Agent::with(&format!("probes: {{dns: {{domains: {domains}}}}}\n"));
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(address).unwrap();
        let mut buffer = [0; 512];
        let mut exchange = |id: u16, name: &str, rcode: Option<u8>| {
            client.send(&query(id, name.as_bytes(), 1)).unwrap();
            let (len, from) = server.recv_from(&mut buffer).unwrap();
            let Some(rcode) = rcode else { return };
            server.send_to(&answer(&buffer[..len], rcode), from).unwrap();
            client.recv(&mut buffer).unwrap();
        };
        exchange(1, &format!("{SECRET}.test"), Some(NXDOMAIN));
        exchange(2, &format!("{SECRET}.test"), Some(SERVFAIL));
        exchange(3, &format!("{SECRET}.test"), None);
        let (at_client, at_server) = (format!("service={service}"), "errors=true");
        // Both ends of both, and nothing of a name that does not exist.
        let all = requests(&agent, at_server, 4);
        assert_eq!(requests(&agent, &at_client, 4), all);
        let asked: Vec<&Value> = all.iter().filter(|request| request["side"] == "client").collect();
        let other: &[(&str, &str)] = if domains { &[("domain", "other")] } else { &[] };
        for (request, status, peer) in
            [(asked[0], "SERVFAIL", Some(address.to_string())), (asked[1], "timeout", None)]
        {
            // Whose socket it was, nobody asks when it has timed out: it may be closed.
            let peer: Vec<(&str, &str)> = peer.iter().map(|peer| ("peer", peer.as_str())).collect();
            assert_fields(
                request,
                &[
                    &[("service", service.as_str()), ("side", "client"), ("protocol", "dns"), ("qtype", "A")]
                        [..],
                    &[("status", status), ("failed", "true"), ("count", "1")],
                    other,
                    &peer,
                ]
                .concat(),
            );
        }
        assert!(lasted(asked[0]) < 1.0, "{}", asked[0]);
        assert!((5.0..9.0).contains(&lasted(asked[1])), "{}", asked[1]);
    }
}

/// Keeps a connection busy with requests that fail, until the time is over; how many those were.
fn flood(lasts: Duration) -> f64 {
    let (listener, _) = listener();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let end = Instant::now() + lasts;
    let mut buffer = [0; 512];
    let mut count = 0.0;
    while Instant::now() < end {
        client.write_all(b"GET /flood HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
        assert_ne!(server.read(&mut buffer).unwrap(), 0);
        server.write_all(FAILED).unwrap();
        let read = client.read(&mut buffer).unwrap();
        assert!(buffer[..read].ends_with(b"no"));
        count += 1.0;
    }
    count
}

#[test]
fn a_flood_of_errors_is_sampled_at_the_rate_and_what_is_not_is_counted() {
    const LASTS: Duration = Duration::from_secs(3);
    // Less than a whole one between two looks of the agent, and the default.
    for per_second in [2.0, 10.0] {
        let agent = Agent::with(&format!("requests: {{max_per_second: {per_second}}}\n"));
        let count = flood(LASTS);
        assert!(count > 2000.0 * LASTS.as_secs_f64() / 2.0, "{count} requests are no flood");
        // Both ends fail.
        let sampled = "perf_agent_requests_sampled_total";
        let not_sampled = "perf_agent_requests_not_sampled_total";
        let mut page = agent.page();
        wait_until("every failed request is sampled or counted", Duration::from_secs(5), || {
            page = agent.page();
            page.sum(sampled, &[]) + page.sum(not_sampled, &[]) >= 2.0 * count
        });
        assert_eq!(page.sum(sampled, &[]) + page.sum(not_sampled, &[]), 2.0 * count);
        // One second's worth more than the rate, and one for each CPU that takes the last one at the same moment.
        let cpus = thread::available_parallelism().unwrap().get() as f64;
        let (least, most) =
            (per_second * LASTS.as_secs_f64(), per_second * (LASTS.as_secs_f64() + 1.5) + cpus);
        let all = page.sum(sampled, &[]);
        assert!((least..=most).contains(&all), "{all} of {count}, at {per_second} a second");
        assert_eq!(requests(&agent, "errors=true", all as usize).len(), all as usize);
        assert_eq!(page.losses(), [""; 0], "what is not sampled is not lost");
    }
}

/// `perf-agent trace` of this agent.
fn trace(agent: &Agent, arguments: &[&str]) -> Running {
    let mut command = Command::new(agent_binary());
    command.args(["trace", "--address", &agent.address.to_string()]).args(arguments);
    Running::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))
}

fn output(running: &mut Running) -> (String, String) {
    let (mut out, mut err) = (String::new(), String::new());
    running.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    running.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    (out, err)
}

#[test]
fn trace_prints_what_happens_from_now_on_as_it_is_asked_to() {
    const SERVICE: &str = "lt-traced";
    let nginx = Nginx::named(SERVICE, "location /fail/ { return 500; }");
    let agent = Agent::start();
    ask(nginx.port, "/fail/before/it");
    requests(&agent, &format!("service={SERVICE}"), 1);

    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut json = trace(&agent, &["--service", SERVICE, "--errors", "--format", "json", "--count", "3"]);
        let mut table = trace(&agent, &["--service", SERVICE, "--slower", "1us", "--count", "2"]);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                ask(nginx.port, &format!("/fail/17?token={SECRET}"));
                thread::sleep(Duration::from_millis(100));
            }
        });
        let (out, err) = output(&mut json);
        let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), err.as_str()), (3, ""), "{out}");
        for line in lines {
            assert_eq!((&line["service"], &line["route"]), (&SERVICE.into(), &"/fail/{id}".into()), "{line}");
        }
        assert!(json.0.wait().unwrap().success());

        let (out, err) = output(&mut table);
        let [head, lines @ ..] = &out.lines().collect::<Vec<_>>()[..] else {
            panic!("nothing printed: {err}")
        };
        assert!(head.starts_with("TIME") && head.ends_with("REQUEST"), "{head}");
        assert_eq!(lines.len(), 2, "{out}");
        for line in lines {
            for part in [SERVICE, "server", "http", "500", "127.0.0.1:", "GET /fail/{id}"] {
                assert!(line.contains(part), "{part} is missing in {line}");
            }
        }
        assert_eq!(err.lines().count(), 1, "{err}");
        assert!(err.contains("sampled from 1 s on"), "{err}");
        assert!(!out.contains(SECRET), "{out}");
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn where_it_is_switched_off_nothing_is_sampled_and_trace_says_so() {
    let agent = Agent::with("requests: {max_per_second: 0}\n");
    flood(Duration::from_millis(500));
    thread::sleep(Duration::from_millis(600));
    requests(&agent, "", 0);
    assert_eq!(agent.page().select("perf_agent_requests_not_sampled_total", &[]).count(), 0);
    let mut refused = trace(&agent, &[]);
    let (out, err) = output(&mut refused);
    assert_eq!(refused.0.wait().unwrap().code(), Some(1));
    assert!(out.is_empty() && err.contains("requests.max_per_second is 0"), "{err}");
}
