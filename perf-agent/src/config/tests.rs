use std::path::Path;

use serde_json::Value;

use super::ladder::Bound;
use super::*;

const EXAMPLE: &str = include_str!("../../../deploy/perf-agent.yaml");

fn refusal(text: &str) -> String {
    Config::parse(Path::new("a.yaml"), text).expect_err(text).to_string()
}

#[test]
fn the_example_is_the_default() {
    assert_eq!(Config::parse(Path::new("deploy/perf-agent.yaml"), EXAMPLE).unwrap(), Config::default());
    for empty in ["", "# nothing\n", "web: {}\nlog: {}\n"] {
        assert_eq!(Config::parse(Path::new("a.yaml"), empty).unwrap(), Config::default());
    }
}

#[test]
fn the_example_has_every_key_and_explains_it() {
    let documented: Value = serde_saphyr::from_str(EXAMPLE).unwrap();
    let known = serde_json::to_value(Config::default()).unwrap();
    let mut paths = Vec::new();
    keys("", &known, &mut paths);
    assert!(paths.len() >= 13, "{paths:?}");
    for path in &paths {
        let pointer = format!("/{}", path.replace('.', "/"));
        assert!(documented.pointer(&pointer).is_some(), "{path} is missing in deploy/perf-agent.yaml");
        let key = path.rsplit('.').next().unwrap();
        let lines: Vec<_> = EXAMPLE.lines().collect();
        let explained = lines.windows(2).any(|pair| {
            let [above, line] = pair else { return false };
            line.trim_start().starts_with(&format!("{key}:")) && above.trim_start().starts_with('#')
        });
        assert!(explained, "no comment stands above {key} in deploy/perf-agent.yaml");
    }
}

fn keys(prefix: &str, value: &Value, into: &mut Vec<String>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        keys(&path, value, into);
        into.push(path);
    }
}

#[test]
fn a_file_changes_what_it_names() {
    let config = Config::parse(
        Path::new("a.yaml"),
        "web:\n  listen_address: [':9200', '[::1]:0']\nlog: {level: debug, format: json}\nprobes:\n  sched: {enabled: false}\n  \
         http: {max_series: 100}\nhistogram:\n  buckets: [0.000001, 0.00315, 1, 100]\n",
    )
    .unwrap();
    let addresses: Vec<_> = config.web.listen_address.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, [":9200", "[::1]:0"]);
    assert_eq!((config.log.level, config.log.format), (Level::Debug, LogFormat::Json));
    let off: Vec<_> = config.probes.enabled().into_iter().filter(|(_, enabled)| !enabled).collect();
    assert_eq!(off, [("sched", false)]);
    assert_eq!(config.probes.http.max_series.get(), 100);
    let bounds = config.histogram.buckets.bounds();
    assert_eq!(bounds.iter().map(|bound| bound.seconds()).collect::<Vec<_>>(), [1e-6, 0.00315, 1.0, 100.0]);
    assert_eq!(bounds.iter().map(|bound| bound.cell()).collect::<Vec<_>>(), [0, 35, 60, 80]);
}

