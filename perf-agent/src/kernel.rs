//! What the running kernel is and where it keeps things, asked once, before any probe is loaded.

pub(crate) mod btf;

use std::path::{Path, PathBuf};

use perf_common::kernel::{
    ABSENT, DiskOffsets, DropOffsets, ExitOffsets, FileOffsets, RegOffsets, SchedOffsets, SockOffsets,
    TaskOffsets,
};

use btf::Btf;

use crate::config::{Config, Paths};

/// A member or type that a probe needs and this kernel does not have; the reason why the probe is unsupported.
#[derive(Clone, Debug)]
pub(crate) struct Missing(pub(crate) String);

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "this kernel has no {}", self.0)
    }
}

impl std::error::Error for Missing {}

/// Which hierarchy's ids tell workloads apart on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hierarchy {
    /// Version 2: pure, or hybrid where containers are in it.
    Unified,
    /// Version 1, by its memory controller: hybrid hosts with an older container runtime, and pure version 1.
    Memory,
}

/// 16 bytes each. Where ids go beyond it, as they do up to 4,194,304 on large hosts, two tasks can have one place.
const MAX_SLEEPERS: u32 = 131_072;

/// The kernel as the probes see it.
pub(crate) struct Kernel {
    btf: Btf,
    pub(crate) hierarchy: Hierarchy,
    /// Where the chosen hierarchy is mounted.
    pub(crate) cgroup_root: PathBuf,
    first_ephemeral_port: u32,
    /// Places for tasks that wait, a power of two: one for each id that a task can have, as far as that is affordable.
    pub(crate) sleepers: u32,
    hidden_tracepoints: Vec<String>,
}

impl Kernel {
    /// Reads BTF and looks at the control groups of the running processes.
    pub(crate) fn read(config: &Config) -> Result<Self, btf::BtfError> {
        let Paths { procfs, sysfs, run: _ } = &config.paths;
        let btf = Btf::read(&sysfs.join("kernel/btf/vmlinux"))?;
        let (hierarchy, cgroup_root) = hierarchy(procfs, sysfs);
        let range =
            std::fs::read_to_string(procfs.join("sys/net/ipv4/ip_local_port_range")).unwrap_or_default();
        let first_ephemeral_port =
            range.split_whitespace().next().and_then(|port| port.parse().ok()).unwrap_or(32_768);
        // Where clients may have nearly all ports, a server's is still to be told.
        let first_ephemeral_port = u32::max(first_ephemeral_port, 32_768);
        let pid_max = std::fs::read_to_string(procfs.join("sys/kernel/pid_max")).unwrap_or_default();
        let pid_max = pid_max.trim().parse::<u32>().unwrap_or(MAX_SLEEPERS);
        let sleepers = pid_max.clamp(1024, MAX_SLEEPERS).next_power_of_two();
        let hidden_tracepoints = config.hidden_tracepoints.clone();
        Ok(Self { btf, hierarchy, cgroup_root, first_ephemeral_port, sleepers, hidden_tracepoints })
    }

    pub(crate) fn has_tracepoint(&self, name: &str) -> bool {
        self.btf.has_tracepoint(name) && !self.hidden_tracepoints.iter().any(|hidden| hidden == name)
    }

    /// The enumerators that are declared together with this one, and their values.
    pub(crate) fn siblings(&self, enumerator: &str) -> Vec<(String, u32)> {
        self.btf.siblings(enumerator)
    }

    /// Whether BPF programs have this helper, by its name without `bpf_`.
    pub(crate) fn has_helper(&self, name: &str) -> bool {
        self.btf.enumerator(&format!("BPF_FUNC_{name}")).is_some()
    }

    /// 5.11 brought typed pointers to the current task and storage on sockets to tracing programs.
    pub(crate) fn has_typed_pointers(&self) -> bool {
        self.has_helper("get_current_task_btf")
    }

    /// 5.15 brought the helper that finds a task's registers.
    pub(crate) fn has_task_regs(&self) -> bool {
        self.has_helper("task_pt_regs")
    }

