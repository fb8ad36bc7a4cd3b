//! Processes: how they end, as their parent is told by the kernel.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use live_tests::ending::{SmallMemory, WAYS, tally};
use live_tests::{Agent, Running};

/// The `traffic` helper, which is about to end under this name.
fn ending(name: &str, way: &str) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_traffic"));
    // A panic would be another end than was asked for, and shows as one.
    Running::spawn(command.args(["end", name, way]).stdin(Stdio::piped()))
}

#[test]
fn each_end_is_counted_once_and_as_the_parent_is_told() {
    const EACH: usize = 40;
    let agent = Agent::start();
    let mut all = Vec::new();
    for way in WAYS {
        // Some at a time, so that threads of several are on their way out at once.
        let mut running: Vec<_> = (0..EACH).map(|_| ending("lt-ender", way)).collect();
        for one in &mut running {
            one.0.stdin.take().unwrap().write_all(b"\n").unwrap();
        }
        all.extend(running.iter_mut().map(|one| one.0.wait().unwrap()));
    }
    let all = tally(all);
    // What this test asks for is what came: 3, 7, and perhaps 5 are errors.
    assert_eq!((all[&("signal", "SIGSEGV")], all[&("signal", "SIG40")]), (EACH as u32, EACH as u32));
    assert!(all[&("ok", "")] >= 2 * EACH as u32 && all[&("error", "")] >= 2 * EACH as u32, "{all:?}");

    let metric = "process_exits_total";
    let wanted: Vec<_> = all
        .iter()
        .map(|((result, signal), count)| {
            let labels = [("service", "lt-ender"), ("result", *result), ("signal", *signal)];
            // A label without a value is none.
            let labels: Vec<_> = labels.into_iter().filter(|(_, value)| !value.is_empty()).collect();
            (labels, f64::from(*count))
        })
        .collect();
    let mut expected: Vec<(&str, live_tests::Labels<'_>, f64)> =
        wanted.iter().map(|(labels, count)| (metric, &labels[..], *count)).collect();
    let service = [("service", "lt-ender")];
    expected.push((metric, &service, (WAYS.len() * EACH) as f64));
    expected.push(("process_oom_kills_total", &service, 0.0));
    agent.expect_all(&expected);
    agent.expect_no_loss("process");
}

#[test]
fn a_process_that_takes_too_much_memory_is_an_oom_kill_and_one_that_was_only_killed_is_none() {
    let agent = Agent::start();
    let group = SmallMemory::new(32 << 20);
    let mut greedy = ending("lt-greedy", "memory");
    let mut victim = ending("lt-victim", "signal 9");
    group.add(greedy.pid());
    for one in [&mut greedy, &mut victim] {
        one.0.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert_eq!(one.0.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
    let killed = |service| [("service", service), ("result", "signal"), ("signal", "SIGKILL")];
    agent.expect_all(&[
        ("process_oom_kills_total", &[("service", "lt-greedy")], 1.0),
        ("process_exits_total", &killed("lt-greedy"), 1.0),
        ("process_oom_kills_total", &[("service", "lt-victim")], 0.0),
        ("process_exits_total", &killed("lt-victim"), 1.0),
    ]);
}
