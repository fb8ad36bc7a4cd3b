//! Which format and which coding a scraper asks for.

use crate::page::Format;

/// The format that `Accept` ranks highest among those the agent writes; the text format where it names none of them,
/// because every scraper reads that, and a page in the second-best format beats a refusal.
pub(super) fn format(accept: Option<&str>) -> Format {
    let mut best = (0.0, Format::Text);
    for range in accept.unwrap_or_default().split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let mut quality = 1.0;
        let mut version = "";
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            let value = value.trim().trim_matches('"');
            match name.trim() {
                "q" => quality = value.parse().unwrap_or(0.0),
                "version" => version = value,
                // `escaping` asks for nothing: the agent's names are plain ASCII, which no escaping changes.
                _ => {}
            }
        }
        let format = match (media, version) {
            ("application/openmetrics-text", "" | "1.0.0") => Format::OpenMetrics,
            ("text/plain", "" | "0.0.4") | ("text/*" | "*/*", _) => Format::Text,
            _ => continue,
        };
        // The first of equals wins, as with Prometheus' own handler.
        if quality > best.0 {
            best = (quality, format);
        }
    }
    best.1
}

/// Whether the answer may be gzipped.
pub(super) fn gzip(accept_encoding: Option<&str>) -> bool {
    accept_encoding.unwrap_or_default().split(',').any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let refused = parts
            .filter_map(|part| part.strip_prefix("q="))
            .any(|quality| quality.trim().parse::<f32>().is_ok_and(|quality| quality <= 0.0));
        named && !refused
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_scrapers_send() {
        for (accept, expected) in [
            (None, Format::Text),
            (Some("*/*"), Format::Text),
            (Some("text/html,application/xhtml+xml,*/*;q=0.8"), Format::Text),
            // Prometheus 2.45 and 3.0.
            (
                Some(
                    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                     text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                ),
                Format::OpenMetrics,
            ),
            (
                Some(
                    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;\
                     version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,\
                     */*;q=0.2",
                ),
                Format::OpenMetrics,
            ),
            (Some("application/openmetrics-text; version=0.0.1, text/plain"), Format::Text),
            (Some("text/plain;q=0.9, application/openmetrics-text;q=0.1"), Format::Text),
            (Some("application/openmetrics-text; version=\"1.0.0\""), Format::OpenMetrics),
            (Some("application/openmetrics-text;q=0, image/png"), Format::Text),
            (Some(";;,=,q=,;q=x"), Format::Text),
        ] {
            assert_eq!(format(accept), expected, "{accept:?}");
        }
    }

    #[test]
    fn gzip_only_if_asked_for() {
        for (accept, expected) in [
            (None, false),
            (Some("gzip"), true),
            (Some("deflate, GZIP;q=0.5"), true),
            (Some("gzip;q=0"), false),
            (Some("gzip; q=0.0, br"), false),
            (Some("identity"), false),
            (Some("xgzip"), false),
        ] {
            assert_eq!(gzip(accept), expected, "{accept:?}");
        }
    }
}
