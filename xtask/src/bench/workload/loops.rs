//! Loops of our own, each on a thread that is pinned and then gone.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _, stdin, stdout};
use std::mem::{size_of, zeroed};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio, id};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use live_tests::Loop;

use crate::bench::cpu::{self, Clock};
use crate::bench::pairs::Slot;
use crate::process::command;

/// Between looks at the clock.
const BATCH: u32 = 256;

pub(super) fn file(cpu: usize, slot: Duration) -> Result<Slot> {
    let path = PathBuf::from(format!("/dev/shm/perf-agent-bench-{}", id()));
    let file = OpenOptions::new().create_new(true).read(true).write(true).open(&path);
    let file = file.with_context(|| format!("creating {}", path.display()))?;
    // Nothing is left of it, however this ends.
    fs::remove_file(&path)?;
    let mut page = [1_u8; 4096];
    pinned(cpu, || {
        turns(slot, &[Clock::THIS_THREAD], || {
            file.write_all_at(&page, 0)?;
            Ok(file.read_exact_at(&mut page, 0)?)
        })
    })
}

pub(super) fn disk(cpu: usize, slot: Duration) -> Result<Slot> {
    let device = Loop::new(Some(Path::new("/dev/shm")), DISK);
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(device.path())?;
    let pages = vec![[0_u8; PAGE]; 2];
    let mut pages = pages.concat();
    // Such reads want whole pages.
    let aligned = pages.as_ptr().align_offset(PAGE);
    let page = pages.get_mut(aligned..aligned + PAGE).context("aligned")?;
    pinned(cpu, || {
        let mut at = 0;
        turns(slot, &[Clock::THIS_THREAD], || {
            at = (at + PAGE as u64) % DISK;
            Ok(file.read_exact_at(page, at)?)
        })
    })
}

const PAGE: usize = 4096;
/// Bytes of the block device.
const DISK: u64 = 16 << 20;

pub(super) fn connections(cpu: usize, slot: Duration) -> Result<Slot> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    pinned(cpu, || {
        turns(slot, &[Clock::THIS_THREAD], || {
            let client = TcpStream::connect(address)?;
            // The server closes first, so that it is its own port that is kept for a while, and not the client's.
            drop(listener.accept()?);
            drop(client);
            Ok(())
        })
    })
}

pub(super) fn pipe(cpu: usize, peer: usize, slot: Duration) -> Result<Slot> {
    pinned(cpu, || {
        let mut echo = command(std::env::current_exe()?);
        echo.args(["bench", "echo", "--cpu", &peer.to_string()]);
        let mut echo = Echo(echo.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
        let clock = Clock::of_process(echo.0.id())?;
        let mut to = echo.0.stdin.take().context("the child has a pipe")?;
        let mut from = echo.0.stdout.take().context("the child has a pipe")?;
        let mut turn = || {
            to.write_all(&[1])?;
            from.read_exact(&mut [0]).context("the other end of the pipe ended")
        };
        // The first answer comes when the child has started and pinned itself.
        turn()?;
        turns(slot, &[Clock::THIS_THREAD, clock], turn)
    })
}

/// The other process of [`pipe`], until its stdin ends.
pub(crate) fn echo(cpu: usize) -> Result<()> {
    pin(cpu)?;
    // Files, because the handles of std are buffered.
    let mut from = File::from(stdin().as_fd().try_clone_to_owned()?);
    let mut to = File::from(stdout().as_fd().try_clone_to_owned()?);
    let mut byte = [0];
    loop {
        match from.read_exact(&mut byte) {
            Ok(()) => to.write_all(&byte)?,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The CPUs that this process may use.
pub(crate) fn cpus() -> Vec<usize> {
    // SAFETY: a set of bits, for which all zero is a value.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: a live set of this size.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    if result != 0 {
        return vec![0];
    }
    // SAFETY: a live set, and CPUs below its size.
    (0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect()
}

/// Ends with the value, also where an error leaves early.
struct Echo(Child);

impl Drop for Echo {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn turns(slot: Duration, clocks: &[Clock], mut turn: impl FnMut() -> Result<()>) -> Result<Slot> {
    let (start, used, mut turns) = (Instant::now(), cpu::sum(clocks)?, 0);
    while start.elapsed() < slot {
        for _ in 0..BATCH {
            turn()?;
        }
        turns += BATCH;
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(Slot {
        operations: f64::from(turns),
        seconds,
        cpu_seconds: cpu::sum(clocks)?.saturating_sub(used).as_secs_f64(),
    })
}

/// Runs it on a thread of its own on one CPU, so that this thread keeps all of them.
fn pinned<R: Send>(cpu: usize, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    let working = || {
        pin(cpu)?;
        work()
    };
    thread::scope(|scope| scope.spawn(working).join().map_err(|_| anyhow!("the loop panicked"))?)
}

/// Binds this thread to a CPU.
fn pin(cpu: usize) -> Result<()> {
    // SAFETY: a set of bits, for which all zero is a value.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: a live set; a CPU beyond it is ignored, and the call below then fails.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: a live set of this size.
    if unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) } != 0 {
        return Err(std::io::Error::last_os_error()).with_context(|| format!("binding to CPU {cpu}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_turns_and_reports_errors() {
        let mut count = 0_u32;
        let slot = turns(Duration::from_millis(20), &[Clock::THIS_THREAD], || {
            count += 1;
            thread::sleep(Duration::from_micros(10));
            Ok(())
        });
        let slot = slot.unwrap();
        assert!(count > 0 && count.is_multiple_of(BATCH), "{count}");
        assert!((slot.operations - f64::from(count)).abs() < 1e-9);
        // A turn sleeps 10 µs at least, which is no CPU time.
        assert!(slot.seconds >= f64::from(count) * 10e-6 && slot.seconds >= 0.02, "{slot:?}");
        assert!(slot.cpu_seconds > 0.0 && slot.cpu_seconds < slot.seconds, "{slot:?}");
        assert!(turns(Duration::from_secs(1), &[], || Err(anyhow!("no"))).is_err());
    }

    #[test]
    fn a_loop_leaves_the_callers_cpus_alone() {
        let before = cpus();
        let slot = file(*before.last().unwrap(), Duration::from_millis(5)).unwrap();
        assert!(slot.operations > 0.0);
        assert_eq!(cpus(), before);
    }
}
