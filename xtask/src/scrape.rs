//! Just enough of an HTTP client and of the Prometheus text format to look at the agent's own pages.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// The body of a page that answered 200.
pub(crate) fn get(address: &str, path: &str) -> Result<String> {
    let asking = || format!("asking http://{address}{path}");
    let mut stream = TcpStream::connect(address).with_context(asking)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    // HTTP/1.0: the answer ends with the connection, and no chunks need undoing.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").with_context(asking)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(asking)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").with_context(asking)?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        bail!("http://{address}{path} answered {status}: {}", body.trim());
    }
    Ok(body.to_owned())
}

/// One line of a metrics page.
#[derive(Debug, PartialEq)]
pub(crate) struct Sample<'a> {
    pub(crate) name: &'a str,
    labels: &'a str,
    pub(crate) value: f64,
}

impl<'a> Sample<'a> {
    /// A label's value; values with escaped quotes do not occur in what this tool looks at.
    pub(crate) fn label(&self, name: &str) -> Option<&'a str> {
        let at = self.labels.match_indices(name).find_map(|(at, _)| {
            let starts = at == 0 || self.labels.as_bytes().get(at - 1) == Some(&b',');
            let value = self.labels.get(at + name.len()..)?.strip_prefix("=\"")?;
            starts.then_some(value)
        })?;
        at.split('"').next()
    }
}

/// The samples of a page, comments left out.
pub(crate) fn samples(page: &str) -> impl Iterator<Item = Sample<'_>> {
    page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        // The last brace: a route such as `/api/{id}` has some of its own.
        let (series, value) = match line.rsplit_once('}') {
            Some((series, value)) => (series, value),
            None => line.split_once(' ')?,
        };
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let value = value.split_whitespace().next()?.parse().ok()?;
        Some(Sample { name, labels, value })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_labels_and_values() {
        let page = "# TYPE a counter\na{route=\"/x/{id}\",le=\"0.5\"} 3\nb 1e3\n";
        let all: Vec<_> = samples(page).collect();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].name, all[0].value), ("a", 3.0));
        assert_eq!(all[0].label("le"), Some("0.5"));
        assert_eq!(all[0].label("route"), Some("/x/{id}"));
        assert_eq!(all[0].label("oute"), None);
        assert_eq!((all[1].name, all[1].value), ("b", 1000.0));
    }
}
