//! A MariaDB server with a directory of its own.

use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::postgres::user;
use crate::{PATIENCE, Running, free_port, run, wait_until};

/// A server on a port of loopback, without durability. Its own statistics are asked for over its UNIX socket, which the agent
/// does not see.
pub struct Mysql {
    running: Running,
    pub port: u16,
    socket: PathBuf,
    /// Let go last, when nobody writes there any more.
    dir: TempDir,
}

impl Mysql {
    /// With these options besides.
    pub fn start(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (uid, gid) = user("mysql");
        chown(dir.path(), Some(uid), Some(gid)).unwrap();
        let data = format!("--datadir={}", dir.path().join("data").display());
        let mut install = Command::new("mariadb-install-db");
        install.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
        run(install.arg(&data).uid(uid).gid(gid).current_dir(dir.path()));
        let (port, socket) = (free_port(), dir.path().join("socket"));
        let mut server = Command::new("mariadbd");
        server.args(["--no-defaults", "--bind-address=127.0.0.1", "--innodb-flush-log-at-trx-commit=0"]);
        server.args(["--innodb-buffer-pool-size=32M", "--local-infile=1", "--performance-schema=0"]);
        server.arg(&data).arg(format!("--port={port}")).arg(format!("--socket={}", socket.display()));
        server.arg(format!("--pid-file={}", dir.path().join("pid").display())).args(options);
        server.uid(uid).gid(gid).current_dir(dir.path());
        let running = Running::spawn(server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
        let mysql = Self { running, port, socket, dir };
        wait_until("MariaDB takes connections", PATIENCE, || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
                && mysql.by_socket("create database if not exists test").output().unwrap().status.success()
        });
        mysql
    }

    /// As `destination` names it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `mariadb`, `mariadb-slap`, … as a client of this server.
    pub fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(["--no-defaults", "--protocol=tcp", "--host=127.0.0.1", "--user=root", "--skip-ssl"]);
        command.arg(format!("--port={}", self.port)).stdin(Stdio::null());
        command
    }

    /// What the client prints for some statements, in the database `test`.
    pub fn query(&self, statements: &str) -> String {
        run(self.client("mariadb").args(["--local-infile=1", "--batch", "test", "-e", statements]))
    }

    /// What the server itself counts, such as `Com_select`.
    pub fn status(&self, name: &str) -> u64 {
        let answer = run(&mut self.by_socket(&format!("show global status like '{name}'")));
        answer.split_whitespace().last().and_then(|number| number.parse().ok()).unwrap()
    }

    /// Where the server can read and write.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// A query that the agent does not see.
    fn by_socket(&self, statement: &str) -> Command {
        let mut command = Command::new("mariadb");
        command.args(["--no-defaults", "--user=root", "--batch", "--skip-column-names"]);
        command.arg(format!("--socket={}", self.socket.display())).args(["-e", statement]);
        command.stdin(Stdio::null());
        command
    }
}

impl Drop for Mysql {
    fn drop(&mut self) {
        self.running.signal(libc::SIGTERM);
        _ = self.running.0.wait();
    }
}
