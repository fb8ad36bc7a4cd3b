//! The agent at work: an nginx of the demo's own under load, and what the agent says about it.

use std::fs;
use std::io::IsTerminal as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::demo::table::Latencies;
use crate::process::{Background, become_root, command, fresh_dir, interrupted, target, which};
use crate::run::{Agent, LISTEN};
use crate::{build, scrape, setup};

mod table;

/// Run the agent next to an nginx under load and show the latencies it measures.
///
/// Nothing of the system is changed: nginx runs from target/demo on a free port of the loopback, wrk asks it for some
/// seconds, and all three end with this command.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long the load lasts, in seconds
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(5..=30))]
    seconds: u64,
    /// End with the load instead of leaving the agent up to be looked at
    #[arg(long)]
    once: bool,
    /// Start what was built before
    #[arg(long, hide = true)]
    built: bool,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    if !args.built {
        setup::for_building()?;
        setup::programs(&["nginx", "wrk"])?;
        build::agent(false)?;
    }
    become_root()?;
    let stop = interrupted()?;
    let dir = target().join("demo");
    fresh_dir(&dir)?;

    let listen = free_address(9100)?;
    let flags = [LISTEN.into(), listen.into()];
    let mut agent = Agent::start(&target().join("release/perf-agent"), &flags, &stop)?;
    let site = free_address(0)?;
    let mut nginx = start_nginx(&dir, &site, &stop)?;
    let mut load = start_load(&dir, &site, args.seconds)?;
    println!("\nnginx on {site} is asked by wrk, 8 connections, {} s; Ctrl-C ends it all\n", args.seconds);

    let all = Duration::from_secs(args.seconds + 10);
    let measured = watch(&agent.address, &mut load, all, &stop)?;
    if !stop.load(Ordering::Relaxed) {
        println!("\nWhere to look:\n  metrics  http://{0}/metrics\n  status   http://{0}/", agent.address);
        println!(
            "  e.g.     curl -s http://{}/metrics | grep http_request_duration_seconds_count",
            agent.address
        );
        if !args.once && std::io::stdin().is_terminal() {
            println!("The agent and nginx stay up until Ctrl-C.");
            agent.process.wait(&stop, Duration::MAX)?;
        }
    }
    load.stop()?;
    nginx.stop()?;
    let status = agent.process.stop()?;
    if !status.success() {
        bail!("perf-agent ended with {status}; its messages above say why");
    }
    println!("stopped: wrk, nginx, perf-agent");
    if !measured {
        bail!(
            "the agent measured no request; remedy: `cargo xtask run -- doctor` says what this kernel lacks"
        );
    }
    Ok(())
}

/// Prints a table every few seconds until the load has ended; false if there was nothing in any of them.
fn watch(address: &str, load: &mut Background, limit: Duration, stop: &AtomicBool) -> Result<bool> {
    let mut measured = false;
    let (start, mut last) = (Instant::now(), Instant::now());
    let mut before = Latencies::read(&scrape::get(address, "/metrics")?);
    loop {
        let ended = load.wait(stop, Duration::from_secs(5))?;
        if stop.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let now = Latencies::read(&scrape::get(address, "/metrics")?);
        measured |= now.since(&before).print(start.elapsed(), last.elapsed());
        (before, last) = (now, Instant::now());
        match ended {
            Some(status) if status.success() => return Ok(measured),
            Some(status) => bail!("wrk failed ({status}); its message above says why"),
            None if start.elapsed() > limit => bail!("wrk did not end in time"),
            None => {}
        }
    }
}

fn start_nginx(dir: &Path, site: &str, stop: &AtomicBool) -> Result<Background> {
    let (prefix, binary) = (dir.join("nginx"), which("nginx").context("nginx is not installed")?);
    fs::create_dir_all(prefix.join("html"))?;
    fs::write(prefix.join("html/app.js"), "x".repeat(64 * 1024))?;
    fs::write(prefix.join("nginx.conf"), NGINX.replace("@LISTEN@", site))?;
    let mut start = command(binary);
    start.arg("-p").arg(&prefix).args(["-c", "nginx.conf", "-e", "error.log"]);
    let mut nginx = Background::start("nginx", &mut start)?;
    let begun = Instant::now();
    while scrape::get(site, "/health").is_err() {
        if let Some(status) = nginx.ended()? {
            bail!("nginx ended ({status}); its message above says why");
        }
        if begun.elapsed() > Duration::from_secs(10) || stop.load(Ordering::Relaxed) {
            bail!("nginx did not answer on {site}; see {}", prefix.join("error.log").display());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(nginx)
}

fn start_load(dir: &Path, site: &str, seconds: u64) -> Result<Background> {
    let script = dir.join("load.lua");
    fs::write(&script, LOAD)?;
    let mut wrk = command("wrk");
    wrk.args(["-t", "1", "-c", "8", "-d"]).arg(format!("{seconds}s")).arg("-s").arg(script);
    Background::start("wrk", wrk.arg(format!("http://{site}")).stdout(Stdio::null()))
}

/// This port on the loopback if nothing has it, else any that is free.
fn free_address(port: u16) -> Result<String> {
    let listener = TcpListener::bind(("127.0.0.1", port)).or_else(|_| TcpListener::bind(("127.0.0.1", 0)));
    Ok(listener.context("no free port on the loopback")?.local_addr()?.to_string())
}

/// Routes of different cost, so that the table has something to tell apart.
const NGINX: &str = r#"
daemon off;
worker_processes 2;
pid nginx.pid;
user root;
events { worker_connections 64; }
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    keepalive_requests 1000000;
    server {
        listen @LISTEN@;
        root html;
        default_type application/json;
        location = /health { return 200 "ok\n"; }
        location /api/bookings { return 200 "{\"state\": \"booked\"}\n"; }
        location = /api/export { limit_rate 2m; try_files /app.js =404; }
        location / { try_files $uri =404; }
    }
}
"#;

/// What wrk asks for: mostly bookings of ever new numbers, which the agent is to see as one route.
const LOAD: &str = r#"
local n = 0
function request()
  n = n + 1
  local turn = n % 20
  if turn == 0 then return wrk.format("GET", "/api/export") end
  if turn == 1 then return wrk.format("GET", "/nowhere") end
  if turn < 5 then return wrk.format("GET", "/app.js") end
  if turn < 9 then return wrk.format("POST", "/api/bookings", nil, "{}") end
  return wrk.format("GET", "/api/bookings/" .. n)
end
"#;
