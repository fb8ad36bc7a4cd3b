//! nginx with a directory of its own.

use std::env;
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::{PATIENCE, Running, curl, free_port, wait_until};

/// One worker, on a port of loopback.
pub struct Nginx {
    running: Running,
    dir: TempDir,
    pub port: u16,
}

/// nginx' own counters.
pub struct Counted {
    pub connections: u64,
    pub requests: u64,
}

impl Nginx {
    /// `server` is the inside of its `server` block.
    pub fn start(server: &str) -> Self {
        Self::named("nginx", server)
    }

    /// The same with this name as its `service`, so that no other nginx counts as this one.
    pub fn named(name: &str, server: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let at = dir.path().display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {at}/{kind};\n"))
            .concat();
        fs::write(
            dir.path().join("nginx.conf"),
            format!(
                "daemon off; user root; worker_processes 1; pid {at}/pid; error_log {at}/error.log;\n\
                 events {{ worker_connections 1024; }}\n\
                 http {{\n{temporary}access_log off; keepalive_requests 1000000000; keepalive_timeout 1h;\n\
                 sendfile on; root {at};\n\
                 server {{ listen 127.0.0.1:{port};\n{server}\n location = /nginx-status {{ stub_status; }} }}\n}}\n"
            ),
        )
        .unwrap();
        let program = dir.path().join(name);
        symlink(nginx(), &program).unwrap();
        let mut command = Command::new(program);
        command.arg("-p").arg(dir.path()).arg("-c").arg(dir.path().join("nginx.conf"));
        command.args(["-e", "error.log"]).stdin(Stdio::null()).stderr(Stdio::null());
        let nginx = Self { running: Running::spawn(&mut command), dir, port };
        wait_until("nginx listens", PATIENCE, || TcpStream::connect(("127.0.0.1", port)).is_ok());
        nginx
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// As `destination` names it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Puts a file below its root.
    pub fn put(&self, name: &str, content: &[u8]) {
        fs::write(self.dir.path().join(name), content).unwrap();
    }

    /// What it has counted itself so far, this question included.
    pub fn count(&self) -> Counted {
        let status = curl(&[&self.url("/nginx-status")]);
        let line = status.lines().nth(2).unwrap_or_else(|| panic!("no status: {status}"));
        let numbers: Vec<u64> = line.split_whitespace().map(|number| number.parse().unwrap()).collect();
        Counted { connections: numbers[0], requests: numbers[2] }
    }
}

/// Where it is installed.
fn nginx() -> PathBuf {
    let paths = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&paths).map(|dir| dir.join("nginx")).find(|program| program.is_file());
    found.unwrap_or_else(|| panic!("nginx is not there; `cargo xtask setup` installs what is missing"))
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Killing the master would leave its worker; both go at once on this.
        // SAFETY: the child was not waited for, so the id is still its own.
        unsafe { libc::kill(self.running.pid() as libc::pid_t, libc::SIGTERM) };
        _ = self.running.0.wait();
    }
}
