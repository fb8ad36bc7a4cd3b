//! A block device of a test's own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::run;

/// A block device over a file.
pub struct Loop {
    pub name: String,
    _file: TempDir,
}

impl Loop {
    /// What is read and written at once.
    pub const BLOCK: u64 = 64 << 10;

    /// Over a file of this size, in this directory or one of its own.
    pub fn new(dir: Option<&Path>, bytes: u64) -> Self {
        let dir = dir.map_or_else(tempfile::tempdir, tempfile::tempdir_in).unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(bytes).unwrap();
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&path));
        let name = device.trim_end().trim_start_matches("/dev/").to_owned();
        Self { name, _file: dir }
    }

    pub fn path(&self) -> String {
        format!("/dev/{}", self.name)
    }

    fn sysfs(&self, file: &str) -> PathBuf {
        Path::new("/sys/block").join(&self.name).join(file)
    }

    /// Chooses its I/O scheduler.
    pub fn schedule(&self, scheduler: &str) {
        fs::write(self.sysfs("queue/scheduler"), scheduler).unwrap();
    }

    /// Requests, merged ones, sectors and milliseconds of reads, then the same of writes.
    pub fn statistics(&self) -> [f64; 8] {
        let text = fs::read_to_string(self.sysfs("stat")).unwrap();
        let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap());
        std::array::from_fn(|_| numbers.next().unwrap())
    }

    /// A `dd` that says nothing but errors.
    #[must_use]
    pub fn dd(arguments: &[&str]) -> Command {
        let mut dd = Command::new("dd");
        dd.args(arguments).arg("status=none");
        dd
    }

    /// Writes so many blocks, past the page cache.
    pub fn write(&self, blocks: u64) {
        let (to, count) = (format!("of={}", self.path()), format!("count={blocks}"));
        run(&mut Self::dd(&["if=/dev/zero", &to, "oflag=direct", "bs=64k", &count]));
    }

    /// As many blocks, from the same few over and over again.
    pub fn read(&self, blocks: u64) {
        let from = format!("if={}", self.path());
        for done in (0..blocks).step_by(100) {
            let count = format!("count={}", (blocks - done).min(100));
            run(&mut Self::dd(&[&from, "of=/dev/null", "iflag=direct", "bs=64k", &count]));
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        _ = Command::new("losetup").args(["--detach", &self.path()]).status();
    }
}
