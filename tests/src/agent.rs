//! A running agent.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{Labels, PATIENCE, Page, Running, free_port, turn, wait_until};

/// Every probe on, on a free port of loopback.
pub struct Agent {
    running: Running,
    /// Behind a lock, so that threads of a test can share an agent.
    log: Mutex<Receiver<String>>,
    pub address: SocketAddr,
    dir: TempDir,
    /// Let go last, when the agent is gone.
    _turn: File,
}

/// An agent that did not want to run.
#[derive(Debug)]
pub struct Refused {
    pub status: ExitStatus,
    pub stderr: String,
}

impl Agent {
    /// With the default configuration; ready when this returns.
    pub fn start() -> Self {
        Self::with("")
    }

    /// By the hooks that it has on kernels before 6.3.
    pub fn fallback() -> Self {
        Self::launch("", &["--hide-tracepoint", "sock_send_length"], turn())
    }

    /// With this text as its configuration file.
    pub fn with(config: &str) -> Self {
        Self::launch(config, &[], turn())
    }

    /// Killed without a chance to clean up, and a new one started.
    #[must_use]
    pub fn killed_and_again(self) -> Self {
        let Self { mut running, log: _, address: _, dir: _, _turn: turn } = self;
        running.signal(libc::SIGKILL);
        wait(&mut running);
        Self::launch("", &[], turn)
    }

    fn launch(config: &str, flags: &[&str], turn: File) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        fs::write(&file, config).unwrap();
        let mut running =
            Running::spawn(command(dir.path()).arg("--config").arg(&file).args(flags).stderr(Stdio::piped()));
        let stderr = BufReader::new(running.0.stderr.take().unwrap());
        let (send, log) = mpsc::channel();
        // Reads on when nobody listens any more: a full pipe would stop the agent.
        thread::spawn(move || stderr.lines().map_while(Result::ok).for_each(|line| _ = send.send(line)));
        let address = ([127, 0, 0, 1], 0).into();
        let mut agent = Self { running, log: Mutex::new(log), address, dir, _turn: turn };
        let ready = agent.line("perf-agent is ready");
        for problem in [" failed=0", " unsupported=0"] {
            assert!(
                ready.contains(problem),
                "not every hook works here; `perf-agent doctor` tells why: {ready}"
            );
        }
        let (_, listen) = ready.split_once("listen=").unwrap();
        agent.address = listen.split([' ', ',']).next().unwrap().parse().unwrap();
        agent
    }

    /// Starts one more with the same lock and waits for it to give up.
    pub fn second(&self) -> Refused {
        let mut child = Running::spawn(command(self.dir.path()).stderr(Stdio::piped()));
        let status = wait(&mut child);
        let mut stderr = String::new();
        child.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        Refused { status, stderr }
    }

    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    pub fn signal(&self, signal: libc::c_int) {
        self.running.signal(signal);
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        wait(&mut self.running)
    }

    /// Waits for the line of the log that holds this text.
    pub fn line(&self, text: &str) -> String {
        let mut seen = Vec::new();
        let end = Instant::now() + PATIENCE;
        let log = self.log.lock().unwrap();
        loop {
            match log.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => seen.push(line),
                Err(error) => panic!("no line with {text:?} in the log, {error}:\n{}", seen.join("\n")),
            }
        }
    }

    /// The body of an answer, which must be 200.
    pub fn get(&self, path: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // HTTP/1.0, so that the end of the connection ends the body.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: agent\r\n{headers}\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) =
            answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no whole answer: {answer:?}"));
        assert_eq!(head.split(' ').nth(1), Some("200"), "{head}");
        body.to_owned()
    }

    pub fn page(&self) -> Page {
        let text = self.get("/metrics", "");
        Page::parse(&text).unwrap_or_else(|error| panic!("{error:#}\n{text}"))
    }

    /// Waits until the sum of a metric over the samples with these labels is just this, and gives the page.
    ///
    /// The hooks run after what they report: a client can have its answer before the server's side is counted.
    pub fn expect(&self, metric: &str, labels: Labels<'_>, value: f64) -> Page {
        self.expect_all(&[(metric, labels, value)])
    }

    pub fn expect_all(&self, expected: &[(&str, Labels<'_>, f64)]) -> Page {
        let end = Instant::now() + Duration::from_secs(3);
        loop {
            let page = self.page();
            let wrong: Vec<String> = expected
                .iter()
                .filter_map(|(metric, labels, value)| {
                    let is = page.sum(metric, labels);
                    (is.to_bits() != value.to_bits()).then(|| {
                        format!(
                            "{metric}{labels:?} is {is}, not {value}; there is\n{}",
                            page.lines(&[metric])
                        )
                    })
                })
                .collect();
            if wrong.is_empty() {
                return page;
            }
            assert!(Instant::now() < end, "{}\nlosses: {:?}", wrong.join("\n"), page.losses());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until all of a probe's events are accounted for.
    pub fn expect_no_loss(&self, probe: &str) {
        wait_until(&format!("all events of {probe} are accounted for"), Duration::from_secs(5), || {
            self.page().unaccounted(probe) == 0.0
        });
    }
}

/// The binary under test.
pub fn agent_binary() -> PathBuf {
    let named =
        std::env::var_os("PERF_AGENT_BIN").or_else(|| std::env::var_os("PERF_AGENT")).map(PathBuf::from);
    let binary =
        named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/perf-agent"));
    assert!(
        binary.is_file(),
        "no agent at {}: `cargo xtask build` makes one, PERF_AGENT_BIN names another",
        binary.display()
    );
    binary
}

fn command(run: &Path) -> Command {
    // SAFETY: no arguments.
    assert_eq!(unsafe { libc::geteuid() }, 0, "the live tests attach to the kernel: run them as root");
    let mut command = Command::new(agent_binary());
    // Not port 0: below the ephemeral range, scrapes are a destination of their own and in nobody's way.
    let listen = format!("--web.listen-address=127.0.0.1:{}", free_port());
    command.args([&listen, "--path.run"]).arg(run).stdin(Stdio::null());
    command
}

fn wait(running: &mut Running) -> ExitStatus {
    let mut status = None;
    wait_until("the agent ends", PATIENCE, || {
        status = running.0.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}
