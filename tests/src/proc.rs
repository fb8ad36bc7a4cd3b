//! What the kernel says of processes: the truth that the agent's numbers are held against.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

/// A process' directory in /proc.
pub struct Proc(PathBuf);

impl Proc {
    pub fn of(pid: u32) -> Self {
        Self(PathBuf::from(format!("/proc/{pid}")))
    }

    /// Seconds on a CPU and seconds waiting for one, of the main thread.
    pub fn schedstat(&self) -> (f64, f64) {
        let text = self.read("schedstat");
        let mut ns = text.split_whitespace().map(|ns| ns.parse::<u64>().unwrap() as f64 / 1e9);
        (ns.next().unwrap(), ns.next().unwrap())
    }

    /// Voluntary and involuntary switches of the main thread.
    pub fn switches(&self) -> (f64, f64) {
        (self.status("voluntary_ctxt_switches"), self.status("nonvoluntary_ctxt_switches"))
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> f64 {
        self.status("VmRSS") * 1024.0
    }

    /// The ids of the kernel's BPF objects of a kind (`prog`, `map`, `link`) that the process holds.
    pub fn bpf_ids(&self, kind: &str) -> BTreeSet<u32> {
        let wanted = format!("{kind}_id:");
        let infos = fs::read_dir(self.0.join("fdinfo")).unwrap();
        // A descriptor may be closed while the list is read.
        let texts = infos.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
        texts
            .filter_map(|text| text.lines().find_map(|line| line.strip_prefix(&wanted)?.trim().parse().ok()))
            .collect()
    }

    fn status(&self, key: &str) -> f64 {
        let text = self.read("status");
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next())
            .and_then(|n| n.parse().ok())
            .unwrap_or_else(|| panic!("no {key} in {text}"))
    }

    fn read(&self, file: &str) -> String {
        let path = self.0.join(file);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

/// The ids of all the kernel's BPF objects of a kind, whoever holds them.
pub fn bpf_loaded(kind: &str) -> BTreeSet<u32> {
    /// The head of `union bpf_attr` for the commands that walk through ids.
    #[repr(C)]
    struct NextId {
        start: u32,
        next: u32,
        flags: u32,
    }
    // `BPF_PROG_GET_NEXT_ID` and so on.
    let command = match kind {
        "prog" => 11,
        "map" => 12,
        "link" => 31,
        _ => panic!("no kind of BPF object: {kind}"),
    };
    let mut ids = BTreeSet::new();
    let mut id = NextId { start: 0, next: 0, flags: 0 };
    // SAFETY: a live struct of the size that is given.
    while unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut id, size_of::<NextId>()) } == 0 {
        ids.insert(id.next);
        id.start = id.next;
    }
    let error = std::io::Error::last_os_error();
    assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "walking through the {kind}s: {error}");
    ids
}

/// What `service` is for this process.
pub fn comm() -> String {
    fs::read_to_string("/proc/self/comm").unwrap().trim_end().to_owned()
}
