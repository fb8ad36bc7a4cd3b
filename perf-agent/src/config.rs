//! The configuration: a YAML file, over which the command line wins.
//!
//! What the agent does not understand it refuses, with file, line and column: a misspelt key in a monitoring agent
//! would otherwise show as a graph that is missing on the day it is needed.

mod derived;
mod error;
mod ladder;
mod pools;
mod routes;
mod span;
#[cfg(test)]
mod tests;
mod values;

use std::path::{Path, PathBuf};

use serde::Deserialize;

pub(crate) use derived::{Derived, DerivedMetrics, LabelName, Match, Protocol, Type, Value};
pub(crate) use error::ConfigError;
pub(crate) use ladder::Buckets;
pub(crate) use pools::{MaxSizes, Pools};
pub(crate) use routes::Patterns;
pub(crate) use span::Span;
pub(crate) use values::{
    Level, ListenAddress, LogFormat, MaxChildren, MaxDomains, MaxPerSecond, MaxSeries, TelemetryPath,
};

/// Everything the agent can be told. `deploy/perf-agent.yaml` documents each key; a test keeps the two equal.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) struct Config {
    pub(crate) web: Web,
    pub(crate) log: Log,
    pub(crate) probes: Probes,
    pub(crate) requests: Requests,
    pub(crate) histogram: Histogram,
    pub(crate) derived_metrics: DerivedMetrics,
    /// From the command line alone: where a file is read from cannot depend on what is in it.
    #[serde(skip)]
    pub(crate) paths: Paths,
    /// Those that this kernel is taken not to have.
    #[serde(skip)]
    pub(crate) hidden_tracepoints: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) struct Web {
    #[serde(deserialize_with = "values::at_least_one")]
    pub(crate) listen_address: Vec<ListenAddress>,
    pub(crate) telemetry_path: TelemetryPath,
}

impl Default for Web {
    fn default() -> Self {
        Self { listen_address: vec![ListenAddress::default()], telemetry_path: TelemetryPath::default() }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) struct Log {
    pub(crate) level: Level,
    pub(crate) format: LogFormat,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) struct Probes {
    pub(crate) tcp: Switch,
    pub(crate) sched: Switch,
    pub(crate) disk: Switch,
    pub(crate) http: Http,
    pub(crate) postgres: Switch,
    pub(crate) redis: Switch,
    pub(crate) mysql: Switch,
    pub(crate) sockets: Switch,
    pub(crate) max_db_series: MaxSeries,
    pub(crate) connection_pools: Pools,
    pub(crate) dns: Dns,
    pub(crate) process: Switch,
    pub(crate) drops: Switch,
    pub(crate) irq: Switch,
}

impl Probes {
    /// Each slice's name and whether it is switched on, in the order in which they are shown. All protocols above TCP are one.
    pub(crate) fn enabled(&self) -> [(&'static str, bool); 8] {
        // A new probe has to be named here as well: without `..`, this does not compile until it is.
        let Self {
            tcp,
            sched,
            disk,
            http,
            postgres,
            redis,
            mysql,
            sockets,
            max_db_series: _,
            connection_pools: _,
            dns,
            process,
            drops,
            irq,
        } = self;
        [
            ("tcp", tcp.enabled),
            ("sched", sched.enabled),
            ("disk", disk.enabled),
            ("l7", http.enabled || postgres.enabled || redis.enabled || mysql.enabled || sockets.enabled),
            ("dns", dns.enabled),
            ("process", process.enabled),
            ("drops", drops.enabled),
            ("irq", irq.enabled),
        ]
    }
}

/// A probe that can only be switched on or off.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) struct Switch {
    pub(crate) enabled: bool,
}

impl Default for Switch {
    fn default() -> Self {
        Self { enabled: true }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) struct Http {
    pub(crate) enabled: bool,
    pub(crate) max_series: MaxSeries,
    pub(crate) routes: Patterns,
    pub(crate) max_children: MaxChildren,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            enabled: true,
            max_series: MaxSeries::default(),
            routes: Patterns::default(),
            max_children: MaxChildren::default(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) struct Dns {
    pub(crate) enabled: bool,
    pub(crate) domains: bool,
    pub(crate) max_domains: MaxDomains,
}

impl Default for Dns {
    fn default() -> Self {
        Self { enabled: true, domains: false, max_domains: MaxDomains::default() }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) struct Requests {
    pub(crate) max_per_second: MaxPerSecond,
    pub(crate) slower_than: Span,
}

impl Default for Requests {
    fn default() -> Self {
        Self { max_per_second: MaxPerSecond::default(), slower_than: Span::from_secs(1) }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) struct Histogram {
    pub(crate) buckets: Buckets,
}

/// Where the host's file systems are, which is elsewhere in a container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Paths {
    pub(crate) procfs: PathBuf,
    pub(crate) sysfs: PathBuf,
    pub(crate) run: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self { procfs: "/proc".into(), sysfs: "/sys".into(), run: "/run".into() }
    }
}

impl Config {
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// `path` is for the messages only.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self =
            serde_saphyr::from_str(text).map_err(|error| ConfigError::invalid(path, &error))?;
        Ok(config)
    }
}
