//! `perf-agent trace`: what an agent that runs has just sampled, line by line.

use std::io::{self, Read as _, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cli::{Lines, Trace};
use crate::config::{Config, ListenAddress};
use crate::probes::TICK;
use crate::requests::{Answer, Entry, Filter, Side};

/// An agent on the same host answers at once, unless it is stopped.
const PATIENCE: Duration = Duration::from_secs(10);
/// The last thousand requests are a third of this.
const MAX_ANSWER: u64 = 4 << 20;

/// Prints until it has printed enough, or nobody reads any more.
pub(crate) fn run(config: &Config, options: Trace) -> Result<()> {
    let Trace { service, slower, errors, address, format, count } = options;
    let address = address.or_else(|| config.web.listen_address.first().map(ListenAddress::local));
    let address = address.unwrap_or_default().local();
    // Nothing of what was before, but its number.
    let mut filter = Filter { service, slower, errors, after: u64::MAX };
    let first = ask(&address, &filter)?;
    warn(&first, &filter)?;
    filter.after = first.sequence;
    let mut printer = Printer { out: io::stdout().lock(), format, left: count };
    if printer.head()? {
        return Ok(());
    }
    loop {
        sleep(TICK);
        let answer = ask(&address, &filter)?;
        if answer.sequence < filter.after {
            // Another agent, which counts from the beginning.
            filter.after = 0;
            continue;
        }
        filter.after = answer.sequence;
        for entry in &answer.requests {
            if printer.line(entry)? {
                return Ok(());
            }
        }
    }
}

/// Says what the agent does not sample, so that nobody waits for it.
fn warn(answer: &Answer, filter: &Filter) -> Result<()> {
    if answer.max_per_second == 0 {
        bail!("the agent samples no requests: requests.max_per_second is 0 in its configuration");
    }
    let Some(slower) = filter.slower else { return Ok(()) };
    if slower.get().as_secs_f64() < answer.slower_than_seconds && !filter.errors {
        // Not `eprintln!`, which panics where standard error takes nothing.
        _ = writeln!(
            io::stderr(),
            "perf-agent trace: what did not fail is sampled from {} s on only; requests.slower_than in the agent's \
             configuration changes that",
            answer.slower_than_seconds
        );
    }
    Ok(())
}

struct Printer<W> {
    out: W,
    format: Lines,
    /// How many more; all of them where it is none.
    left: Option<u64>,
}

impl<W: Write> Printer<W> {
    /// Prints what stands above the columns; true if that was all.
    fn head(&mut self) -> Result<bool> {
        let Lines::Table = self.format else { return Ok(self.left == Some(0)) };
        let columns = ["TIME", "SERVICE", "SIDE", "PROTOCOL", "STATUS", "DURATION", "PEER", "REQUEST"];
        Ok(self.write(&row(&columns.map(str::to_owned)))? || self.left == Some(0))
    }

    /// Prints one request; true if it was the last one.
    fn line(&mut self, entry: &Entry) -> Result<bool> {
        let line = match self.format {
            Lines::Json => serde_json::to_string(entry).context("a request cannot be written")?,
            Lines::Table => table(entry),
        };
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
        }
        Ok(self.write(&line)? || self.left == Some(0))
    }

    /// True if nobody reads any more: `perf-agent trace | head -1`.
    fn write(&mut self, line: &str) -> Result<bool> {
        match writeln!(self.out, "{line}").and_then(|()| self.out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(true),
            written => written.map(|()| false).context("a line cannot be written"),
        }
    }
}

fn table(entry: &Entry) -> String {
    let Entry {
        time,
        service,
        protocol,
        side,
        what,
        status,
        sqlstate_class,
        duration_seconds,
        peer,
        count,
        ..
    } = entry;
    let side = if *side == Side::Server { "server" } else { "client" };
    let times = if *count > 1 { format!(" ×{count}") } else { String::new() };
    row(&[
        time.clone(),
        service.clone(),
        side.to_owned(),
        protocol.clone(),
        format!("{status} {sqlstate_class}").trim_end().to_owned(),
        duration(*duration_seconds),
        if peer.is_empty() { "-".to_owned() } else { peer.clone() },
        what.text() + &times,
    ])
}

