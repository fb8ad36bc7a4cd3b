//! The command line. The agent stands where `node_exporter` stood, so its flags are spelled as there.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{Config, ConfigError, Level, ListenAddress, LogFormat, Span, TelemetryPath};

const EXAMPLES: &str = "\
Examples:
  Measure this host; metrics at http://localhost:9100/metrics:
      perf-agent
  Which probes can this kernel carry, and if not, why?
      perf-agent doctor
  Which requests fail or take more than two seconds, right now?
      perf-agent trace --slower 2s
      perf-agent trace --service shop --errors
  Listen on a free local port; the log tells which:
      perf-agent --web.listen-address=127.0.0.1:0
  With a configuration file, and more in the log:
      perf-agent --config /etc/perf-agent/perf-agent.yaml --log.level=debug
  In a container that has the host's file systems under /host:
      perf-agent --path.procfs=/host/proc --path.sysfs=/host/sys

Served:
  /metrics   metrics, as Prometheus text or OpenMetrics
  /probes    each hook's state, reason and remedy, as JSON
  /requests  the last requests that failed or were slow, as JSON; ?service=, ?slower=, ?errors=, ?after=
  /healthz   200 while the agent lives
  /readyz    200 once the probes are attached
  /          all of it, for people

Exit codes:
  0  stopped by SIGTERM or SIGINT; doctor: every enabled probe works
  1  failed while running; doctor: a probe does not work
  2  wrong usage or configuration; nothing was attached, no port opened

Needs root, or CAP_BPF and CAP_PERFMON, and Linux 5.10 or later with BTF.";

/// Measures HTTP, DNS, TCP and scheduler latency of unmodified programs, and serves it to Prometheus.
///
/// Without a subcommand, the agent runs: it attaches eBPF programs to tracepoints, counts in the kernel, and serves the
/// numbers under the names of services, pods and routes. It changes nothing in the programs it measures, and what it
/// attached is gone when it ends.
#[derive(Debug, Parser)]
#[command(name = "perf-agent", version, after_long_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) options: Options,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Tell for each hook of each probe whether it works here, and if not, why and what helps.
    ///
    /// Every hook is tried: its program is loaded and attached, and removed again. Exit code 0 means that every enabled
    /// probe works, if only by a fallback; 1 that one does not. Run it with the privileges the agent will have.
    Doctor {
        /// How to print the answer.
        #[arg(long, value_enum, default_value_t)]
        format: Report,
    },
    /// Print requests that fail or are slow as they happen, until Ctrl-C.
    ///
    /// It asks an agent that runs: a sample, at most `requests.max_per_second` of them, of what failed (HTTP with 500 and above,
    /// errors of databases, SERVFAIL, REFUSED and timeouts of DNS) or took as long as `requests.slower_than` says. What happened
    /// before is at /requests.
    Trace(Trace),
}

#[derive(Debug, Args)]
pub(crate) struct Trace {
    /// Only those of this service.
    #[arg(long, value_name = "NAME")]
    pub(crate) service: Option<String>,

    /// Only those that took at least so long, as 100ms or 1.5s.
    #[arg(long, value_name = "TIME")]
    pub(crate) slower: Option<Span>,

    /// Only those that failed.
    #[arg(long)]
    pub(crate) errors: bool,

    /// Where the agent listens [default: what the configuration says, else 127.0.0.1:9100].
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) address: Option<ListenAddress>,

    /// How to print them.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Lines,

    /// End after so many.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) count: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Lines {
    /// For people
    #[default]
    Table,
    /// For programs: one object a line, as /requests has them
    Json,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum Report {
    /// For people
    #[default]
    Table,
    /// For programs: the same list as /probes
    Json,
}

