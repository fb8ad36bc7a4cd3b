//! perf-agent: latency of unmodified programs, from eBPF tracepoints to Prometheus.

mod bpf;
mod cli;
mod clock;
mod config;
mod daemon;
mod doctor;
mod identity;
mod kernel;
mod lock;
mod logging;
mod maps;
mod object;
mod own;
mod page;
mod probes;
mod requests;
mod serve;
mod trace;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use cli::{Cli, Command};

/// What a caller can tell from the exit code; `cli.rs` documents it. Clap itself ends with 2 on wrong usage.
const FAILED: u8 = 1;
const MISCONFIGURED: u8 = 2;

fn main() -> ExitCode {
    let Cli { options, command } = Cli::parse();
    let config = match options.config() {
        Ok(config) => config,
        Err(error) => {
            // With its cause; and not through the log, whose format is in what could not be read.
            complain(&format!("perf-agent: {:#}", anyhow::Error::from(error)));
            return ExitCode::from(MISCONFIGURED);
        }
    };
    match command {
        None => {
            logging::start(&config.log);
            match daemon::run(config) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "perf-agent ends");
                    ExitCode::from(FAILED)
                }
            }
        }
        Some(Command::Doctor { format }) => match doctor::run(&config, format) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(FAILED),
            Err(error) => {
                complain(&format!("perf-agent doctor: {error:#}"));
                ExitCode::from(FAILED)
            }
        },
        Some(Command::Trace(options)) => match trace::run(&config, options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&format!("perf-agent trace: {error:#}"));
                ExitCode::from(FAILED)
            }
        },
    }
}

/// Not `eprintln!`, which panics where standard error takes nothing.
fn complain(message: &str) {
    _ = writeln!(std::io::stderr(), "{message}");
}
