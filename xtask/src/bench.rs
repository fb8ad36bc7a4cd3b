//! What the agent costs, in numbers.

mod cost;
mod cpu;
mod floor;
mod kernel;
mod overhead;
mod pairs;
mod report;
mod subject;
mod workload;

use anyhow::Result;

use crate::process::become_root;

/// Measure what the agent costs.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Measure what was built before
    #[arg(long, hide = true)]
    built: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Overhead(overhead::Args),
    /// The other end of the pipe workload: answers each byte of stdin with one on stdout
    #[command(hide = true)]
    Echo {
        #[arg(long)]
        cpu: usize,
    },
}

pub(crate) fn main(args: &Args) -> Result<()> {
    match &args.command {
        Command::Echo { cpu } => workload::echo(*cpu),
        Command::Overhead(overhead) => {
            if !args.built {
                overhead::prepare(overhead)?;
            }
            become_root()?;
            overhead::main(overhead)
        }
    }
}
