//! Flags and files: what is wrong is refused with exit code 2 before anything happens.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use crate::agent::{command, output};

#[test]
fn help_teaches_and_version_tells() {
    let help = output(command(&["--help"]));
    assert_eq!(help.status.code(), Some(0));
    let text = String::from_utf8(help.stdout).unwrap();
    for word in [
        "Examples:",
        "perf-agent doctor",
        "perf-agent trace --service shop --errors",
        "/requests",
        "--web.listen-address",
        "/readyz",
        "Exit codes:",
        "[default: :9100]",
    ] {
        assert!(text.contains(word), "{word} is missing in\n{text}");
    }
    let version = output(command(&["--version"]));
    assert_eq!(
        String::from_utf8(version.stdout).unwrap(),
        format!("perf-agent {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn wrong_usage_and_wrong_files_exit_with_2_and_open_no_port() {
    // A port that the agent would find taken, if it came that far: that is exit code 1.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("--web.listen-address={}", taken.local_addr().unwrap());
    let run = tempfile::tempdir().unwrap();
    let file = |text: &str| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    };
    let (typo, type_, ladder) = (
        file("web:\n  telemetry_pth: /metrics\n"),
        file("probes:\n  tcp:\n    enabled: maybe\n"),
        file("histogram:\n  buckets: [0.1, 0.3]\n"),
    );
    let path = |file: &tempfile::NamedTempFile| file.path().to_str().unwrap().to_owned();
    for (arguments, expected) in [
        (vec!["--bogus".to_owned()], "--bogus".to_owned()),
        (vec!["frobnicate".to_owned()], "frobnicate".to_owned()),
        (
            vec!["trace".to_owned(), "--slower=fast".to_owned()],
            "\"fast\" is no length of time; write one like `100ms`".to_owned(),
        ),
        (vec!["trace".to_owned(), "--count=many".to_owned()], "invalid value 'many'".to_owned()),
        (vec!["--log.level=loud".to_owned()], "possible values: error, warn, info, debug, trace".to_owned()),
        (vec!["--web.listen-address=9100".to_owned()], "it has no port".to_owned()),
        (vec!["--web.telemetry-path=metrics".to_owned()], "no path of a URL".to_owned()),
        (
            vec!["--config".to_owned(), "/nonexistent.yaml".to_owned()],
            "/nonexistent.yaml cannot be read".to_owned(),
        ),
        (
            vec!["--config".to_owned(), path(&typo)],
            format!("{}:2:3: unknown key `telemetry_pth`; did you mean `telemetry_path`?", path(&typo)),
        ),
        (vec!["--config".to_owned(), path(&type_)], format!("{}:3:14: neither true nor false", path(&type_))),
        (
            vec!["--config".to_owned(), path(&ladder)],
            format!(
                "{}:2:18: 0.3 s is no bound that the kernel counts by; the nearest are 0.25 and 0.315",
                path(&ladder)
            ),
        ),
    ] {
        let mut agent = command(&[&listen, "--path.run"]);
        agent.arg(run.path()).args(&arguments);
        let output = output(agent);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(&expected), "{arguments:?} gives\n{stderr}\nwithout\n{expected}");
        assert!(std::fs::read_dir(run.path()).unwrap().next().is_none(), "{arguments:?} left a lock");
    }
}

#[test]
fn the_example_configuration_is_accepted() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/perf-agent.yaml");
    let output = output(command(&["doctor", "--format=json", "--config", example]));
    assert_ne!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn doctor_tells_each_hook_and_says_by_its_exit_code_whether_all_is_well() {
    let json = output(command(&["doctor", "--format", "json"]));
    let hooks: Vec<serde_json::Value> = serde_json::from_slice(&json.stdout).unwrap();
    let probes = ["tcp", "sched", "disk", "l7", "dns", "process", "drops", "irq"];
    for hook in &hooks {
        assert!(probes.contains(&hook["probe"].as_str().unwrap()), "{hook}");
        if hook["state"] != "attached" {
            assert_ne!(hook["reason"], "", "{hook} gives no reason");
        }
    }
    let well = probes.iter().all(|probe| {
        let states =
            || hooks.iter().filter(|hook| hook["probe"] == **probe).map(|hook| hook["state"].as_str());
        states().any(|state| state == Some("attached")) && !states().any(|state| state == Some("failed"))
    });
    assert_eq!(json.status.code(), Some(i32::from(!well)));

    let table = output(command(&["doctor"]));
    let text = String::from_utf8(table.stdout).unwrap();
    assert!(text.starts_with("PROBE"), "{text}");
    for hook in &hooks {
        assert!(text.contains(hook["hook"].as_str().unwrap()), "{hook} is missing in\n{text}");
    }
    assert_eq!(table.status.code(), json.status.code());
}

#[test]
fn doctor_has_nothing_to_complain_about_where_nothing_is_enabled() {
    let mut off = tempfile::NamedTempFile::new().unwrap();
    writeln!(off, "probes: {{tcp: {{enabled: false}}, sched: {{enabled: false}}, disk: {{enabled: false}}, http: {{enabled: false}}, postgres: {{enabled: false}}, redis: {{enabled: false}}, mysql: {{enabled: false}}, sockets: {{enabled: false}}, dns: {{enabled: false}}, process: {{enabled: false}}, drops: {{enabled: false}}, irq: {{enabled: false}}}}")
        .unwrap();
    let output = output(command(&["doctor", "--config", off.path().to_str().unwrap()]));
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn trace_explains_itself_and_what_to_do_where_no_agent_answers() {
    let help = output(command(&["trace", "--help"]));
    assert_eq!(help.status.code(), Some(0));
    let text = String::from_utf8(help.stdout).unwrap();
    for word in ["--service", "--slower", "--errors", "--address", "--count", "table", "json", "Ctrl-C"] {
        assert!(text.contains(word), "{word} is missing in\n{text}");
    }
    // Taken and let go: nobody listens there.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut config = tempfile::NamedTempFile::new().unwrap();
    writeln!(config, "web: {{listen_address: ['{address}']}}").unwrap();
    let config = config.path().to_str().unwrap();
    // Said, or where the configuration has its agent listen.
    for arguments in [["trace", "--address", &address], ["trace", "--config", config]] {
        let output = output(command(&arguments));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        let expected = format!(
            "perf-agent trace: no agent answers at {address}: start `perf-agent`, or say by --address"
        );
        assert!(stderr.starts_with(&expected), "{stderr}");
        assert_eq!((stderr.lines().count(), output.stdout.len()), (1, 0), "{stderr}");
    }
}

#[test]
fn trace_tells_another_server_from_an_agent() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    for (answer, expected) in [
        ("HTTP/1.1 404 Not Found\r\n\r\n", "no perf-agent with /requests (status 404)"),
        ("HTTP/1.1 200 OK\r\n\r\nhello", "no perf-agent of this version"),
        ("SSH-2.0-x\r\n\r\n", "the answer is no HTTP"),
    ] {
        let trace = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                assert_ne!(stream.read(&mut [0; 1024]).unwrap(), 0);
                stream.write_all(answer.as_bytes()).unwrap();
            });
            output(command(&["trace", "--address", &address]))
        });
        let stderr = String::from_utf8(trace.stderr).unwrap();
        assert_eq!(trace.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
    }
}
