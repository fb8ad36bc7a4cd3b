//! What the live tests share: a running agent, its page, real servers and real load.
//!
//! Each test has an agent of its own, on a free port and with a lock directory of its own, and tests never run at the same
//! time, not even when a harness starts them so: each [`Agent`] sees the traffic of all. Whatever a test starts ends with the
//! value that stands for it.
#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, and its panic says where"
)]

mod agent;
mod disk;
pub mod dns;
pub mod ending;
pub mod interrupts;
mod load;
mod mysql;
mod nginx;
mod page;
mod postgres;
mod proc;
mod protocol;
mod redis;
mod reference;
pub mod space;
mod wire;

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub use agent::{Agent, Refused, agent_binary};
pub use disk::Loop;
pub use load::{ab, curl, endless_wrk, wrk};
pub use mysql::Mysql;
pub use nginx::{Counted, Nginx};
pub use page::{Labels, Page, Sample};
pub use postgres::{Postgres, script};
pub use proc::{Proc, bpf_loaded, comm};
pub use protocol::{Protocol, protocols};
pub use redis::Redis;
pub use reference::{LADDER, Log2, Reference};
pub use wire::{Pair, listener};

/// Longer than anything takes here; whoever waits for it has found a bug.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Waits for a condition, and fails with what it is about when it does not come true in time.
pub fn wait_until(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + patience;
    while !condition() {
        assert!(Instant::now() < end, "after {patience:?} still not: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A process that ends with this value.
pub struct Running(pub Child);

impl Running {
    pub fn spawn(command: &mut Command) -> Self {
        // SAFETY: prctl is a system call and nothing else, as it has to be between fork and exec.
        unsafe {
            // Where the test is killed, nobody drops this; the kernel then sees to it.
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        let child = command.spawn();
        Self(child.unwrap_or_else(|error| {
            panic!("{command:?} does not start: {error}; `cargo xtask setup` installs what is missing")
        }))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: the child was not waited for, so the id is still its own.
        let sent = unsafe { libc::kill(self.pid() as libc::pid_t, signal) };
        assert_eq!(sent, 0, "no process {}", self.pid());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail where it has ended already.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Runs a command to its end, which must be a success; what it wrote to stdout.
pub fn run(command: &mut Command) -> String {
    let output = command.output();
    let output = output.unwrap_or_else(|error| {
        panic!("{command:?} does not start: {error}; `cargo xtask setup` installs what is missing")
    });
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stdout}\n{stderr}", output.status);
    stdout
}

/// A port that a server can take, below the ephemeral range: only such a port is a destination of its own on the page.
///
/// None is given twice, so that each server is another destination.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = 20_000 + (std::process::id() % 8_000) as u16;
    loop {
        let port = begin + NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(port < 32_000, "thousands of ports, and none is free");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Held by one agent at a time.
fn turn() -> File {
    let lock = File::create(std::env::temp_dir().join("perf-agent-live-tests.lock")).unwrap();
    lock.lock().unwrap();
    lock
}