    pub(crate) fn task(&self) -> Result<TaskOffsets, Missing> {
        let at = |path| self.at("task_struct", path);
        let (css_set_cgroup, css_cgroup) = match self.hierarchy {
            Hierarchy::Unified => (self.at("css_set", "dfl_cgrp")?, ABSENT),
            Hierarchy::Memory => {
                let memory = self
                    .btf
                    .enumerator("memory_cgrp_id")
                    .ok_or_else(|| Missing("enumerator memory_cgrp_id".to_owned()))?;
                (self.at("css_set", "subsys")? + 8 * memory, self.at("cgroup_subsys_state", "cgroup")?)
            }
        };
        Ok(TaskOffsets {
            direct: u32::from(self.has_typed_pointers()),
            group_leader: at("group_leader")?,
            comm: at("comm")?,
            tgid: at("tgid")?,
            pid: at("pid")?,
            flags: at("flags")?,
            nvcsw: at("nvcsw")?,
            nivcsw: at("nivcsw")?,
            cgroups: at("cgroups")?,
            css_set_cgroup,
            css_cgroup,
            cgroup_kn: self.at("cgroup", "kn")?,
            // A union of inode and generation until 5.5, and a plain number since.
            kernfs_node_id: self.at("kernfs_node", "id")?,
            pad: 0,
        })
    }

    pub(crate) fn sock(&self) -> Result<SockOffsets, Missing> {
        let common = |path| self.at("sock_common", path);
        let sock = |path| self.at("sock", path);
        let tcp = |path| self.at("tcp_sock", path);
        Ok(SockOffsets {
            storage: u32::from(self.has_typed_pointers()),
            family: common("skc_family")?,
            protocol: sock("sk_protocol")?,
            state: common("skc_state")?,
            num: common("skc_num")?,
            dport: common("skc_dport")?,
            daddr: common("skc_daddr")?,
            v6_daddr: common("skc_v6_daddr")?,
            net: common("skc_net.net")?,
            net_inum: self.at("net", "ns.inum")?,
            err: sock("sk_err")?,
            socket_sk: self.at("socket", "sk")?,
            tcp_clock_cache: tcp("tcp_clock_cache")?,
            tcp_wstamp: tcp("tcp_wstamp_ns")?,
            tcp_bytes_sent: tcp("bytes_sent")?,
            tcp_copied_seq: tcp("copied_seq")?,
            tcp_write_seq: tcp("write_seq")?,
            tcp_bytes_acked: tcp("bytes_acked")?,
            tcp_bytes_received: tcp("bytes_received")?,
            tcp_snd_una: tcp("snd_una")?,
            tcp_srtt: tcp("srtt_us")?,
            tcp_ca_state: tcp("inet_conn.icsk_ca_state")?,
            tcp_snd_wnd: tcp("snd_wnd")?,
            tcp_total_retrans: tcp("total_retrans")?,
            flags: common("skc_flags")?,
            flag_done: self
                .btf
                .enumerator("SOCK_DONE")
                .ok_or_else(|| Missing("enumerator SOCK_DONE".to_owned()))?,
            ack_backlog: sock("sk_ack_backlog")?,
            max_ack_backlog: sock("sk_max_ack_backlog")?,
            drops: sock("sk_drops")?,
            first_ephemeral_port: self.first_ephemeral_port,
        })
    }

    pub(crate) fn sched(&self) -> Result<SchedOffsets, Missing> {
        let task = |path| self.at("task_struct", path);
        let in_iowait = self
            .btf
            .bit_offset("task_struct", "in_iowait")
            .ok_or_else(|| Missing("member task_struct.in_iowait".to_owned()))?;
        Ok(SchedOffsets {
            last_queued: task("sched_info.last_queued")?,
            cfs_rq: task("se.cfs_rq")?,
            rq: self.at("cfs_rq", "rq")?,
            rq_clock: self.at("rq", "clock")?,
            state: task("__state").or_else(|_| task("state"))?,
            has_prev_state: u32::from(self.btf.tracepoint_args("sched_switch") >= Some(4)),
            in_iowait: in_iowait / 8,
            in_iowait_mask: 1 << (in_iowait % 8),
            sleepers_mask: self.sleepers - 1,
            has_progress: 1,
            rq_clock_task: self.at("rq", "clock_task")?,
            sum_exec: task("se.sum_exec_runtime")?,
            exec_start: task("se.exec_start")?,
            run_delay: task("sched_info.run_delay")?,
        })
    }

    pub(crate) fn disk(&self) -> Result<DiskOffsets, Missing> {
        let request = |path| self.at("request", path);
        let request_disk = request("rq_disk").unwrap_or(ABSENT);
        // The block controller has version 2's groups, or those of a version 1 hierarchy that is none of ours.
        let bio_blkg = match self.hierarchy {
            Hierarchy::Unified => self.at("bio", "bi_blkg").unwrap_or(ABSENT),
            Hierarchy::Memory => ABSENT,
        };
        let group = |structure, path| if bio_blkg == ABSENT { Ok(ABSENT) } else { self.at(structure, path) };
        Ok(DiskOffsets {
            queue_first: u32::from(self.btf.tracepoint_args("block_rq_issue") == Some(2)),
            cmd_flags: request("cmd_flags")?,
            data_len: request("__data_len")?,
            start_time: request("start_time_ns")?,
            request_disk,
            request_queue: request("q")?,
            queue_disk: if request_disk == ABSENT { self.at("request_queue", "disk")? } else { ABSENT },
            major: self.at("gendisk", "major")?,
            first_minor: self.at("gendisk", "first_minor")?,
            request_bio: request("bio")?,
            bio_blkg,
            blkg_blkcg: group("blkcg_gq", "blkcg")?,
            blkcg_cgroup: group("blkcg", "css.cgroup")?,
        })
    }

