//! MySQL, packet by packet: a client of the test's own talks to a real server, prepares and executes, cuts what it says wherever
//! it can be cut, or says what makes no sense.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which a float holds exactly")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use live_tests::{Agent, Mysql, PATIENCE, comm};

const CLIENT: &str = "db_query_duration_seconds_count";
const SERVER: &str = "db_server_query_duration_seconds_count";

const QUERY: u8 = 0x03;
const PREPARE: u8 = 0x16;
/// In the status of an answer: another result follows.
const MORE_RESULTS: u8 = 8;
/// The first byte of an OK, a marker and an error.
const OK: u8 = 0;
const EOF: u8 = 0xfe;
const ERROR: u8 = 0xff;

fn packet(number: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32).to_le_bytes();
    [&length[..3], &[number], body].concat()
}

fn command(command: u8, rest: &[u8]) -> Vec<u8> {
    packet(0, &[&[command], rest].concat())
}

fn query(text: &str) -> Vec<u8> {
    command(QUERY, text.as_bytes())
}

/// The execution of a statement with one number for a parameter.
fn execute(statement: u32, parameter: i32) -> Vec<u8> {
    let head = [&statement.to_le_bytes()[..], b"\0\x01\0\0\0\0\x01\x03\0"].concat();
    command(0x17, &[head, parameter.to_le_bytes().to_vec()].concat())
}

/// A session that was let in.
struct Session(TcpStream);

impl Session {
    /// The client's answer to the greeting goes out in two calls if it is to be cut.
    fn open(mysql: &Mysql, cut: usize) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", mysql.port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut session = Self(stream);
        session.read();
        // Protocol 4.1, a database, several statements in one, and a method of authentication that is named.
        let capabilities = 1_u32 | 1 << 3 | 1 << 9 | 1 << 13 | 1 << 15 | 1 << 16 | 1 << 17 | 1 << 19;
        let head = [&capabilities.to_le_bytes()[..], &(1_u32 << 24).to_le_bytes(), &[33], &[0; 23]].concat();
        let answer = [&head[..], b"root\0\0test\0mysql_native_password\0"].concat();
        session.say(&packet(1, &answer), cut);
        assert_eq!(session.read()[0], OK, "let in");
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

    /// The body of the next packet, read by two calls.
    fn read(&mut self) -> Vec<u8> {
        let mut head = [0; 4];
        self.0.read_exact(&mut head).unwrap();
        let mut body = vec![0; u32::from_le_bytes([head[0], head[1], head[2], 0]) as usize];
        self.0.read_exact(&mut body).unwrap();
        body
    }

    /// Packets up to a marker; its status.
    fn up_to_marker(&mut self) -> u8 {
        loop {
            let body = self.read();
            if body[0] == EOF && body.len() == 5 {
                return body[3];
            }
        }
    }

    /// Reads an answer with all its results; whether it was none of an error.
    fn answer(&mut self) -> bool {
        loop {
            let first = self.read();
            let status = match first[0] {
                // Small numbers of rows and inserted ids, one byte each.
                OK => first[3],
                ERROR => return false,
                _ => {
                    self.up_to_marker();
                    self.up_to_marker()
                }
            };
            if status & MORE_RESULTS == 0 {
                return true;
            }
        }
    }

    fn ask(&mut self, bytes: &[u8], cut: usize) {
        self.say(bytes, cut);
        assert!(self.answer(), "an error");
    }

    /// Prepares a statement with one parameter and one column; its number.
    fn prepare(&mut self, text: &str, cut: usize) -> u32 {
        self.say(&command(PREPARE, text.as_bytes()), cut);
        let first = self.read();
        assert_eq!((first[0], &first[5..9]), (OK, &[1, 0, 1, 0][..]));
        self.up_to_marker();
        self.up_to_marker();
        u32::from_le_bytes([first[1], first[2], first[3], first[4]])
    }
}

