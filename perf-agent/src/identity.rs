//! From a control group's id to the name of what runs in it.
//!
//! First form: the container's id, the pod's UID and the systemd unit are read off the group's path; a process in none of
//! these goes by its `comm`. Names from Kubernetes replace the ids where they are known.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use perf_common::workload::{UNKNOWN, Workload};

/// The labels that tell one workload from another; the same on every per-workload metric.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Identity {
    pub(crate) service: String,
    /// The first twelve digits of a container's id.
    pub(crate) container: String,
    pub(crate) pod_uid: String,
}

impl Identity {
    /// As labels, in front of a metric's own.
    pub(crate) fn labels(&self) -> [(&'static str, &str); 3] {
        [("service", &self.service), ("container", &self.container), ("pod_uid", &self.pod_uid)]
    }
}

/// How long a control group that was not found is not looked for again: walking the tree costs a system call per group.
const RETRY: Duration = Duration::from_secs(2);
/// How many names are kept; far above what a node runs, so that only a host gone wild reaches it.
const MAX_NAMES: usize = 65_536;

/// Names for workload ids, learned once each.
pub(crate) struct Namer {
    procfs: PathBuf,
    cgroup_root: PathBuf,
    groups: HashMap<u64, Group>,
    workloads: HashMap<u64, Identity>,
    /// The service that was first met in a container: later ones are health checks and shells.
    containers: HashMap<String, String>,
    walked: Option<Instant>,
}

impl Namer {
    pub(crate) fn new(procfs: PathBuf, cgroup_root: PathBuf) -> Self {
        Self {
            procfs,
            cgroup_root,
            groups: HashMap::new(),
            workloads: HashMap::new(),
            containers: HashMap::new(),
            walked: None,
        }
    }

    /// Learns the workloads that the kernel has met.
    pub(crate) fn learn(&mut self, id: u64, workload: &Workload) {
        if self.workloads.contains_key(&id) || self.workloads.len() >= MAX_NAMES {
            return;
        }
        let group = self.group(workload.cgroup, workload.pid);
        let (name, len) = workload.comm_bytes();
        let comm = String::from_utf8_lossy(&name[..len]).into_owned();
        let identity = Identity {
            service: if group.unit.is_empty() { comm } else { group.unit },
            container: group.container.chars().take(12).collect(),
            pod_uid: group.pod_uid,
        };
        if !identity.container.is_empty() {
            self.containers.entry(identity.container.clone()).or_insert_with(|| identity.service.clone());
        }
        self.workloads.insert(id, identity);
    }

    /// The labels of a workload id.
    pub(crate) fn identity(&self, id: u64) -> Identity {
        let fixed = |service: &str| Identity { service: service.to_owned(), ..Identity::default() };
        match id {
            UNKNOWN => fixed("unknown"),
            perf_common::workload::OTHER => fixed("other"),
            _ => self.workloads.get(&id).cloned().unwrap_or_else(|| fixed("unknown")),
        }
    }

    /// The labels of a control group by its path. What runs in a container is told by a workload that was met in it; a group that
    /// is neither that nor a unit goes by the last part of its path.
    pub(crate) fn group_identity(&self, path: &str) -> Identity {
        let Group { container, pod_uid, unit } = Group::from_path(path);
        let container: String = container.chars().take(12).collect();
        let service = match self.containers.get(&container) {
            Some(service) => service.clone(),
            None if unit.is_empty() => path.rsplit('/').next().unwrap_or_default().to_owned(),
            None => unit,
        };
        Identity { service, container, pod_uid }
    }

    fn group(&mut self, id: u64, pid: u32) -> Group {
        if let Some(group) = self.groups.get(&id) {
            return group.clone();
        }
        // As long as the process lives it says where it is, for the price of one file; the inode tells whether it still
        // is the same process in the same group.
        if let Some(group) = self.group_of(pid, id) {
            self.groups.insert(id, group.clone());
            return group;
        }
        if self.walked.is_none_or(|at| at.elapsed() >= RETRY) {
            self.walked = Some(Instant::now());
            let mut found = HashMap::new();
            walk(&self.cgroup_root, &self.cgroup_root, 0, &mut found);
            self.groups = found;
        }
        self.groups.get(&id).cloned().unwrap_or_default()
    }

    fn group_of(&self, pid: u32, id: u64) -> Option<Group> {
        let groups = std::fs::read_to_string(self.procfs.join(format!("{pid}/cgroup"))).ok()?;
        groups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find_map(|path| {
            let inode = self.cgroup_root.join(path.trim_start_matches('/')).metadata().ok()?.ino();
            (inode == id).then(|| Group::from_path(path))
        })
    }
}

/// What a control group's path tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Group {
    container: String,
    pod_uid: String,
    unit: String,
}

/// Reads every group below `at`; ids are the inodes of the directories.
fn walk(root: &Path, at: &Path, depth: u32, found: &mut HashMap<u64, Group>) {
    if let (Ok(meta), Ok(path)) = (at.metadata(), at.strip_prefix(root)) {
        found.insert(meta.ino(), Group::from_path(&path.to_string_lossy()));
    }
    if depth >= 16 {
        return;
    }
    let Ok(entries) = at.read_dir() else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(root, &entry.path(), depth + 1, found);
        }
    }
}

