//! What each path answers.

use std::io::{Read as _, Write as _};

use flate2::read::GzDecoder;

use crate::agent::{Agent, Answer};

const PROMETHEUS_ACCEPT: &str = "Accept: application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
    application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
    text/plain;version=0.0.4;q=0.3,*/*;q=0.2\r\n";

#[test]
fn the_page_has_the_agents_own_metrics() {
    let agent = Agent::start(&[]);
    let answer = agent.get("/metrics");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let page = answer.text();
    let build = format!(
        "perf_agent_build_info{{version=\"{}\",arch=\"{}\"}} 1",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH
    );
    assert!(page.lines().any(|line| line == build), "{page}");
    assert!(agent.value("perf_agent_scrape_duration_seconds") > 0.0);
    assert!(agent.value("perf_agent_http_requests_in_flight") >= 1.0);
    assert!(agent.value("perf_agent_http_rejected_total{reason=\"scrapes\"}") < 1.0);
    assert!(agent.value("process_threads") >= 1.0);
    assert!(agent.value("process_max_fds") > agent.value("process_open_fds"));
    assert!(agent.value("process_virtual_memory_bytes") > agent.value("process_resident_memory_bytes"));
    assert!(agent.value("process_resident_memory_bytes") > 1e6);
    assert!(agent.value("process_cpu_seconds_total") >= 0.0);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let age = now - agent.value("process_start_time_seconds");
    assert!((-2.0..120.0).contains(&age), "it started {age} s ago");
    for (line, series) in
        page.lines().filter(|line| !line.starts_with('#')).map(|line| (line, line.rsplit_once(' ')))
    {
        let (name, value) = series.unwrap();
        assert!(name.starts_with(|c: char| c.is_ascii_lowercase()) && value.parse::<f64>().is_ok(), "{line}");
    }
}

#[test]
fn a_scraper_that_prefers_openmetrics_gets_it() {
    let answer = Agent::bare().request("GET", "/metrics", PROMETHEUS_ACCEPT);
    assert_eq!(
        answer.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    let page = answer.text();
    assert!(page.ends_with("\n# EOF\n"), "{page}");
    assert!(page.contains("# TYPE process_cpu_seconds counter\nprocess_cpu_seconds_total "), "{page}");
}

#[test]
fn gzip_when_asked_for() {
    let agent = Agent::bare();
    let answer = agent.request("GET", "/metrics", "Accept-Encoding: gzip\r\n");
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    let mut page = String::new();
    GzDecoder::new(answer.body.as_slice()).read_to_string(&mut page).unwrap();
    assert!(page.contains("\nperf_agent_build_info{"), "{page}");
    assert!(answer.body.len() * 2 < page.len());
    assert_eq!(
        agent.request("GET", "/metrics", "Accept-Encoding: gzip;q=0\r\n").header("content-encoding"),
        None
    );
}

#[test]
fn health_readiness_and_probes() {
    let agent = Agent::start(&[]);
    for (path, body) in [("/healthz", "ok\n"), ("/readyz", "ready\n")] {
        let answer = agent.get(path);
        assert_eq!((answer.status, answer.text().as_str()), (200, body));
    }
    let answer = agent.get("/probes");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let hooks: Vec<serde_json::Value> = serde_json::from_slice(&answer.body).unwrap();
    let attached = hooks.iter().filter(|hook| hook["state"] == "attached").count();
    assert!(agent.ready.contains(&format!(" attached={attached} ")), "{hooks:?}\n{}", agent.ready);
    let page = agent.get("/metrics").text();
    for hook in &hooks {
        let text = |key| hook[key].as_str().unwrap();
        let up = u8::from(text("state") == "attached");
        let line = format!(
            "perf_agent_probe_up{{probe=\"{}\",hook=\"{}\",state=\"{}\"}} {up}",
            text("probe"),
            text("hook"),
            text("state")
        );
        assert!(page.lines().any(|of| of == line), "{line} is missing in\n{page}");
    }
}

#[test]
fn the_status_page_shows_version_kernel_and_links_and_runs_nothing() {
    let answer = Agent::start(&[]).get("/");
    assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(answer.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    let page = answer.text();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    for part in [
        env!("CARGO_PKG_VERSION"),
        kernel.trim(),
        "href=\"/metrics\"",
        "href=\"/requests\"",
        "prefers-color-scheme",
        "Probes",
    ] {
        assert!(page.contains(part), "{part} is missing in\n{page}");
    }
    assert!(!page.contains("<script"));
}

#[test]
fn head_has_the_head_alone_and_other_methods_are_refused() {
    let agent = Agent::bare();
    for path in ["/metrics", "/", "/healthz", "/readyz", "/probes", "/requests"] {
        let answer = agent.request("HEAD", path, "");
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{path}");
        assert!(answer.header("content-length").unwrap().parse::<u32>().unwrap() > 0, "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"] {
        let answer = agent.request(method, "/metrics", "Content-Length: 0\r\n");
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{method}");
    }
    for path in ["/metricsx", "/metrics/", "/../etc/passwd", "//", "/favicon.ico"] {
        assert_eq!(agent.get(path).status, 404, "{path}");
    }
    assert_eq!(agent.get("/metrics?name=x").status, 200);
}

#[test]
fn a_connection_serves_many_requests() {
    let agent = Agent::bare();
    let mut stream = agent.connect();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut head = [0; 15];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    let second = rest.windows(5).rposition(|five| five == b"HTTP/").unwrap();
    assert_eq!(Answer::parse(&rest[second..]).text(), "ready\n");
}

#[test]
fn requests_are_json_and_what_is_asked_for_must_be_understood() {
    let agent = Agent::bare();
    let answer = agent.get("/requests?service=nobody&slower=100ms&errors=true&after=0");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let answer: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let config = [&answer["max_per_second"], &answer["slower_than_seconds"], &answer["requests"]];
    assert_eq!(config, [&serde_json::json!(10), &serde_json::json!(1.0), &serde_json::json!([])]);
    for (query, expected) in [
        (
            "sevice=x",
            "unknown parameter \"sevice\"; known here: service=NAME, slower=100ms, errors=true, after=SEQUENCE\n",
        ),
        ("slower=1", "slower: \"1\" is no length of time; write one like `100ms`, `1.5s` or `250us`\n"),
    ] {
        let answer = agent.get(&format!("/requests?{query}"));
        assert_eq!((answer.status, answer.text().as_str()), (400, expected));
    }
}
