//! A server that answers one connection at a time, and takes its time for what the path says.
//!
//!     /cpu/MS          computes
//!     /sleep/MS        sleeps
//!     /lock/MS         waits for a lock that another thread holds so long
//!     /downstream/MS   asks a server of its own, which takes so long
//!     /disk/READS      reads so many blocks of the file that it was started with, past the page cache

use std::fs::OpenOptions;
use std::hint::black_box;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

pub(crate) fn serve(disk: &str) -> Result<()> {
    let downstream = TcpListener::bind("127.0.0.1:0")?;
    let downstream_at = downstream.local_addr()?;
    // Not HTTP, so that its requests are none: a byte of milliseconds, and one back.
    thread::Builder::new().name("downstream".to_owned()).spawn(move || -> Result<()> {
        loop {
            let (mut stream, _) = downstream.accept()?;
            let mut milliseconds = [0];
            stream.read_exact(&mut milliseconds)?;
            sleep(Duration::from_millis(milliseconds[0].into()));
            stream.write_all(b".")?;
        }
    })?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some((what, amount)) = request(&mut reader)? {
            let span = Duration::from_millis(amount.into());
            match what.as_str() {
                "cpu" => compute(span),
                "sleep" => sleep(span),
                "lock" => wait_for_lock(span),
                "downstream" => {
                    let mut stream = TcpStream::connect(downstream_at)?;
                    stream.write_all(&[u8::try_from(amount)?])?;
                    stream.read_exact(&mut [0])?;
                }
                "disk" => read(disk, amount)?,
                _ => bail!("{what}?"),
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
        }
    }
}

/// The two parts of the path; `None` where the client has closed.
fn request(reader: &mut BufReader<TcpStream>) -> Result<Option<(String, u32)>> {
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line)?;
    }
    let path = first.split(' ').nth(1).context("no path")?;
    let (what, amount) = path.trim_start_matches('/').split_once('/').context("no amount")?;
    Ok(Some((what.to_owned(), amount.parse()?)))
}

/// So much time on a CPU, however long that takes.
fn compute(span: Duration) {
    let begin = on_cpu();
    while on_cpu().saturating_sub(begin) < span {
        (0..1000).for_each(|n| _ = black_box(n));
    }
}

/// What the calling thread has run so far.
fn on_cpu() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live struct to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn wait_for_lock(span: Duration) {
    let lock = Mutex::new(());
    let (held, holds) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            let _guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = Instant::now();
            held.send(()).ok();
            sleep(span.saturating_sub(begin.elapsed()));
        });
        holds.recv().ok();
        drop(lock.lock());
    });
}

fn read(disk: &str, blocks: u32) -> Result<()> {
    const BLOCK: usize = 4096;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(disk)?;
    let mut buffer = vec![0_u8; 2 * BLOCK];
    let aligned = buffer.as_ptr().align_offset(BLOCK);
    let block = buffer.get_mut(aligned..aligned + BLOCK).context("aligned")?;
    for n in 0..blocks {
        let at = (n as usize % 1024 * BLOCK) as libc::off_t;
        // SAFETY: a live buffer of that length.
        let got = unsafe { libc::pread(file.as_raw_fd(), block.as_mut_ptr().cast(), BLOCK, at) };
        if got != BLOCK as isize {
            bail!("{disk}: {}", std::io::Error::last_os_error());
        }
    }
    Ok(())
}
