//! PostgreSQL, in numbers: what pgbench, psql and the server itself count, the agent counts, to the statement.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which a float holds exactly")]

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use live_tests::{Agent, Labels, Page, Postgres, run, script, wait_until};

const CLIENT: &str = "db_query_duration_seconds_count";
const SERVER: &str = "db_server_query_duration_seconds_count";

/// Both ends have counted so many of these statements.
fn expect(agent: &Agent, postgres: &Postgres, client: &str, counts: &[(&str, &str, &str, u64)]) -> Page {
    let destination = postgres.address();
    let mut labels = Vec::new();
    for (query_type, table, status, count) in counts {
        let both = [("query_type", *query_type), ("table", *table), ("status", *status)];
        // An empty label is none.
        let both = both.into_iter().filter(|label| !label.1.is_empty());
        let at_client: Vec<(&str, &str)> =
            both.clone().chain([("service", client), ("destination", destination.as_str())]).collect();
        let at_server: Vec<(&str, &str)> = both.chain([("service", "postgres")]).collect();
        labels.push((CLIENT, at_client, *count as f64));
        labels.push((SERVER, at_server, *count as f64));
    }
    let checks: Vec<(&str, Labels<'_>, f64)> =
        labels.iter().map(|(metric, labels, count)| (*metric, labels.as_slice(), *count)).collect();
    let page = agent.expect_all(&checks);
    assert_eq!(postgres_losses(&page), [""; 0]);
    agent.expect_no_loss("postgres");
    page
}

fn postgres_losses(page: &Page) -> Vec<String> {
    page.losses().into_iter().filter(|loss| loss.starts_with("postgres/")).collect()
}

/// Runs pgbench and gives the number of transactions that it says it did, and how many seconds its last statement took on
/// average.
fn pgbench(postgres: &Postgres, arguments: &[&str]) -> (u64, f64) {
    let report = run(postgres.client("pgbench").args(["-n", "-r"]).args(arguments));
    let (_, behind) = report.split_once("number of transactions actually processed: ").unwrap();
    let average: f64 = report.lines().last().unwrap().split_whitespace().next().unwrap().parse().unwrap();
    (behind.split(['/', '\n']).next().unwrap().trim().parse().unwrap(), average / 1000.0)
}

/// A server with pgbench's tables.
fn with_tables() -> Postgres {
    let postgres = Postgres::start("ssl = off");
    run(postgres.client("pgbench").args(["-i", "-q", "-s", "1"]));
    postgres
}

/// What `pg_stat_statements` has of statements that begin so.
fn calls(postgres: &Postgres, like: &str) -> u64 {
    let question =
        format!("select coalesce(sum(calls), 0) from pg_stat_statements where query ilike '{like}%'");
    postgres.psql(&[&question]).trim().parse().unwrap()
}

#[test]
fn select_only_is_counted_to_the_statement_in_every_mode() {
    const TRANSACTIONS: u64 = 20_000;
    let postgres = with_tables();
    postgres.psql(&["create extension pg_stat_statements"]);
    for mode in ["simple", "extended", "prepared"] {
        let agent = Agent::start();
        postgres.psql(&["select pg_stat_statements_reset()"]);
        let per_client = (TRANSACTIONS / 8).to_string();
        // Several threads of pgbench's lose what the others add to their averages.
        let (done, average) =
            pgbench(&postgres, &["-S", "-M", mode, "-c", "8", "-j", "1", "-t", &per_client]);
        assert_eq!(done, TRANSACTIONS, "by pgbench, {mode}");
        assert_eq!(calls(&postgres, "SELECT abalance"), TRANSACTIONS, "by the server, {mode}");
        let page =
            expect(&agent, &postgres, "pgbench", &[("SELECT", "pgbench_accounts", "ok", TRANSACTIONS)]);
        assert_eq!(page.sum(CLIENT, &[("status", "error")]), 0.0, "{mode}");
        let mean = page.sum("db_query_duration_seconds_sum", &[("service", "pgbench")]) / TRANSACTIONS as f64;
        assert!((mean / average - 1.0).abs() < 0.1, "{mode}: {mean} s, {average} s by pgbench itself");
    }
}

#[test]
fn tpc_b_is_counted_by_statement_and_table_in_every_mode() {
    const TRANSACTIONS: u64 = 2_000;
    let postgres = with_tables();
    for mode in ["simple", "extended", "prepared"] {
        let agent = Agent::start();
        let per_client = (TRANSACTIONS / 4).to_string();
        let (done, _) =
            pgbench(&postgres, &["-b", "tpcb-like", "-M", mode, "-c", "4", "-j", "2", "-t", &per_client]);
        assert_eq!(done, TRANSACTIONS, "{mode}");
        expect(
            &agent,
            &postgres,
            "pgbench",
            &[
                ("BEGIN", "", "ok", TRANSACTIONS),
                ("UPDATE", "pgbench_accounts", "ok", TRANSACTIONS),
                ("SELECT", "pgbench_accounts", "ok", TRANSACTIONS),
                ("UPDATE", "pgbench_tellers", "ok", TRANSACTIONS),
                ("UPDATE", "pgbench_branches", "ok", TRANSACTIONS),
                ("INSERT", "pgbench_history", "ok", TRANSACTIONS),
                ("END", "", "ok", TRANSACTIONS),
            ],
        );
    }
}

#[test]
fn a_pipeline_is_counted_by_statement() {
    const TRANSACTIONS: u64 = 2_000;
    let postgres = with_tables();
    let dir = tempfile::tempdir().unwrap();
    let file = script(
        dir.path(),
        "pipeline.sql",
        "\\set aid random(1, 100000)\n\\startpipeline\nBEGIN;\nUPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;\n\
         SELECT abalance FROM pgbench_accounts WHERE aid = :aid;\nSELECT tbalance FROM pgbench_tellers WHERE tid = 1;\n\
         SELECT bbalance FROM pgbench_branches WHERE bid = 1;\nEND;\n\\endpipeline\n",
    );
    for mode in ["extended", "prepared"] {
        let agent = Agent::start();
        let arguments = ["-f", file.to_str().unwrap(), "-M", mode, "-c", "2", "-j", "2", "-t", "1000"];
        assert_eq!(pgbench(&postgres, &arguments).0, TRANSACTIONS, "{mode}");
        expect(
            &agent,
            &postgres,
            "pgbench",
            &[
                ("BEGIN", "", "ok", TRANSACTIONS),
                ("UPDATE", "pgbench_accounts", "ok", TRANSACTIONS),
                ("SELECT", "pgbench_accounts", "ok", TRANSACTIONS),
                ("SELECT", "pgbench_tellers", "ok", TRANSACTIONS),
                ("SELECT", "pgbench_branches", "ok", TRANSACTIONS),
                ("END", "", "ok", TRANSACTIONS),
            ],
        );
    }
}

#[test]
fn errors_and_large_results_and_copies_are_one_query_each() {
    let postgres = Postgres::start("ssl = off");
    let agent = Agent::start();
    postgres.psql(&["create table t (a int, b text)"]);
    let rows: Vec<String> = (0..100_000).map(|n| format!("{n}\trow {n}\n")).collect();
    let rows = rows.concat();
    let mut psql = postgres
        .client("psql")
        .args(["-X", "-q", "-c", "COPY t FROM STDIN"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    psql.stdin.take().unwrap().write_all(rows.as_bytes()).unwrap();
    assert!(psql.wait().unwrap().success());
    assert_eq!(postgres.psql(&["COPY t TO STDOUT"]).lines().count(), 100_000);
    assert_eq!(
        postgres.psql(&["select a.a, b.b from t a, (select 1 as b from t limit 10) b"]).lines().count(),
        1_000_000
    );
    for statement in ["select * from missing", "select 1/0 from t", "insert into t values ('not a number')"] {
        let output = postgres.client("psql").args(["-X", "-c", statement]).output().unwrap();
        assert!(!output.status.success());
    }
    let page = expect(
        &agent,
        &postgres,
        "psql",
        &[
            ("CREATE", "t", "ok", 1),
            ("COPY", "t", "ok", 2),
            ("SELECT", "t", "ok", 1),
            ("SELECT", "missing", "error", 1),
            ("SELECT", "t", "error", 1),
            ("INSERT", "t", "error", 1),
        ],
    );
    for metric in [CLIENT, SERVER] {
        for (class, table, count) in [("42", "missing", 1.0), ("22", "t", 2.0)] {
            assert_eq!(page.sum(metric, &[("sqlstate_class", class), ("table", table)]), count, "{class}");
        }
    }
    assert!(!page.text.contains("not a number"), "a literal is on the page");
}

#[test]
fn a_refused_encryption_is_counted_and_an_accepted_one_is_left_alone() {
    let plain = Postgres::start("ssl = off");
    let agent = Agent::start();
    let mut psql = plain.client("psql");
    run(psql.env("PGSSLMODE", "prefer").args(["-X", "-c", "select 1 from pg_class limit 1"]));
    expect(&agent, &plain, "psql", &[("SELECT", "pg_class", "ok", 1)]);
    drop(agent);

    // Debian's package makes this certificate, or the test does.
    let dir = tempfile::tempdir().unwrap();
    let (key, cert) = (dir.path().join("key"), dir.path().join("cert"));
    let mut openssl = std::process::Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=localhost",
        "-days",
        "2",
        "-keyout",
    ]);
    run(openssl.arg(&key).arg("-out").arg(&cert));
    // The server reads them as its own user.
    for file in [&key, &cert] {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o640);
        std::fs::set_permissions(file, permissions).unwrap();
    }
    run(std::process::Command::new("chgrp").arg("-R").arg("postgres").arg(dir.path()));
    run(std::process::Command::new("chmod").arg("750").arg(dir.path()));
    let secret = Postgres::start(&format!(
        "ssl = on\nssl_key_file = '{}'\nssl_cert_file = '{}'",
        key.display(),
        cert.display()
    ));
    let agent = Agent::start();
    let mut psql = secret.client("psql");
    let used = run(psql
        .env("PGSSLMODE", "require")
        .args(["-X", "-A", "-t", "-c"])
        .arg("select ssl from pg_stat_ssl where pid = pg_backend_pid()"));
    assert_eq!(used.trim(), "t");
    // The next connection is plain, so whatever the one before did has been counted by then.
    secret.psql(&["select 2 from pg_class limit 1"]);
    let page = expect(&agent, &secret, "psql", &[("SELECT", "pg_class", "ok", 1)]);
    assert_eq!(page.sum(CLIENT, &[("service", "psql")]), 1.0);
}

#[test]
fn a_cancelled_query_is_an_error_and_its_connection_goes_on() {
    let postgres = Postgres::start("ssl = off");
    let agent = Agent::start();
    let mut psql = postgres
        .client("psql")
        .args(["-X", "-c", "select pg_sleep(60) from pg_class", "-c", "select 1 from pg_type limit 1"])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let asleep = "select count(*) from pg_stat_activity where query like 'select pg_sleep%' and wait_event = 'PgSleep'";
    wait_until("the query sleeps", Duration::from_secs(20), || postgres.psql(&[asleep]).trim() == "1");
    // psql cancels by a connection of its own on this.
    // SAFETY: the child was not waited for.
    unsafe { libc::kill(psql.id() as libc::pid_t, libc::SIGINT) };
    psql.wait().unwrap();
    expect(&agent, &postgres, "psql", &[("SELECT", "pg_class", "error", 1), ("SELECT", "pg_type", "ok", 1)]);
}
