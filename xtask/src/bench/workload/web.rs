//! nginx, two workers, and wrk.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::bench::cpu::{self, Clock};
use crate::bench::pairs::Slot;
use crate::bench::subject::free_address;
use crate::bench::workload::{SPARE, load};
use crate::process::{Background, command, which};
use crate::scrape;

/// An nginx of the benchmark's own; it ends with the value.
pub(crate) struct Site {
    address: String,
    dir: PathBuf,
    nginx: Background,
    /// Of its workers.
    clocks: Vec<Clock>,
}

impl Site {
    pub(crate) fn start(dir: &Path) -> Result<Self> {
        let (prefix, binary) = (dir.join("nginx"), which("nginx").context("nginx is not installed")?);
        let address = free_address()?;
        fs::create_dir_all(&prefix)?;
        fs::write(prefix.join("nginx.conf"), NGINX.replace("@LISTEN@", &address))?;
        let mut start = command(binary);
        start.arg("-p").arg(&prefix).args(["-c", "nginx.conf", "-e", "error.log"]);
        let nginx = Background::start("nginx", &mut start)?;
        let mut site = Self { address, dir: dir.into(), nginx, clocks: Vec::new() };
        let begun = Instant::now();
        while scrape::get(&site.address, "/").is_err() {
            if let Some(status) = site.nginx.ended()? {
                bail!("nginx ended ({status}); its message above says why");
            }
            if begun.elapsed() > Duration::from_secs(10) {
                bail!("nginx did not answer; see {}", prefix.join("error.log").display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let workers = cpu::children(site.nginx.pid())?;
        site.clocks = workers.into_iter().map(Clock::of_process).collect::<Result<_>>()?;
        Ok(site)
    }

    /// Requests over connections that are kept.
    pub(crate) fn keep_alive(&self, slot: Duration, stop: &AtomicBool) -> Result<Slot> {
        self.wrk(slot, &[], stop)
    }

    /// The same with a connection for each request, which the hooks on connections see.
    pub(crate) fn connections(&self, slot: Duration, stop: &AtomicBool) -> Result<Slot> {
        self.wrk(slot, &["-H", "Connection: close"], stop)
    }

    fn wrk(&self, slot: Duration, flags: &[&str], stop: &AtomicBool) -> Result<Slot> {
        let seconds = slot.as_secs().max(1);
        let mut wrk = command("wrk");
        wrk.args(["-t2", "-c32", &format!("-d{seconds}s")]).args(flags);
        wrk.arg(format!("http://{}/", self.address));
        let used = || Ok::<_, anyhow::Error>(cpu::sum(&self.clocks)? + cpu::ended_children()?);
        let before = used()?;
        let text = load("wrk", &mut wrk, &self.dir, Duration::from_secs(seconds) + SPARE, stop)?;
        slot_of(&text, used()?.saturating_sub(before))
    }
}

/// From wrk's own figures. Errors would make requests cheap, so a run that has any is none.
fn slot_of(text: &str, cpu: Duration) -> Result<Slot> {
    if let Some(errors) = text.lines().find(|line| line.contains("errors:") || line.contains("Non-2xx")) {
        bail!("nginx did not answer as it should: {}", errors.trim());
    }
    let after = |prefix| text.lines().find_map(|line| line.trim().strip_prefix(prefix)?.trim().parse().ok());
    let requests = text.lines().find_map(|line| line.split_once(" requests in ")?.0.trim().parse().ok());
    let (Some(rate), Some(operations)) = (after("Requests/sec:"), requests) else {
        bail!("wrk told no rate:\n{text}");
    };
    let rate: f64 = rate;
    Ok(Slot { operations, seconds: operations / rate, cpu_seconds: cpu.as_secs_f64() })
}

const NGINX: &str = r#"
daemon off;
worker_processes 2;
pid nginx.pid;
user root;
events { worker_connections 1024; }
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    keepalive_requests 1000000000;
    server {
        listen @LISTEN@ backlog=1024;
        location / { return 200 "a small body\n"; }
    }
}
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_figures_of_wrk_and_refuses_errors() {
        let slot_of = |text: &str| slot_of(text, Duration::from_secs(3));
        let good = "Running 2s test\n  200 requests in 2.00s, 1.00MB read\nRequests/sec:    100.00\n";
        assert_eq!(slot_of(good).unwrap(), Slot { operations: 200.0, seconds: 2.0, cpu_seconds: 3.0 });
        assert!(slot_of(&format!("{good}  Socket errors: connect 0, read 3, write 0, timeout 0\n")).is_err());
        assert!(slot_of(&format!("{good}  Non-2xx or 3xx responses: 7\n")).is_err());
        assert!(slot_of("").is_err());
    }
}
