//! The scheduler: waiting, running and switching, as the kernel's own accounts of each process have them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "how near the numbers are is worth seeing")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use live_tests::{Agent, Page, Proc, Running};

/// Long enough for the error of the clock at both ends to be far below a percent.
const SPAN: Duration = Duration::from_secs(5);

#[test]
fn waiting_and_running_of_two_that_share_a_cpu_are_what_the_kernel_says() {
    let agent = Agent::start();
    let both = [Traffic::start(&["spin", "lt-spinner"]), Traffic::start(&["spin", "lt-spinner"])];
    let account = || {
        let page = agent.page();
        let both = both.each_ref().map(|one| Proc::of(one.process.pid()).schedstat());
        (page, both[0].0 + both[1].0, both[0].1 + both[1].1)
    };
    let labels = [("service", "lt-spinner")];
    let (page, ran, waited) = account();
    sleep(SPAN);
    let (later, ran_later, waited_later) = account();
    let cpu = later.sum("sched_cpu_seconds_total", &labels) - page.sum("sched_cpu_seconds_total", &labels);
    let latency = "sched_run_queue_latency_seconds_sum";
    let latency = later.sum(latency, &labels) - page.sum(latency, &labels);
    assert_near("run-queue latency", latency, waited_later - waited);
    assert_near("CPU time", cpu, ran_later - ran);
    assert!(waited_later - waited > SPAN.as_secs_f64() / 2.0, "they did not wait for each other");
}

#[test]
fn a_task_that_never_stops_running_is_counted_while_it_runs() {
    let agent = Agent::start();
    let one = Traffic::start(&["spin", "lt-alone"]);
    let labels = [("service", "lt-alone")];
    let account = || {
        let page = agent.page();
        (page.sum("sched_cpu_seconds_total", &labels), Proc::of(one.process.pid()).schedstat().0)
    };
    let mut before = account();
    let begin = before;
    for _ in 0..10 {
        sleep(SPAN / 10);
        let now = account();
        assert!(
            now.0 > before.0,
            "nothing was added in {:?}, though the kernel counted {} s",
            SPAN / 10,
            now.1 - before.1
        );
        before = now;
    }
    assert_near("CPU time", before.0 - begin.0, before.1 - begin.1);
}

#[test]
fn switches_are_counted_to_the_switch() {
    const ROUNDS: f64 = 10_000.0;
    let agent = Agent::start();
    let mut napper = Traffic::start(&["nap", "lt-napper", "10000"]);
    // At both ends it blocks reading its input, so what is counted stands still while it is compared.
    let account = |napper: &Traffic| {
        let process = Proc::of(napper.process.pid());
        let count = |page: &Page, kind| {
            page.sum("sched_context_switches_total", &[("service", "lt-napper"), ("kind", kind)])
        };
        let mut last = (process.switches(), agent.page());
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let now = (process.switches(), agent.page());
            let still = now.0 == last.0
                && ["voluntary", "involuntary"]
                    .iter()
                    .all(|kind| count(&now.1, kind).to_bits() == count(&last.1, kind).to_bits());
            if still {
                return (now.0, (count(&now.1, "voluntary"), count(&now.1, "involuntary")));
            }
            assert!(Instant::now() < end, "it does not come to rest");
            last = now;
        }
    };
    let (kernel, ours) = account(&napper);
    napper.go();
    napper.line("done");
    let (kernel_later, ours_later) = account(&napper);
    let (voluntary, involuntary) = (kernel_later.0 - kernel.0, kernel_later.1 - kernel.1);
    // A nap can be over before its process has left the CPU, where the CPU itself stands still.
    assert!(voluntary >= ROUNDS * 0.95, "{voluntary} voluntary switches in {ROUNDS} naps");
    // While anybody else attaches to the tracepoint or leaves it, the kernel passes over some switches: few, and never is
    // one counted that was none.
    for (kind, reported, kernel) in
        [("voluntary", ours_later.0 - ours.0, voluntary), ("involuntary", ours_later.1 - ours.1, involuntary)]
    {
        println!("{kind}: {reported} reported, {kernel} by the kernel");
        assert!(
            reported <= kernel && reported >= kernel - ROUNDS * 0.005,
            "{kind}: {reported}, not {kernel}"
        );
    }
}

fn assert_near(what: &str, reported: f64, kernel: f64) {
    println!(
        "{what}: {reported:.6} s reported, {kernel:.6} s by the kernel, off by {:+.3} %",
        (reported / kernel - 1.0) * 100.0
    );
    assert!(
        (reported / kernel - 1.0).abs() < 0.02,
        "{what}: {reported} s reported, {kernel} s by the kernel"
    );
}

/// The `traffic` helper under a name of its own.
struct Traffic {
    process: Running,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Traffic {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_traffic"));
        let mut process =
            Running::spawn(command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()));
        let input = process.0.stdin.take().unwrap();
        let output = BufReader::new(process.0.stdout.take().unwrap());
        let mut traffic = Self { process, input, output };
        traffic.line("ready");
        traffic
    }

    fn go(&mut self) {
        self.input.write_all(b"\n").unwrap();
    }

    fn line(&mut self, expected: &str) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), expected);
    }
}
