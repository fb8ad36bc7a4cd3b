//! Load generators that are not ours.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};

use crate::{Running, run};

/// wrk ends by the clock and throws away what is in flight. This makes it send a number of requests and no more: each
/// thread has its share, lets nothing out beyond it, and tells when the last answer is there.
const EXACT: &str = r#"
local share, sent, answered
function init(args) share = tonumber(args[1]); sent = 0; answered = 0 end
function delay()
  if sent >= share then return 3600000 end
  sent = sent + 1
  return 0
end
function response()
  answered = answered + 1
  if answered == share then io.stderr:write("share complete\n") end
end
"#;

const THREADS: u64 = 2;

/// Sends just so many keep-alive requests over 16 connections; how many answers wrk says it got.
pub fn wrk(url: &str, requests: u64) -> u64 {
    assert_eq!(requests % THREADS, 0, "the threads share alike");
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("exact.lua");
    fs::write(&script, EXACT).unwrap();
    let mut command = Command::new("wrk");
    command.args(["-t", &THREADS.to_string(), "-c", "16", "-d", "5m", "--timeout", "1m", "-s"]).arg(&script);
    command.args([url, "--", &(requests / THREADS).to_string()]);
    let mut wrk = Running::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let stderr = BufReader::new(wrk.0.stderr.take().unwrap());
    let complete = stderr.lines().map_while(Result::ok).filter(|line| line == "share complete");
    assert_eq!(complete.take(THREADS as usize).count() as u64, THREADS, "wrk gave up");
    // It would wait for its clock; an interrupt makes it sum up.
    wrk.signal(libc::SIGINT);
    let mut report = String::new();
    wrk.0.stdout.take().unwrap().read_to_string(&mut report).unwrap();
    assert!(wrk.0.wait().unwrap().success(), "{report}");
    for trouble in ["Socket errors", "Non-2xx"] {
        assert!(!report.contains(trouble), "{report}");
    }
    number_before(&report, " requests in ")
}

/// Keeps 16 connections busy until it is dropped.
pub fn endless_wrk(url: &str) -> Running {
    let mut command = Command::new("wrk");
    command.args(["-t", "2", "-c", "16", "-d", "1h", url]).stdin(Stdio::null()).stdout(Stdio::null());
    Running::spawn(&mut command)
}

/// Sends so many requests, 16 at a time; how many answers it says it got.
pub fn ab(url: &str, requests: u64, keep_alive: bool) -> u64 {
    let mut command = Command::new("ab");
    command.args(["-q", "-c", "16", "-n", &requests.to_string()]).args(keep_alive.then_some("-k")).arg(url);
    let report = run(&mut command);
    assert_eq!(number_after(&report, "Failed requests:"), 0, "{report}");
    assert_eq!(
        number_after(&report, "Keep-Alive requests:"),
        if keep_alive { requests } else { 0 },
        "{report}"
    );
    number_after(&report, "Complete requests:")
}

/// What curl prints, quietly, for a request that succeeds.
pub fn curl(arguments: &[&str]) -> String {
    run(Command::new("curl").args(["-sS", "--max-time", "30"]).args(arguments))
}

fn number_before(report: &str, words: &str) -> u64 {
    let number = report.split(words).next().and_then(|before| before.split_whitespace().next_back());
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {words:?} in {report}"))
}

/// 0 where the words do not occur.
fn number_after(report: &str, words: &str) -> u64 {
    let Some((_, behind)) = report.split_once(words) else { return 0 };
    behind
        .split_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{report}"))
}
