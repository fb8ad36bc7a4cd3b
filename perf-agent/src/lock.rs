//! One agent per host: two would count everything twice and share nothing.
//!
//! A `flock` on a file, and not the name of an abstract socket: the kernel drops either when the process ends, however it
//! ends, but an abstract name belongs to a network namespace, so an agent in a pod and one on the host would not see each
//! other. The file also tells who holds it, and a directory of its own is all that a test needs.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

const NAME: &str = "perf-agent.lock";

/// Held as long as the agent runs.
///
/// The file stays when the lock goes: removing it would let two agents lock two files of the same name.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

#[derive(Debug)]
pub(crate) enum LockError {
    /// Another agent runs; its process id, where the file tells.
    Held {
        path: PathBuf,
        pid: Option<u32>,
    },
    Unusable {
        path: PathBuf,
        source: io::Error,
    },
}

impl Lock {
    pub(crate) fn take(run: &Path) -> Result<Self, LockError> {
        let path = run.join(NAME);
        let unusable = |source| LockError::Unusable { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            // Whose it is has to be readable for whoever does not get it.
            .truncate(false)
            .open(&path)
            .map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // The holder may be about to write it: then the message goes without.
                _ = (&file).take(16).read_to_string(&mut holder);
                return Err(LockError::Held { pid: holder.trim().parse().ok(), path });
            }
            Err(TryLockError::Error(source)) => return Err(unusable(source)),
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(unusable)?;
        Ok(Self { _file: file })
    }
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { path, pid } => {
                write!(f, "another perf-agent runs on this host")?;
                if let Some(pid) = pid {
                    write!(f, " as process {pid}")?;
                }
                write!(f, " and holds {}; stop it first", path.display())
            }
            Self::Unusable { path, .. } => {
                write!(
                    f,
                    "{} cannot be locked; run as root, or name a writable directory by --path.run",
                    path.display()
                )
            }
        }
    }
}

impl std::error::Error for LockError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Held { .. } => None,
            Self::Unusable { source, .. } => Some(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_told_who_has_it_until_it_is_dropped() {
        let run = tempfile::tempdir().unwrap();
        std::fs::write(run.path().join(NAME), "99999999 left by one that was killed\n").unwrap();
        let first = Lock::take(run.path()).unwrap();
        let refused = Lock::take(run.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("as process {} and", std::process::id())), "{refused}");
        drop(first);
        Lock::take(run.path()).unwrap();
    }

    #[test]
    fn a_missing_directory_names_the_remedy() {
        let run = tempfile::tempdir().unwrap();
        let refused = Lock::take(&run.path().join("missing")).unwrap_err().to_string();
        assert!(refused.contains("--path.run"), "{refused}");
    }
}
