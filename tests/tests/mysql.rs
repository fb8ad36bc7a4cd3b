//! MySQL and MariaDB, in numbers: what the server itself counts, the agent counts, to the statement, at both ends.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, which a float holds exactly")]

use std::fs;
use std::process::Command;

use live_tests::{Agent, Labels, Mysql, Page, run};

const CLIENT: &str = "db_query_duration_seconds_count";
const SERVER: &str = "db_server_query_duration_seconds_count";

/// Both ends have counted so many of these statements, and nothing was lost.
fn expect(agent: &Agent, mysql: &Mysql, client: &str, counts: &[(&str, &str, &str, u64)]) -> Page {
    let destination = mysql.address();
    let mut labels = Vec::new();
    for (query_type, table, status, count) in counts {
        let both =
            [("db_system", "mysql"), ("query_type", *query_type), ("table", *table), ("status", *status)];
        // An empty label is none.
        let both = both.into_iter().filter(|label| !label.1.is_empty());
        let at_client: Vec<(&str, &str)> =
            both.clone().chain([("service", client), ("destination", destination.as_str())]).collect();
        let at_server: Vec<(&str, &str)> = both.chain([("service", "mariadbd")]).collect();
        labels.push((CLIENT, at_client, *count as f64));
        labels.push((SERVER, at_server, *count as f64));
    }
    let checks: Vec<(&str, Labels<'_>, f64)> =
        labels.iter().map(|(metric, labels, count)| (*metric, labels.as_slice(), *count)).collect();
    let page = agent.expect_all(&checks);
    assert_eq!(page.losses_of("mysql"), [""; 0]);
    agent.expect_no_loss("mysql");
    page
}

#[test]
fn what_the_load_generator_does_is_counted_to_the_statement() {
    const QUERIES: u64 = 30_000;
    let mysql = Mysql::start(&[]);
    mysql.query("create table t (a int primary key auto_increment, b int, c varchar(90), key (b))");
    let agent = Agent::start();
    let names = ["Com_select", "Com_insert", "Com_update", "Connections", "Questions"];
    let before = names.map(|name| mysql.status(name));
    run(mysql.client("mariadb-slap").args([
        "--concurrency=4",
        "--iterations=1",
        "--create-schema=test",
        "--no-drop",
        "--delimiter=;",
        &format!("--number-of-queries={QUERIES}"),
        "--query=insert into t (b, c) values (17, 'a secret');select c from t where b = 17 limit 3;update t set c = 'x' where a = 5",
    ]));
    let after = names.map(|name| mysql.status(name));
    let [selects, inserts, updates, connections, questions] = std::array::from_fn(|n| after[n] - before[n]);
    // By the server itself: a third of each.
    assert_eq!([selects, inserts, updates], [QUERIES / 3; 3]);
    let page = expect(
        &agent,
        &mysql,
        "mariadb-slap",
        &[("INSERT", "t", "ok", inserts), ("SELECT", "t", "ok", selects), ("UPDATE", "t", "ok", updates)],
    );
    // It counts a connection as a question, and was asked for each of these numbers once.
    let all = page.sum(SERVER, &[("db_system", "mysql")]);
    assert_eq!(all, (questions - connections - names.len() as u64) as f64, "{}", page.lines(&[SERVER]));
    assert_eq!(page.sum(CLIENT, &[("db_system", "mysql")]), all);
    assert_eq!(page.sum(CLIENT, &[("status", "error"), ("db_system", "mysql")]), 0.0);
    assert!(!page.text.contains("secret"), "a literal is on the page");
}

#[test]
fn errors_and_large_results_and_several_results_are_one_query_each() {
    let mysql = Mysql::start(&[]);
    let agent = Agent::start();
    mysql.query("create table `My Table` (a int, b varchar(100))");
    let rows: Vec<String> = (0..100_000).map(|n| format!("{n}\trow {n}\n")).collect();
    let file = mysql.dir().join("rows");
    fs::write(&file, rows.concat()).unwrap();
    mysql.query(&format!("load data local infile '{}' into table `My Table`", file.display()));
    assert_eq!(mysql.query("select * from `My Table`").lines().count(), 100_001);
    let product = "select x.a, y.b from `My Table` x, (select b from `My Table` limit 10) y";
    assert_eq!(mysql.query(product).lines().count(), 1_000_001);
    // A row of more than one packet.
    let long = mysql.query("set global max_allowed_packet = 64 * 1024 * 1024");
    assert_eq!(long, "");
    let mut large = mysql.client("mariadb");
    large.args(["--max-allowed-packet=64M", "--batch", "--skip-column-names", "test", "-e"]);
    let large = run(large.arg("select repeat('x', 20 * 1024 * 1024) from `My Table` where a = 1"));
    assert_eq!(large.trim_end().len(), 20 << 20);
    mysql.query("delimiter //\ncreate procedure p() begin select 1; select 2 union select 3; end//");
    assert_eq!(mysql.query("call p()").lines().count(), 5);
    for statement in
        ["select * from missing", "insert into `My Table` values ('not a number')", "selekt 'not'"]
    {
        let mut client = mysql.client("mariadb");
        assert!(!client.args(["test", "-e", statement]).output().unwrap().status.success());
    }
    let page = expect(
        &agent,
        &mysql,
        "mariadb",
        &[
            ("CREATE", "My Table", "ok", 1),
            ("LOAD", "My Table", "ok", 1),
            ("SELECT", "My Table", "ok", 3),
            ("CALL", "", "ok", 1),
            ("SELECT", "missing", "error", 1),
            ("INSERT", "My Table", "error", 1),
            ("other", "", "error", 1),
        ],
    );
    for metric in [CLIENT, SERVER] {
        for (class, count) in [("42", 2.0), ("21", 1.0)] {
            assert_eq!(page.sum(metric, &[("sqlstate_class", class)]), count, "{class}");
        }
    }
    for literal in ["not a number", "selekt", "xxx", "row 1"] {
        assert!(!page.text.contains(literal), "{literal} is on the page");
    }
}

#[test]
fn statements_that_sql_prepares_are_counted_as_what_they_are() {
    let mysql = Mysql::start(&[]);
    let agent = Agent::start();
    mysql.query(
        "create table t (a int); prepare s from 'insert into t values (?)'; set @a = 5; \
         execute s using @a; execute s using @a; deallocate prepare s; begin; commit",
    );
    assert_eq!(mysql.query("select count(*) from t").trim_end(), "count(*)\n2");
    let page = expect(
        &agent,
        &mysql,
        "mariadb",
        &[
            ("CREATE", "t", "ok", 1),
            ("PREPARE", "", "ok", 1),
            ("SET", "", "ok", 1),
            ("EXECUTE", "", "ok", 2),
            ("DEALLOCATE", "", "ok", 1),
            ("BEGIN", "", "ok", 1),
            ("COMMIT", "", "ok", 1),
            ("SELECT", "t", "ok", 1),
        ],
    );
    assert_eq!(page.sum(CLIENT, &[("db_system", "mysql"), ("query_type", "other")]), 0.0);
}

#[test]
fn an_encrypted_connection_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (key, cert) = (dir.path().join("key"), dir.path().join("cert"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]);
    run(openssl.arg("-keyout").arg(&key).arg("-out").arg(&cert));
    // The server reads them as its own user.
    run(Command::new("chmod").arg("-R").arg("a+rX").arg(dir.path()));
    let (key, cert) = (format!("--ssl-key={}", key.display()), format!("--ssl-cert={}", cert.display()));
    let mysql = Mysql::start(&[&key, &cert]);
    mysql.query("create table t (a int)");
    let agent = Agent::start();
    let mut client = mysql.client("mariadb");
    let cipher = run(client.args(["--ssl", "--batch", "--skip-column-names", "test", "-e"]).arg(
        "select variable_value from information_schema.session_status where variable_name = 'Ssl_cipher'",
    ));
    assert!(cipher.contains("TLS") || cipher.contains("AES"), "it was not encrypted: {cipher:?}");
    // The next connection is plain, so whatever the one before did has been counted by then.
    mysql.query("select a from t");
    let page = expect(&agent, &mysql, "mariadb", &[("SELECT", "t", "ok", 1)]);
    assert_eq!(page.sum(CLIENT, &[("service", "mariadb"), ("query_type", "SELECT")]), 1.0);
    assert_eq!(page.sum(SERVER, &[("service", "mariadbd"), ("query_type", "SELECT")]), 1.0);
}