fn with_tables() -> Mysql {
    let mysql = Mysql::start(&[]);
    for table in ["t0", "t1", "t2", "t3"] {
        mysql.query(&format!(
            "create table {table} (a int, b varchar(20)); insert into {table} values (1, 'x')"
        ));
    }
    mysql
}

/// Counted by both ends, with these labels.
fn expect(agent: &Agent, mysql: &Mysql, labels: &[(&str, &str)], count: usize) {
    let (service, destination) = (comm(), mysql.address());
    let both = labels.iter().copied().chain([("db_system", "mysql")]);
    let client: Vec<_> =
        both.clone().chain([("service", service.as_str()), ("destination", &destination)]).collect();
    let server: Vec<_> = both.chain([("service", "mariadbd")]).collect();
    agent.expect_all(&[(CLIENT, &client, count as f64), (SERVER, &server, count as f64)]);
}

#[test]
fn a_packet_cut_at_any_byte_is_counted_once() {
    let mysql = with_tables();
    let agent = Agent::start();
    let mut session = Session::open(&mysql, 0);
    let simple = query("select 'it\\'s a secret', \"a secret\" from t0 where b in ('a', 'b') # a secret");
    for cut in 1..simple.len() {
        session.ask(&simple, cut);
    }
    for byte in &simple {
        session.0.write_all(&[*byte]).unwrap();
    }
    assert!(session.answer());
    let text = "select b from t1 where a = ? and b <> 'a secret'";
    let mut statement = 0;
    for cut in 1..text.len() + 5 {
        statement = session.prepare(text, cut);
    }
    let executed = execute(statement, 1);
    for cut in 1..executed.len() {
        session.ask(&executed, cut);
    }
    for cut in 1..90 {
        let mut session = Session::open(&mysql, cut);
        session.ask(&query("select a from t2"), 3);
    }
    let ok = ("status", "ok");
    expect(&agent, &mysql, &[("query_type", "SELECT"), ("table", "t0"), ok], simple.len());
    expect(&agent, &mysql, &[("query_type", "PREPARE"), ok], text.len() + 4);
    expect(&agent, &mysql, &[("query_type", "SELECT"), ("table", "t1"), ok], executed.len() - 1);
    expect(&agent, &mysql, &[("query_type", "SELECT"), ("table", "t2"), ok], 89);
    let page = agent.page();
    assert!(!page.text.contains("secret"), "a literal is on the page");
    assert_eq!(page.losses_of("mysql"), [""; 0]);
    agent.expect_no_loss("mysql");
}

#[test]
fn thousands_of_prepared_statements_keep_their_names() {
    const STATEMENTS: usize = 4000;
    let mysql = with_tables();
    let agent = Agent::start();
    let mut session = Session::open(&mysql, 0);
    let prepare =
        |session: &mut Session, n| session.prepare(&format!("select b from t{} where a = ?", n % 4), 0);
    let numbers: Vec<u32> = (0..STATEMENTS).map(|n| prepare(&mut session, n)).collect();
    let before = mysql.status("Com_stmt_execute");
    for number in &numbers {
        session.ask(&execute(*number, 1), 0);
    }
    assert_eq!(mysql.status("Com_stmt_execute") - before, STATEMENTS as u64, "by the server itself");
    for table in ["t0", "t1", "t2", "t3"] {
        expect(
            &agent,
            &mysql,
            &[("query_type", "SELECT"), ("table", table), ("status", "ok")],
            STATEMENTS / 4,
        );
    }
    expect(&agent, &mysql, &[("query_type", "PREPARE"), ("status", "ok")], STATEMENTS);
    // One that is not there, and one that is no more.
    session.say(&execute(1_000_000, 1), 0);
    assert!(!session.answer());
    session.say(&command(0x19, &numbers[0].to_le_bytes()), 0);
    session.say(&execute(numbers[0], 1), 0);
    assert!(!session.answer());
    expect(&agent, &mysql, &[("status", "error")], 2);
    assert_eq!(agent.page().losses_of("mysql"), [""; 0]);
    agent.expect_no_loss("mysql");
}

