//! A small HTTP/1.1 server and client, and how many requests they exchange.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::metrics::Expected;

/// How many requests go over connections that stay open, and how many over one each.
#[derive(Clone, Copy)]
pub(crate) struct Requests {
    pub(crate) keep_alive: u32,
    pub(crate) closing: u32,
}

/// The traffic of one run.
pub(crate) struct Plan(Requests);

const KEPT_CONNECTIONS: u32 = 2;
/// Names below one path, over a connection of their own: more than the agent lets a place have, and some when it has a rule.
const CROWD: u32 = 60;
const LATE: u32 = 20;
/// Requests that are answered by an error. Few enough that the agent samples each at both ends.
pub(crate) const FAILED: u32 = 2;
pub(crate) const SERVER: &str = "vm-server";
const CLIENT: &str = "vm-client";

impl Plan {
    pub(crate) fn of(short: bool) -> Self {
        Self(if short {
            Requests { keep_alive: 100, closing: 10 }
        } else {
            Requests { keep_alive: 500, closing: 50 }
        })
    }

    /// How many rounds of queries to databases, and of DNS lookups.
    pub(crate) fn rounds(&self) -> u32 {
        self.0.closing
    }

    /// What the agent should have counted of it.
    pub(crate) fn expected(&self) -> Vec<Expected> {
        let Requests { keep_alive, closing } = self.0;
        let (requests, connections) = (
            f64::from(keep_alive + closing + CROWD + LATE + FAILED),
            f64::from(KEPT_CONNECTIONS + closing + 1),
        );
        vec![
            Expected::of("http_requests_total", &[("service", SERVER)], requests),
            Expected::of("http_request_duration_seconds_count", &[("service", SERVER)], requests),
            Expected::of(
                "http_request_duration_seconds_count",
                &[("service", SERVER), ("route", "/api/items/{id}")],
                f64::from(keep_alive / 2),
            ),
            Expected::of(
                "http_request_duration_seconds_count",
                &[("service", SERVER), ("route", "/crowd/{*}")],
                f64::from(CROWD + LATE),
            ),
            Expected::of("http_client_request_duration_seconds_count", &[("service", CLIENT)], requests),
            Expected::of("tcp_connects_total", &[("service", CLIENT)], connections),
            Expected::of("tcp_accepts_total", &[("service", SERVER)], connections),
        ]
    }
}

/// Runs server and client to the client's end.
pub(crate) fn run(Plan(requests): &Plan) -> Result<()> {
    let own = std::env::current_exe()?;
    let mut server = Command::new(&own).arg("server").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut port = String::new();
    BufReader::new(server.stdout.take().context("piped")?).read_line(&mut port)?;
    let numbers = [requests.keep_alive.to_string(), requests.closing.to_string()];
    let client = Command::new(&own).args(["client", port.trim()]).args(numbers).status();
    server.kill()?;
    server.wait()?;
    if !client?.success() {
        bail!("the client failed");
    }
    Ok(())
}

/// Says its port and answers until it is killed, one thread per connection.
pub(crate) fn serve() -> Result<()> {
    call_me(SERVER);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || answer(stream).unwrap_or_else(|error| eprintln!("vm-server: {error:#}")));
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut close = false;
        let mut status = "200 OK";
        let mut line = String::new();
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.starts_with("GET /fail/") {
                status = "500 Internal Server Error";
            }
            close |= line.eq_ignore_ascii_case("connection: close\r\n");
            if line == "\r\n" {
                break;
            }
        }
        stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 3\r\n\r\nok\n").as_bytes())?;
        if close {
            return Ok(());
        }
    }
}

/// Asks for two routes in turn over connections that stay, then once over each of many, then for a crowd of routes, and for
/// what fails.
pub(crate) fn request(port: u16, Requests { keep_alive, closing }: Requests) -> Result<()> {
    call_me(CLIENT);
    for connection in 0..KEPT_CONNECTIONS {
        let mut stream = connect(port)?;
        for n in (connection..keep_alive).step_by(KEPT_CONNECTIONS as usize) {
            let path = if (n / KEPT_CONNECTIONS).is_multiple_of(2) {
                "/health".to_owned()
            } else {
                format!("/api/items/{n}")
            };
            ask(&mut stream, &path, "keep-alive")?;
        }
    }
    for _ in 0..closing {
        ask(&mut connect(port)?, "/health", "close")?;
    }
    let mut stream = connect(port)?;
    for n in 0..CROWD + LATE {
        if n == CROWD {
            // The agent looks four times a second, emulated or not.
            thread::sleep(Duration::from_secs(2));
        }
        let letters = [b'g' + (n / 10) as u8, b'g' + (n % 10) as u8].map(char::from);
        ask(&mut stream, &format!("/crowd/{}", String::from_iter(letters)), "keep-alive")?;
    }
    for n in 0..FAILED {
        ask(&mut stream, &format!("/fail/{n}"), "keep-alive")?;
    }
    Ok(())
}

fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream, path: &str, connection: &str) -> Result<()> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: vm\r\nConnection: {connection}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut response = Vec::new();
    let mut buffer = [0; 512];
    while !response.ends_with(b"\r\n\r\nok\n") {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            bail!("the server hung up on {path}");
        }
        response.extend_from_slice(buffer.get(..read).unwrap_or_default());
    }
    Ok(())
}

/// The body of a page of the agent's.
pub(crate) fn get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) =
        answer.split_once("\r\n\r\n").with_context(|| format!("{path} gave no whole answer"))?;
    if head.split(' ').nth(1) != Some("200") {
        bail!("{path} answered {}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}

/// Sets this process's `comm`. Only right on the main thread, and before others start, which inherit it.
pub(crate) fn call_me(name: &str) {
    let mut comm = [0_u8; 16];
    for (to, from) in comm.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    // SAFETY: PR_SET_NAME reads at most 16 bytes up to a NUL, and the last byte is one.
    unsafe { libc::prctl(libc::PR_SET_NAME, comm.as_ptr()) };
}
