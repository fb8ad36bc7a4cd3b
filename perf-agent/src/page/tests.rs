use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

use super::number::{bound, float};
use super::*;

fn page(format: Format) -> String {
    let mut page = Page::new(format);
    let mut requests =
        page.family("http_requests_total", "Requests, by \"route\"\nand \\ more.", Kind::Counter);
    requests.sample(&[("service", "shop"), ("route", "/a"), ("pod", "")], 3.0);
    requests.sample(&[("service", "say \"hi\"\\\n"), ("route", "größe")], 9_007_199_254_740_991.0);
    let mut up = page.family("perf_agent_probe_up", "Whether a hook is attached.", Kind::Gauge);
    up.sample(&[], 1.0);
    // No sample, no header.
    page.family("nothing_total", "Never seen.", Kind::Counter);
    let buckets = [(0.000_001, 0), (0.0001, 1), (0.005, 2), (1.0, 2), (100.0, 3)];
    let mut latency = page.family("http_request_duration_seconds", "Latency.", Kind::Histogram);
    latency.histogram(&[("service", "shop")], &buckets, 4, 200.25);
    latency.histogram(&[("service", "")], &buckets[1..2], 1, 0.000_1);
    String::from_utf8(page.finish()).unwrap()
}

#[test]
fn text_page() {
    assert_eq!(
        page(Format::Text),
        r#"# HELP http_requests_total Requests, by "route"\nand \\ more.
# TYPE http_requests_total counter
http_requests_total{service="shop",route="/a"} 3
http_requests_total{service="say \"hi\"\\\n",route="größe"} 9007199254740991
# HELP perf_agent_probe_up Whether a hook is attached.
# TYPE perf_agent_probe_up gauge
perf_agent_probe_up 1
# HELP http_request_duration_seconds Latency.
# TYPE http_request_duration_seconds histogram
http_request_duration_seconds_bucket{service="shop",le="1e-06"} 0
http_request_duration_seconds_bucket{service="shop",le="0.0001"} 1
http_request_duration_seconds_bucket{service="shop",le="0.005"} 2
http_request_duration_seconds_bucket{service="shop",le="1"} 2
http_request_duration_seconds_bucket{service="shop",le="100"} 3
http_request_duration_seconds_bucket{service="shop",le="+Inf"} 4
http_request_duration_seconds_sum{service="shop"} 200.25
http_request_duration_seconds_count{service="shop"} 4
http_request_duration_seconds_bucket{le="0.0001"} 1
http_request_duration_seconds_bucket{le="+Inf"} 1
http_request_duration_seconds_sum 0.0001
http_request_duration_seconds_count 1
"#
    );
}

#[test]
fn openmetrics_page() {
    assert_eq!(
        page(Format::OpenMetrics),
        r#"# HELP http_requests Requests, by \"route\"\nand \\ more.
# TYPE http_requests counter
http_requests_total{service="shop",route="/a"} 3
http_requests_total{service="say \"hi\"\\\n",route="größe"} 9007199254740991
# HELP perf_agent_probe_up Whether a hook is attached.
# TYPE perf_agent_probe_up gauge
perf_agent_probe_up 1
# HELP http_request_duration_seconds Latency.
# TYPE http_request_duration_seconds histogram
http_request_duration_seconds_bucket{service="shop",le="1e-06"} 0
http_request_duration_seconds_bucket{service="shop",le="0.0001"} 1
http_request_duration_seconds_bucket{service="shop",le="0.005"} 2
http_request_duration_seconds_bucket{service="shop",le="1.0"} 2
http_request_duration_seconds_bucket{service="shop",le="100.0"} 3
http_request_duration_seconds_bucket{service="shop",le="+Inf"} 4
http_request_duration_seconds_sum{service="shop"} 200.25
http_request_duration_seconds_count{service="shop"} 4
http_request_duration_seconds_bucket{le="0.0001"} 1
http_request_duration_seconds_bucket{le="+Inf"} 1
http_request_duration_seconds_sum 0.0001
http_request_duration_seconds_count 1
# EOF
"#
    );
}

