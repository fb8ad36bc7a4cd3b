//! Block I/O: as the kernel's own statistics of a device have it, and as biolatency has.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "how near the numbers are is worth seeing")]

use std::process::Command;

use live_tests::{Agent, LADDER, Labels, Loop, Page, Reference, run};
use tempfile::TempDir;

const READS: u64 = 2000;
const WRITES: u64 = 500;
const BLOCK: u64 = Loop::BLOCK;

#[test]
fn requests_and_bytes_are_those_of_the_devices_own_statistics_and_the_time_is_too() {
    let device = Loop::new(None, 64 << 20);
    let agent = Agent::start();
    let before = device.statistics();
    // With a scheduler, which is what hands the requests on, and without.
    for scheduler in ["none", "mq-deadline"] {
        device.schedule(scheduler);
        device.write(WRITES / 2);
        device.read(READS / 2);
    }
    let of = |operation| [("service", "dd"), ("device", device.name.as_str()), ("operation", operation)];
    let (reads, writes) = (of("read"), of("write"));
    let page = agent.expect_all(&[
        ("block_io_duration_seconds_count", &reads, READS as f64),
        ("block_io_queue_duration_seconds_count", &reads, READS as f64),
        ("block_io_bytes_total", &reads, (READS * BLOCK) as f64),
        ("block_io_duration_seconds_count", &writes, WRITES as f64),
        ("block_io_bytes_total", &writes, (WRITES * BLOCK) as f64),
        ("block_io_errors_total", &[("service", "dd")], 0.0),
    ]);
    // All services: udev looks at a device as well when it is opened for writing.
    let after = device.statistics();
    let all: Labels<'_> = &[("device", &device.name)];
    for (at, operation) in ["read", "write"].into_iter().enumerate() {
        let labels = [all, &[("operation", operation)]].concat();
        let kernel = after[4 * at] - before[4 * at];
        assert_eq!(
            page.sum("block_io_duration_seconds_count", &labels).to_bits(),
            kernel.to_bits(),
            "{operation}s"
        );
        let sectors = after[4 * at + 2] - before[4 * at + 2];
        assert_eq!(
            page.sum("block_io_bytes_total", &labels).to_bits(),
            (sectors * 512.0).to_bits(),
            "{operation}"
        );
    }
    let (ours, kernel) = (took(&page, all), (after[3] + after[7] - before[3] - before[7]) / 1e3);
    println!("{ours:.3} s reported, {kernel:.3} s by the kernel");
    // It takes the time a moment later for each request, and rounds both sums to milliseconds.
    let later = 0.002 + (READS + WRITES) as f64 * 1e-5;
    assert!(ours <= kernel + 0.002 && kernel <= ours + later, "{ours} s, not {kernel} s");
    agent.expect_no_loss("disk");
}

#[test]
fn count_and_quantiles_are_those_of_biolatency() {
    let device = Loop::new(None, 64 << 20);
    let agent = Agent::with(&format!("histogram: {{buckets: {LADDER}}}"));
    let reference = Reference::start("biolatency", &["-d", &device.name]);
    device.write(WRITES);
    device.read(READS);
    let theirs = reference.stop();
    let labels = [("device", device.name.as_str())];
    let page = agent.page();
    let ours = page.sum("block_io_duration_seconds_count", &labels);
    println!("{ours} reported, {} by biolatency", theirs.count());
    assert!(ours >= (READS + WRITES) as f64);
    assert_eq!(ours.to_bits(), (theirs.count() as f64).to_bits(), "{theirs:?}");
    theirs.assert_quantiles(&page, "block_io_duration_seconds", &labels);
}

#[test]
fn what_fails_is_an_error_and_no_bytes() {
    // The file behind the device does not fit into its file system: what is written beyond fails.
    let small = Mount::new("tmpfs", "size=1m");
    let device = Loop::new(Some(small.dir.path()), 16 << 20);
    let agent = Agent::start();
    let status =
        Loop::dd(&["if=/dev/zero", &format!("of={}", device.path()), "oflag=direct", "bs=64k", "count=64"])
            .status();
    assert!(!status.unwrap().success(), "everything was written");
    let labels = [("service", "dd"), ("device", device.name.as_str()), ("operation", "write")];
    let page = agent.expect("block_io_errors_total", &labels, 1.0);
    let (all, bytes) =
        (page.sum("block_io_duration_seconds_count", &labels), page.sum("block_io_bytes_total", &labels));
    assert!(all > 1.0, "nothing was written before it failed");
    assert_eq!(bytes.to_bits(), ((all - 1.0) * BLOCK as f64).to_bits());
}

fn took(page: &Page, labels: Labels<'_>) -> f64 {
    page.sum("block_io_duration_seconds_sum", labels)
        + page.sum("block_io_queue_duration_seconds_sum", labels)
}

/// A file system of the test's own.
struct Mount {
    dir: TempDir,
}

impl Mount {
    fn new(kind: &str, options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        run(Command::new("mount").args(["-t", kind, "-o", options, kind]).arg(dir.path()));
        Self { dir }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        _ = Command::new("umount").arg("--lazy").arg(self.dir.path()).status();
    }
}
