//! Small servers that speak as PostgreSQL and Redis do, a client of both, and how many queries they exchange.

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

/// What the agent should have counted of so many rounds: in each a query that succeeds and one that fails, and a pipeline of
/// commands and one that fails.
pub(crate) fn expected(rounds: u32) -> Vec<Expected> {
    let (one, pipeline) = (f64::from(rounds), f64::from(PIPELINE * rounds));
    let mut expected = Vec::new();
    for (metric, service) in
        [("db_query_duration_seconds_count", CLIENT), ("db_server_query_duration_seconds_count", SERVER)]
    {
        for (system, query_type, table, status, count) in [
            ("postgresql", "SELECT", "items", "ok", one),
            ("postgresql", "UPDATE", "items", "error", one),
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
            expected.push(Expected::of(metric, &labels, count));
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

/// Says its two ports and answers until it is killed.
pub(crate) fn serve() -> Result<()> {
    call_me(SERVER);
    let (postgres, redis) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    println!("{} {}", postgres.local_addr()?.port(), redis.local_addr()?.port());
    let postgres = thread::spawn(move || -> Result<()> { answer_postgres(postgres.accept()?.0) });
    answer_redis(redis.accept()?.0)?;
    postgres.join().map_err(|_| anyhow::anyhow!("a thread of the server panicked"))?
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
pub(crate) fn request(postgres: u16, redis: u16, rounds: u32) -> Result<()> {
    call_me(CLIENT);
    let mut postgres = connect(postgres)?;
    postgres.write_all(b"\0\0\0\x11\0\x03\0\0user\0vm\0\0")?;
    read_until(&mut postgres, b"Z\0\0\0\x05I")?;
    let mut redis = connect(redis)?;
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