#[test]
fn several_statements_in_one_are_one_and_commands_have_their_names() {
    let mysql = with_tables();
    let agent = Agent::start();
    let mut session = Session::open(&mysql, 0);
    for _ in 0..5 {
        session.ask(&query("select a from t0; select b from t1; do 1"), 0);
    }
    session.ask(&command(0x0e, b""), 0);
    session.ask(&command(0x02, b"test"), 0);
    session.say(&command(0x09, b""), 0);
    assert!(session.read().starts_with(b"Uptime"));
    session.ask(&command(0x1f, b""), 0);
    expect(&agent, &mysql, &[("query_type", "SELECT"), ("table", "t0"), ("status", "ok")], 5);
    for name in ["PING", "USE", "STATISTICS", "RESET_CONNECTION"] {
        expect(&agent, &mysql, &[("query_type", name), ("status", "ok")], 1);
    }
    assert_eq!(agent.page().losses_of("mysql"), [""; 0]);
    agent.expect_no_loss("mysql");
}

#[test]
fn a_connection_that_was_there_before_the_agent_is_counted_and_named_from_its_second_statement_on() {
    let mysql = with_tables();
    let mut session = Session::open(&mysql, 0);
    let agent = Agent::start();
    for _ in 0..100 {
        session.ask(&query("select 'a secret' from t0"), 0);
    }
    expect(&agent, &mysql, &[("query_type", "other"), ("table", "other")], 1);
    expect(&agent, &mysql, &[("query_type", "SELECT"), ("table", "t0")], 99);
    agent.expect_no_loss("mysql");
}

#[test]
fn without_escapes_no_statement_is_read() {
    let mysql = with_tables();
    let agent = Agent::start();
    let mut session = Session::open(&mysql, 0);
    session.ask(&query("set sql_mode = 'NO_BACKSLASH_ESCAPES'"), 0);
    for _ in 0..10 {
        // With escapes the second string would be text.
        session.ask(&query("select a from t0 where b in ('a\\', ' from secret where b = ')"), 0);
    }
    expect(&agent, &mysql, &[("query_type", "SET"), ("status", "ok")], 1);
    expect(&agent, &mysql, &[("query_type", "other"), ("table", "other"), ("status", "ok")], 10);
    assert!(!agent.page().text.contains("secret"), "a literal is on the page");
    agent.expect_no_loss("mysql");
}

#[test]
fn packets_that_make_no_sense_hurt_nobody_and_the_next_session_is_counted_right() {
    let mysql = with_tables();
    let agent = Agent::start();
    let mut sessions = 0;
    for head in [b"\0\0\0\0", b"\xff\xff\xff\0", b"\x05\0\0\x07", b"\x01\0\0\0"] {
        for rest in [&b"\x03"[..], b"\x77some bytes", b"\x17\0", b"\xff\xff\xff\xff\xff\xff\xff\xff"] {
            let mut session = Session::open(&mysql, 0);
            session.ask(&query("select a from t1"), 0);
            session.say(&[head, rest].concat(), 0);
            // The server waits for what does not come, or has ended the session already, and then
            // there is nothing to shut down.
            _ = session.0.shutdown(std::net::Shutdown::Write);
            _ = session.0.read_to_end(&mut Vec::new());
            sessions += 1;
        }
    }
    let mut session = Session::open(&mysql, 0);
    session.ask(&query("select a from t2"), 0);
    expect(&agent, &mysql, &[("query_type", "SELECT"), ("table", "t1"), ("status", "ok")], sessions);
    expect(&agent, &mysql, &[("query_type", "SELECT"), ("table", "t2"), ("status", "ok")], 1);
    agent.expect_no_loss("mysql");
}
