//! A PostgreSQL cluster with a directory of its own.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::{PATIENCE, Running, free_port, run, wait_until};

/// A server on a port of loopback, without durability, that keeps its own count of statements.
pub struct Postgres {
    running: Running,
    pub port: u16,
    /// Let go last, when nobody writes there any more.
    _dir: TempDir,
}

impl Postgres {
    /// `settings` are lines of `postgresql.conf`.
    pub fn start(settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (uid, gid) = user("postgres");
        chown(dir.path(), Some(uid), Some(gid)).unwrap();
        let data = dir.path().join("data");
        let mut initdb = Command::new(programs().join("initdb"));
        initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C"]);
        run(initdb.arg("-D").arg(&data).uid(uid).gid(gid).current_dir(dir.path()));
        let port = free_port();
        fs::write(
            data.join("postgresql.auto.conf"),
            format!(
                "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\nfsync = off\n\
                 synchronous_commit = off\nfull_page_writes = off\nautovacuum = off\nlogging_collector = off\n\
                 max_connections = 50\nshared_buffers = 32MB\n\
                 shared_preload_libraries = 'pg_stat_statements'\npg_stat_statements.track_utility = on\n{settings}\n"
            ),
        )
        .unwrap();
        let mut command = Command::new(programs().join("postgres"));
        command.arg("-D").arg(&data).uid(uid).gid(gid).current_dir(dir.path());
        let running =
            Running::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
        let postgres = Self { running, port, _dir: dir };
        wait_until("PostgreSQL takes connections", PATIENCE, || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
                && postgres.client("psql").args(["-c", "select 1"]).output().unwrap().status.success()
        });
        postgres
    }

    /// Of the process that starts one for each connection.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// As `destination` names it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `psql`, `pgbench`, … as a client of this server, without encryption.
    pub fn client(&self, program: &str) -> Command {
        let mut command = Command::new(programs().join(program));
        command.env("PGHOST", "127.0.0.1").env("PGPORT", self.port.to_string()).env("PGUSER", "postgres");
        command.env("PGDATABASE", "postgres").env("PGSSLMODE", "disable").env("PGGSSENCMODE", "disable");
        command.env("PGCONNECT_TIMEOUT", "30").stdin(Stdio::null());
        command
    }

    /// What psql prints for some statements, each of them one query.
    pub fn psql(&self, statements: &[&str]) -> String {
        let mut psql = self.client("psql");
        psql.args(["-X", "-q", "-A", "-t"]);
        for statement in statements {
            psql.args(["-c", statement]);
        }
        run(&mut psql)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A fast shutdown, which takes the backends along.
        // SAFETY: the child was not waited for, so the id is still its own.
        unsafe { libc::kill(self.running.pid() as libc::pid_t, libc::SIGINT) };
        _ = self.running.0.wait();
    }
}

/// Debian's servers are below a directory of their version; the newest one's programs.
fn programs() -> PathBuf {
    let found = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<(u32, PathBuf)> = found
        .filter_map(|entry| {
            let path = entry.path();
            let version = path.file_name()?.to_str()?.parse().ok()?;
            path.join("bin/postgres").is_file().then(|| (version, path.join("bin")))
        })
        .collect();
    versions.sort();
    let newest = versions.pop();
    newest.unwrap_or_else(|| panic!("no PostgreSQL: `cargo xtask setup` installs what is missing")).1
}

/// A user that a package came with: the servers refuse to run as root.
pub(crate) fn user(name: &str) -> (u32, u32) {
    let of = |flag: &str| -> Option<u32> {
        let output = Command::new("id").args([flag, name]).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    of("-u").zip(of("-g")).unwrap_or((65534, 65534))
}

/// Writes a script for pgbench.
pub fn script(dir: &Path, name: &str, lines: &str) -> PathBuf {
    let file = dir.join(name);
    fs::write(&file, lines).unwrap();
    file
}
