//! What runs inside a guest of `cargo xtask vm`: starts the agent, makes traffic of known count, and compares.
//!
//! It speaks to the outside by lines: `@@PROBES <json>` and `@@COUNT <name> expected=<n> got=<m> missed=<k>`; everything else
//! is for people. `missed` is how many runs of the programs that count this the kernel skipped, which kernels do that preempt
//! tasks inside of it: by so much the count may be off, and no more. Server and client are processes of their own, because the agent names a workload without a unit by its `comm`.
#![allow(clippy::print_stdout, reason = "stdout is the serial line that the outside reads")]

mod db;
mod dns;
mod drops;
mod ends;
mod irq;
mod metrics;
mod traffic;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::metrics::{Expected, Page, probes_of};
use crate::traffic::{Plan, Requests};

const AGENT: &str = "127.0.0.1:9100";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["server"] => traffic::serve(),
        ["db-server"] => db::serve(),
        ["db-client", postgres, redis, mysql, rounds] => {
            db::request([postgres.parse()?, redis.parse()?, mysql.parse()?], rounds.parse()?)
        }
        ["dns-server"] => dns::serve(),
        ["dns-client", rounds] => dns::request(rounds.parse()?),
        ["end", way] => ends::end(way),
        ["client", port, keep_alive, closing] => traffic::request(
            port.parse()?,
            Requests { keep_alive: keep_alive.parse()?, closing: closing.parse()? },
        ),
        [] => drive(),
        _ => bail!(
            "usage: vm-guest [server | client PORT KEEP_ALIVE CLOSING | db-server | db-client POSTGRES REDIS MYSQL ROUNDS | dns-server | dns-client ROUNDS | end WAY]; without arguments it drives the agent"
        ),
    }
}

fn drive() -> Result<()> {
    let short = fs::read_to_string("/proc/cmdline")?.split_whitespace().any(|word| word == "short");
    let plan = Plan::of(short);
    let mut agent =
        Command::new("/bin/perf-agent").stdin(Stdio::null()).spawn().context("starting perf-agent")?;
    let checked = ready(&mut agent).and_then(|()| check(&plan));
    let stopped = stop(&mut agent);
    checked.and(stopped)
}

/// Emulated, the agent's start takes seconds: the kernel checks every program at a twentieth of its speed.
fn ready(agent: &mut Child) -> Result<()> {
    let start = Instant::now();
    while let Err(error) = traffic::get(AGENT, "/readyz") {
        if let Some(status) = agent.try_wait()? {
            bail!("perf-agent ended before it was ready: {status}");
        }
        if start.elapsed() > Duration::from_secs(120) {
            print_threads(agent.id())?;
            return Err(error.context("perf-agent was not ready within 120 s"));
        }
        sleep(Duration::from_millis(100));
    }
    println!("perf-agent was ready after {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Where a hanging agent hangs. One with an empty stack runs; all its time in the kernel means that it is in the verifier.
fn print_threads(pid: u32) -> Result<()> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        let stat = fs::read_to_string(task.join("stat")).unwrap_or_default();
        let stat: Vec<&str> = stat.split_whitespace().collect();
        let ticks = |field: usize| stat.get(field).copied().unwrap_or("?");
        println!("a thread: {} ticks in user space, {} in the kernel, now in", ticks(13), ticks(14));
        println!("{}", fs::read_to_string(task.join("stack")).unwrap_or_default());
    }
    Ok(())
}

