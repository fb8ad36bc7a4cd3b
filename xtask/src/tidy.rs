//! What no compiler checks: every slice has all its parts, and the tree holds nothing it should not.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::process::{command, root, text};

/// The slices, and where the programs of each are: the protocols above TCP share an object. A new one is added here first;
/// tidy then names what is still to be written.
const SLICES: [(&str, &str); 14] = [
    ("tcp", "bin/tcp.rs"),
    ("sched", "bin/sched.rs"),
    ("disk", "bin/disk.rs"),
    ("http", "bin/l7/http.rs"),
    ("postgres", "bin/l7/postgres.rs"),
    ("redis", "bin/l7/redis.rs"),
    ("mysql", "bin/l7/mysql.rs"),
    ("pools", "bin/l7/pools.rs"),
    ("phases", "bin/l7/phases.rs"),
    ("sockets", "bin/l7/sockets.rs"),
    ("dns", "bin/dns.rs"),
    ("process", "bin/process.rs"),
    ("drops", "bin/drops.rs"),
    ("irq", "bin/irq.rs"),
];

/// The other parts of a slice, with `*` for its name.
const PARTS: [&str; 5] = [
    "perf-common/src/*.rs",
    "perf-agent/src/probes/*.rs",
    "tests/tests/*.rs",
    "deploy/alerts/*.yml",
    "deploy/alerts/*_test.yml",
];

/// Longer files are read by nobody; median and 90th percentile lie far below.
const LONGEST: usize = 600;

/// The workspace's licence is these two.
const LICENCES: [&str; 2] = ["LICENSE-MIT", "LICENSE-APACHE"];

pub(crate) fn main() -> Result<()> {
    let mut wrong = Vec::new();
    for (slice, programs) in SLICES {
        let parts = PARTS.map(|part| part.replace('*', slice));
        let programs = format!("perf-ebpf/src/{programs}");
        let missing = parts.iter().chain([&programs]).filter(|part| !root().join(part).is_file());
        wrong.extend(missing.map(|part| format!("slice {slice} lacks {part}")));
    }
    let missing = LICENCES.iter().filter(|file| !root().join(file).is_file());
    wrong.extend(missing.map(|file| format!("{file} is missing")));
    for file in files()? {
        // Listed by git but removed in the work tree, or no text: nothing to read.
        let Ok(content) = fs::read_to_string(root().join(&file)) else { continue };
        wrong.extend(problems(&file, &content));
    }
    if !wrong.is_empty() {
        bail!("the tree is not tidy:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

/// What is wrong with one file.
fn problems(file: &Path, content: &str) -> Vec<String> {
    let name = file.display();
    let mut wrong = Vec::new();
    let lines = content.lines().count();
    if file.extension().is_some_and(|extension| extension == "rs") && lines > LONGEST {
        wrong.push(format!("{name} has {lines} lines; over {LONGEST}, split it: `foo.rs` + `foo/`"));
    }
    if file.ends_with("mod.rs") {
        wrong.push(format!("{name}: modules are `foo.rs` + `foo/` here, never `mod.rs`"));
    }
    // Home directories are a build machine's; in a container or a manifest they mean the container's.
    for (number, line) in content.lines().enumerate() {
        if MACHINE.iter().any(|dir| mentions(line, dir)) {
            wrong.push(format!("{name}:{}: a path of somebody's machine: {}", number + 1, line.trim()));
        }
    }
    wrong
}

/// Directories below which only a build machine has something. Written apart, or this file would find itself.
const MACHINE: [&str; 3] = [concat!("/ho", "me/"), concat!("/wo", "rk/"), concat!("/ro", "ot/")];

/// Whether an absolute path below `dir` begins somewhere in the line; `a/home/b` is not absolute.
fn mentions(line: &str, dir: &str) -> bool {
    line.match_indices(dir).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '}' | ')' | '*'))
    })
}

/// What is or would be under version control.
fn files() -> Result<Vec<PathBuf>> {
    let listed = text(command("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]));
    let Ok(listed) = listed else { return walk(&root()) };
    Ok(listed.lines().map(PathBuf::from).collect())
}

/// The same for a tree without git, such as an unpacked release.
fn walk(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        if name == "target" || name == ".git" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            found.extend(walk(&entry.path())?);
        } else {
            found.extend(entry.path().strip_prefix(root()).ok().map(Path::to_path_buf));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_paths_of_a_machine() {
        let [home, ..] = MACHINE;
        assert!(mentions(&format!("let x = \"{home}ann/x\";"), home));
        assert!(mentions(&format!("{home}ann"), home));
        assert!(!mentions(&format!("/host{home}ann"), home));
        assert_eq!(problems(Path::new("a.md"), &format!("ok\nsee {home}ann\n")).len(), 1);
    }

    #[test]
    fn finds_long_files_and_mod_rs() {
        assert_eq!(problems(Path::new("src/x.rs"), &"\n".repeat(LONGEST + 1)).len(), 1);
        assert_eq!(problems(Path::new("src/x.rs"), &"\n".repeat(LONGEST)).len(), 0);
        assert_eq!(problems(Path::new("src/x/mod.rs"), "").len(), 1);
    }
}
