//! Builds and starts the agent, says where to look, and stops it cleanly.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::process::{Background, become_root, command, interrupted, target};
use crate::{build, scrape, setup};

/// Build and start the agent; Ctrl-C stops it.
///
/// What follows `--` goes to the agent: `cargo xtask run -- --help`. Without flags it measures everything it can and
/// serves on port 9100. Its exit code is this command's. Its subcommands work too: `cargo xtask run -- doctor`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Start what was built before
    #[arg(long, hide = true)]
    built: bool,
    /// Flags of the agent's
    #[arg(last = true, value_name = "AGENT_FLAGS")]
    flags: Vec<OsString>,
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    if !args.built {
        setup::for_building()?;
        build::agent(false)?;
    }
    let binary = target().join("release/perf-agent");
    let asks = args.flags.iter().any(|flag| flag == "--help" || flag == "-h" || flag == "--version");
    if !asks {
        become_root()?;
    }
    let subcommand = args.flags.first().is_some_and(|first| !first.to_string_lossy().starts_with('-'));
    if asks || subcommand {
        return Ok(code(command(binary).args(&args.flags).status()?.code()));
    }
    let stop = interrupted()?;
    let mut agent = Agent::start(&binary, &args.flags, &stop)?;
    if agent.address.ends_with(":0") {
        println!(
            "perf-agent runs (pid {}) on a port that its log names; Ctrl-C stops it",
            agent.process.pid()
        );
    } else if !stop.load(Ordering::Relaxed) {
        println!("perf-agent is ready (pid {}); Ctrl-C stops it", agent.process.pid());
        println!("  metrics  http://{}/metrics", agent.address);
        println!("  status   http://{}/", agent.address);
    }
    let status = match agent.process.wait(&stop, Duration::MAX)? {
        Some(status) => status,
        None => agent.process.stop()?,
    };
    Ok(code(status.code()))
}

/// The agent's process, ready to be asked.
pub(crate) struct Agent {
    pub(crate) process: Background,
    /// Where it listens, as `host:port`.
    pub(crate) address: String,
}

impl Agent {
    /// Starts the agent and returns when it is ready or `stop` is raised.
    pub(crate) fn start(binary: &Path, flags: &[OsString], stop: &AtomicBool) -> Result<Self> {
        let address = address(flags);
        if scrape::get(&address, "/").is_ok() {
            bail!(
                "something listens on {address} already, perhaps node_exporter or another perf-agent; \
                 remedy: stop it, or `cargo xtask run -- {LISTEN} 127.0.0.1:9101`"
            );
        }
        let process = Background::start("perf-agent", command(binary).args(flags))?;
        let mut agent = Self { process, address };
        let start = Instant::now();
        // With port 0 only the agent's log tells where it listens.
        while !agent.address.ends_with(":0") && !stop.load(Ordering::Relaxed) {
            if let Some(status) = agent.process.ended()? {
                bail!("perf-agent ended before it was ready ({status}); its messages above say why");
            }
            match scrape::get(&agent.address, "/readyz") {
                Ok(_) => break,
                Err(error) if start.elapsed() > READY_WITHIN => {
                    bail!("perf-agent was not ready within {} s: {error:#}", READY_WITHIN.as_secs())
                }
                Err(_) => sleep(Duration::from_millis(50)),
            }
        }
        Ok(agent)
    }
}

/// The agent's flag for where it serves.
pub(crate) const LISTEN: &str = "--web.listen-address";

/// Ten times what the design allows: a machine that compiles at the same time is slow.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Where an agent with these flags is reached from this machine.
fn address(flags: &[OsString]) -> String {
    let flags: Vec<_> = flags.iter().map(|flag| flag.to_string_lossy()).collect();
    let after =
        flags.iter().position(|flag| *flag == LISTEN).and_then(|at| flags.get(at + 1)).map(|flag| &**flag);
    let joined = flags.iter().find_map(|flag| flag.strip_prefix(LISTEN)?.strip_prefix('='));
    let listen = after.or(joined).unwrap_or("127.0.0.1:9100");
    match listen.rsplit_once(':') {
        Some(("" | "0.0.0.0" | "[::]", port)) => format!("127.0.0.1:{port}"),
        _ => listen.to_owned(),
    }
}

fn code(code: Option<i32>) -> ExitCode {
    // None: ended by a signal, which is no clean end.
    ExitCode::from(code.map_or(1, |code| code as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_where_the_agent_listens() {
        let of = |flags: &[&str]| address(&flags.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(of(&[]), "127.0.0.1:9100");
        assert_eq!(of(&[LISTEN, ":9200"]), "127.0.0.1:9200");
        assert_eq!(of(&["--web.listen-address=0.0.0.0:1"]), "127.0.0.1:1");
        assert_eq!(of(&["--log.level=warn", LISTEN, "10.0.0.1:9100"]), "10.0.0.1:9100");
    }
}
