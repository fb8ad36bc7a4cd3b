//! `cargo xtask`: everything one does with this tree, one file per command.
#![allow(clippy::print_stdout, reason = "a command-line tool talks to its user on stdout")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

mod bench;
mod build;
mod demo;
mod fuzz;
mod lint;
mod process;
mod run;
mod scrape;
mod setup;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Build, run, test and measure perf-agent.
///
/// A fresh Debian machine needs only rustup and root: every command first installs what it uses and says so.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask demo                 see it measure a web server under load, in one command
  cargo xtask build                target/release/perf-agent
  cargo xtask run -- --help        what the agent can be told
  cargo xtask test                 everything that continuous integration runs
  cargo xtask test http            only the tests with `http` in their name
  cargo xtask vm 5.10              load every hook on one old kernel

All that is installed for this tree alone lies in target/tools and target/vm; deleting target/ undoes it.";

// The commands with arguments are described at their `Args`: a comment here would replace the longer one there.
#[derive(Subcommand)]
enum Command {
    Setup(setup::Args),
    Build(build::Args),
    Run(run::Args),
    Demo(demo::Args),
    Test(test::Args),
    Vm(vm::Args),
    Bench(bench::Args),
    Fuzz(fuzz::Args),
    /// Formatting, clippy for the host and for the BPF target, and `tidy`.
    Lint,
    /// Check that every slice has all its parts and that the tree holds nothing it should not.
    Tidy,
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Setup(args) => setup::main(&args).map(done),
        Command::Build(args) => build::main(&args).map(done),
        Command::Run(args) => run::main(&args),
        Command::Demo(args) => demo::main(&args).map(done),
        Command::Test(args) => test::main(&args),
        Command::Vm(args) => vm::main(&args),
        Command::Bench(args) => bench::main(&args).map(done),
        Command::Fuzz(args) => fuzz::main(&args).map(done),
        Command::Lint => lint::main().map(done),
        Command::Tidy => tidy::main().map(done),
    }
}
