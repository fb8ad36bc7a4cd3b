//! The tables, and the same as JSON.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::bench::cost::Cost;
use crate::bench::overhead::{Measured, Own, Series};
use crate::bench::pairs::{Pair, Slot, Spread};

pub(super) struct Report {
    pub(super) agent: PathBuf,
    /// Names of the tracing programs that were loaded before and are in every slot.
    pub(super) others: Vec<String>,
    /// Over the last minute.
    pub(super) load_before: f64,
    pub(super) load_after: f64,
    pub(super) measured: Vec<Measured>,
    pub(super) cost: Cost,
}

impl Report {
    pub(super) fn print(&self) {
        println!(
            "\n{:<26}{:>10}{:>10}   {:<23}{:<23}{:>9}  target",
            "operations per second",
            "without",
            "with",
            "by rate [min..max]",
            "by CPU [min..max]",
            "CPU ns/op"
        );
        for measured in &self.measured {
            print_measured(measured);
        }
        println!(
            "\nLoad average before and after: {:.1}, {:.1}. CPU ns/op: CPU time that each operation takes more.",
            self.load_before, self.load_after
        );
        if !self.others.is_empty() {
            println!(
                "{} BPF programs of others were loaded throughout, so that this is what the agent adds to them: {}",
                self.others.len(),
                self.others.join(", ")
            );
        }
        self.print_cost();
    }

    fn print_cost(&self) {
        let cost = &self.cost;
        println!("\n{:<18}{:>14}{:>12}{:>16}", "BPF program", "runs", "ns per run", "instructions");
        for program in &cost.programs {
            let each = match program.runs {
                0 => "-".to_owned(),
                runs => format!("{:.0}", program.time.as_nanos() as f64 / runs as f64),
            };
            println!(
                "{:<18}{:>14}{each:>12}{:>16}",
                program.name,
                grouped(program.runs),
                program.instructions
            );
        }
        println!(
            "with the clock of the kernel's statistics, some 33 ns per run; all together {:.0} ns per request at {} requests/s",
            cost.ns_per_request,
            grouped(cost.requests as u64),
        );
        println!("\nperf-agent's own");
        println!(
            "  CPU       {:.2} % of one idle, {:.2} % under load",
            cost.cpu_idle * 100.0,
            cost.cpu_loaded * 100.0
        );
        println!(
            "  scrape    {:.1} ms of CPU, {:.1} ms in all, {} series",
            cost.scrape.cpu.as_secs_f64() * 1e3,
            cost.scrape.wall.as_secs_f64() * 1e3,
            grouped(cost.scrape.series as u64),
        );
        println!(
            "  memory    {:.1} MiB resident, {:.1} MiB in {} BPF maps",
            mib(cost.resident_bytes),
            mib(cost.map_bytes),
            cost.maps
        );
    }

    pub(super) fn json(&self) -> String {
        let cost = &self.cost;
        let programs = cost.programs.iter().map(|program| {
            json!({
                "name": program.name,
                "runs": program.runs,
                "run_time_ns": program.time.as_nanos() as u64,
                "verified_instructions": program.instructions,
            })
        });
        let report = json!({
            "agent": self.agent,
            "programs_of_others": self.others,
            "load_average": {"before": self.load_before, "after": self.load_after},
            "loads": self.measured.iter().map(measured_json).collect::<Vec<_>>(),
            "programs": programs.collect::<Vec<_>>(),
            "requests_per_second_with_statistics": cost.requests,
            "bpf_ns_per_request": cost.ns_per_request,
            "process": {
                "cpu_idle": cost.cpu_idle,
                "cpu_loaded": cost.cpu_loaded,
                "resident_bytes": cost.resident_bytes,
                "scrape_cpu_seconds": cost.scrape.cpu.as_secs_f64(),
                "scrape_seconds": cost.scrape.wall.as_secs_f64(),
                "series": cost.scrape.series,
            },
            "maps": {"count": cost.maps, "bytes": cost.map_bytes},
        });
        format!("{report:#}\n")
    }
}

/// The system's load average over the last minute.
pub(super) fn load_average() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("reading /proc/loadavg")?;
    let first = text.split(' ').next().and_then(|first| first.parse().ok());
    first.context("/proc/loadavg tells no load average")
}

fn print_measured(measured: &Measured) {
    println!("{}", measured.workload);
    for series in &measured.series {
        let Some(summary) = Summary::of(series) else { continue };
        let target = if series.has_target { format!("≥ {:.2}", measured.target) } else { String::new() };
        let line = format!(
            "  {:<24}{:>10}{:>10}   {:<23}{:<23}{:>+9.0}  {target}",
            series.subject,
            grouped(summary.without as u64),
            grouped(summary.with as u64),
            shown(summary.rate),
            shown(summary.cpu),
            summary.added_cpu_ns.median,
        );
        println!("{}", line.trim_end());
        if let Some((cpu, bytes)) = own(series) {
            println!(
                "    its process, per million operations: {:.4} s of CPU, {:.0} bytes sent up to it",
                cpu.median * 1e6,
                bytes.median * 1e6
            );
        }
    }
    if let Some((rate, cpu)) = noise(measured) {
        println!("{}", format!("  {:<44}   {:<23}{:<23}", "noise", shown(rate), shown(cpu)).trim_end());
    }
    if measured.disturbed > 0 {
        println!(
            "  {} slots had BPF programs of others and were measured again, up to four times",
            measured.disturbed
        );
    }
}

