//! Ways in which a process can end, and what its parent is told: for what is counted when it does.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::thread;
use std::time::Duration;

use crate::wait_until;

/// Every way but running out of memory; [`end`] knows each.
pub const WAYS: [&str; 9] = [
    "code 0",
    "code 3",
    "signal 9",
    "signal 11",
    "signal 15",
    "signal 40",
    // A thread that is not the first ends the process, while others sleep.
    "thread 0",
    "thread 7",
    // The first thread leaves with a code of its own, others go on, and the last one leaves with another.
    "last 5",
];

/// Ends this process, as one of [`WAYS`] says, or by allocating more than it may (`memory`).
pub fn end(way: &str) -> ! {
    let (how, number) = way.split_once(' ').unwrap_or((way, "0"));
    let number: libc::c_int = number.parse().unwrap();
    match how {
        "code" => std::process::exit(number),
        "signal" => {
            // SAFETY: the default actions, and a signal for this process.
            unsafe {
                // The runtime has a handler for some of them, and nobody wants a core.
                libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 });
                libc::signal(number, libc::SIG_DFL);
                libc::raise(number);
            }
        }
        "thread" => {
            for _ in 0..7 {
                thread::spawn(|| thread::sleep(Duration::from_mins(1)));
            }
            thread::spawn(move || std::process::exit(number));
        }
        "last" => {
            for late in [0, 1, 1, 1] {
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(5 + 5 * late));
                    leave(number);
                });
            }
            leave(3);
        }
        "memory" => {
            let mut all = Vec::new();
            for _ in 0..1024 {
                all.push(vec![1_u8; 1 << 20]);
            }
            panic!("{} MiB of memory, and nobody minds", all.len());
        }
        _ => panic!("no way to end: {way}"),
    }
    // Somebody else ends the process.
    thread::sleep(Duration::from_mins(1));
    panic!("{way} did not end this process")
}

/// Ends this thread and nothing else, without the library's help, which would end the process with 0.
fn leave(code: libc::c_int) -> ! {
    // SAFETY: the thread holds nothing that others wait for.
    unsafe { libc::syscall(libc::SYS_exit, code) };
    unreachable!("a thread that has left goes on")
}

/// The labels `result` and `signal` of a process that ended so.
pub fn labels(status: ExitStatus) -> (&'static str, &'static str) {
    match (status.code(), status.signal()) {
        (Some(0), _) => ("ok", ""),
        (Some(_), _) => ("error", ""),
        (None, Some(libc::SIGKILL)) => ("signal", "SIGKILL"),
        (None, Some(libc::SIGSEGV)) => ("signal", "SIGSEGV"),
        (None, Some(libc::SIGTERM)) => ("signal", "SIGTERM"),
        (None, Some(40)) => ("signal", "SIG40"),
        (None, other) => panic!("killed by {other:?}, of all signals"),
    }
}

/// How often each of them came.
pub fn tally(statuses: impl IntoIterator<Item = ExitStatus>) -> BTreeMap<(&'static str, &'static str), u32> {
    let mut tally = BTreeMap::new();
    for status in statuses {
        *tally.entry(labels(status)).or_insert(0) += 1;
    }
    tally
}

/// A control group with little memory, gone with the value; its processes have to be gone by then.
pub struct SmallMemory(PathBuf);

impl SmallMemory {
    /// In the hierarchy that has the memory controller on this host.
    pub fn new(bytes: u64) -> Self {
        let (v1, root) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
        let name = format!("live-tests-{}", std::process::id());
        let group = Self(if v1.exists() { v1.join(name) } else { root.join(name) });
        fs::create_dir(&group.0).unwrap();
        if v1.exists() {
            group.write("memory.limit_in_bytes", bytes);
            group.write("memory.swappiness", 0);
        } else {
            // Where systemd runs, it has done so already.
            fs::write(root.join("cgroup.subtree_control"), "+memory").unwrap();
            group.write("memory.max", bytes);
            group.write("memory.swap.max", 0);
        }
        group
    }

    /// Takes in a process.
    pub fn add(&self, pid: u32) {
        self.write("cgroup.procs", pid.into());
    }

    fn write(&self, file: &str, value: u64) {
        let path = self.0.join(file);
        // Without swap the kernel has no file for it.
        if file.starts_with("memory.swap.") && !path.exists() {
            return;
        }
        fs::write(&path, value.to_string()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

impl Drop for SmallMemory {
    fn drop(&mut self) {
        let gone = || fs::remove_dir(&self.0).is_ok() || !self.0.exists();
        if thread::panicking() {
            gone();
        } else {
            wait_until("the control group is removed", Duration::from_secs(5), gone);
        }
    }
}
