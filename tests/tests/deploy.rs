//! What is deployed with the agent: alert rules that are valid, fire when they should, and ask for what there is.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use live_tests::run;

fn alerts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/alerts")
}

/// The rule files, without their tests.
fn rule_files() -> Vec<String> {
    let names =
        fs::read_dir(alerts()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let is_rules = |name: &String| name.strip_suffix(".yml").is_some_and(|stem| !stem.ends_with("_test"));
    let mut names: Vec<String> = names.filter(is_rules).collect();
    names.sort();
    assert!(names.len() >= 4, "{names:?}");
    names
}

#[test]
fn every_rule_is_valid_and_fires_when_it_should_and_only_then() {
    for file in rule_files() {
        let tests = file.replace(".yml", "_test.yml");
        let promtool =
            |arguments: &[&str]| run(Command::new("promtool").args(arguments).current_dir(alerts()));
        promtool(&["check", "rules", "--lint-fatal", &file]);
        promtool(&["test", "rules", &tests]);
        // Each alert is expected at least once with nothing, and at least once with something.
        let (rules, tests) = (
            fs::read_to_string(alerts().join(&file)).unwrap(),
            fs::read_to_string(alerts().join(&tests)).unwrap(),
        );
        for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
            assert!(
                tests.contains(&format!("alertname: {alert}, exp_alerts: []")),
                "no test in which {alert} keeps silent"
            );
            assert!(
                tests.contains(&format!("alertname: {alert}\n        exp_alerts:\n")),
                "no test in which {alert} fires"
            );
        }
        for annotation in ["summary:", "description:", "remedy:"] {
            let (alerts, have) = (rules.matches("- alert: ").count(), rules.matches(annotation).count());
            assert_eq!(alerts, have, "{file}: each alert has a {annotation}");
        }
    }
}

#[test]
fn every_metric_that_a_rule_asks_for_is_one_that_the_agent_has() {
    // By the sources, because a family without a sample is not on the page, and no host has a sample of each.
    let mut sources = String::new();
    read_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../perf-agent/src"), &mut sources);
    let mut asked = BTreeSet::new();
    for file in rule_files() {
        let rules = fs::read_to_string(alerts().join(file)).unwrap();
        let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let metrics = words.filter(|word| {
            [
                "http_",
                "tcp_",
                "sched_",
                "db_",
                "dns_",
                "process_",
                "network_",
                "irq_",
                "block_",
                "socket_operations_",
                "socket_sent_",
                "socket_received_",
                "request_",
                "perf_agent_",
            ]
            .iter()
            .any(|p| word.starts_with(p))
        });
        asked.extend(metrics.map(str::to_owned));
    }
    assert!(asked.len() >= 10, "{asked:?}");
    let has = |metric: &str| {
        let family = ["_bucket", "_count", "_sum"]
            .iter()
            .find_map(|suffix| metric.strip_suffix(suffix))
            .unwrap_or(metric);
        sources.contains(&format!("\"{family}\""))
    };
    let missing: Vec<_> = asked.iter().filter(|metric| !has(metric)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

fn read_sources(dir: &Path, into: &mut String) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            read_sources(&entry.path(), into);
        } else {
            into.push_str(&fs::read_to_string(entry.path()).unwrap());
        }
    }
}
