//! CPU time to the nanosecond. /proc has it in steps of 10 ms, which is more than a scrape takes.

use std::fs;
use std::io;
use std::mem::zeroed;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Counts the CPU time that a process or a thread has used.
#[derive(Clone, Copy)]
pub(super) struct Clock(libc::clockid_t);

impl Clock {
    /// All threads of a process.
    pub(super) fn of_process(pid: u32) -> Result<Self> {
        let mut clock = 0;
        // SAFETY: writes one live integer.
        match unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &raw mut clock) } {
            0 => Ok(Self(clock)),
            error => Err(io::Error::from_raw_os_error(error))
                .with_context(|| format!("the CPU clock of process {pid}")),
        }
    }

    /// Whichever thread reads it.
    pub(super) const THIS_THREAD: Self = Self(libc::CLOCK_THREAD_CPUTIME_ID);

    pub(super) fn now(self) -> Result<Duration> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes one live struct.
        if unsafe { libc::clock_gettime(self.0, &raw mut time) } != 0 {
            return Err(io::Error::last_os_error())
                .context("a CPU clock cannot be read: did its process end?");
        }
        Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }
}

/// The sum of several clocks.
pub(super) fn sum(clocks: &[Clock]) -> Result<Duration> {
    clocks.iter().map(|clock| clock.now()).sum()
}

/// The CPU time of all children of this process that have ended.
pub(super) fn ended_children() -> Result<Duration> {
    // SAFETY: integers, for which all zero is a value.
    let mut usage: libc::rusage = unsafe { zeroed() };
    // SAFETY: writes one live struct.
    if unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) } != 0 {
        return Err(io::Error::last_os_error()).context("the CPU time of children cannot be read");
    }
    let duration = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    Ok(duration(usage.ru_utime) + duration(usage.ru_stime))
}

/// The CPU time of a process and of its children that have ended, to 10 ms.
pub(super) fn with_ended_children(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    // The name, in parentheses, may hold anything; the times are the 14th to 17th field, the 12th to 15th behind it.
    let behind = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks = behind.split(' ').skip(11).take(4).map(str::parse::<u64>);
    let ticks: u64 = ticks.sum::<Result<_, _>>().with_context(|| format!("{path} tells no times"))?;
    // SAFETY: no arguments that point anywhere.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

/// The children of a process that has one thread, such as nginx.
pub(super) fn children(pid: u32) -> Result<Vec<u32>> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    Ok(text.split_whitespace().filter_map(|child| child.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Instant;

    use super::*;

    #[test]
    fn clocks_run_with_work() {
        let clocks = [Clock::of_process(std::process::id()).unwrap(), Clock::THIS_THREAD];
        let (begun, start) = (clocks.map(|clock| clock.now().unwrap()), Instant::now());
        // The kernel brings a process's sum up to date at its ticks only, so both are waited for.
        let behind =
            |i: usize, ms| clocks[i].now().unwrap().saturating_sub(begun[i]) < Duration::from_millis(ms);
        while behind(1, 40) || behind(0, 20) {
            assert!(start.elapsed() < Duration::from_secs(30), "a clock stands still");
        }
        assert!(with_ended_children(std::process::id()).unwrap() >= Duration::from_millis(10));
        assert!(with_ended_children(u32::MAX).is_err());
        // One more than the most that the kernel gives out.
        assert!(Clock::of_process(4_194_305).is_err());
    }

    #[test]
    fn finds_children_and_what_they_used() {
        let before = ended_children().unwrap();
        let mut child =
            Command::new("sh").args(["-c", "read x"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        // The thread that started it is its parent in this list.
        let tid = fs::read_link("/proc/thread-self").unwrap();
        let list = fs::read_to_string(format!("/proc/{}/children", tid.display())).unwrap();
        assert!(list.split_whitespace().any(|pid| pid == child.id().to_string()), "{list}");
        assert!(children(child.id()).unwrap().is_empty());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(ended_children().unwrap() > before);
    }
}
