//! Where things lie, and how this tool starts other programs: none of them outlives it.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// The root of the work tree.
pub(crate) fn root() -> PathBuf {
    // At run time rather than by `env!`: cargo sets it, and a moved tree must not need a rebuild.
    let manifest =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.parent().map_or_else(|| ".".into(), Path::to_path_buf)
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Tools of this tree's own. Fixed, unlike [`target`]: perf-agent's build script looks here too.
pub(crate) fn tools() -> PathBuf {
    root().join("target/tools")
}

/// A command that runs in the root and gets SIGTERM when this tool dies, however it dies.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    // SAFETY: between fork and exec only async-signal-safe calls are made, and prctl is one.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    command
}

/// `cargo`, with this tree's own tools in its PATH.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = command("cargo");
    let path = env::var("PATH").unwrap_or_default();
    cargo.env("PATH", format!("{}:{path}", tools().join("bin").display())).args(arguments);
    cargo
}

/// Runs a command to its end with its output on the terminal.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| cannot_start(command))?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs a command to its end and returns its stdout; an error carries the end of its stderr.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().with_context(|| cannot_start(command))?;
    if !status.success() {
        let stderr = if stderr.is_empty() { &stdout } else { &stderr };
        bail!("`{}` failed ({status}):\n{}", shown(command), tail(&String::from_utf8_lossy(stderr), 30));
    }
    Ok(stdout)
}

/// [`output`] as text.
pub(crate) fn text(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&output(command)?).into_owned())
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

/// Where a program is installed; the `sbin` directories count although a user's PATH may lack them.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .map(|dir| Path::new(dir).join(program))
        .find(|file| file.is_file())
}

pub(crate) fn is_root() -> bool {
    // SAFETY: takes nothing, touches nothing, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// A flag that Ctrl-C and SIGTERM raise, instead of ending this tool before it has cleaned up.
pub(crate) fn interrupted() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [libc::SIGINT, libc::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&flag)).context("the signal handler was refused")?;
    }
    Ok(flag)
}

/// A program in the background that is stopped when this goes out of scope.
pub(crate) struct Background {
    name: &'static str,
    child: Child,
}

impl Background {
    pub(crate) fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).spawn().with_context(|| cannot_start(command))?;
        Ok(Self { name, child })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, or `None` while it runs.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("waiting for {}", self.name))
    }

    /// Waits until it ends by itself, is to be stopped, or time is up.
    pub(crate) fn wait(&mut self, stop: &AtomicBool, limit: Duration) -> Result<Option<ExitStatus>> {
        let start = Instant::now();
        loop {
            let ended = self.ended()?;
            if ended.is_some() || stop.load(Ordering::Relaxed) || start.elapsed() > limit {
                return Ok(ended);
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// SIGTERM, then patience, then SIGKILL.
    pub(crate) fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        // SAFETY: the child has not been waited for, so that its pid is still its own.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        if let Some(status) = self.wait(&AtomicBool::new(false), Duration::from_secs(10))? {
            return Ok(status);
        }
        self.child.kill().ok();
        self.child.wait().ok();
        bail!("{} (pid {}) ignored SIGTERM for 10 s and was killed", self.name, self.child.id());
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{error:#}");
        }
    }
}

/// An empty directory at that place, whatever was there before.
pub(crate) fn fresh_dir(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("clearing {}", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

fn cannot_start(command: &Command) -> String {
    format!(
        "`{}` cannot be started: is it installed? `cargo xtask setup` installs what this tree uses",
        shown(command)
    )
}

/// Continues as root: returns if that is so already, else starts this command anew under sudo, with `--built` so that it
/// does not build once more and leave files of root's in the tree.
pub(crate) fn become_root() -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let Some(sudo) = which("sudo") else {
        bail!("loading BPF programs needs root, and there is no sudo; remedy: run this command as root");
    };
    let mut arguments = env::args_os().skip(1);
    let own = env::current_exe().context("finding this program's own file")?;
    let error = Command::new(sudo)
        .args(["--preserve-env=RUST_LOG,CARGO_TARGET_DIR"])
        .arg(own)
        .args(arguments.next())
        .arg("--built")
        .args(arguments)
        .exec();
    Err(error).context("sudo cannot be started; remedy: run this command as root")
}
