//! Where the running kernel keeps what the programs read. Every number here comes from that kernel's BTF before a
//! program is loaded; none stands in the tree.

/// Marks a member that this kernel does not have, where a program can do without.
pub const ABSENT: u32 = u32::MAX;

/// `task_struct` and the way from a task to the id of its control group.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TaskOffsets {
    /// Whether the kernel allows loads through its own pointers (5.11 with `bpf_get_current_task_btf`); else every
    /// read is a call of `bpf_probe_read_kernel`.
    pub direct: u32,
    pub group_leader: u32,
    pub comm: u32,
    pub tgid: u32,
    pub pid: u32,
    pub flags: u32,
    pub nvcsw: u32,
    pub nivcsw: u32,
    pub cgroups: u32,
    /// In `css_set`: `dfl_cgrp` for version 2, an element of `subsys` for version 1.
    pub css_set_cgroup: u32,
    /// In `cgroup_subsys_state`: `cgroup`, with version 1; [`ABSENT`] with version 2.
    pub css_cgroup: u32,
    pub cgroup_kn: u32,
    pub kernfs_node_id: u32,
    pub pad: u32,
}

crate::pod!(TaskOffsets: 56);

/// `sock` and what hangs on it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SockOffsets {
    /// Whether `bpf_sk_storage_get` may be called from tracepoints (5.11); else sockets are keyed by address.
    pub storage: u32,
    pub family: u32,
    pub protocol: u32,
    pub state: u32,
    /// In host order.
    pub num: u32,
    /// In network order.
    pub dport: u32,
    pub daddr: u32,
    pub v6_daddr: u32,
    pub net: u32,
    pub net_inum: u32,
    pub err: u32,
    pub socket_sk: u32,
    pub tcp_clock_cache: u32,
    pub tcp_wstamp: u32,
    pub tcp_bytes_sent: u32,
    /// The sequence numbers up to which the program has read and written.
    pub tcp_copied_seq: u32,
    pub tcp_write_seq: u32,
    /// Bytes that the peer has acknowledged and that it has sent, both with what takes a place in the sequence without being a
    /// byte: SYN and FIN of the one, FIN of the other.
    pub tcp_bytes_acked: u32,
    pub tcp_bytes_received: u32,
    /// The sequence number up to which the peer has acknowledged.
    pub tcp_snd_una: u32,
    /// Smoothed, in eighths of a microsecond.
    pub tcp_srtt: u32,
    /// A byte whose low five bits say how the connection recovers from loss.
    pub tcp_ca_state: u32,
    /// How much the peer takes at the moment.
    pub tcp_snd_wnd: u32,
    /// Segments sent again in all.
    pub tcp_total_retrans: u32,
    /// Where `SOCK_DONE` is, which the peer's FIN sets: a word, and which bit of it.
    pub flags: u32,
    pub flag_done: u32,
    pub ack_backlog: u32,
    pub max_ack_backlog: u32,
    pub drops: u32,
    /// The lowest port that clients get by themselves, from sysctl: above it a destination is known by class only.
    pub first_ephemeral_port: u32,
}

crate::pod!(SockOffsets: 120);

/// What `sched_switch` reads besides [`TaskOffsets`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SchedOffsets {
    /// `sched_info.last_queued`, in the run queue's clock.
    pub last_queued: u32,
    pub cfs_rq: u32,
    pub rq: u32,
    pub rq_clock: u32,
    /// `__state`, or `state` before 5.14.
    pub state: u32,
    /// Whether the tracepoint carries the previous task's state (6.1), which is exact where the member can already
    /// have changed.
    pub has_prev_state: u32,
    /// The byte that holds `in_iowait`, and which of its bits that is.
    pub in_iowait: u32,
    pub in_iowait_mask: u32,
    /// How many tasks have a place of their own among the sleepers, less one: a mask.
    pub sleepers_mask: u32,
    /// Whether the rest is known, which tells what a task has done so far.
    pub has_progress: u32,
    pub rq_clock_task: u32,
    pub sum_exec: u32,
    pub exec_start: u32,
    pub run_delay: u32,
}

crate::pod!(SchedOffsets: 56);

/// What `sched_process_exit` reads besides [`TaskOffsets`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ExitOffsets {
    /// Whether the tracepoint says which thread is the last (after 6.12).
    pub has_group_dead: u32,
    pub signal: u32,
    pub exit_code: u32,
    pub start_time: u32,
    /// In `signal_struct`: how many threads have not ended.
    pub live: u32,
    pub flags: u32,
    pub group_exit_code: u32,
    /// Set where the process was chosen to make memory free.
    pub oom_mm: u32,
}

crate::pod!(ExitOffsets: 32);

/// The way from a dropped packet to its network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct DropOffsets {
    /// As in [`TaskOffsets`].
    pub direct: u32,
    /// Whether the tracepoint says why (5.17), and which socket it was for (6.11).
    pub has_reason: u32,
    pub has_rx_sk: u32,
    /// The reason that is none; [`ABSENT`] where the kernel has no such.
    pub consumed: u32,
    pub skb_dev: u32,
    pub skb_sk: u32,
    pub dev_net: u32,
    pub sk_net: u32,
    pub net_inum: u32,
    pub net_loopback: u32,
}

crate::pod!(DropOffsets: 40);

/// The way from a file descriptor to its socket, for kernels without a tracepoint that carries the socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FileOffsets {
    /// Whether the HTTP slice goes this way; it then keys connections by their socket's address.
    pub by_descriptor: u32,
    pub task_files: u32,
    pub files_fdt: u32,
    pub fdt_fd: u32,
    pub fdt_max_fds: u32,
    pub file_inode: u32,
    pub inode_mode: u32,
    pub file_private_data: u32,
}

crate::pod!(FileOffsets: 32);

/// The registers of the system call that a task is in.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RegOffsets {
    /// Whether `bpf_task_pt_regs` exists (5.15).
    pub helper: u32,
    /// Where there is no helper: `task_struct.stack`, and the distance from there to the registers.
    pub task_stack: u32,
    pub stack_to_regs: u32,
    pub number: u32,
    /// Holds -ENOSYS while a system call runs, which tells it from a worker thread of `io_uring`.
    pub result: u32,
    pub arg: [u32; 4],
    /// The fifth argument: where `sendto` has its address.
    pub name_arg: u32,
}

crate::pod!(RegOffsets: 40);

/// Block requests.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskOffsets {
    /// Whether the tracepoints for inserting and issuing have the queue before the request (until 5.11).
    pub queue_first: u32,
    pub cmd_flags: u32,
    /// Bytes that are left to be done.
    pub data_len: u32,
    /// `CLOCK_MONOTONIC` nanoseconds of when the request was made.
    pub start_time: u32,
    /// The disk itself, or [`ABSENT`] where only its queue knows it (5.17).
    pub request_disk: u32,
    pub request_queue: u32,
    pub queue_disk: u32,
    pub major: u32,
    pub first_minor: u32,
    pub request_bio: u32,
    /// The control group that a bio is for; [`ABSENT`] where it is none of the hierarchy that tells workloads apart.
    pub bio_blkg: u32,
    pub blkg_blkcg: u32,
    pub blkcg_cgroup: u32,
}

crate::pod!(DiskOffsets: 52);