#[test]
fn refusals_name_the_place_and_the_remedy() {
    for (text, expected) in [
        ("wbe: {}\n", "a.yaml:1:1: unknown key `wbe`; did you mean `web`?"),
        (
            "probes:\n  tcp:\n    enabeld: true\n",
            "a.yaml:3:5: unknown key `enabeld`; did you mean `enabled`?",
        ),
        (
            "probes:\n  kafka: {}\n",
            "a.yaml:2:3: unknown key `kafka`; known here: tcp, sched, disk, http, postgres, redis, mysql, sockets, max_db_series, connection_pools, dns, process, drops, irq",
        ),
        (
            "paths: {}\n",
            "a.yaml:1:1: unknown key `paths`; known here: web, log, probes, requests, histogram, derived_metrics",
        ),
        ("log:\n  level: inof\n", "a.yaml:2:10: unknown value `inof`; did you mean `info`?"),
        ("log: {level: info, level: warn}\n", "a.yaml:1:20: "),
        ("probes:\n  http:\n    max_series: many\n", "a.yaml:3:17: not a whole number"),
        (
            "probes:\n  http:\n    max_series: 0\n",
            "a.yaml:3:17: 0 series are out of range: write 1 to 1048576",
        ),
        (
            "requests: {max_per_second: -1}\n",
            "a.yaml:1:28: -1 requests a second are out of range: write 1 to 1000, or 0 for none",
        ),
        ("requests:\n  slower_than: 1\n", "a.yaml:2:16: \"1\" is no length of time; write one like `100ms`"),
        ("requests:\n  slower_than: 0s\n", "a.yaml:2:16: 0s is out of range: write more than nothing"),
        ("probes:\n  dns: {max_domains: 0}\n", "a.yaml:2:22: 0 domains are out of range: write 1 to 10000"),
        (
            "probes:\n  http:\n    max_children: 3\n",
            "a.yaml:3:19: 3 children are out of range: write 4 to 10000",
        ),
        (
            "probes:\n  http:\n    routes:\n      - /a\n      - '/b/{c'\n",
            "a.yaml:5:9: \"/b/{c\" is no route: braces stand around a whole segment; write one like",
        ),
        (
            "probes:\n  http:\n    routes: ['/a/{b}', '/a/{c}']\n",
            "a.yaml:3:13: `/a/{b}` and `/a/{c}` match the same paths",
        ),
        ("probes:\n  tcp: {enabled: 3}\n", "a.yaml:2:18: neither true nor false"),
        (
            "web:\n  listen_address: [9100]\n",
            "a.yaml:2:20: \"9100\" is no address to listen on: it has no port",
        ),
        ("web:\n  listen_address: []\n", "a.yaml:2:19: no address to listen on"),
        ("web:\n  telemetry_path: /healthz\n", "a.yaml:2:19: /healthz serves something else"),
        (
            "histogram:\n  buckets:\n    - 0.1\n    - 0.3\n",
            "a.yaml:4:7: 0.3 s is no bound that the kernel counts by; the nearest are 0.25 and 0.315",
        ),
        (
            "histogram: {buckets: [1000]}\n",
            "a.yaml:1:23: 1000 s is no bound that the kernel counts by; the largest is 100 s",
        ),
        ("histogram: {buckets: [.nan]}\n", "a.yaml:1:23: NaN s is no bound"),
        ("histogram:\n  buckets: [0.5, 0.25]\n", "a.yaml:2:12: buckets ascend, and 0.25 follows 0.5"),
        ("histogram: {buckets: []}\n", "a.yaml:1:22: a histogram needs at least one bucket"),
        ("web: [\n", "a.yaml:"),
        ("web:\n\tlog: {}\n", "a.yaml:2:"),
        ("--- {}\n--- {}\n", "a.yaml:"),
    ] {
        let message = refusal(text);
        assert!(message.starts_with(expected), "{text:?} gives\n  {message}\nand not\n  {expected}");
        assert!(!message.contains('\n'), "{message:?} is more than one line");
    }
}

#[test]
fn every_bound_of_the_ladder_is_accepted_as_it_is_printed() {
    for (cell, ns) in perf_common::histogram::BOUNDS_NS.iter().enumerate() {
        let seconds = *ns as f64 / 1e9;
        let bound = Bound::try_from(seconds.to_string().parse::<f64>().unwrap()).unwrap();
        assert_eq!(bound.cell(), cell);
        assert!(Bound::try_from(seconds * 1.01).is_err(), "{seconds} * 1.01");
    }
    assert_eq!(Buckets::default().bounds().len(), 16);
    assert_eq!(Buckets::default().bounds().first().unwrap().seconds().to_string(), "0.0001");
    assert_eq!(Buckets::default().bounds().last().unwrap().seconds().to_string(), "10");
}