    pub(crate) fn exit(&self) -> Result<ExitOffsets, Missing> {
        let task = |path| self.at("task_struct", path);
        let signal = |path| self.at("signal_struct", path);
        Ok(ExitOffsets {
            has_group_dead: u32::from(self.btf.tracepoint_args("sched_process_exit") >= Some(2)),
            signal: task("signal")?,
            exit_code: task("exit_code")?,
            start_time: task("start_time")?,
            live: signal("live.counter")?,
            flags: signal("flags")?,
            group_exit_code: signal("group_exit_code")?,
            oom_mm: signal("oom_mm")?,
        })
    }

    pub(crate) fn drop(&self) -> Result<DropOffsets, Missing> {
        let arguments = self.btf.tracepoint_args("kfree_skb");
        Ok(DropOffsets {
            direct: u32::from(self.has_typed_pointers()),
            has_reason: u32::from(arguments >= Some(3)),
            has_rx_sk: u32::from(arguments >= Some(4)),
            consumed: self.btf.enumerator("SKB_CONSUMED").unwrap_or(ABSENT),
            skb_dev: self.at("sk_buff", "dev")?,
            skb_sk: self.at("sk_buff", "sk")?,
            dev_net: self.at("net_device", "nd_net.net")?,
            sk_net: self.at("sock_common", "skc_net.net")?,
            net_inum: self.at("net", "ns.inum")?,
            net_loopback: self.at("net", "loopback_dev")?,
        })
    }

    pub(crate) fn files(&self) -> Result<FileOffsets, Missing> {
        Ok(FileOffsets {
            by_descriptor: u32::from(!self.has_tracepoint("sock_send_length")),
            task_files: self.at("task_struct", "files")?,
            files_fdt: self.at("files_struct", "fdt")?,
            fdt_fd: self.at("fdtable", "fd")?,
            fdt_max_fds: self.at("fdtable", "max_fds")?,
            file_inode: self.at("file", "f_inode")?,
            inode_mode: self.at("inode", "i_mode")?,
            file_private_data: self.at("file", "private_data")?,
        })
    }

    pub(crate) fn regs(&self) -> Result<RegOffsets, Missing> {
        let regs = |path| self.at("pt_regs", path);
        // x86-64 keeps them at the top of the kernel stack, whose size the architecture fixes at four pages.
        let size = regs("ss")? + 8;
        Ok(RegOffsets {
            helper: u32::from(self.has_task_regs()),
            task_stack: self.at("task_struct", "stack")?,
            stack_to_regs: (4 << 12) - size,
            number: regs("orig_ax")?,
            result: regs("ax")?,
            arg: [regs("di")?, regs("si")?, regs("dx")?, regs("r10")?],
            name_arg: regs("r8")?,
        })
    }

    fn at(&self, structure: &str, path: &str) -> Result<u32, Missing> {
        self.btf.offset(structure, path).ok_or_else(|| Missing(format!("member {structure}.{path}")))
    }
}

/// Looks where processes really are: a hybrid host mounts both versions, and which one holds the containers depends on
/// the container runtime. A process with a path of its own in version 1 but none in version 2 decides for version 1.
fn hierarchy(procfs: &Path, sysfs: &Path) -> (Hierarchy, PathBuf) {
    let root = sysfs.join("fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return (Hierarchy::Unified, root);
    }
    let unified = root.join("unified");
    let memory = root.join("memory");
    let only_in_v1 = std::fs::read_dir(procfs).into_iter().flatten().flatten().any(|process| {
        let Ok(groups) = std::fs::read_to_string(process.path().join("cgroup")) else { return false };
        let in_v2 = groups.lines().any(|line| line.starts_with("0::/") && line.len() > 4);
        let in_memory = groups.lines().any(|line| {
            line.split_once(':').is_some_and(|(_, rest)| rest.starts_with("memory:/") && rest.len() > 8)
        });
        in_memory && !in_v2
    });
    if memory.exists() && (only_in_v1 || !unified.exists()) {
        (Hierarchy::Memory, memory)
    } else {
        (Hierarchy::Unified, unified)
    }
}
