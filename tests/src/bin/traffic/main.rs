//! Processes with a name of their own, for what the agent counts per workload.
//!
//!     traffic spin NAME                   computes on CPU 0 for ever
//!     traffic end NAME WAY                waits for a byte, then ends in one of `live_tests::ending::WAYS`
//!     traffic lock NAME MILLISECONDS      has a thread wait for a lock for so long, when it gets a line
//!     traffic serve NAME CPUS DISK        answers HTTP on the port that it says; CPUS is 0, or any for all of them
//!     traffic swallow NAME PORT           accepts whatever comes, and keeps it
//!     traffic open NAME PORT COUNT        opens so many connections, and keeps them until its input ends
//!     traffic nap NAME ROUNDS             sleeps so many times for a moment, says so, and waits for its input to end
#![allow(clippy::print_stdout, reason = "stdout is read by the test")]

mod serve;

use std::hint::black_box;
use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Result, bail};
use live_tests::ending::end;
use socket2::{Domain, Socket, Type};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["spin", name] => {
            call_me(name);
            pin();
            println!("ready");
            for n in 0_u64.. {
                black_box(n);
            }
            Ok(())
        }
        ["nap", name, rounds] => {
            call_me(name);
            println!("ready");
            wait_for_byte()?;
            for _ in 0..rounds.parse()? {
                sleep(Duration::from_micros(50));
            }
            println!("done");
            wait_for_byte()
        }
        ["serve", name, cpus, disk] => {
            call_me(name);
            if *cpus == "0" {
                pin();
            }
            serve::serve(disk)
        }
        ["swallow", name, port] => {
            call_me(name);
            take_all_descriptors();
            let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            listener.bind(&SocketAddr::from(([127, 0, 0, 1], port.parse()?)).into())?;
            listener.listen(4096)?;
            println!("ready");
            let mut kept = Vec::new();
            loop {
                kept.push(listener.accept()?);
            }
        }
        ["open", name, port, count] => {
            call_me(name);
            take_all_descriptors();
            let port: u16 = port.parse()?;
            let open = |_| TcpStream::connect(("127.0.0.1", port));
            let kept: Vec<_> = (0..count.parse::<u32>()?).map(open).collect::<Result<_, _>>()?;
            println!("ready");
            wait_for_byte()?;
            drop(kept);
            Ok(())
        }
        ["end", name, way] => {
            call_me(name);
            wait_for_byte()?;
            end(way)
        }
        ["lock", name, milliseconds] => {
            call_me(name);
            let span = Duration::from_millis(milliseconds.parse()?);
            let lock = Mutex::new(());
            println!("ready");
            wait_for_byte()?;
            let held = lock.lock().unwrap_or_else(PoisonError::into_inner);
            thread::scope(|scope| {
                scope.spawn(|| drop(lock.lock()));
                // Pretends to have work to do.
                sleep(span);
                drop(held);
            });
            println!("done");
            wait_for_byte()
        }
        _ => bail!(
            "usage: traffic spin NAME | traffic nap NAME ROUNDS | traffic lock NAME MILLISECONDS | traffic serve NAME CPUS DISK | traffic swallow NAME PORT | traffic open NAME PORT COUNT | traffic end NAME WAY"
        ),
    }
}

fn wait_for_byte() -> Result<()> {
    io::stdin().read_exact(&mut [0])?;
    Ok(())
}

/// As many open files as this process may have.
fn take_all_descriptors() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live struct, to be written to and to be read.
    let taken = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
    };
    assert_eq!(taken, 0, "{}", io::Error::last_os_error());
}

/// All on one CPU, so that they wait for each other.
fn pin() {
    // SAFETY: a set of all zeros is one, and CPU 0 is in it.
    let pinned = unsafe {
        let mut cpus: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut cpus);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const cpus)
    };
    assert_eq!(pinned, 0, "{}", io::Error::last_os_error());
}

/// Sets this process' `comm`, which names its workload.
fn call_me(name: &str) {
    let mut comm = [0_u8; 16];
    for (to, from) in comm.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    // SAFETY: PR_SET_NAME reads at most 16 bytes up to a NUL, and the last byte is one.
    unsafe { libc::prctl(libc::PR_SET_NAME, comm.as_ptr()) };
    // Whose a CPU is, is asked when it is given: from here on it is that name's.
    sleep(Duration::from_millis(1));
}
