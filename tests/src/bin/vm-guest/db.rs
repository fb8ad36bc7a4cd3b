//! Small servers that speak as PostgreSQL, Redis and MySQL do, a client of all, and how many queries they exchange.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::metrics::Expected;
use crate::traffic::call_me;

const SERVER: &str = "vm-db-server";
const CLIENT: &str = "vm-db-client";
/// Commands in one call.
const PIPELINE: u32 = 4;
/// What MySQL's server says first: a protocol, a version, and what it can do.
const GREETING: &[u8] =
    b"\x0a8.0.0-vm\0\x01\0\0\0saltsalt\0\xff\xf7\x21\x02\0\xff\x81\x15\0\0\0\0\0\0\0\0\0\0saltsaltsalt\0";

/// What the agent should have counted of so many rounds: in each, of each system with statements, one that succeeds and one that
/// fails, and a pipeline of commands and one that fails.
pub(crate) fn expected(rounds: u32) -> Vec<Expected> {
    let (one, pipeline) = (f64::from(rounds), f64::from(PIPELINE * rounds));
    let mut expected = Vec::new();
    for (metric, service) in
        [("db_query_duration_seconds_count", CLIENT), ("db_server_query_duration_seconds_count", SERVER)]
    {
        for (system, query_type, table, status, count) in [
            ("postgresql", "SELECT", "items", "ok", one),
            ("postgresql", "UPDATE", "items", "error", one),
            ("mysql", "SELECT", "items", "ok", one),
            ("mysql", "UPDATE", "items", "error", one),
            ("redis", "GET", "", "ok", pipeline),
            ("redis", "INCR", "", "error", one),
        ] {
            let mut labels = vec![
                ("service", service),
                ("db_system", system),
                ("query_type", query_type),
                ("status", status),
            ];
            labels.extend((!table.is_empty()).then_some(("table", table)));
            labels.extend((!table.is_empty() && status == "error").then_some(("sqlstate_class", "23")));
            // A call of Redis' can be a whole pipeline. What waits when a gap shows goes with it, as does a statement in
            // whose framing the gap is.
            let at_stake = if query_type == "GET" { PIPELINE } else { 2 };
            expected.push(Expected::of(metric, &labels, count).at_stake(f64::from(at_stake)));
        }
    }
    expected
}

/// Runs server and client to the client's end.
pub(crate) fn run(rounds: u32) -> Result<()> {
    let own = std::env::current_exe()?;
    let mut server =
        Command::new(&own).arg("db-server").stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut ports = String::new();
    BufReader::new(server.stdout.take().context("piped")?).read_line(&mut ports)?;
    let client =
        Command::new(&own).arg("db-client").args(ports.split_whitespace()).arg(rounds.to_string()).status();
    server.kill()?;
    server.wait()?;
    if !client?.success() {
        bail!("the databases' client failed");
    }
    Ok(())
}

/// Says its ports and answers until it is killed.
pub(crate) fn serve() -> Result<()> {
    call_me(SERVER);
    let listen = || TcpListener::bind("127.0.0.1:0");
    let (postgres, redis, mysql) = (listen()?, listen()?, listen()?);
    let ports = [&postgres, &redis, &mysql].map(TcpListener::local_addr);
    let [postgres_at, redis_at, mysql_at] = ports;
    println!("{} {} {}", postgres_at?.port(), redis_at?.port(), mysql_at?.port());
    let postgres = thread::spawn(move || -> Result<()> { answer_postgres(postgres.accept()?.0) });
    let mysql = thread::spawn(move || -> Result<()> { answer_mysql(mysql.accept()?.0) });
    answer_redis(redis.accept()?.0)?;
    for other in [postgres, mysql] {
        other.join().map_err(|_| anyhow::anyhow!("a thread of the server panicked"))??;
    }
    Ok(())
}

fn answer_mysql(mut stream: TcpStream) -> Result<()> {
    stream.write_all(&packet(0, GREETING))?;
    read_packet(&mut stream)?;
    stream.write_all(&packet(2, b"\0\0\0\x02\0\0\0"))?;
    loop {
        let Ok(query) = read_packet(&mut stream) else { return Ok(()) };
        if query.get(1..).is_some_and(|text| text.starts_with(b"select")) {
            let answer: [&[u8]; 5] = [
                b"\x01",
                b"\x03def\0\0\0\x04name\0\x0c!\0\x01\0\0\0\xfd\0\0\0\0\0",
                b"\xfe\0\0\x02\0",
                b"\x01x",
                b"\xfe\0\0\x02\0",
            ];
            let packets = (1..).zip(answer).map(|(number, body)| packet(number, body));
            stream.write_all(&packets.collect::<Vec<_>>().concat())?;
        } else {
            stream.write_all(&packet(1, b"\xff\x26\x04#23000duplicate"))?;
        }
    }
}

