//! How processes end. See `perf-ebpf/src/bin/process.rs`.

use perf_common::events::{COUNTERS, SEEN};
use perf_common::process::ProcessCell;
use perf_common::workload::OTHER;

use super::{Account, Common, Names, Probe, Start, Started, merged, started};
use crate::maps::{Counters, Table};
use crate::object::{self, Hook};
use crate::page::{Kind, Page};

const HOOKS: [Hook; 1] = [Hook::tracepoint("process_exit", "sched_process_exit")];

struct Process {
    common: Common,
    table: Table,
    events: Counters,
    /// How many ends there were when names were last learned.
    learned: u64,
}

pub(super) fn start(Start { loader, config: _, globals }: Start<'_, '_>) -> Started {
    started("process", globals, || {
        let mut object = loader.load(object::PROCESS, &[])?;
        Table::prepare::<_, ProcessCell>(&mut object, "", &[OTHER])?;
        let status = loader.attach("process", &mut object, &HOOKS);
        let table = Table::take(&mut object, "")?;
        let events = Counters::take(&mut object, "EVENTS")?;
        let process = Process { table, events, common: Common::take(object)?, learned: 0 };
        Ok((status, Some(Box::new(process) as Box<dyn Probe>)))
    })
}

impl Probe for Process {
    fn common(&self) -> &Common {
        &self.common
    }

    /// The control group of a container that has ended is soon removed, and its name with it.
    fn tick(&mut self, names: &mut Names) -> anyhow::Result<()> {
        let events: [u64; COUNTERS as usize] = self.events.sums();
        let seen = events[SEEN as usize];
        if seen != self.learned {
            self.learned = seen;
            self.common.learn(names);
        }
        Ok(())
    }

    fn accounts(&self) -> Vec<Account> {
        vec![Account { probe: "process", events: self.events.sums() }]
    }

    fn collect(&mut self, names: &Names, page: &mut Page) -> anyhow::Result<()> {
        let mut cells = Vec::new();
        self.table.each::<u64, ProcessCell>(|_, workload, cell| {
            cells.push((names.identity(*workload), *cell));
        })?;
        let cells = merged(cells, merge);

        let mut family = page.family(
            "process_exits_total",
            "Processes that ended: ok with exit code 0, error with another one, signal when one killed them.",
            Kind::Counter,
        );
        for (identity, cell) in &cells {
            let [service, container, pod] = identity.labels();
            let mut write = |result, signal: &str, count: u64| {
                if count != 0 {
                    let labels = [service, container, pod, ("result", result), ("signal", signal)];
                    family.sample(&labels, count as f64);
                }
            };
            write("ok", "", cell.ok);
            write("error", "", cell.errors);
            for (number, count) in (1..).zip(cell.signals) {
                write("signal", &signal(number), count);
            }
        }
        let mut family = page.family(
            "process_oom_kills_total",
            "Processes that the kernel killed because memory ran out: the host's, or their control group's.",
            Kind::Counter,
        );
        for (identity, cell) in cells.iter().filter(|(_, cell)| cell.ends() != 0) {
            family.sample(&identity.labels(), cell.oom_kills as f64);
        }
        Ok(())
    }
}

fn merge(into: &mut ProcessCell, from: &ProcessCell) {
    let ProcessCell { ok, errors, signals, oom_kills } = from;
    into.ok += ok;
    into.errors += errors;
    for (sum, count) in into.signals.iter_mut().zip(signals) {
        *sum += count;
    }
    into.oom_kills += oom_kills;
}

/// The names of the signals from 1 on, as x86-64 and arm64 number them.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// A signal's name. Those for real-time use have their number: what SIGRTMIN is, libraries do not agree on.
fn signal(number: usize) -> String {
    match NAMES.get(number.wrapping_sub(1)) {
        Some(name) => format!("SIG{name}"),
        None => format!("SIG{number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_the_names_that_everybody_knows() {
        let names = [libc::SIGHUP, libc::SIGKILL, libc::SIGSEGV, libc::SIGTERM, libc::SIGSYS, 34]
            .map(|number| signal(number as usize));
        assert_eq!(names, ["SIGHUP", "SIGKILL", "SIGSEGV", "SIGTERM", "SIGSYS", "SIG34"]);
    }
}
