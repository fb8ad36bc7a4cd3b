//! Redis: what the server says that it has done, the agent counts, to the command, at both ends.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which a float holds exactly")]

use std::io::Write as _;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use live_tests::{Agent, Labels, PATIENCE, Redis, Running, wait_until};

const SERVER: &str = "db_server_query_duration_seconds_count";
const CLIENT: &str = "db_query_duration_seconds_count";

fn both_ends(agent: &Agent, redis: &Redis, verb: &str, status: &str, client: &str, count: f64) {
    let destination = redis.destination();
    let server: Labels<'_> =
        &[("db_system", "redis"), ("query_type", verb), ("status", status), ("service", "redis-server")];
    let client: Labels<'_> = &[
        ("db_system", "redis"),
        ("query_type", verb),
        ("status", status),
        ("service", client),
        ("destination", &destination),
    ];
    agent.expect_all(&[(SERVER, server, count), (CLIENT, client, count)]);
}

#[test]
fn the_benchmark_is_counted_to_the_command() {
    const REQUESTS: f64 = 50_000.0;
    let redis = Redis::start();
    let agent = Agent::start();
    for (depth, tests) in [("1", "set,get"), ("16", "incr,lpush,hset"), ("1", "mset")] {
        redis.benchmark(&["-n", "50000", "-c", "16", "-P", depth, "-t", tests]);
    }
    let done = redis.done();
    for verb in ["SET", "GET", "INCR", "LPUSH", "HSET", "MSET"] {
        assert_eq!(done[verb], REQUESTS, "{verb} by the server itself");
        both_ends(&agent, &redis, verb, "ok", "redis-benchmark", REQUESTS);
    }
    let page = agent.page();
    assert_eq!(page.losses_of("redis"), [""; 0], "nothing was lost");
}

#[test]
fn errors_transactions_scripts_and_inline_commands() {
    let redis = Redis::start();
    let agent = Agent::start();
    redis.cli(&["SET", "text", "no number"]);
    for _ in 0..3 {
        redis.cli(&["INCR", "text"]);
    }
    both_ends(&agent, &redis, "INCR", "error", "redis-cli", 3.0);
    let mut session = Running::spawn(
        Command::new("redis-cli")
            .args(["-p", &redis.port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null()),
    );
    let mut typed = session.0.stdin.take().unwrap();
    typed
        .write_all(b"MULTI\nINCR counter\nINCR counter\nEXEC\nEVAL \"return redis.call('GET', KEYS[1])\" 1 counter\n")
        .unwrap();
    drop(typed);
    session.0.wait().unwrap();
    for (verb, count) in [("MULTI", 1.0), ("INCR", 2.0), ("EXEC", 1.0), ("EVAL", 1.0)] {
        both_ends(&agent, &redis, verb, "ok", "redis-cli", count);
    }
    // What a script does is no command of a client; a line typed by hand is one.
    let mut stream = TcpStream::connect(("127.0.0.1", redis.port)).unwrap();
    stream.write_all(b"DEL counter\r\n").unwrap();
    agent.expect(
        SERVER,
        &[("db_system", "redis"), ("query_type", "DEL"), ("status", "ok"), ("service", "redis-server")],
        1.0,
    );
}

#[test]
fn a_command_that_waits_is_marked_and_lasts_as_long_as_it_waited() {
    let redis = Redis::start();
    let agent = Agent::start();
    thread::scope(|scope| {
        let waits = scope.spawn(|| redis.cli(&["BLPOP", "list", "10"]));
        thread::sleep(Duration::from_millis(500));
        redis.cli(&["RPUSH", "list", "value"]);
        assert!(waits.join().unwrap().contains("value"));
    });
    let labels = [("query_type", "BLPOP"), ("blocking", "true"), ("service", "redis-server")];
    let page = agent.expect(SERVER, &labels, 1.0);
    let lasted = page.sum("db_server_query_duration_seconds_sum", &labels);
    assert!((0.3..2.0).contains(&lasted), "{lasted} s");
}

#[test]
fn large_values_and_subscribers_do_not_disturb_the_count() {
    let redis = Redis::start();
    let agent = Agent::start();
    // A subscriber gets messages that answer nothing.
    let mut subscriber = Running::spawn(
        Command::new("redis-cli")
            .args(["-p", &redis.port.to_string(), "SUBSCRIBE", "news"])
            .stdout(Stdio::null()),
    );
    wait_until("it listens", PATIENCE, || redis.cli(&["PUBSUB", "NUMSUB", "news"]).contains('1'));
    for _ in 0..20 {
        redis.cli(&["PUBLISH", "news", "something"]);
    }
    both_ends(&agent, &redis, "PUBLISH", "ok", "redis-cli", 20.0);
    let value = "v".repeat(3 << 20);
    for _ in 0..5 {
        let mut writer = Running::spawn(
            Command::new("redis-cli")
                .args(["-p", &redis.port.to_string(), "-x", "SETEX", "large", "100"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null()),
        );
        writer.0.stdin.take().unwrap().write_all(value.as_bytes()).unwrap();
        writer.0.wait().unwrap();
        assert!(redis.cli(&["GETRANGE", "large", "0", "-1"]).len() >= value.len());
    }
    both_ends(&agent, &redis, "SETEX", "ok", "redis-cli", 5.0);
    both_ends(&agent, &redis, "GETRANGE", "ok", "redis-cli", 5.0);
    subscriber.0.kill().unwrap();
}