fn check(plan: &Plan) -> Result<()> {
    println!("@@PROBES {}", traffic::get(AGENT, "/probes")?.replace('\n', " "));
    let before = Page::read(&traffic::get(AGENT, "/metrics")?);
    traffic::run(plan)?;
    db::run(plan.rounds())?;
    dns::run(plan.rounds())?;
    let ends = ends::run()?;
    let dropped = drops::run()?;
    unix_messages(plan.rounds())?;
    let mut expected = plan.expected();
    let unix = [("service", "vm-guest"), ("protocol", "unix")];
    let bytes = f64::from(10 * plan.rounds());
    expected.push(Expected::of("socket_sent_bytes_total", &unix, bytes).at_stake(10.0));
    expected.push(Expected::of("socket_received_bytes_total", &unix, bytes).at_stake(10.0));
    expected.extend(db::expected(plan.rounds()));
    expected.extend(dns::expected(plan.rounds()));
    expected.extend(ends);
    // The last response is counted when it has left, which can be after the client has read it.
    let mut after = Page::read(&traffic::get(AGENT, "/metrics")?);
    let start = Instant::now();
    while !expected.iter().all(|count| count.got(&before, &after) >= count.expected)
        && start.elapsed() < Duration::from_secs(10)
    {
        sleep(Duration::from_millis(200));
        after = Page::read(&traffic::get(AGENT, "/metrics")?);
    }
    for count in &expected {
        let missed = missed(&after, count.probes()) * count.at_stake;
        println!(
            "@@COUNT {} expected={} got={} missed={missed}",
            count.name(),
            count.expected,
            count.got(&before, &after)
        );
    }
    let switches =
        after.sum("sched_context_switches_total", &[]) - before.sum("sched_context_switches_total", &[]);
    println!("@@COUNT sched_context_switches_total expected=>0 got={switches} missed=0");
    for kind in ["sleep", "run_queue"] {
        let of = |page: &Page| page.sum("sched_off_cpu_seconds_total", &[("kind", kind)]);
        println!(
            "@@COUNT sched_off_cpu_seconds_total{{kind=\"{kind}\"}} expected=>0 got={} missed=0",
            of(&after) - of(&before)
        );
    }
    drops::check(&before, &after, dropped);
    irq::check()?;
    samples(missed(&after, probes_of("http")))?;
    contract(&after);
    if !expected.iter().all(|count| count.got(&before, &after).total_cmp(&count.expected).is_eq()) {
        println!(
            "what the agent has of the traffic:\n{}",
            after.about(&[
                "vm-server",
                "vm-client",
                "vm-db-server",
                "vm-db-client",
                "vm-dns-server",
                "vm-dns-client",
                ends::ENDER
            ])
        );
    }
    Ok(())
}

/// So many messages of ten bytes, from this very process to itself.
fn unix_messages(count: u32) -> Result<()> {
    let (mut here, mut there) = UnixStream::pair()?;
    for _ in 0..count {
        here.write_all(&[1; 10])?;
        there.read_exact(&mut [0; 10])?;
    }
    Ok(())
}

/// How many runs of these slices' programs the kernel has skipped. One such run is one message that is not seen, and each
/// count is of at most one thing for each message; but it can be one too many as well, as a lookup whose answer was missed is
/// one that timed out.
fn missed(page: &Page, probes: &[&str]) -> f64 {
    probes.iter().map(|probe| page.sum("perf_agent_missed_runs_total", &[("probe", probe)])).sum()
}

/// The server's failed requests are shown one by one, with the address that they came from.
fn samples(missed: f64) -> Result<()> {
    let path = format!("/requests?service={}&errors=true", traffic::SERVER);
    let expected = traffic::FAILED as usize;
    let start = Instant::now();
    loop {
        let shown = traffic::get(AGENT, &path)?;
        let of = |text: &str| shown.matches(text).count();
        let got = of("\"route\": \"/fail/{id}\"").min(of("\"peer\": \"127.0.0.1:"));
        if got >= expected || start.elapsed() > Duration::from_secs(10) {
            println!("@@COUNT requests_shown expected={expected} got={got} missed={missed}");
            return Ok(());
        }
        sleep(Duration::from_millis(200));
    }
}

/// What a probe saw is recorded or dropped for a reason. Only the request for this very page is still under way, seen at
/// both of its ends.
fn contract(page: &Page) {
    for probe in page.values("perf_agent_events_total", "probe") {
        let of = |name| page.sum(name, &[("probe", probe)]);
        let seen = of("perf_agent_events_total");
        let counted = of("perf_agent_events_recorded_total") + of("perf_agent_events_dropped_total");
        let under_way = if probe == "http" && seen > 0.0 { 2.0 } else { 0.0 };
        println!(
            "@@COUNT perf_agent_events_total{{probe=\"{probe}\"}} expected={} got={seen} missed={}",
            counted + under_way,
            missed(page, probes_of(probe))
        );
    }
    if page.values("perf_agent_events_total", "probe").is_empty() {
        println!("@@COUNT perf_agent_events_total expected=>0 got=0 missed=0");
    }
}

fn stop(agent: &mut Child) -> Result<()> {
    // SAFETY: the agent has not been waited for, so that its pid is still its own.
    unsafe { libc::kill(agent.id() as libc::pid_t, libc::SIGTERM) };
    let start = Instant::now();
    loop {
        match agent.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => bail!("perf-agent did not stop cleanly on SIGTERM: {status}"),
            None if start.elapsed() > Duration::from_secs(30) => {
                agent.kill().ok();
                bail!("perf-agent did not stop within 30 s of SIGTERM");
            }
            None => sleep(Duration::from_millis(50)),
        }
    }
}