fn measured_json(measured: &Measured) -> Value {
    let series = measured.series.iter().map(|series| {
        let pairs = series.pairs.iter().map(|pair| {
            json!({"before": slot_json(pair.before), "with": slot_json(pair.with), "after": slot_json(pair.after)})
        });
        let pairs: Vec<_> = pairs.collect();
        let summary = Summary::of(series);
        let of = |figure: fn(&Summary) -> Spread| summary.as_ref().map(|summary| spread_json(figure(summary)));
        json!({
            "subject": series.subject,
            "ratio_by_rate": of(|summary| summary.rate),
            "ratio_by_cpu": of(|summary| summary.cpu),
            "added_cpu_ns": of(|summary| summary.added_cpu_ns),
            "own_cpu_seconds_per_operation": own(series).map(|(cpu, _)| spread_json(cpu)),
            "sample_bytes_per_operation": own(series).map(|(_, bytes)| spread_json(bytes)),
            "target": series.has_target.then_some(measured.target),
            "pairs": pairs,
        })
    });
    let noise = noise(measured);
    json!({
        "load": measured.workload,
        "subjects": series.collect::<Vec<_>>(),
        "noise_by_rate": noise.map(|(rate, _)| spread_json(rate)),
        "noise_by_cpu": noise.map(|(_, cpu)| spread_json(cpu)),
        "disturbed_slots": measured.disturbed,
    })
}

fn slot_json(slot: Slot) -> Value {
    json!({"operations": slot.operations, "seconds": slot.seconds, "cpu_seconds": slot.cpu_seconds})
}

fn spread_json(spread: Spread) -> Value {
    json!({"median": spread.median, "min": spread.min, "max": spread.max})
}

/// The pairs of one subject in short.
struct Summary {
    without: f64,
    with: f64,
    rate: Spread,
    cpu: Spread,
    added_cpu_ns: Spread,
}

impl Summary {
    /// `None` of no pairs.
    fn of(series: &Series) -> Option<Self> {
        let over = |figure: fn(Pair) -> f64| Spread::of(series.pairs.iter().copied().map(figure));
        Some(Self {
            without: over(Pair::rate_without)?.median,
            with: over(|pair| pair.with.per_second())?.median,
            rate: over(Pair::ratio)?,
            cpu: over(Pair::cpu_ratio)?,
            added_cpu_ns: over(Pair::added_cpu_ns)?,
        })
    }
}

/// What the agent's process did for an operation: CPU time, and bytes that its programs sent up.
fn own(series: &Series) -> Option<(Spread, Spread)> {
    let over = |figure: fn(&Own) -> f64| Spread::of(series.own.iter().map(figure));
    Some((over(|own| own.cpu_seconds)?, over(|own| own.sample_bytes)?))
}

/// What the two ratios are of nothing at all: of a slot without a subject, by the one before.
fn noise(measured: &Measured) -> Option<(Spread, Spread)> {
    let over = |figure: fn(Slot, Slot) -> f64| {
        let twos = measured.without.windows(2);
        Spread::of(twos.filter_map(|two| Some(figure(*two.first()?, *two.last()?))))
    };
    let rate = over(|before, after| after.per_second() / before.per_second())?;
    Some((rate, over(|before, after| before.cpu_ns() / after.cpu_ns())?))
}

fn shown(spread: Spread) -> String {
    format!("{:.3} [{:.3}..{:.3}]", spread.median, spread.min, spread.max)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1024.0 / 1024.0
}

/// With commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_digits() {
        let all = [0, 999, 1000, 1_234_567].map(grouped);
        assert_eq!(all, ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn sums_up_by_pair() {
        let slot = |operations| Slot { operations, seconds: 1.0, cpu_seconds: 2.0 };
        let pair = |without, with| Pair { before: slot(without), with: slot(with), after: slot(without) };
        let pairs = vec![pair(100.0, 90.0), pair(200.0, 190.0), pair(50.0, 40.0)];
        let series = Series { subject: "agent".to_owned(), has_target: true, pairs, own: Vec::new() };
        let summary = Summary::of(&series).unwrap();
        assert!((summary.rate.median - 0.9).abs() < 1e-9);
        assert!((summary.cpu.min - 0.8).abs() < 1e-9);
        // Two CPUs are busy for the 1/9 of 10 ms that a request takes longer.
        assert!((summary.added_cpu_ns.median - 2.0 * (1e9 / 90.0 - 1e7)).abs() < 1e-3);
    }
}