impl Group {
    /// Reads a path leaf first: the innermost container is the workload, a unit counts only outside of containers.
    fn from_path(path: &str) -> Self {
        let mut group = Self::default();
        for part in path.rsplit('/') {
            if group.container.is_empty()
                && let Some(id) = container_id(part)
            {
                id.clone_into(&mut group.container);
            }
            if group.pod_uid.is_empty()
                && let Some(uid) = pod_uid(part)
            {
                group.pod_uid = uid;
            }
            if group.unit.is_empty()
                && group.container.is_empty()
                && let Some(unit) = part.strip_suffix(".service")
            {
                group.unit = unescape(unit);
            }
        }
        if !group.container.is_empty() {
            group.unit.clear();
        }
        group
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// `<id>`, `docker-<id>.scope`, `cri-containerd-<id>.scope`, `….slice:cri-containerd:<id>`; conmon's own group is none.
fn container_id(part: &str) -> Option<&str> {
    let part = part.strip_suffix(".scope").unwrap_or(part);
    if part.contains("conmon") {
        return None;
    }
    let id = part.rsplit(['-', ':']).next()?;
    let runtime = part[..part.len() - id.len()].trim_end_matches(['-', ':']);
    let runtime = runtime.rsplit(':').next().unwrap_or(runtime);
    let known = ["", "cri-containerd", "crio", "docker", "libpod", "nerdctl", "podman", "containerd", "kata"];
    (id.len() == 64 && is_hex(id) && known.contains(&runtime)).then_some(id)
}

/// `pod<uid>`, or `kubepods-…-pod<uid_with_underscores>.slice`.
fn pod_uid(part: &str) -> Option<String> {
    let uid = match part.strip_suffix(".slice") {
        Some(slice) => slice.contains("kubepods").then(|| slice.rsplit_once("-pod"))??.1.replace('_', "-"),
        None => part.strip_prefix("pod")?.to_owned(),
    };
    let plain = uid.replace('-', "");
    (plain.len() == 32 && is_hex(&plain)).then_some(uid)
}

/// systemd writes what a unit name cannot hold as `\x2d`.
fn unescape(unit: &str) -> String {
    let mut out = String::new();
    let mut rest = unit;
    while let Some((before, after)) = rest.split_once("\\x") {
        out.push_str(before);
        match after.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &after[2..];
            }
            None => {
                out.push_str("\\x");
                rest = after;
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const UID: &str = "11111111-2222-3333-4444-555555555555";

    #[test]
    fn a_group_is_named_by_what_runs_in_it_by_its_unit_or_by_itself() {
        let mut namer = Namer::new("/proc".into(), "/nowhere".into());
        let identity = |path: &str| namer.group_identity(path);
        assert_eq!(identity("system.slice/nginx.service").service, "nginx");
        assert_eq!(identity("custom/batch").service, "batch");
        let path = format!("kubepods/burstable/pod{UID}/{ID}");
        let unknown = identity(&path);
        assert_eq!((unknown.service.as_str(), unknown.pod_uid.as_str()), (ID, UID));
        let known =
            Identity { service: "shop".to_owned(), container: ID[..12].to_owned(), pod_uid: UID.to_owned() };
        namer.containers.insert(known.container.clone(), known.service.clone());
        assert_eq!(namer.group_identity(&path), known);
    }

    #[test]
    fn every_origin_of_a_path() {
        let container = |path: &str| Group::from_path(path).container;
        let pod = |path: &str| Group::from_path(path).pod_uid;
        let unit = |path: &str| Group::from_path(path).unit;
        let uid_ = UID.replace('-', "_");

        for path in [
            format!("kubepods/burstable/pod{UID}/{ID}"),
            format!(
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid_}.slice/cri-containerd-{ID}.scope"
            ),
            format!("kubepods.slice/kubepods-pod{uid_}.slice/crio-{ID}.scope/container"),
            format!(
                "docker/{ID}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort-pod{uid_}.slice/cri-containerd-{ID}.scope"
            ),
            format!("../../pod{UID}/{ID}"),
            format!(
                "system.slice/containerd.service/kubepods-besteffort-pod{uid_}.slice:cri-containerd:{ID}"
            ),
        ] {
            assert_eq!(container(&path), ID, "{path}");
            assert_eq!(unit(&path), "", "{path}");
            if !path.contains(':') {
                assert_eq!(pod(&path), UID, "{path}");
            }
        }
        for path in [
            format!("docker/{ID}"),
            format!("system.slice/docker-{ID}.scope"),
            format!("machine.slice/libpod-{ID}.scope/container"),
            format!("user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"),
            format!("default/{ID}"),
        ] {
            assert_eq!(container(&path), ID, "{path}");
            assert_eq!((pod(&path), unit(&path)), (String::new(), String::new()), "{path}");
        }
        assert_eq!(container(&format!("machine.slice/libpod-conmon-{ID}.scope")), "");
        assert_eq!(unit("system.slice/nginx.service"), "nginx");
        assert_eq!(
            unit("system.slice/system-getty.slice/serial\\x2dgetty@ttyS0.service"),
            "serial-getty@ttyS0"
        );
        assert_eq!(unit("user.slice/user-0.slice/session-1.scope"), "");
        assert_eq!(Group::from_path(""), Group::default());
        assert_eq!(unit("a\\xzz.service"), "a\\xzz");
    }
}
