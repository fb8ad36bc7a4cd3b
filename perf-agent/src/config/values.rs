//! Values that are checked where they are written, so that the message can point at them.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Deserializer, de};

/// Where to listen, in Go's notation: `:9100` is every interface, `localhost:9100` and `[::1]:9100` are one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
#[cfg_attr(test, derive(serde::Serialize), serde(into = "String"))]
pub(crate) struct ListenAddress {
    /// Empty for every interface.
    host: String,
    port: u16,
}

impl ListenAddress {
    /// The same for one who connects from this host.
    pub(crate) fn local(&self) -> Self {
        let host = if self.host.is_empty() { Ipv4Addr::LOCALHOST.to_string() } else { self.host.clone() };
        Self { host, port: self.port }
    }

    /// What to bind, in the order in which to try it: a host without IPv6 cannot bind `[::]`.
    pub(crate) fn candidates(&self) -> std::io::Result<Vec<SocketAddr>> {
        if self.host.is_empty() {
            return Ok(vec![
                (Ipv6Addr::UNSPECIFIED, self.port).into(),
                (Ipv4Addr::UNSPECIFIED, self.port).into(),
            ]);
        }
        Ok((self.host.as_str(), self.port).to_socket_addrs()?.collect())
    }
}

impl Default for ListenAddress {
    fn default() -> Self {
        Self { host: String::new(), port: 9100 }
    }
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| {
            format!(
                "{text:?} is no address to listen on: {what}; write `:9100`, `127.0.0.1:9100` or `[::1]:9100`"
            )
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("it has no port"))?;
        let port = port.parse().map_err(|_| wrong("the port is a number up to 65535"))?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inside) if inside.parse::<Ipv6Addr>().is_ok() => inside,
            Some(_) => return Err(wrong("what is in brackets is no IPv6 address")),
            None if host.contains(':') => return Err(wrong("an IPv6 address stands in brackets")),
            None if host.contains(['/', ' ']) => {
                return Err(wrong("it is a host and a port, without a scheme"));
            }
            None => host,
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl TryFrom<String> for ListenAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ListenAddress> for String {
    fn from(address: ListenAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// An agent that listens nowhere is a mistake and not a mode.
pub(super) fn at_least_one<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<ListenAddress>, D::Error> {
    let addresses = Vec::deserialize(from)?;
    if addresses.is_empty() {
        return Err(de::Error::custom("no address to listen on; write one like `:9100`"));
    }
    Ok(addresses)
}

/// The path that serves metrics.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
#[cfg_attr(test, derive(serde::Serialize), serde(into = "String"))]
pub(crate) struct TelemetryPath(String);

impl TelemetryPath {
    /// Paths that answer something else.
    const TAKEN: [&str; 4] = ["/healthz", "/readyz", "/probes", "/requests"];

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TelemetryPath {
    fn default() -> Self {
        Self("/metrics".to_owned())
    }
}

impl FromStr for TelemetryPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.starts_with('/')
            || !text.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#\"<>\\".contains(&byte))
        {
            return Err(format!("{text:?} is no path of a URL; write one like `/metrics`"));
        }
        if Self::TAKEN.contains(&text) {
            return Err(format!("{text} serves something else; write another path, like `/metrics`"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for TelemetryPath {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<TelemetryPath> for String {
    fn from(path: TelemetryPath) -> Self {
        path.0
    }
}

/// How many series the kernel keeps for a probe: the size of a map, allocated when the probe is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
#[cfg_attr(test, derive(serde::Serialize), serde(into = "i64"))]
pub(crate) struct MaxSeries(u32);

impl MaxSeries {
    /// A map of this many histograms takes 700 MB in the kernel; more is a slip of the pen.
    const MOST: i64 = 1 << 20;

    pub(crate) fn get(self) -> u32 {
        self.0
    }
}

impl Default for MaxSeries {
    fn default() -> Self {
        Self(8192)
    }
}

impl TryFrom<i64> for MaxSeries {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        if !(1..=Self::MOST).contains(&number) {
            return Err(format!("{number} series are out of range: write 1 to {}", Self::MOST));
        }
        Ok(Self(number as u32))
    }
}

#[cfg(test)]
impl From<MaxSeries> for i64 {
    fn from(MaxSeries(number): MaxSeries) -> Self {
        number.into()
    }
}

/// How many names have series of their own: each multiplies those of every service that looks it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
#[cfg_attr(test, derive(serde::Serialize), serde(into = "i64"))]
pub(crate) struct MaxDomains(u32);

impl MaxDomains {
    const MOST: i64 = 10_000;

    pub(crate) fn get(self) -> u32 {
        self.0
    }
}

impl Default for MaxDomains {
    fn default() -> Self {
        Self(100)
    }
}

impl TryFrom<i64> for MaxDomains {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        if !(1..=Self::MOST).contains(&number) {
            return Err(format!("{number} domains are out of range: write 1 to {}", Self::MOST));
        }
        Ok(Self(number as u32))
    }
}

#[cfg(test)]
impl From<MaxDomains> for i64 {
    fn from(MaxDomains(number): MaxDomains) -> Self {
        number.into()
    }
}

/// From which severity on events are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) enum Level {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) enum LogFormat {
    /// `ts=... level=info msg="..." key=value`
    #[default]
    Logfmt,
    /// One JSON object a line
    Json,
}

/// How many children a place in the tree of paths may have before they are folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
#[cfg_attr(test, derive(serde::Serialize), serde(into = "i64"))]
pub(crate) struct MaxChildren(u32);

impl MaxChildren {
    const RANGE: std::ops::RangeInclusive<i64> = 4..=10_000;

    pub(crate) fn get(self) -> usize {
        self.0 as usize
    }
}

impl Default for MaxChildren {
    fn default() -> Self {
        Self(50)
    }
}

impl TryFrom<i64> for MaxChildren {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        if !Self::RANGE.contains(&number) {
            let (least, most) = (Self::RANGE.start(), Self::RANGE.end());
            return Err(format!("{number} children are out of range: write {least} to {most}"));
        }
        Ok(Self(number as u32))
    }
}

#[cfg(test)]
impl From<MaxChildren> for i64 {
    fn from(MaxChildren(number): MaxChildren) -> Self {
        number.into()
    }
}

/// How many requests a second are sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
#[cfg_attr(test, derive(serde::Serialize), serde(into = "i64"))]
pub(crate) struct MaxPerSecond(u32);

impl MaxPerSecond {
    /// As many as are kept; a log of all requests is another tool's job.
    const MOST: i64 = 1000;

    pub(crate) fn get(self) -> u32 {
        self.0
    }
}

impl Default for MaxPerSecond {
    fn default() -> Self {
        Self(10)
    }
}

impl TryFrom<i64> for MaxPerSecond {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        if !(0..=Self::MOST).contains(&number) {
            return Err(format!(
                "{number} requests a second are out of range: write 1 to {}, or 0 for none",
                Self::MOST
            ));
        }
        Ok(Self(number as u32))
    }
}

#[cfg(test)]
impl From<MaxPerSecond> for i64 {
    fn from(MaxPerSecond(number): MaxPerSecond) -> Self {
        number.into()
    }
}
