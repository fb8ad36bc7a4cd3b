//! dnsmasq with a directory of its own, network namespaces, and DNS messages.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::{PATIENCE, Running, free_port, run, wait_until};

/// A network namespace whose programs find their name server on its own loopback.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// `resolv_conf` is what programs run in it find as /etc/resolv.conf.
    pub fn new(resolv_conf: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("perf-agent-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self { name };
        run(namespace.command("ip").args(["link", "set", "lo", "up"]));
        fs::create_dir_all(namespace.etc()).unwrap();
        fs::write(namespace.etc().join("resolv.conf"), resolv_conf).unwrap();
        namespace
    }

    /// A program that runs in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Does something inside it, in a thread that does nothing else.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        use std::os::fd::AsRawFd as _;
        let file = fs::File::open(Path::new("/run/netns").join(&self.name)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // SAFETY: changes this thread only, which ends with the work.
                let entered = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(entered, 0, "{}", std::io::Error::last_os_error());
                work()
            });
            thread.join().unwrap()
        })
    }

    /// What `ip netns exec` puts over /etc.
    fn etc(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(self.etc());
        _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Answers for `test` by itself and asks nobody: `*.example.test` has two addresses, everything else below does not exist.
pub struct Dnsmasq {
    running: Running,
    dir: TempDir,
    pub port: u16,
}

impl Dnsmasq {
    /// On port 53 of the namespace.
    pub fn inside(namespace: &Namespace) -> Self {
        let server = Self::launch(namespace.command("dnsmasq"), 53, "log-queries\n");
        namespace.inside(|| server.wait());
        server
    }

    /// On a free port of loopback, without a log of queries.
    pub fn start() -> Self {
        let server = Self::launch(Command::new("dnsmasq"), free_port(), "");
        server.wait();
        server
    }

    fn launch(mut command: Command, port: u16, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        fs::write(
            dir.path().join("conf"),
            format!(
                "keep-in-foreground\nuser=root\npid-file=\nlog-facility={at}/log\nport={port}\nlisten-address=127.0.0.1\n\
                 bind-interfaces\nno-resolv\nno-hosts\nno-poll\nlocal=/test/\naddress=/example.test/10.1.2.3\n\
                 address=/example.test/fd00::1\n{more}"
            ),
        )
        .unwrap();
        command.arg("-C").arg(dir.path().join("conf")).stdin(Stdio::null()).stderr(Stdio::null());
        Self { running: Running::spawn(&mut command), dir, port }
    }

    fn wait(&self) {
        let address = (Ipv4Addr::LOCALHOST, self.port);
        wait_until("dnsmasq listens", PATIENCE, || TcpStream::connect(address).is_ok());
    }

    /// How many queries of a type it has logged.
    pub fn logged(&self, qtype: &str) -> usize {
        self.log().matches(&format!(" query[{qtype}] ")).count()
    }

    /// How many queries it says to have answered from what it knows.
    pub fn answered(&self) -> u64 {
        let before = self.log().len();
        self.running.signal(libc::SIGUSR1);
        let mut answered = None;
        wait_until("dnsmasq tells its statistics", PATIENCE, || {
            let log = self.log();
            let fresh = log.get(before..).unwrap_or_default();
            let number = fresh.split("queries answered locally ").nth(1);
            answered = number.and_then(|rest| rest.split(['\n', ',']).next()?.trim().parse().ok());
            answered.is_some()
        });
        answered.unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

/// A query for one name, in whose labels any bytes may stand.
pub fn query(id: u16, name: &[u8], qtype: u16) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split(|&byte| byte == b'.').filter(|label| !label.is_empty()) {
        out.push(label.len() as u8);
        out.extend_from_slice(label);
    }
    out.push(0);
    out.extend_from_slice(&qtype.to_be_bytes());
    out.extend_from_slice(&[0, 1]);
    out
}

/// The answer to it: this code, and no records.
pub fn answer(query: &[u8], rcode: u8) -> Vec<u8> {
    let mut out = query.to_vec();
    out[2] |= 0x80;
    out[3] = 0x80 | rcode;
    out
}

/// With its length before it, as over TCP.
pub fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}
