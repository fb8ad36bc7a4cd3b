//! Who runs: the control group and the leader's name of a task, and the number that stands for both.

use aya_ebpf::helpers::{bpf_get_current_task, generated::bpf_get_current_task_btf};
use aya_ebpf::{bindings::BPF_NOEXIST, maps::HashMap};
use perf_common::kernel::{ABSENT, TaskOffsets};
use perf_common::workload::{Workload, cut_at_slash};

use crate::kernel::Ptr;

/// `PF_KTHREAD` of `task_struct.flags`: part of the kernel's interface to user space by way of `/proc/PID/stat`.
const PF_KTHREAD: u32 = 0x0020_0000;

/// How many workloads a map can name.
pub const MAX_WORKLOADS: u32 = 16_384;

/// The running task.
#[inline(always)]
pub fn current(at: &TaskOffsets) -> Ptr {
    if at.direct != 0 {
        // SAFETY: no arguments.
        Ptr::new(unsafe { bpf_get_current_task_btf() }.cast(), true)
    } else {
        // SAFETY: no arguments.
        Ptr::new(unsafe { bpf_get_current_task() } as *const _, false)
    }
}

/// Everything user space needs to name a task's workload.
#[inline(always)]
pub fn workload(task: Ptr, at: &TaskOffsets) -> Workload {
    let leader = task.follow(at.group_leader);
    let comm: [u64; 2] = [leader.load(at.comm), leader.load(at.comm + 8)];
    let kernel_thread = is_kernel_thread(task, at);
    Workload {
        cgroup: cgroup(task, at),
        comm: if kernel_thread { cut_at_slash(comm) } else { comm },
        pid: task.load(at.tgid),
        kernel_thread: u32::from(kernel_thread),
    }
}

/// Whether a task is the kernel's own.
#[inline(always)]
pub fn is_kernel_thread(task: Ptr, at: &TaskOffsets) -> bool {
    task.load::<u32>(at.flags) & PF_KTHREAD != 0
}

#[inline(always)]
fn cgroup(task: Ptr, at: &TaskOffsets) -> u64 {
    let mut cgroup = task.follow(at.cgroups).follow(at.css_set_cgroup);
    if at.css_cgroup != ABSENT {
        cgroup = cgroup.follow(at.css_cgroup);
    }
    cgroup.follow(at.cgroup_kn).load(at.kernfs_node_id)
}

/// Makes a workload known to user space.
#[inline(always)]
pub fn announce(workloads: &HashMap<u64, Workload>, id: u64, workload: &Workload) {
    if !crate::count::contains(core::ptr::from_ref(workloads).cast_mut().cast(), &id) {
        // A full map leaves the workload without a name, which shows as `unknown`; what it did is counted all the same.
        let _: Result<(), i32> = workloads.insert(id, workload, u64::from(BPF_NOEXIST));
    }
}
