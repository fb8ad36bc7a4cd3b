//! `perf-agent doctor`: what works on this kernel with these privileges, and what helps where it does not.

use std::io::{self, Write};

use anyhow::{Context as _, Result};

use crate::cli::Report;
use crate::config::Config;
use crate::probes::{self, State, Status};

/// Prints the survey; true if every enabled probe works.
pub(crate) fn run(config: &Config, format: Report) -> Result<bool> {
    let status = probes::survey(config).context("the kernel cannot be surveyed")?;
    let broken = broken(config, &status);
    match print(&mut io::stdout().lock(), &status, &broken, format) {
        // Whoever reads has read enough: `perf-agent doctor | head -1`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        printed => printed.context("the answer cannot be written")?,
    }
    Ok(broken.is_empty())
}

/// The enabled probes that do not work. A probe works if something of it is attached and nothing of it failed: a hook
/// that this kernel lacks is what the fallback is for.
fn broken(config: &Config, status: &[Status]) -> Vec<&'static str> {
    let works = |probe| {
        let states = || status.iter().filter(move |hook| hook.probe == probe).map(|hook| hook.state);
        states().any(|state| state == State::Attached) && !states().any(|state| state == State::Failed)
    };
    config
        .probes
        .enabled()
        .into_iter()
        .filter_map(|(probe, enabled)| (enabled && !works(probe)).then_some(probe))
        .collect()
}

fn print(out: &mut impl Write, status: &[Status], broken: &[&str], format: Report) -> io::Result<()> {
    match format {
        Report::Json => {
            serde_json::to_writer_pretty(&mut *out, status)?;
            writeln!(out)
        }
        Report::Table => table(out, status, broken),
    }
}

fn table(out: &mut impl Write, status: &[Status], broken: &[&str]) -> io::Result<()> {
    let width = |title: &str, of: fn(&Status) -> usize| status.iter().map(of).fold(title.len(), usize::max);
    let probe = width("PROBE", |hook| hook.probe.len());
    let hook = width("HOOK", |hook| hook.hook.chars().count());
    writeln!(out, "{:probe$}  {:hook$}  {:11}  REASON", "PROBE", "HOOK", "STATE")?;
    for Status { probe: name, hook: at, state, reason, remedy } in status {
        let line = format!("{name:probe$}  {at:hook$}  {:11}  {reason}", state_name(*state));
        writeln!(out, "{}", line.trim_end())?;
        if !remedy.is_empty() {
            writeln!(out, "{:indent$}-> {remedy}", "", indent = probe + hook + 4)?;
        }
    }
    writeln!(out)?;
    if broken.is_empty() {
        writeln!(out, "Every enabled probe works here.")
    } else {
        writeln!(out, "Does not work here: {}.", broken.join(", "))
    }
}

pub(crate) fn state_name(state: State) -> &'static str {
    match state {
        State::Attached => "attached",
        State::Unsupported => "unsupported",
        State::Failed => "failed",
        State::Disabled => "disabled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(probe: &'static str, hook: &str, state: State, reason: &str, remedy: &str) -> Status {
        Status { probe, hook: hook.to_owned(), state, reason: reason.to_owned(), remedy: remedy.to_owned() }
    }

    fn example() -> Vec<Status> {
        vec![
            hook("tcp", "tp_btf/inet_sock_set_state", State::Attached, "", ""),
            hook(
                "tcp",
                "tp_btf/sock_send_length",
                State::Unsupported,
                "no such tracepoint",
                "Linux 6.3 has it",
            ),
            hook("sched", "tp_btf/sched_switch", State::Failed, "permission denied", "run as root"),
            hook("l7", "tp_btf/tcp_rcv_space_adjust", State::Disabled, "", ""),
        ]
    }

    #[test]
    fn a_lacking_hook_is_no_failure_and_a_silent_probe_is() {
        let mut config = Config::default();
        assert_eq!(broken(&config, &example()), ["sched", "disk", "l7", "dns", "process", "drops", "irq"]);
        config.probes.sched.enabled = false;
        config.probes.http.enabled = false;
        config.probes.postgres.enabled = false;
        config.probes.redis.enabled = false;
        config.probes.mysql.enabled = false;
        config.probes.sockets.enabled = false;
        config.probes.disk.enabled = false;
        config.probes.dns.enabled = false;
        config.probes.process.enabled = false;
        config.probes.drops.enabled = false;
        config.probes.irq.enabled = false;
        assert!(broken(&config, &example()).is_empty());
        assert_eq!(broken(&config, &[]), ["tcp"]);
    }

    #[test]
    fn the_table_lines_up() {
        let mut out = Vec::new();
        table(&mut out, &example(), &["sched"]).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\
PROBE  HOOK                         STATE        REASON
tcp    tp_btf/inet_sock_set_state   attached
tcp    tp_btf/sock_send_length      unsupported  no such tracepoint
                                    -> Linux 6.3 has it
sched  tp_btf/sched_switch          failed       permission denied
                                    -> run as root
l7     tp_btf/tcp_rcv_space_adjust  disabled

Does not work here: sched.
"
        );
    }
}
