//! The scheduler: waiting, running and switching, as the kernel's own accounts of each process have them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "how near the numbers are is worth seeing")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use live_tests::{Agent, LADDER, Loop, Page, Proc, Reference, Running};

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

#[test]
fn time_off_the_cpus_is_told_by_what_is_waited_for_while_it_is() {
    let agent = Agent::start();
    let mut traffic = Traffic::start(&["lock", "lt-locker", "2000"]);
    let of = |page: &Page, kind| {
        page.sum("sched_off_cpu_seconds_total", &[("service", "lt-locker"), ("kind", kind)])
    };
    // One thread, which waits for its input.
    let (before, begun) = (agent.page(), Instant::now());
    sleep(SPAN / 5);
    let (after, took) = (agent.page(), begun.elapsed().as_secs_f64());
    let slept = of(&after, "sleep") - of(&before, "sleep");
    println!("{slept:.3} s asleep in {took:.3} s");
    // A page takes its time, and its numbers are of some moment in it.
    assert!((slept - took).abs() < 0.3, "{slept} s asleep in {took} s");

    traffic.go();
    sleep(Duration::from_secs(1));
    let half = agent.page();
    traffic.line("done");
    let page = agent.page();
    let (half, lock) = (of(&half, "lock") - of(&after, "lock"), of(&page, "lock") - of(&after, "lock"));
    println!("{half:.3} s, then {lock:.3} s for a lock that was held for 2 s");
    assert!(half > 0.7 && half < 1.6, "{half} s for a lock that has been waited for a second");
    assert!((lock - 2.0).abs() < 0.2, "{lock} s for a lock that was held for 2 s");
    assert!(of(&page, "io") < 0.1, "{}", page.lines(&["lt-locker"]));
}

#[test]
fn a_thread_is_on_a_cpu_or_off_it_and_nothing_else() {
    let agent = Agent::start();
    let mut traffic = Traffic::start(&["nap", "lt-napper", "20000"]);
    let all = |page: &Page| {
        let labels = [("service", "lt-napper")];
        page.sum("sched_cpu_seconds_total", &labels) + page.sum("sched_off_cpu_seconds_total", &labels)
    };
    let (before, begun) = (all(&agent.page()), Instant::now());
    traffic.go();
    traffic.line("done");
    let (after, took) = (all(&agent.page()), begun.elapsed().as_secs_f64());
    println!("{:.4} s in {took:.4} s", after - before);
    assert!((after - before - took).abs() < 0.02 * took + 0.1, "{} s in {took} s", after - before);
}

#[test]
fn waiting_for_a_disk_is_waiting_for_io() {
    let device = Loop::new(None, 64 << 20);
    let agent = Agent::start();
    device.read(4000);
    let page = agent.page();
    let labels = [("service", "dd"), ("device", device.name.as_str())];
    let device = page.sum("block_io_duration_seconds_sum", &labels)
        + page.sum("block_io_queue_duration_seconds_sum", &labels);
    let waited = page.sum("sched_off_cpu_seconds_total", &[("service", "dd"), ("kind", "io")]);
    println!("{waited:.4} s off the CPU, {device:.4} s in the device");
    // It begins to wait a moment later than the request does.
    assert!(waited > device * 0.5 && waited < device * 2.0, "{waited} s, where requests took {device} s");
}

#[test]
fn latency_is_that_of_runqlat() {
    const ROUNDS: &str = "20000";
    let agent = Agent::with(&format!("histogram: {{buckets: {LADDER}}}"));
    // One that waits for moments, many times, and two that wait for each other.
    let mut napper = Traffic::start(&["nap", "lt-napper", ROUNDS]);
    let pid = napper.process.pid();
    beside_runqlat(&agent, pid, "lt-napper", || {
        napper.go();
        napper.line("done");
    });
    let spinners = [Traffic::start(&["spin", "lt-spinner"]), Traffic::start(&["spin", "lt-other"])];
    beside_runqlat(&agent, spinners[0].process.pid(), "lt-spinner", || sleep(SPAN));
}

fn beside_runqlat(agent: &Agent, pid: u32, service: &str, load: impl FnOnce()) {
    // Neither begins or ends at the same moment as the other: one page before it and one within, at both ends.
    let outside = agent.page();
    let reference = Reference::start("runqlat", &["-p", &pid.to_string()]);
    let inside = agent.page();
    load();
    let page = agent.page();
    let theirs = reference.stop();
    let outside = agent.page().since(&outside);
    let page = page.since(&inside);
    let labels = [("service", service)];
    let count = |page: &Page| page.sum("sched_run_queue_latency_seconds_count", &labels);
    let (least, most, theirs_count) = (count(&page), count(&outside), theirs.count() as f64);
    println!("{service}: {least} to {most} reported, {theirs_count} by runqlat");
    assert!(
        theirs_count >= least * 0.98 && theirs_count <= most * 1.02,
        "{least} to {most}, not {theirs_count}"
    );
    theirs.assert_quantiles(&page, "sched_run_queue_latency_seconds", &labels);
}

#[test]
fn what_a_quota_costs_is_as_the_kernel_counts_it() {
    let group = Group::new("lt-throttled");
    let agent = Agent::start();
    let spinner = Traffic::start(&["spin", "lt-spinner"]);
    group.add(spinner.process.pid());
    sleep(SPAN / 2);
    // Read at most every five seconds, so this is the first time.
    let before = group.throttled();
    let page = agent.page();
    let after = group.throttled();
    let labels = [("service", "lt-throttled")];
    let seconds = page.sum("sched_throttled_seconds_total", &labels);
    println!("{seconds} s, between {} s and {} s by the kernel", before.1, after.1);
    assert!(
        seconds >= before.1 - 1e-9 && seconds <= after.1 + 1e-9,
        "{seconds} s, not {before:?} to {after:?}"
    );
    assert!(seconds > 1.0, "{seconds} s of throttling in {:?} with a tenth of a CPU", SPAN / 2);
    let periods = page.sum("sched_throttled_periods_total", &labels);
    assert!(periods >= before.0 && periods <= after.0, "{periods} periods, not {before:?} to {after:?}");
    assert!(page.sum("sched_quota_periods_total", &labels) >= periods);
    assert!(page.sum("sched_runnable_tasks", &[]) >= 1.0, "not even the agent runs");
}

/// A control group with a tenth of a CPU, of version 1 where the controller for CPUs is there, else of version 2.
struct Group(PathBuf);

impl Group {
    fn new(name: &str) -> Self {
        let root = Path::new("/sys/fs/cgroup");
        let version_1 = root.join("cpu");
        let group = Self(if version_1.is_dir() { version_1.join(name) } else { root.join(name) });
        fs::create_dir(&group.0).unwrap();
        if version_1.is_dir() {
            fs::write(group.0.join("cpu.cfs_period_us"), "100000").unwrap();
            fs::write(group.0.join("cpu.cfs_quota_us"), "10000").unwrap();
        } else {
            fs::write(group.0.join("cpu.max"), "10000 100000").unwrap();
        }
        group
    }

    fn add(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// Periods and seconds.
    fn throttled(&self) -> (f64, f64) {
        let text = fs::read_to_string(self.0.join("cpu.stat")).unwrap();
        let of = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            value.map(|value| value.parse::<f64>().unwrap())
        };
        let seconds = of("throttled_time").map(|ns| ns / 1e9).or(of("throttled_usec").map(|us| us / 1e6));
        (of("nr_throttled").unwrap(), seconds.unwrap())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Empty once its process has ended, which ends before this.
        _ = fs::remove_dir(&self.0);
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
