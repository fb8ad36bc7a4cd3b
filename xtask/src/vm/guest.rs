//! One guest: boots it, and reads what its driver says on the second serial line.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::process::{command, fresh_dir, tail};
use crate::vm::kernels::Kernel;

/// What one kernel made of the agent.
pub(super) struct Report {
    pub(super) kernel: Kernel,
    pub(super) hooks: Vec<Hook>,
    pub(super) counts: Vec<Count>,
    /// The driver's exit code; `None` if the guest never said.
    pub(super) exit: Option<i32>,
    pub(super) took: Duration,
    pub(super) output_tail: String,
    pub(super) console_tail: String,
}

/// A line of the agent's `/probes`.
pub(super) struct Hook {
    pub(super) probe: String,
    pub(super) name: String,
    pub(super) state: String,
    pub(super) reason: String,
}

/// A number that the driver knew and the agent should have found.
pub(super) struct Count {
    pub(super) name: String,
    /// A number, or `>0`.
    pub(super) expected: String,
    pub(super) got: String,
    /// How many runs of the programs that count this the kernel says to have skipped: by so much the number may be off.
    pub(super) missed: u64,
}

impl Count {
    pub(super) fn holds(&self) -> bool {
        let Ok(got) = self.got.parse::<f64>() else { return false };
        match self.expected.strip_prefix('>') {
            Some(least) => least.parse().is_ok_and(|least: f64| got > least),
            None => {
                self.expected.parse().is_ok_and(|expected: f64| (got - expected).abs() <= self.missed as f64)
            }
        }
    }
}

/// Boots a kernel and stays with the guest until it powers off or time is up. What it left is in `dir`.
pub(super) fn boot(
    kernel: Kernel,
    initrd: &[u8],
    dir: &Path,
    short: bool,
    limit: Duration,
) -> Result<Report> {
    fresh_dir(dir)?;
    fs::write(dir.join("initrd"), initrd)?;
    let start = Instant::now();
    // The guest's first line is the console, its second what the driver says.
    let mut qemu = command("qemu-system-x86_64");
    // One thread for all CPUs: with one each, the emulator races with a kernel that patches its own code.
    qemu.args([
        "-accel",
        "tcg,thread=single",
        "-machine",
        "pc",
        "-cpu",
        "max,la57=off",
        "-smp",
        "2",
        "-m",
        "512",
    ]);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(dir.join("initrd"));
    qemu.arg("-append").arg(format!("{APPEND}{}", if short { " short" } else { "" }));
    qemu.arg("-serial").arg(format!("file:{}", dir.join("console").display()));
    qemu.args(["-chardev", "stdio,id=driver,signal=off", "-serial", "chardev:driver"]);
    qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(fs::File::create(dir.join("qemu"))?);
    let mut child =
        qemu.spawn().context("qemu-system-x86_64 cannot be started; remedy: `cargo xtask setup`")?;

    println!("vm: {} ({}) boots", kernel.series, kernel.version);
    let stdout = child.stdout.take().context("qemu's output is piped")?;
    let (sender, lines) = channel();
    // Ends when qemu does, for that closes the pipe.
    thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut output = fs::File::create(dir.join("output"))?;
    let mut heard = Vec::new();
    loop {
        match lines.recv_timeout(limit.saturating_sub(start.elapsed())) {
            Ok(line) => {
                writeln!(output, "{line}")?;
                heard.push(line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                heard.push(format!("not done after {} s: killed", limit.as_secs()));
                child.kill().ok();
                break;
            }
        }
    }
    child.wait().context("waiting for qemu")?;
    let read = |name: &str| {
        fs::read(dir.join(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    };
    let mut report = Report {
        kernel,
        hooks: Vec::new(),
        counts: Vec::new(),
        exit: None,
        took: start.elapsed(),
        output_tail: String::new(),
        console_tail: tail(&(read("console") + &read("qemu")), 25),
    };
    let plain: Vec<&str> = heard.iter().filter(|line| !report.take(line)).map(String::as_str).collect();
    report.output_tail = tail(&plain.join("\n"), 25);
    Ok(report)
}

/// `mitigations=off`, `nokaslr`: less work for the emulator. `hpet`: its TSC is not steady.
const APPEND: &str = "console=ttyS0 rdinit=/init panic=-1 quiet loglevel=4 nokaslr mitigations=off clocksource=hpet \
                      no_timer_check random.trust_cpu=on 8250.nr_uarts=4";

impl Report {
    /// Takes in a line of the driver's; false if it is only for people.
    fn take(&mut self, line: &str) -> bool {
        let (tag, rest) = line.split_once(' ').unwrap_or((line, ""));
        match tag {
            "@@START" => {}
            "@@PROBES" => self.hooks = hooks(rest),
            "@@COUNT" => self.counts.extend(count(rest)),
            "@@EXIT" => self.exit = rest.parse().ok(),
            _ => return false,
        }
        true
    }
}

/// `/probes` is a list of hooks, perhaps inside an object.
fn hooks(json: &str) -> Vec<Hook> {
    let value: Value = serde_json::from_str(json).unwrap_or_default();
    let list = value.as_array().or_else(|| value.get("probes")?.as_array()).cloned().unwrap_or_default();
    let text = |hook: &Value, key: &str| hook.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let hook = |hook: &Value| Hook {
        probe: text(hook, "probe"),
        name: text(hook, "hook"),
        state: text(hook, "state"),
        reason: text(hook, "reason"),
    };
    list.iter().map(hook).collect()
}

/// `<name> expected=<n> got=<m> missed=<k>`.
fn count(line: &str) -> Option<Count> {
    let (name, rest) = line.split_once(" expected=")?;
    let (expected, rest) = rest.split_once(" got=")?;
    let (got, missed) = rest.split_once(" missed=")?;
    let missed = missed.parse().ok()?;
    Some(Count { name: name.to_owned(), expected: expected.to_owned(), got: got.to_owned(), missed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_hold_or_not() {
        let holds = |line: &str| count(line).unwrap().holds();
        assert!(holds("a{b=\"c d\"} expected=550 got=550 missed=0"));
        assert!(!holds("a expected=550 got=549 missed=0"));
        assert!(holds("a expected=550 got=549 missed=1"));
        assert!(!holds("a expected=550 got=548 missed=1"));
        assert!(!holds("a expected=550 got=552 missed=1"));
        assert!(holds("a expected=>0 got=1 missed=0"));
        assert!(!holds("a expected=>0 got=0 missed=3"));
        assert!(!holds("a expected=1 got=nothing missed=0"));
    }

    #[test]
    fn reads_probes() {
        let list = r#"[{"probe":"tcp","hook":"h","state":"failed","reason":"why","remedy":""}]"#;
        for json in [list.to_owned(), format!("{{\"probes\":{list}}}")] {
            let hooks = hooks(&json);
            assert_eq!(
                (hooks.len(), hooks[0].state.as_str(), hooks[0].reason.as_str()),
                (1, "failed", "why")
            );
        }
    }
}