#[test]
fn listen_addresses() {
    let candidates = |text: &str| text.parse::<ListenAddress>().unwrap().candidates().unwrap();
    assert_eq!(candidates(":9100"), ["[::]:9100".parse().unwrap(), "0.0.0.0:9100".parse().unwrap()]);
    assert_eq!(candidates("127.0.0.1:0"), ["127.0.0.1:0".parse().unwrap()]);
    assert_eq!(candidates("[::1]:80"), ["[::1]:80".parse().unwrap()]);
    for wrong in ["", "9100", ":", ":65536", ":-1", "::1:80", "[::1:80", "[x]:80", "http://a:80", "a b:80"] {
        let message = wrong.parse::<ListenAddress>().unwrap_err();
        assert!(message.contains("`127.0.0.1:9100`"), "{message}");
    }
}

#[test]
fn derived_metrics_are_read_and_refused_by_what_is_wrong() {
    let example = include_str!("../../../deploy/examples/booking.yaml");
    let config = Config::parse(Path::new("booking.yaml"), example).unwrap();
    let names: Vec<_> = config.derived_metrics.iter().map(|metric| metric.name.as_str()).collect();
    assert_eq!(names, ["bookings_created_total", "bookings_refused_total", "active_users"]);
    let created = config.derived_metrics.iter().next().unwrap();
    let route = created.matches.route.as_ref().unwrap();
    assert_eq!(route.values("/api/bookings/hotel"), Some(vec![("service_type", "hotel")]));
    for other in ["/api/bookings", "/api/bookings/", "/api/bookings/hotel/17", "/api/booking/hotel", "/"] {
        assert_eq!(route.values(other), None, "{other}");
    }
    let status = created.matches.status.as_ref().unwrap();
    assert_eq!([199, 200, 299, 300].map(|code| status.contains(code)), [false, true, true, false]);

    let metric = |lines: &str| format!("derived_metrics:\n  - name: a_total\n    type: counter\n{lines}");
    for (text, expected) in [
        (
            metric("    match: {protocol: http}\n    lables: {}\n"),
            "a.yaml:5:5: unknown key `lables`; did you mean `labels`?",
        ),
        (metric("    match: {protocol: htp}\n"), "a.yaml:4:23: unknown value `htp`; did you mean `http`?"),
        (
            metric("    match: {protocol: http, rout: /a}\n"),
            "a.yaml:4:29: unknown key `rout`; did you mean `route`?",
        ),
        (
            metric("    match: {protocol: http, route: a}\n"),
            "a.yaml:4:36: \"a\" is no route: it does not begin with a slash",
        ),
        (
            metric("    match: {protocol: http, status: 2x}\n"),
            "\"2x\" is no status: write one like 201, 2xx or 200-299",
        ),
        (metric("    match: {protocol: http, status: 700}\n"), "\"700\" is no status"),
        (
            metric("    match: {protocol: http}\n    labels: {service: x}\n"),
            "service: this label is not the user's to give",
        ),
        (
            metric("    match: {protocol: http, route: '/a/{b}'}\n    labels: {x: '{c}'}\n"),
            "a_total: {c} is neither a variable of match.route",
        ),
        (
            "derived_metrics:\n  - {name: a, type: counter, match: {protocol: http}}\n".to_owned(),
            "a.yaml:2:5: a: a counter's name ends in _total",
        ),
        (
            "derived_metrics:\n  - {name: http_x_total, type: counter, match: {protocol: http}}\n".to_owned(),
            "http_x_total: names that begin with http_",
        ),
        (
            "derived_metrics:\n  - {name: a, type: gauge, match: {protocol: http}}\n".to_owned(),
            "unknown value `gauge`; known here: counter, distinct_clients",
        ),
    ] {
        let refusal = refusal(&text);
        assert!(refusal.contains(expected), "{refusal}\nexpected {expected}\nfor {text}");
    }
    let twice = "  - {name: a, type: distinct_clients, match: {protocol: http}}\n".repeat(2);
    assert!(refusal(&format!("derived_metrics:\n{twice}")).contains("two derived metrics have the name a"));
}
