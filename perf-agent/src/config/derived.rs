//! Metrics that the user derives from traffic: what is counted, under which name and labels.

mod name;
mod status;

use std::collections::BTreeMap;

use serde::Deserialize;

pub(crate) use name::{LabelName, MetricName};
pub(crate) use status::StatusRange;

use super::routes::Pattern;

/// All of them; no two have the same name.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(try_from = "Vec<Derived>")]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) struct DerivedMetrics(Vec<Derived>);

/// One of them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Raw")]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) struct Derived {
    pub(crate) name: MetricName,
    pub(crate) help: String,
    pub(crate) kind: Type,
    pub(crate) matches: Match,
    pub(crate) labels: BTreeMap<LabelName, Value>,
}

/// As the file has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: MetricName,
    help: Option<String>,
    r#type: Type,
    r#match: Match,
    #[serde(default)]
    labels: BTreeMap<LabelName, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) enum Type {
    /// How many requests match.
    Counter,
    /// From how many addresses they came within the last five minutes.
    DistinctClients,
}

/// Which requests count: those that servers on this node answered, of which everything said here is true.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) struct Match {
    pub(crate) protocol: Protocol,
    pub(crate) service: Option<String>,
    pub(crate) method: Option<String>,
    pub(crate) route: Option<Pattern>,
    pub(crate) status: Option<StatusRange>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) enum Protocol {
    Http,
}

/// A label's value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) enum Value {
    Constant(String),
    /// What stands in the route where its pattern has this name.
    Variable(String),
    Method,
    /// The status code.
    Status,
}

impl DerivedMetrics {
    /// Whether any of them is a number of clients.
    pub(crate) fn has_clients(&self) -> bool {
        self.iter().any(|metric| metric.kind == Type::DistinctClients)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Derived> {
        self.0.iter()
    }
}

impl TryFrom<Vec<Derived>> for DerivedMetrics {
    type Error = String;

    fn try_from(all: Vec<Derived>) -> Result<Self, String> {
        for (at, Derived { name, .. }) in all.iter().enumerate() {
            if all.iter().take(at).any(|other| other.name == *name) {
                return Err(format!("two derived metrics have the name {}", name.as_str()));
            }
        }
        Ok(Self(all))
    }
}

impl TryFrom<Raw> for Derived {
    type Error = String;

    fn try_from(Raw { name, help, r#type, r#match, labels }: Raw) -> Result<Self, String> {
        let text = name.as_str();
        if (r#type == Type::Counter) != text.ends_with("_total") {
            return Err(format!("{text}: a counter's name ends in _total, and no other's does"));
        }
        let value = |value: String| Value::parse(value, r#match.route.as_ref());
        let labels: Result<_, String> =
            labels.into_iter().map(|(label, text)| Ok((label, value(text)?))).collect();
        let labels = labels.map_err(|error| format!("{text}: {error}"))?;
        let help = help.unwrap_or_else(|| "Derived from traffic, as the configuration says.".to_owned());
        Ok(Self { name, help, kind: r#type, matches: r#match, labels })
    }
}

impl Value {
    /// `{name}` is a variable, all else is taken as it is.
    fn parse(text: String, route: Option<&Pattern>) -> Result<Self, String> {
        let Some(name) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) else {
            return Ok(Self::Constant(text));
        };
        if route.is_some_and(|route| route.variables().any(|variable| variable == name)) {
            return Ok(Self::Variable(name.to_owned()));
        }
        match name {
            "method" => Ok(Self::Method),
            "status" => Ok(Self::Status),
            _ => Err(format!("{text} is neither a variable of match.route nor {{method}} or {{status}}")),
        }
    }
}
