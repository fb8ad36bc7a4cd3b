//! Tools that engineers trust, run beside the agent on the same load.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::{Labels, Page, Running, wait_until};

/// Every bound that the agent can export, for `histogram.buckets`.
pub const LADDER: &str = concat!(
    "[",
    "1e-6, 1.25e-6, 1.6e-6, 2e-6, 2.5e-6, 3.15e-6, 4e-6, 5e-6, 6.3e-6, 8e-6, ",
    "1e-5, 1.25e-5, 1.6e-5, 2e-5, 2.5e-5, 3.15e-5, 4e-5, 5e-5, 6.3e-5, 8e-5, ",
    "1e-4, 1.25e-4, 1.6e-4, 2e-4, 2.5e-4, 3.15e-4, 4e-4, 5e-4, 6.3e-4, 8e-4, ",
    "1e-3, 1.25e-3, 1.6e-3, 2e-3, 2.5e-3, 3.15e-3, 4e-3, 5e-3, 6.3e-3, 8e-3, ",
    "1e-2, 1.25e-2, 1.6e-2, 2e-2, 2.5e-2, 3.15e-2, 4e-2, 5e-2, 6.3e-2, 8e-2, ",
    "1e-1, 1.25e-1, 1.6e-1, 2e-1, 2.5e-1, 3.15e-1, 4e-1, 5e-1, 6.3e-1, 8e-1, ",
    "1e0, 1.25e0, 1.6e0, 2e0, 2.5e0, 3.15e0, 4e0, 5e0, 6.3e0, 8e0, ",
    "1e1, 1.25e1, 1.6e1, 2e1, 2.5e1, 3.15e1, 4e1, 5e1, 6.3e1, 8e1, ",
    "1e2",
    "]"
);

/// By how much such a tool takes a time later than the agent, in seconds: it reads a clock of its own in a hook of its own.
const LATER: f64 = 3e-6;

/// The largest step of that ladder.
const STEP: f64 = 1.28;

/// One of the libbpf-tools that print a histogram of powers of two when they are interrupted.
pub struct Reference(Running);

/// What it counted: the inclusive bounds of each bucket in microseconds, and how many fell into it.
#[derive(Debug)]
pub struct Log2(pub Vec<(u64, u64, u64)>);

impl Reference {
    /// Returns when the tool says that it traces.
    pub fn start(program: &str, arguments: &[&str]) -> Self {
        // Its output is a pipe, which it would fill before it says anything, so it gets a line-buffered one.
        let mut command = Command::new("stdbuf");
        command.arg("-oL").arg(program).args(arguments).stdout(Stdio::piped());
        let mut running = Running::spawn(&mut command);
        let stdout = running.0.stdout.as_mut().unwrap();
        let mut said = Vec::new();
        while !said.ends_with(b"\n") {
            let mut byte = [0];
            assert_eq!(
                stdout.read(&mut byte).unwrap(),
                1,
                "{program} ended: {}",
                String::from_utf8_lossy(&said)
            );
            said.extend(byte);
        }
        let said = String::from_utf8_lossy(&said);
        assert!(said.starts_with("Tracing"), "{program} said {said:?}");
        Self(running)
    }

    /// Interrupts it and reads what it prints then.
    pub fn stop(mut self) -> Log2 {
        self.0.signal(libc::SIGINT);
        let mut text = String::new();
        self.0.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        wait_until("the tool ends", Duration::from_secs(10), || self.0.0.try_wait().unwrap().is_some());
        Log2::read(&text)
    }
}

impl Log2 {
    /// Reads lines such as `       128 -> 255        : 17       |***      |`.
    fn read(text: &str) -> Self {
        let row = |line: &str| {
            let (range, rest) = line.split_once(" : ")?;
            let (low, high) = range.split_once(" -> ")?;
            let count = rest.split_whitespace().next()?;
            Some((low.trim().parse().ok()?, high.trim().parse().ok()?, count.parse().ok()?))
        };
        Self(text.lines().filter_map(row).collect())
    }

    pub fn count(&self) -> u64 {
        self.0.iter().map(|(_, _, count)| count).sum()
    }

    /// Between which seconds a quantile lies.
    pub fn quantile(&self, q: f64) -> (f64, f64) {
        let rank = q * self.count() as f64;
        let mut below = 0;
        for (low, high, count) in &self.0 {
            below += count;
            if below as f64 >= rank {
                return (*low as f64 / 1e6, (*high + 1) as f64 / 1e6);
            }
        }
        panic!("no quantile {q} of {:?}", self.0);
    }

    /// The median and the 99th percentile of a histogram of [`LADDER`]'s are in the same bucket or one step from it.
    pub fn assert_quantiles(&self, page: &Page, histogram: &str, labels: Labels<'_>) {
        for q in [0.5, 0.99] {
            // Where few are in between, half a percent more or less is another bucket.
            let (low, high) = (self.quantile(q - 0.005).0, self.quantile(q + 0.005).1);
            let ours = page.quantile(histogram, labels, q);
            assert!(
                ours >= low / STEP - LATER && ours <= high * STEP,
                "p{q}: {ours} s, not between {low} and {high} s: {self:?}"
            );
        }
    }
}
