//! A Redis server of a test's own.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::{PATIENCE, Running, free_port, run, wait_until};

/// A server on a port of loopback that keeps nothing.
pub struct Redis {
    pub port: u16,
    running: Running,
    _dir: TempDir,
}

impl Redis {
    pub fn start() -> Self {
        let (port, dir) = (free_port(), tempfile::tempdir().unwrap());
        let mut server = Command::new("redis-server");
        server.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        server.arg("--dir").arg(dir.path()).stdout(Stdio::null());
        let running = Running::spawn(&mut server);
        wait_until("Redis takes connections", PATIENCE, || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { port, running, _dir: dir }
    }

    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    pub fn cli(&self, arguments: &[&str]) -> String {
        run(Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(arguments))
    }

    /// What the server has done since `CONFIG RESETSTAT`, by verb in capitals.
    pub fn done(&self) -> BTreeMap<String, f64> {
        let stats = self.cli(&["INFO", "commandstats"]);
        let lines = stats.lines().filter_map(|line| line.strip_prefix("cmdstat_"));
        lines
            .map(|line| {
                let (verb, rest) = line.split_once(":calls=").unwrap();
                let verb = verb.split('|').next().unwrap().to_uppercase();
                (verb, rest.split(',').next().unwrap().parse().unwrap())
            })
            .fold(BTreeMap::new(), |mut all, (verb, calls): (String, f64)| {
                *all.entry(verb).or_default() += calls;
                all
            })
    }

    pub fn destination(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn benchmark(&self, arguments: &[&str]) {
        run(Command::new("redis-benchmark").args(["-p", &self.port.to_string(), "-q"]).args(arguments));
    }
}
