//! Names that the user gives.

use serde::Deserialize;

/// What the names of the agent's own metrics begin with.
const TAKEN: [&str; 10] =
    ["container_", "db_", "dns_", "http_", "network_", "node_", "perf_agent_", "process_", "sched_", "tcp_"];
/// Labels that series have anyway, or that Prometheus keeps for itself.
const RESERVED: [&str; 7] = ["service", "container", "pod", "pod_uid", "namespace", "workload", "le"];

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) struct MetricName(String);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) struct LabelName(String);

impl MetricName {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl LabelName {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

impl TryFrom<String> for MetricName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if !is_name(&name) {
            return Err(format!("{name:?} is no metric name: write letters, digits and _, no digit first"));
        }
        if let Some(prefix) = TAKEN.iter().find(|prefix| name.starts_with(**prefix)) {
            return Err(format!("{name}: names that begin with {prefix} are for the agent's own metrics"));
        }
        Ok(Self(name))
    }
}

impl TryFrom<String> for LabelName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if !is_name(&name) {
            return Err(format!("{name:?} is no label: write letters, digits and _, no digit first"));
        }
        if RESERVED.contains(&name.as_str()) || name.starts_with("__") {
            return Err(format!("{name}: this label is not the user's to give"));
        }
        Ok(Self(name))
    }
}