#[test]
fn a_counter_without_the_suffix_gets_it_in_openmetrics_only() {
    for (format, line) in
        [(Format::Text, "\nold_counter 2\n"), (Format::OpenMetrics, "\nold_counter_total 2\n")]
    {
        let mut page = Page::new(format);
        page.family("old_counter", "Old.", Kind::Counter).sample(&[], 2.0);
        let text = String::from_utf8(page.finish()).unwrap();
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn registry_families() {
    let registry = Registry::new();
    let rejected = IntCounterVec::new(Opts::new("rejected_total", "Refused."), &["reason"]).unwrap();
    let took =
        HistogramVec::new(HistogramOpts::new("took_seconds", "Took.").buckets(vec![0.5]), &["x"]).unwrap();
    registry.register(Box::new(rejected.clone())).unwrap();
    registry.register(Box::new(took.clone())).unwrap();
    rejected.with_label_values(&["full"]).inc_by(2);
    took.with_label_values(&["y"]).observe(0.25);
    took.with_label_values(&["y"]).observe(0.75);
    let mut page = Page::new(Format::Text);
    page.registry(&registry);
    assert_eq!(
        String::from_utf8(page.finish()).unwrap(),
        r#"# HELP rejected_total Refused.
# TYPE rejected_total counter
rejected_total{reason="full"} 2
# HELP took_seconds Took.
# TYPE took_seconds histogram
took_seconds_bucket{x="y",le="0.5"} 1
took_seconds_bucket{x="y",le="+Inf"} 2
took_seconds_sum{x="y"} 1
took_seconds_count{x="y"} 2
"#
    );
}

#[test]
fn values_read_back_as_the_same_number() {
    let mut values =
        vec![0.0, 1.0, -1.0, 0.1, 1e-9, 1.5e-7, 1e20, 1e21, 1e300, 5e-324, f64::MAX, 123_456.789];
    values.extend((0..64).map(|bit| (1_u64 << bit) as f64));
    values.extend((0..53).map(|bit| ((1_u64 << bit) - 1) as f64));
    for value in values {
        let mut text = Vec::new();
        float(&mut text, value);
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.parse::<f64>().unwrap().to_bits(), value.to_bits(), "{text}");
        assert!(text.len() <= 24, "{text}");
    }
    for (value, expected) in [(f64::NAN, "NaN"), (f64::INFINITY, "+Inf"), (f64::NEG_INFINITY, "-Inf")] {
        let mut text = Vec::new();
        float(&mut text, value);
        assert_eq!(text, expected.as_bytes());
    }
}

#[test]
fn bounds_are_spelled_as_by_go() {
    for (value, text, openmetrics) in [
        (0.0, "0", "0.0"),
        (1.25e-6, "1.25e-06", "1.25e-06"),
        (0.000_08, "8e-05", "8e-05"),
        (0.0001, "0.0001", "0.0001"),
        (0.00025, "0.00025", "0.00025"),
        (0.315, "0.315", "0.315"),
        (2.0, "2", "2.0"),
        (2.5, "2.5", "2.5"),
        (100.0, "100", "100.0"),
        (100_000.0, "100000", "100000.0"),
        (1_048_576.0, "1.048576e+06", "1.048576e+06"),
        (1e100, "1e+100", "1e+100"),
    ] {
        assert_eq!(bound(value, Format::Text), text);
        assert_eq!(bound(value, Format::OpenMetrics), openmetrics);
    }
}

#[test]
#[should_panic(expected = "on the page already")]
#[cfg(debug_assertions)]
fn one_family_twice_is_a_mistake() {
    let mut page = Page::new(Format::Text);
    page.family("a_total", "A.", Kind::Counter);
    page.family("a_total", "A.", Kind::Counter);
}
