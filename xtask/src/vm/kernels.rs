//! Debian's cloud kernels, one per series, downloaded by apt from whatever mirror the system itself uses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process::{command, fresh_dir, output, text};

/// A series, the suite that holds it, and how its package's name begins and ends around the version.
///
/// The exact version is looked up at run time: a package of the archive is renamed with every security update.
pub(super) struct Series {
    pub(super) name: &'static str,
    suite: &'static str,
    prefix: &'static str,
    suffix: &'static str,
}

/// The oldest kernel that the agent promises to run on, the two of Debian's stable releases, and the newest there is.
pub(super) const SERIES: [Series; 4] = [
    Series { name: "5.10", suite: "bullseye", prefix: "linux-image-5.10.0-", suffix: "-cloud-amd64" },
    Series { name: "6.1", suite: "bookworm", prefix: "linux-image-6.1.0-", suffix: "-cloud-amd64" },
    Series { name: "6.12", suite: "trixie", prefix: "linux-image-6.12.", suffix: "+deb13-cloud-amd64" },
    Series { name: "7.2", suite: "sid", prefix: "linux-binary-7.", suffix: "+deb14-cloud-amd64" },
];

/// A kernel that can be booted.
pub(super) struct Kernel {
    pub(super) series: &'static str,
    /// As in the package's name, e.g. `6.12.48+deb13-cloud-amd64`.
    pub(super) version: String,
    pub(super) image: PathBuf,
}

/// The newest kernel of a series: the one in the cache, else the newest that the mirror hands out.
pub(super) fn fetch(series: &Series, cache: &Path) -> Result<Kernel> {
    let dir = cache.join("kernels").join(series.name);
    if let Some(kernel) = cached(series, &dir)? {
        return Ok(kernel);
    }
    let apt = Apt::at(&cache.join("apt"))?;
    let names = text(apt.run("apt-cache").args(["pkgnames", series.prefix]))?;
    let mut names: Vec<&str> = names.lines().filter(|name| series.version(name).is_some()).collect();
    names.sort_by_key(|name| numbers(name));
    let mut refused = Vec::new();
    // Lists can name what the mirror no longer has.
    for name in names.into_iter().rev() {
        match apt.kernel_image(name, series.suite, &dir) {
            Ok(()) => return cached(series, &dir)?.context("the package was unpacked but holds no kernel"),
            Err(error) => refused.push(format!("{error:#}")),
        }
    }
    let why = if refused.is_empty() { "no package has its name".to_owned() } else { refused.join("; ") };
    bail!(
        "no kernel {} can be had from suite {} ({why}); remedy: a Debian mirror in apt's sources that carries it",
        series.name,
        series.suite
    )
}

impl Series {
    /// The version within a package's name, or `None` if it is another package.
    fn version<'a>(&self, package: &'a str) -> Option<&'a str> {
        let version = package.strip_prefix(self.prefix)?.strip_suffix(self.suffix)?;
        let digits = version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        digits.then(|| package.split_at(package.find(|c: char| c.is_ascii_digit()).unwrap_or(0)).1)
    }
}

fn cached(series: &Series, dir: &Path) -> Result<Option<Kernel>> {
    if !dir.is_dir() {
        return Ok(None);
    }
    let mut versions = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        versions.push(entry?.file_name().to_string_lossy().into_owned());
    }
    versions.retain(|name| series.version(name).is_some());
    versions.sort_by_key(|name| numbers(name));
    Ok(versions.pop().map(|name| Kernel {
        series: series.name,
        version: series.version(&name).unwrap_or_default().to_owned(),
        image: dir.join(name),
    }))
}

/// apt with lists of its own, so that other suites do not become part of this system.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn at(dir: &Path) -> Result<Self> {
        let apt = Self { dir: dir.to_path_buf() };
        if dir.join("ready").exists() {
            return Ok(apt);
        }
        for part in ["sources", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let suites: Vec<&str> = SERIES.iter().map(|series| series.suite).collect();
        let sources = format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
            mirror()?,
            suites.join(" ")
        );
        fs::write(dir.join("sources/kernels.sources"), sources)?;
        output(apt.run("apt-get").args(["-q", "update"])).context(
            "the mirror's package lists cannot be had; remedy: look at what `apt-get update` says",
        )?;
        fs::write(dir.join("ready"), "")?;
        Ok(apt)
    }

    fn run(&self, program: &str) -> Command {
        let dir = self.dir.display();
        let mut apt = command(program);
        for option in [
            "Dir::Etc::sourcelist=/dev/null".to_owned(),
            format!("Dir::Etc::sourceparts={dir}/sources"),
            format!("Dir::State::Lists={dir}/lists"),
            format!("Dir::Cache={dir}/cache"),
            // apt's own user may not reach this directory.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            apt.arg("-o").arg(option);
        }
        apt
    }

    /// Puts the kernel image of a package into `dir`, named like the package.
    fn kernel_image(&self, package: &str, suite: &str, dir: &Path) -> Result<()> {
        let making = dir.join("making.tmp");
        fresh_dir(&making)?;
        output(self.run("apt-get").current_dir(&making).args([
            "-q",
            "download",
            &format!("{package}/{suite}"),
        ]))?;
        // Only the image: the cloud kernels have built in all that the guest uses, and the modules are large.
        let unpack = "dpkg --fsys-tarfile *.deb | tar -x --wildcards --no-anchored 'vmlinuz*'";
        output(command("sh").current_dir(&making).args(["-c", unpack]))?;
        let image = find(&making, "vmlinuz")?.with_context(|| format!("{package} holds no vmlinuz"))?;
        fs::rename(image, dir.join(package))?;
        fs::remove_dir_all(&making).context("clearing up")
    }
}

/// The Debian mirror that the system's own sources name.
fn mirror() -> Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(parts) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(parts.filter_map(|part| Some(part.ok()?.path())));
    }
    files.sort();
    let content: Vec<String> = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
    let uris = content.iter().flat_map(|content| content.lines()).flat_map(str::split_whitespace);
    uris.filter(|word| word.contains("://"))
        .find(|uri| uri.trim_end_matches('/').ends_with("/debian"))
        .map(str::to_owned)
        .context("apt's sources name no Debian mirror; the kernels come from Debian, so run this on Debian")
}

fn find(dir: &Path, prefix: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find(&entry.path(), prefix)? {
                return Ok(Some(found));
            }
        } else if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// The numbers in a name, by which versions sort: 6.1.0-9 comes before 6.1.0-10.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_cloud_kernels_and_sorts_them() {
        let [old, _, _, new] = &SERIES;
        assert_eq!(old.version("linux-image-5.10.0-36-cloud-amd64"), Some("5.10.0-36-cloud-amd64"));
        assert_eq!(old.version("linux-image-5.10.0-36-cloud-amd64-dbg"), None);
        assert_eq!(old.version("linux-image-5.10.0-36-rt-amd64"), None);
        assert_eq!(new.version("linux-binary-7.2.3+deb14-cloud-amd64"), Some("7.2.3+deb14-cloud-amd64"));
        assert!(numbers("linux-image-6.1.0-9-cloud-amd64") < numbers("linux-image-6.1.0-10-cloud-amd64"));
    }
}
