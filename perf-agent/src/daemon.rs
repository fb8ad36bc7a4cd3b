//! The agent's life: lock, listen, attach, serve, detach.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::config::Config;
use crate::lock::Lock;
use crate::probes::{Probes, State, Status};
use crate::serve::{self, App};

/// What a clean end may take, in its three steps; together less than the five seconds that are promised.
const DRAIN: Duration = Duration::from_secs(2);
const DETACH: Duration = Duration::from_secs(1);
const LEAVE: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(config: Config) -> Result<()> {
    let started = Instant::now();
    let _lock = Lock::take(&config.paths.run)?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        // One builds pages, one attaches; what a hung disk holds must not pile up.
        .max_blocking_threads(4)
        .thread_name("perf-agent-io")
        .build()
        .context("the runtime cannot start")?;
    let ended = runtime.block_on(live(config, started));
    // A thread that is stuck in the kernel does not keep the agent from ending.
    runtime.shutdown_timeout(LEAVE);
    ended
}

async fn live(config: Config, started: Instant) -> Result<()> {
    // First, so that a signal while the probes are being attached ends cleanly as well.
    let mut signals = Signals::new()?;
    let listeners: Vec<TcpListener> =
        config.web.listen_address.iter().map(serve::bind).collect::<Result<_>>()?;
    let listen: Vec<String> = listeners
        .iter()
        .map(|listener| listener.local_addr().map(|address| address.to_string()))
        .collect::<Result<_, _>>()
        .context("a listener has no address")?;

    let kernel =
        std::fs::read_to_string(config.paths.procfs.join("sys/kernel/osrelease")).unwrap_or_default();
    let kernel = kernel.trim().to_owned();
    let app =
        App::new(&config, kernel.clone(), started).context("the agent's own metrics are inconsistent")?;
    let app = Arc::new(app);
    let (stop, stopped) = watch::channel(false);
    for listener in listeners {
        tokio::spawn(serve::run(listener, Arc::clone(&app), stopped.clone()));
    }

    let path = config.web.telemetry_path.clone();
    let attach = spawn_blocking(move || Probes::start(&config));
    tokio::select! {
        probes = attach => {
            let probes = probes.context("attaching the probes broke off")?.context("the probes cannot be attached")?;
            let status = probes.status().to_vec();
            app.install(probes).await;
            report(&status, &kernel, &listen, path.as_str(), started);
            // Awaited here: the fields of a log line that is filtered out are never evaluated.
            let signal = tokio::select! {
                signal = signals.next() => signal,
                () = app.tick() => "nothing",
            };
            info!(signal, "stopping");
        }
        signal = signals.next() => info!(signal, "stopping before the probes were attached"),
    }

    stop.send_replace(true);
    if timeout(DRAIN, app.drained()).await.is_err() {
        warn!("clients that were still reading are cut off");
    }
    if let Ok(probes) = timeout(DETACH, app.remove()).await {
        drop(probes);
    }
    info!("stopped");
    Ok(())
}

/// The one line to look for in the log, and one for each hook that should have worked.
fn report(status: &[Status], kernel: &str, listen: &[String], path: &str, started: Instant) {
    for Status { probe, hook, state, reason, remedy } in status {
        if *state == State::Failed {
            warn!(probe, hook, reason, remedy, "a hook failed");
        }
    }
    let count = |state| status.iter().filter(|hook| hook.state == state).count();
    info!(
        version = env!("CARGO_PKG_VERSION"),
        kernel,
        attached = count(State::Attached),
        unsupported = count(State::Unsupported),
        failed = count(State::Failed),
        disabled = count(State::Disabled),
        listen = listen.join(","),
        path,
        startup_ms = started.elapsed().as_millis() as u64,
        "perf-agent is ready"
    );
}

struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let on = |kind| signal(kind).context("signals cannot be handled");
        Ok(Self { term: on(SignalKind::terminate())?, int: on(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}
