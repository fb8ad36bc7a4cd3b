//! PostgreSQL, message by message: a client of the test's own talks to a real server and cuts what it says wherever it can be
//! cut, or says what makes no sense.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which a float holds exactly")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use live_tests::{Agent, PATIENCE, Postgres, comm};

const CLIENT: &str = "db_query_duration_seconds_count";
const SERVER: &str = "db_server_query_duration_seconds_count";

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

fn query(text: &str) -> Vec<u8> {
    message(b'Q', format!("{text}\0").as_bytes())
}

/// Parse, bind, execute and sync of one statement.
fn extended(name: &str, text: &str) -> Vec<u8> {
    let bind = format!("\0{name}\0\0\0\0\0\0\0");
    [
        message(b'P', format!("{name}\0{text}\0\0\0").as_bytes()),
        message(b'B', bind.as_bytes()),
        message(b'D', b"P\0"),
        message(b'E', b"\0\0\0\0\0"),
        message(b'S', b""),
    ]
    .concat()
}

/// A session that was let in.
struct Session(TcpStream);

impl Session {
    /// The startup packet goes out in two calls if it is to be cut.
    fn open(postgres: &Postgres, cut: usize) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", postgres.port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut session = Self(stream);
        let body = b"user\0postgres\0database\0postgres\0\0";
        let packet = [&(body.len() as u32 + 8).to_be_bytes()[..], &196_608_u32.to_be_bytes(), body].concat();
        session.say(&packet, cut);
        session.ready();
        session
    }

    /// In two calls, cut there.
    fn say(&mut self, bytes: &[u8], cut: usize) {
        let (one, other) = bytes.split_at(cut.min(bytes.len()));
        for part in [one, other] {
            // Nothing is sent for an empty part, and no call is made.
            self.0.write_all(part).unwrap();
        }
    }

    /// Reads, a message at a time with two calls each, until the server is ready.
    fn ready(&mut self) {
        loop {
            let mut head = [0; 5];
            self.0.read_exact(&mut head).unwrap();
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4;
            self.0.read_exact(&mut vec![0; length]).unwrap();
            if head[0] == b'Z' {
                return;
            }
        }
    }

    fn ask(&mut self, bytes: &[u8], cut: usize) {
        self.say(bytes, cut);
        self.ready();
    }
}

/// Counted by both ends.
fn expect(agent: &Agent, postgres: &Postgres, table: &str, status: &str, count: usize) {
    let (service, destination) = (comm(), postgres.address());
    let count = count as f64;
    agent.expect_all(&[
        (
            CLIENT,
            &[("service", &service), ("destination", &destination), ("table", table), ("status", status)],
            count,
        ),
        (SERVER, &[("service", "postgres"), ("table", table), ("status", status)], count),
    ]);
}

#[test]
fn a_message_cut_at_any_byte_is_counted_once() {
    let postgres = Postgres::start("ssl = off");
    let agent = Agent::start();
    let simple = query("select 'it''s a secret', 1 from pg_class where relname in ('a', 'b')");
    let prepared = extended("", "select $$a secret$$ from pg_type where oid in (1, 2)");
    let named = extended("a name", "select 'x' from pg_proc limit 1");
    let mut session = Session::open(&postgres, 0);
    for bytes in [&simple, &prepared] {
        for cut in 1..bytes.len() {
            session.ask(bytes, cut);
        }
    }
    for cut in 1..named.len() {
        // A name can be given once.
        session.ask(&[message(b'C', b"Sa name\0"), message(b'S', b"")].concat(), 0);
        session.ask(&named, cut);
    }
    for cut in 1..20 {
        let mut session = Session::open(&postgres, cut);
        session.ask(&query("select from pg_am"), 3);
    }
    expect(&agent, &postgres, "pg_class", "ok", simple.len() - 1);
    expect(&agent, &postgres, "pg_type", "ok", prepared.len() - 1);
    expect(&agent, &postgres, "pg_proc", "ok", named.len() - 1);
    expect(&agent, &postgres, "pg_am", "ok", 19);
    let page = agent.page();
    assert!(!page.text.contains("secret"), "a literal is on the page");
    assert!(!page.losses().iter().any(|loss| loss.starts_with("postgres/")), "{:?}", page.losses());
    agent.expect_no_loss("postgres");
}

#[test]
fn messages_that_make_no_sense_hurt_nobody_and_the_next_session_is_counted_right() {
    let postgres = Postgres::start("ssl = off");
    let agent = Agent::start();
    for length in [0_u32, 3, 0x7fff_ffff, 0x8000_0001, u32::MAX] {
        for kind in *b"QPBES" {
            let mut session = Session::open(&postgres, 0);
            session.ask(&query("select 1 from pg_class limit 1"), 0);
            session.say(&[&[kind][..], &length.to_be_bytes(), b"some bytes"].concat(), 0);
            // The server waits for what does not come, or has ended the session already, and then
            // there is nothing to shut down.
            _ = session.0.shutdown(std::net::Shutdown::Write);
            _ = session.0.read_to_end(&mut Vec::new());
        }
    }
    let mut session = Session::open(&postgres, 0);
    session.ask(&query("select 1 from pg_type limit 1"), 0);
    expect(&agent, &postgres, "pg_class", "ok", 25);
    expect(&agent, &postgres, "pg_type", "ok", 1);
    agent.expect_no_loss("postgres");
}

#[test]
fn ten_thousand_prepared_statements_keep_their_names() {
    const STATEMENTS: usize = 10_000;
    let postgres = Postgres::start("ssl = off");
    let agent = Agent::start();
    let mut session = Session::open(&postgres, 0);
    let table = |n: usize| ["pg_class", "pg_type", "pg_proc", "pg_am"][n % 4];
    for first in (0..STATEMENTS).step_by(100) {
        let parse =
            |n: usize| message(b'P', format!("s{n}\0select {n} from {} limit 1\0\0\0", table(n)).as_bytes());
        let all: Vec<Vec<u8>> = (first..first + 100).map(parse).chain([message(b'S', b"")]).collect();
        session.ask(&all.concat(), 0);
    }
    for n in 0..STATEMENTS {
        let bind = message(b'B', format!("\0s{n}\0\0\0\0\0\0\0").as_bytes());
        session.ask(&[bind, message(b'E', b"\0\0\0\0\0"), message(b'S', b"")].concat(), 0);
    }
    for n in 0..4 {
        expect(&agent, &postgres, table(n), "ok", STATEMENTS / 4);
    }
    agent.expect_no_loss("postgres");
}
