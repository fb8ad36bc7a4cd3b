//! Processes that end in every way there is.

use std::io::{self, Read as _, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result};
use live_tests::ending::{self, SmallMemory, WAYS};

use crate::metrics::Expected;
use crate::traffic::call_me;

pub(crate) const ENDER: &str = "vm-ender";
const EACH: usize = 4;

/// Waits for a byte, so that the parent can do something before, and ends.
pub(crate) fn end(way: &str) -> ! {
    call_me(ENDER);
    _ = io::stdin().read(&mut [0]);
    ending::end(way)
}

/// Has processes end, and says what the agent should have counted: what the kernel told their parent.
pub(crate) fn run() -> Result<Vec<Expected>> {
    let mut statuses = Vec::new();
    for way in WAYS {
        let children: Vec<Child> = (0..EACH).map(|_| start(way)).collect::<Result<_>>()?;
        for child in children {
            statuses.push(go(child)?);
        }
    }
    let group = SmallMemory::new(32 << 20);
    let greedy = start("memory")?;
    group.add(greedy.id());
    statuses.push(go(greedy)?);

    let service = ("service", ENDER);
    let mut expected = vec![
        Expected::of("process_exits_total", &[service], statuses.len() as f64),
        Expected::of("process_oom_kills_total", &[service], 1.0),
    ];
    for ((result, signal), count) in ending::tally(statuses) {
        let labels = [service, ("result", result), ("signal", signal)];
        let labels: Vec<_> = labels.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        expected.push(Expected::of("process_exits_total", &labels, count.into()));
    }
    Ok(expected)
}

fn start(way: &str) -> Result<Child> {
    Ok(Command::new(std::env::current_exe()?).args(["end", way]).stdin(Stdio::piped()).spawn()?)
}

fn go(mut child: Child) -> Result<ExitStatus> {
    child.stdin.take().context("piped")?.write_all(b"\n")?;
    Ok(child.wait()?)
}