/// Columns of usual widths; what is wider pushes the rest of its line. What a program put into a name does nothing to a
/// terminal.
fn row(columns: &[String; 8]) -> String {
    const WIDTHS: [usize; 8] = [24, 15, 6, 10, 8, 8, 21, 0];
    let cells = columns.iter().zip(WIDTHS).map(|(text, width)| {
        let text: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        format!("{text:width$}")
    });
    cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

fn duration(seconds: f64) -> String {
    if seconds >= 1.0 {
        format!("{seconds:.3}s")
    } else if seconds >= 0.001 {
        format!("{:.1}ms", seconds * 1e3)
    } else {
        format!("{:.0}us", seconds * 1e6)
    }
}

/// Asks the agent; waits while it starts.
fn ask(address: &ListenAddress, filter: &Filter) -> Result<Answer> {
    let path = format!("/requests?{}", filter.query());
    loop {
        let (status, body) = get(address, &path).with_context(|| {
            format!("no agent answers at {address}: start `perf-agent`, or say by --address where it listens")
        })?;
        match status.as_str() {
            "200" => {
                return serde_json::from_str(&body)
                    .with_context(|| format!("what answers at {address} is no perf-agent of this version"));
            }
            "503" => sleep(TICK),
            "400" => bail!("the agent at {address} refuses: {}", body.trim()),
            status => bail!(
                "what answers at {address} is no perf-agent with /requests (status {status}); say by --address where it listens"
            ),
        }
    }
}

/// Status and body.
fn get(address: &ListenAddress, path: &str) -> io::Result<(String, String)> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for candidate in address.candidates()? {
        match get_from(candidate, path) {
            Err(error) => last = error,
            answer => return answer,
        }
    }
    Err(last)
}

fn get_from(address: SocketAddr, path: &str) -> io::Result<(String, String)> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // HTTP/1.0, so that the end of the connection ends the body.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
    let no_http = || io::Error::new(io::ErrorKind::InvalidData, "the answer is no HTTP");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(no_http)?;
    let status = head.strip_prefix("HTTP/").and_then(|head| head.split(' ').nth(1)).ok_or_else(no_http)?;
    Ok((status.to_owned(), body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::What;

    fn entry() -> Entry {
        Entry {
            sequence: 3,
            time: "2026-01-31T12:00:00.000Z".to_owned(),
            service: "shop\x1b[2J".to_owned(),
            protocol: "postgresql".to_owned(),
            side: Side::Client,
            what: What { query_type: "SELECT".to_owned(), table: "t".to_owned(), ..What::default() },
            status: "error".to_owned(),
            failed: true,
            duration_seconds: 0.0123,
            peer: "10.0.0.9:5432".to_owned(),
            count: 2,
            ..Entry::default()
        }
    }

    #[test]
    fn a_line_is_a_request_and_harms_no_terminal() {
        let mut printer = Printer { out: Vec::new(), format: Lines::Table, left: Some(1) };
        assert!(!printer.head().unwrap());
        assert!(printer.line(&entry()).unwrap(), "that was the one");
        assert_eq!(
            String::from_utf8(printer.out).unwrap(),
            "\
TIME                      SERVICE          SIDE    PROTOCOL    STATUS    DURATION  PEER                   REQUEST
2026-01-31T12:00:00.000Z  shop?[2J         client  postgresql  error     12.3ms    10.0.0.9:5432          SELECT t ×2
"
        );
    }

    #[test]
    fn json_is_one_object_a_line() {
        let mut printer = Printer { out: Vec::new(), format: Lines::Json, left: None };
        assert!(!printer.head().unwrap());
        assert!(!printer.line(&entry()).unwrap());
        let text = String::from_utf8(printer.out).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert_eq!(serde_json::from_str::<Entry>(&text).unwrap(), entry());
    }

    #[test]
    fn durations() {
        for (seconds, expected) in [(1.5, "1.500s"), (0.25, "250.0ms"), (0.00025, "250us")] {
            assert_eq!(duration(seconds), expected);
        }
    }
}