/// Flags win over the file; what neither names has its default.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Configuration file (YAML); every key is explained in deploy/perf-agent.yaml [default: no file].
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,

    /// Address to listen on, repeatable; `:9100` is every interface [default: :9100].
    #[arg(long = "web.listen-address", value_name = "ADDRESS", global = true)]
    listen_address: Vec<ListenAddress>,

    /// Path that serves metrics [default: /metrics].
    #[arg(long = "web.telemetry-path", value_name = "PATH", global = true)]
    telemetry_path: Option<TelemetryPath>,

    /// Log events from this severity on [default: info].
    #[arg(long = "log.level", value_name = "LEVEL", value_enum, global = true)]
    log_level: Option<Level>,

    /// How to write the log, to standard error [default: logfmt].
    #[arg(long = "log.format", value_name = "FORMAT", value_enum, global = true)]
    log_format: Option<LogFormat>,

    /// Where the host's procfs is mounted [default: /proc].
    #[arg(long = "path.procfs", value_name = "DIR", global = true)]
    procfs: Option<PathBuf>,

    /// Where the host's sysfs is mounted [default: /sys].
    #[arg(long = "path.sysfs", value_name = "DIR", global = true)]
    sysfs: Option<PathBuf>,

    /// Where the lock lies that keeps a second agent from starting [default: /run].
    #[arg(long = "path.run", value_name = "DIR", global = true)]
    run: Option<PathBuf>,

    /// Go by what the agent does on kernels without this tracepoint, repeatable: to test it and to measure it.
    #[arg(long, value_name = "NAME", global = true, hide = true)]
    hide_tracepoint: Vec<String>,
}

impl Options {
    /// The configuration these flags and the file they name amount to.
    pub(crate) fn config(self) -> Result<Config, ConfigError> {
        // Without `..`, so that a new flag cannot be forgotten here.
        let Self {
            config,
            listen_address,
            telemetry_path,
            log_level,
            log_format,
            procfs,
            sysfs,
            run,
            hide_tracepoint,
        } = self;
        let mut config = config.as_deref().map_or_else(|| Ok(Config::default()), Config::read)?;
        if !listen_address.is_empty() {
            config.web.listen_address = listen_address;
        }
        replace(&mut config.web.telemetry_path, telemetry_path);
        replace(&mut config.log.level, log_level);
        replace(&mut config.log.format, log_format);
        replace(&mut config.paths.procfs, procfs);
        replace(&mut config.paths.sysfs, sysfs);
        replace(&mut config.paths.run, run);
        config.hidden_tracepoints = hide_tracepoint;
        Ok(config)
    }
}

fn replace<T>(value: &mut T, flag: Option<T>) {
    if let Some(flag) = flag {
        *value = flag;
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_tells_the_defaults() {
        let help = Cli::command().render_long_help().to_string();
        let Config { web, log, paths, .. } = Config::default();
        let level = format!("{:?}", log.level).to_lowercase();
        let format = format!("{:?}", log.format).to_lowercase();
        for default in [
            web.listen_address.first().unwrap().to_string(),
            web.telemetry_path.as_str().to_owned(),
            level,
            format,
            paths.procfs.display().to_string(),
            paths.sysfs.display().to_string(),
            paths.run.display().to_string(),
        ] {
            assert!(help.contains(&format!("[default: {default}]")), "{default} in\n{help}");
        }
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = std::env::temp_dir().join(format!("perf-agent-cli-{}.yaml", std::process::id()));
        std::fs::write(&file, "web: {telemetry_path: /from-file}\nlog: {level: warn, format: json}\n")
            .unwrap();
        let file = file.to_str().unwrap();
        let line = ["perf-agent", "--config", file, "--log.level=debug", "doctor", "--web.listen-address=:1"];
        let config = Cli::try_parse_from(line).unwrap().options.config().unwrap();
        std::fs::remove_file(file).unwrap();
        assert_eq!(config.log.level, Level::Debug);
        assert_eq!(config.log.format, LogFormat::Json);
        assert_eq!(config.web.telemetry_path.as_str(), "/from-file");
        assert_eq!(config.web.listen_address, [":1".parse().unwrap()]);
    }
}
