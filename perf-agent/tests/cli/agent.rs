//! A running agent, and a client that shows what really comes over the wire.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Longer than anything takes here; whoever waits for it has found a bug.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

const NO_PROBES: &str = "probes: {tcp: {enabled: false}, sched: {enabled: false}, http: {enabled: false}, dns: {enabled: false}}\n";

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perf-agent"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs the agent to its end, which is near where it refuses to start.
pub(crate) fn output(mut command: Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    if wait(&mut child).is_none() {
        child.kill().unwrap();
        panic!("it does not end: {:?}", child.wait_with_output());
    }
    child.wait_with_output().unwrap()
}

fn wait(child: &mut Child) -> Option<ExitStatus> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(10));
    }
    None
}

pub(crate) struct Agent {
    child: Child,
    log: Receiver<String>,
    pub(crate) address: SocketAddr,
    pub(crate) ready: String,
    run: PathBuf,
    /// Removed with the agent; without it, the directory is somebody else's.
    own_run: Option<TempDir>,
}

impl Agent {
    /// Every default probe, on a free port, ready.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let run = tempfile::tempdir().unwrap();
        let mut agent = Self::start_in(run.path(), arguments);
        agent.own_run = Some(run);
        agent
    }

    /// With its lock in this directory.
    pub(crate) fn start_in(run: &Path, arguments: &[&str]) -> Self {
        let mut child = command(&["--web.listen-address=127.0.0.1:0", "--path.run"])
            .arg(run)
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (send, log) = mpsc::channel();
        // Reads on when nobody listens any more: a full pipe would stop the agent.
        thread::spawn(move || stderr.lines().map_while(Result::ok).for_each(|line| _ = send.send(line)));
        let mut agent = Self {
            child,
            log,
            address: ([127, 0, 0, 1], 0).into(),
            ready: String::new(),
            run: run.to_owned(),
            own_run: None,
        };
        agent.ready = agent.line("perf-agent is ready");
        // In either format of the log; the first of them, if there are more.
        let (_, listen) = agent.ready.split_once("listen").unwrap();
        let address = listen.trim_start_matches(['"', ':', '=']).split([' ', '"', ',']).next().unwrap();
        agent.address = address.parse().unwrap();
        agent
    }

    /// Without probes: for what does not depend on them.
    pub(crate) fn bare() -> Self {
        let config = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(config.path(), NO_PROBES).unwrap();
        Self::start(&["--config", config.path().to_str().unwrap()])
    }

    /// Waits for the line of the log that holds this text.
    pub(crate) fn line(&self, text: &str) -> String {
        let mut seen = Vec::new();
        let end = Instant::now() + PATIENCE;
        loop {
            match self.log.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => seen.push(line),
                Err(error) => panic!("no line with {text:?} in the log, {error}:\n{}", seen.join("\n")),
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn run_dir(&self) -> &Path {
        &self.run
    }

    pub(crate) fn signal(&self, signal: libc::c_int) {
        // SAFETY: the child was not waited for, so the process id is still its own.
        let sent = unsafe { libc::kill(self.pid() as libc::pid_t, signal) };
        assert_eq!(sent, 0);
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child).expect("the agent to end")
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "")
    }

    /// `headers` are whole lines.
    pub(crate) fn request(&self, method: &str, path: &str, headers: &str) -> Answer {
        let mut stream = self.connect();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n{headers}\r\n")
            .unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        Answer::parse(&bytes)
    }

    /// The value of one series on the page.
    pub(crate) fn value(&self, series: &str) -> f64 {
        let page = self.get("/metrics").text();
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in\n{page}")).parse().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail if it has ended already, as it should in the tests of that.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("an HTTP head");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head, body: bytes[end + 4..].to_vec() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}
