//! Pools of connections to databases, as they are at the moment of a scrape.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which a float holds exactly")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use live_tests::{Agent, Labels, PATIENCE, Postgres, Redis, Running, comm, wait_until};

const SIZE: &str = "db_connection_pool_size";
const ACTIVE: &str = "db_connection_pool_active_connections";
const MOST: &str = "db_connection_pool_max_size";

/// A connection to Redis that has been used.
fn used(redis: &Redis) -> TcpStream {
    let mut conn = TcpStream::connect(("127.0.0.1", redis.port)).unwrap();
    conn.set_read_timeout(Some(PATIENCE)).unwrap();
    conn.write_all(b"PING\r\n").unwrap();
    let mut answer = [0; 7];
    conn.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+PONG\r\n");
    conn
}

fn grows_works_and_shrinks(agent: &Agent) {
    let redis = Redis::start();
    let (me, destination) = (comm(), redis.destination());
    let pool: Labels<'_> = &[("service", &me), ("db_system", "redis"), ("destination", &destination)];
    let mut conns: Vec<_> = (0..20).map(|_| used(&redis)).collect();
    agent.expect_all(&[(SIZE, pool, 20.0), (ACTIVE, pool, 0.0), (MOST, pool, 20.0)]);
    for conn in &mut conns[..3] {
        conn.write_all(b"BLPOP nothing 0\r\n").unwrap();
    }
    agent.expect_all(&[(SIZE, pool, 20.0), (ACTIVE, pool, 3.0), (MOST, pool, 20.0)]);
    redis.cli(&["RPUSH", "nothing", "1", "2", "3"]);
    for conn in &mut conns[..3] {
        assert_ne!(conn.read(&mut [0; 64]).unwrap(), 0);
    }
    agent.expect_all(&[(SIZE, pool, 20.0), (ACTIVE, pool, 0.0), (MOST, pool, 20.0)]);
    conns.truncate(5);
    agent.expect_all(&[(SIZE, pool, 5.0), (ACTIVE, pool, 0.0), (MOST, pool, 20.0)]);
    conns.clear();
    agent.expect_all(&[(SIZE, pool, 0.0), (ACTIVE, pool, 0.0), (MOST, pool, 20.0)]);
}

#[test]
fn a_pool_grows_works_and_shrinks() {
    grows_works_and_shrinks(&Agent::start());
}

#[test]
fn before_6_3_too() {
    grows_works_and_shrinks(&Agent::fallback());
}

#[test]
fn sleeping_queries_are_active_and_the_largest_size_is_seen_between_scrapes() {
    let postgres = Postgres::start("");
    let agent = Agent::start();
    let destination = postgres.address();
    let pool: Labels<'_> = &[("service", "psql"), ("db_system", "postgresql"), ("destination", &destination)];
    let sleeping = |seconds: u32| {
        let mut psql = postgres.client("psql");
        psql.args(["-X", "-c", &format!("select pg_sleep({seconds})")]).stdout(Stdio::null());
        Running::spawn(&mut psql)
    };
    let mut brief: Vec<_> = (0..6).map(|_| sleeping(3)).collect();
    // No scrape until they are gone.
    for psql in &mut brief {
        assert!(psql.0.wait().unwrap().success());
    }
    agent.expect_all(&[(SIZE, pool, 0.0), (ACTIVE, pool, 0.0), (MOST, pool, 6.0)]);
    let long: Vec<_> = (0..4).map(|_| sleeping(60)).collect();
    agent.expect_all(&[(SIZE, pool, 4.0), (ACTIVE, pool, 4.0), (MOST, pool, 6.0)]);
    drop(long);
    wait_until("the pool is empty", PATIENCE, || agent.page().sum(SIZE, pool) == 0.0);
}

#[test]
fn what_the_configuration_says_of_a_pool_is_shown() {
    let redis = Redis::start();
    let (me, destination) = (comm(), redis.destination());
    let agent = Agent::with(&format!(
        "probes:\n  connection_pools:\n    max_sizes: [{{service: {me}, destination: \"{destination}\", size: 40}}]\n"
    ));
    let pool: Labels<'_> = &[("service", &me), ("db_system", "redis"), ("destination", &destination)];
    let _conns: Vec<_> = (0..4).map(|_| used(&redis)).collect();
    // Long enough for a look of the agent's own.
    sleep(Duration::from_secs(2));
    agent.expect_all(&[(SIZE, pool, 4.0), (MOST, pool, 40.0)]);
}
