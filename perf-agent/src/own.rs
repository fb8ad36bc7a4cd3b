//! The agent's own metrics: what it is, what works, and what it costs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use procfs::process::{LimitValue, Process};
use procfs::{FromReadSI as _, KernelStats};
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

use crate::doctor::state_name;
use crate::page::{Kind, Page};
use crate::probes::{State, Status};

/// Why a client is turned away; the values of `reason`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rejected {
    /// More connections are open than are served.
    Connections,
    /// More scrapes are under way than are served.
    Scrapes,
    /// The page was not built in time.
    Timeout,
}

/// Counters of the agent itself, and where to read about its process.
pub(crate) struct Own {
    registry: Registry,
    pub(crate) in_flight: IntGauge,
    rejected: IntCounterVec,
    process: PathBuf,
    /// Seconds since the epoch. Computed once: derived from the clock at each scrape, it would jitter.
    start_time: Option<f64>,
}

impl Own {
    pub(crate) fn new(procfs: &Path) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let in_flight = IntGauge::new(
            "perf_agent_http_requests_in_flight",
            "HTTP requests being answered at the moment.",
        )?;
        let rejected = IntCounterVec::new(
            Opts::new("perf_agent_http_rejected_total", "Connections and scrapes turned away, by reason."),
            &["reason"],
        )?;
        registry.register(Box::new(in_flight.clone()))?;
        registry.register(Box::new(rejected.clone()))?;
        // From zero on, so that the first rejection is an increase.
        for reason in [Rejected::Connections, Rejected::Scrapes, Rejected::Timeout] {
            rejected.with_label_values(&[label(reason)]);
        }
        let process = procfs.join("self");
        let start_time = start_time(procfs, &process);
        Ok(Self { registry, in_flight, rejected, process, start_time })
    }

    pub(crate) fn reject(&self, reason: Rejected) {
        self.rejected.with_label_values(&[label(reason)]).inc();
    }

    /// `took` is how long the measured part of this page took to build.
    pub(crate) fn collect(&self, page: &mut Page, status: &[Status], took: Duration) {
        let mut info = page.family(
            "perf_agent_build_info",
            "Constant 1, labelled by the agent's version and the architecture it was built for.",
            Kind::Gauge,
        );
        info.sample(&[("version", env!("CARGO_PKG_VERSION")), ("arch", std::env::consts::ARCH)], 1.0);
        let mut up = page.family(
            "perf_agent_probe_up",
            "1 if the hook of the probe is attached. /probes tells the reason and the remedy where it is not.",
            Kind::Gauge,
        );
        for Status { probe, hook, state, .. } in status {
            let labels = [("probe", *probe), ("hook", hook), ("state", state_name(*state))];
            up.sample(&labels, f64::from(u8::from(*state == State::Attached)));
        }
        page.family(
            "perf_agent_scrape_duration_seconds",
            "How long it took to read the kernel's maps and write them, for this page.",
            Kind::Gauge,
        )
        .sample(&[], took.as_secs_f64());
        page.registry(&self.registry);
        self.process(page);
    }

    /// The names and meanings of Prometheus' client libraries.
    fn process(&self, page: &mut Page) {
        // Whatever cannot be read is left out, which is what those libraries do.
        let Ok(process) = Process::new_with_root(self.process.clone()) else { return };
        let mut one = |name, help, kind, value: Option<f64>| {
            if let Some(value) = value {
                page.family(name, help, kind).sample(&[], value);
            }
        };
        let stat = process.stat().ok();
        let cpu =
            stat.as_ref().map(|stat| (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64);
        let resident = stat.as_ref().map(|stat| (stat.rss * procfs::page_size()) as f64);
        let max_fds = process.limits().ok().and_then(|limits| match limits.max_open_files.soft_limit {
            LimitValue::Value(most) => Some(most as f64),
            LimitValue::Unlimited => None,
        });
        one(
            "process_cpu_seconds_total",
            "Total user and system CPU time spent in seconds.",
            Kind::Counter,
            cpu,
        );
        one("process_resident_memory_bytes", "Resident memory size in bytes.", Kind::Gauge, resident);
        one(
            "process_virtual_memory_bytes",
            "Virtual memory size in bytes.",
            Kind::Gauge,
            stat.as_ref().map(|stat| stat.vsize as f64),
        );
        one(
            "process_open_fds",
            "Number of open file descriptors.",
            Kind::Gauge,
            process.fd_count().ok().map(|fds| fds as f64),
        );
        one("process_max_fds", "Maximum number of open file descriptors.", Kind::Gauge, max_fds);
        one(
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            Kind::Gauge,
            self.start_time,
        );
        one(
            "process_threads",
            "Number of operating system threads in the process.",
            Kind::Gauge,
            stat.as_ref().map(|stat| stat.num_threads as f64),
        );
    }
}

fn label(reason: Rejected) -> &'static str {
    match reason {
        Rejected::Connections => "connections",
        Rejected::Scrapes => "scrapes",
        Rejected::Timeout => "timeout",
    }
}

fn start_time(procfs: &Path, process: &Path) -> Option<f64> {
    let boot = KernelStats::from_file(procfs.join("stat"), procfs::current_system_info()).ok()?.btime;
    let since_boot = Process::new_with_root(process.to_owned()).ok()?.stat().ok()?.starttime;
    Some(boot as f64 + since_boot as f64 / procfs::ticks_per_second() as f64)
}
