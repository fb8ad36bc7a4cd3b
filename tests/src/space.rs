//! A network namespace of a test's own.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::thread;

use crate::run;

/// With a loopback device and nothing else; gone with the value.
pub struct Space(String);

impl Space {
    pub fn new() -> Self {
        let space = Self(format!("live-tests-{}", std::process::id()));
        run(Command::new("ip").args(["netns", "add", &space.0]));
        run(Command::new("ip").args(["-n", &space.0, "link", "set", "lo", "up"]));
        space
    }

    /// What the kernel calls it.
    pub fn inode(&self) -> u64 {
        fs::metadata(path(&self.0)).unwrap().ino()
    }

    /// Does something there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(&self.0, work)
    }
}

impl Default for Space {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// Does something in the network namespace of this name; in a thread of its own, because it is threads that are in one.
pub fn inside<T: Send>(space: &str, work: impl FnOnce() -> T + Send) -> T {
    let enter = || {
        let space = File::open(path(space)).unwrap();
        // SAFETY: a live descriptor of a network namespace.
        let entered = unsafe { libc::setns(space.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(entered, 0, "{}", std::io::Error::last_os_error());
    };
    thread::scope(|scope| {
        let there = scope.spawn(|| {
            enter();
            work()
        });
        there.join().unwrap()
    })
}

fn path(space: &str) -> String {
    format!("/run/netns/{space}")
}

/// A counter of `/proc/net/snmp` in the calling thread's network namespace: `snmp("Udp", "NoPorts")`.
pub fn snmp(protocol: &str, counter: &str) -> f64 {
    counter_of("snmp", protocol, counter)
}

/// The same of `/proc/net/netstat`.
pub fn netstat(group: &str, counter: &str) -> f64 {
    counter_of("netstat", group, counter)
}

fn counter_of(file: &str, group: &str, counter: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(group)?.strip_prefix(": "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|name| name == counter).unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}
