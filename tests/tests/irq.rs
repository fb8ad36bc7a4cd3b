//! Interrupts, as the kernel itself counts them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "how near the numbers are is worth seeing")]

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::thread::{available_parallelism, sleep};
use std::time::{Duration, Instant};

use live_tests::interrupts::{device_interrupts, softirq_seconds, softirqs};
use live_tests::{Agent, Page};

/// Sends datagrams through loopback, each of which is a softirq, for so long.
fn flood(time: Duration) -> f64 {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(server.local_addr().unwrap()).unwrap();
    let begin = Instant::now();
    let mut sent = 0.0;
    while begin.elapsed() < time {
        client.send(&[0; 100]).unwrap();
        server.recv(&mut [0; 100]).unwrap();
        sent += 1.0;
    }
    sent
}

fn soft(page: &Page, metric: &str, name: &str) -> f64 {
    page.sum(metric, &[("kind", "soft"), ("name", name)])
}

#[test]
fn softirqs_are_counted_to_the_interrupt() {
    let agent = Agent::start();
    // They never rest. What came between the inner readings is all in the pages, and nothing in them came outside of the outer.
    let outer = softirqs();
    let before = agent.page();
    let inner = softirqs();
    let sent = flood(Duration::from_secs(2));
    let inner_later = softirqs();
    let after = agent.page();
    let outer_later = softirqs();
    let mut counted = 0;
    for name in outer.keys() {
        let grown = |from: &BTreeMap<String, f64>, to: &BTreeMap<String, f64>| to[name] - from[name];
        let (least, most) = (grown(&inner, &inner_later), grown(&outer, &outer_later));
        let ours = soft(&after, "irqs_total", name) - soft(&before, "irqs_total", name);
        println!("{name}: {ours}, and by the kernel {least} to {most}");
        assert!(ours >= least && ours <= most, "{name}: {ours}, not between {least} and {most}");
        counted += usize::from(ours > 0.0);
    }
    assert!(counted >= 3, "{counted} kinds of softirqs were there at all");
    let received = soft(&after, "irqs_total", "net_rx") - soft(&before, "irqs_total", "net_rx");
    assert!(received >= sent * 0.9, "{received} for {sent} datagrams");
    let losses = after.losses_of("irq");
    let ends_without_beginning = after.sum("perf_agent_events_dropped_total", &[("probe", "irq")]);
    assert!(ends_without_beginning <= 2.0 * cpus(), "{losses:?}");
}

#[test]
fn interrupts_of_devices_are_counted_to_the_interrupt() {
    let agent = Agent::start();
    let labels = [("kind", "hard"), ("name", "all")];
    let outer = device_interrupts();
    let before = agent.page();
    let inner = device_interrupts();
    // Writing what must reach the disk makes some on most machines; the test holds without any.
    for _ in 0..50 {
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], 0).unwrap();
        file.sync_all().unwrap();
    }
    let inner = device_interrupts() - inner;
    let after = agent.page();
    let outer = device_interrupts() - outer;
    let ours = after.sum("irqs_total", &labels) - before.sum("irqs_total", &labels);
    println!("{ours}, and by the kernel {inner} to {outer}");
    assert!(ours >= inner && ours <= outer, "{ours}, not between {inner} and {outer}");
}

#[test]
fn time_in_softirqs_is_what_the_kernels_tick_finds_there() {
    let agent = Agent::start();
    let total = |page: &Page| page.sum("irq_seconds_total", &[("kind", "soft")]);
    let (begin, ticks, mut last) = (Instant::now(), softirq_seconds(), agent.page());
    let first = total(&last);
    for _ in 0..5 {
        flood(Duration::from_secs(1));
        let page = agent.page();
        for sample in last.samples.iter().filter(|sample| sample.name == "irq_seconds_total") {
            let name = &sample.labels["name"];
            let now = page.sum("irq_seconds_total", &[("name", name), ("kind", &sample.labels["kind"])]);
            assert!(now >= sample.value, "{name} falls from {} to {now}", sample.value);
        }
        last = page;
    }
    let (ours, ticks) = (total(&last) - first, softirq_seconds() - ticks);
    let wall = begin.elapsed().as_secs_f64();
    let received = soft(&last, "irq_seconds_total", "net_rx");
    println!("{ours:.3} s, {received:.3} s of them for packets; {ticks:.3} s by ticks; in {wall:.3} s");
    assert!(ours > 0.0 && ours < wall * cpus(), "{ours} s in {wall} s");
    // A hundred ticks or so are a sample, and what the programs take themselves is outside of what they measure.
    assert!(ours > ticks * 0.5 && ours < ticks * 1.6, "{ours} s, and by ticks {ticks} s");

    // And a machine that does nothing spends next to none.
    let before = total(&agent.page());
    sleep(Duration::from_secs(1));
    assert!(total(&agent.page()) - before < cpus() * 0.5);
}

fn cpus() -> f64 {
    available_parallelism().unwrap().get() as f64
}
