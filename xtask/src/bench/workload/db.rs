//! Redis and PostgreSQL under the load that comes with them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use live_tests::{Postgres, Redis};

use crate::bench::cpu::{self, Clock};
use crate::bench::pairs::Slot;
use crate::bench::workload::{SPARE, load};

/// One server of each kind; they end with the value.
pub(crate) struct Databases {
    redis: Redis,
    postgres: Postgres,
    /// Where what the loads say goes.
    dir: PathBuf,
    /// Redis' commands per second, for choosing how many last a slot.
    commands: f64,
}

impl Databases {
    pub(crate) fn start(dir: &Path, stop: &AtomicBool) -> Result<Self> {
        let (redis, postgres) = (Redis::start(), Postgres::start(""));
        let mut databases = Self { redis, postgres, dir: dir.into(), commands: 20_000.0 };
        databases.commands = databases.redis(Duration::from_secs(1), stop)?.per_second();
        let mut fill = databases.postgres.client("pgbench");
        load("pgbench", fill.args(["-i", "-n", "-s", "1"]), dir, Duration::from_secs(70), stop)?;
        Ok(databases)
    }

    /// GET of one key after the other, by fifty connections.
    pub(crate) fn redis(&self, slot: Duration, stop: &AtomicBool) -> Result<Slot> {
        let clock = Clock::of_process(self.redis.pid())?;
        let used = || Ok::<_, anyhow::Error>(clock.now()? + cpu::ended_children()?);
        let commands = (self.commands * slot.as_secs_f64()).ceil();
        let mut benchmark = Command::new("redis-benchmark");
        benchmark.args(["-p", &self.redis.port.to_string(), "-t", "get", "-c", "50", "-P", "1", "--csv"]);
        benchmark.args(["-n", &commands.to_string()]);
        let before = used()?;
        let text = load("redis-benchmark", &mut benchmark, &self.dir, slot * 10 + SPARE, stop)?;
        let cpu_seconds = used()?.saturating_sub(before).as_secs_f64();
        Ok(Slot { operations: commands, seconds: commands / redis_rate(&text)?, cpu_seconds })
    }

    /// One SELECT after the other, by eight connections.
    pub(crate) fn postgres(&self, slot: Duration, stop: &AtomicBool) -> Result<Slot> {
        let server = self.postgres.pid();
        let (waiting, before) = (cpu::children(server)?.len(), cpu::with_ended_children(server)?);
        let of_load = cpu::ended_children()?;
        let mut pgbench = self.postgres.client("pgbench");
        pgbench.args(["-n", "-S", "-c", "8", "-j", "2", "-T", &slot.as_secs().max(1).to_string()]);
        let text = load("pgbench", &mut pgbench, &self.dir, slot * 10 + SPARE, stop)?;
        let of_load = cpu::ended_children()?.saturating_sub(of_load);
        // A connection's process is accounted for when it has ended.
        let begun = Instant::now();
        while cpu::children(server)?.len() > waiting {
            if begun.elapsed() > Duration::from_secs(10) {
                bail!("PostgreSQL's processes did not end with their connections");
            }
            sleep(Duration::from_millis(5));
        }
        let cpu = of_load + cpu::with_ended_children(server)?.saturating_sub(before);
        let (operations, rate) = pgbench_figures(&text)?;
        Ok(Slot { operations, seconds: operations / rate, cpu_seconds: cpu.as_secs_f64() })
    }
}

fn redis_rate(text: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("\"GET\",\""));
    let rate = line.and_then(|rest| rest.split('"').next()?.parse().ok());
    rate.with_context(|| format!("redis-benchmark told no rate:\n{text}"))
}

/// Transactions, and transactions per second. Failed ones would be cheap, so a run that has any is none.
fn pgbench_figures(text: &str) -> Result<(f64, f64)> {
    let after = |prefix| text.lines().find_map(|line| line.strip_prefix(prefix)?.split(' ').next());
    if after("number of failed transactions: ").is_some_and(|failed| failed != "0") {
        bail!("pgbench had failures:\n{text}");
    }
    let number = |prefix| after(prefix).and_then(|number| number.split('/').next()?.parse().ok());
    let figures = number("number of transactions actually processed: ").zip(number("tps = "));
    figures.with_context(|| format!("pgbench told no rate:\n{text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_figures_of_both_loads_and_refuses_errors() {
        let redis = "\"test\",\"rps\",\"avg_latency_ms\"\n\"GET\",\"104166.67\",\"0.251\"\n";
        assert!((redis_rate(redis).unwrap() - 104_166.67).abs() < 1e-9);
        assert!(redis_rate("Could not connect").is_err());
        let good = "number of transactions actually processed: 2000\nnumber of failed transactions: 0 (0.000%)\ntps = 1000.500000 (without initial connection time)\n";
        assert_eq!(pgbench_figures(good).unwrap(), (2000.0, 1000.5));
        assert!(pgbench_figures(&good.replace("failed transactions: 0", "failed transactions: 7")).is_err());
        assert!(pgbench_figures("").is_err());
    }
}