fn packet(number: u8, body: &[u8]) -> Vec<u8> {
    let [low, middle, high, _] = (body.len() as u32).to_le_bytes();
    [&[low, middle, high, number], body].concat()
}

/// The body of the next packet, read as MySQL's server reads: a header in a call of its own.
fn read_packet(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let mut body = vec![0; (u32::from_le_bytes(head) & 0x00ff_ffff) as usize];
    stream.read_exact(&mut body)?;
    Ok(body)
}

fn answer_postgres(mut stream: TcpStream) -> Result<()> {
    // The startup message is the only one without a type.
    message(&mut stream, false)?;
    stream.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I")?;
    loop {
        let Ok(query) = message(&mut stream, true) else { return Ok(()) };
        if query.starts_with(b"select") {
            stream.write_all(b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I")?;
        } else {
            stream.write_all(b"E\0\0\0\x13SERROR\0C23505\0\0Z\0\0\0\x05I")?;
        }
    }
}

/// The body of the next message.
fn message(stream: &mut TcpStream, has_type: bool) -> Result<Vec<u8>> {
    let mut head = [0; 5];
    let head = if has_type { &mut head[..] } else { &mut head[1..] };
    stream.read_exact(head)?;
    let length: [u8; 4] = head.last_chunk().copied().context("a head of four bytes or more")?;
    let mut body = vec![0; (u32::from_be_bytes(length) as usize).saturating_sub(4)];
    stream.read_exact(&mut body)?;
    Ok(body)
}

fn answer_redis(stream: TcpStream) -> Result<()> {
    let mut answers = stream.try_clone()?;
    // Each command ends with its only line in lower case.
    for line in BufReader::new(stream).lines() {
        match line?.as_str() {
            "key" => answers.write_all(b"$5\r\nvalue\r\n")?,
            "text" => answers.write_all(b"-ERR value is not an integer\r\n")?,
            _ => {}
        }
    }
    Ok(())
}

/// Makes the rounds.
pub(crate) fn request([postgres, redis, mysql]: [u16; 3], rounds: u32) -> Result<()> {
    call_me(CLIENT);
    let mut postgres = connect(postgres)?;
    postgres.write_all(b"\0\0\0\x11\0\x03\0\0user\0vm\0\0")?;
    read_until(&mut postgres, b"Z\0\0\0\x05I")?;
    let mut redis = connect(redis)?;
    let mut mysql = connect(mysql)?;
    read_packet(&mut mysql)?;
    // Protocol 4.1, and little else.
    mysql.write_all(&packet(1, &[b"\x05\xa2\x08\0\0\0\0\x01!".as_slice(), &[0; 23], b"vm\0\0"].concat()))?;
    read_packet(&mut mysql)?;
    for round in 0..rounds {
        for sql in [
            format!("select name from items where id = {round}"),
            format!("update items set name = 'item {round}' where id = 7"),
        ] {
            let mut query = vec![b'Q'];
            query.extend((sql.len() as u32 + 5).to_be_bytes());
            query.extend(sql.bytes());
            query.push(0);
            postgres.write_all(&query)?;
            read_until(&mut postgres, b"Z\0\0\0\x05I")?;
            mysql.write_all(&packet(0, format!("\x03{sql}").as_bytes()))?;
            let end: &[u8] = if sql.starts_with("select") { b"\xfe\0\0\x02\0" } else { b"duplicate" };
            // A result has two markers.
            while !read_packet(&mut mysql)?.ends_with(end) {}
            if sql.starts_with("select") {
                while !read_packet(&mut mysql)?.ends_with(end) {}
            }
        }
        redis.write_all(&b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n".repeat(PIPELINE as usize))?;
        for _ in 0..PIPELINE {
            let mut answer = [0; 11];
            redis.read_exact(&mut answer)?;
        }
        redis.write_all(b"*2\r\n$4\r\nINCR\r\n$4\r\ntext\r\n")?;
        read_until(&mut redis, b"integer\r\n")?;
    }
    Ok(())
}

fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    Ok(stream)
}

fn read_until(stream: &mut TcpStream, end: &[u8]) -> Result<()> {
    let mut answer = Vec::new();
    let mut buffer = [0; 512];
    while !answer.ends_with(end) {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            bail!("the server hung up");
        }
        answer.extend_from_slice(buffer.get(..read).unwrap_or_default());
    }
    Ok(())
}
