//! Who did it: the control group and the program's name, and one number for both.

/// What user space needs to name a workload: the container, pod or unit behind the control group, else the `comm`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Inode of the control group's directory, in the hierarchy chosen at start; 0 where it is not known.
    pub cgroup: u64,
    /// The name of the thread group's leader, zero-padded: threads name themselves at will, leaders rarely.
    pub comm: [u64; 2],
    /// A process of it, for looking things up in /proc; the first one that was seen.
    pub pid: u32,
    pub kernel_thread: u32,
}

crate::pod!(Workload: 32);

/// The workload of an event in interrupt context, whose owner no record tells.
pub const UNKNOWN: u64 = 0;
/// Whatever found no cell of its own; its cell is made at start, so that a full map still counts.
pub const OTHER: u64 = 1;

impl Workload {
    /// The key under which everything is counted: 64 bits of the group and the name. Never [`UNKNOWN`] or [`OTHER`].
    #[inline(always)]
    pub fn id(&self) -> u64 {
        let hash = mix(mix(mix(self.cgroup) ^ self.comm[0]) ^ self.comm[1]);
        hash | u64::from(hash <= OTHER) << 1
    }

    /// The name up to its first zero byte; invalid UTF-8 is for the caller to replace.
    pub fn comm_bytes(&self) -> ([u8; 16], usize) {
        let mut name = [0; 16];
        let mut len = 16;
        for (i, slot) in name.iter_mut().enumerate() {
            *slot = (self.comm[i / 8] >> (8 * (i % 8))) as u8;
            if *slot == 0 && len == 16 {
                len = i;
            }
        }
        (name, len)
    }
}

/// Per-CPU kernel threads (`kworker/3:1`, `ksoftirqd/0`) are one workload each, not one per CPU: what follows the first
/// slash is cut.
#[inline(always)]
pub fn cut_at_slash(comm: [u64; 2]) -> [u64; 2] {
    use crate::bytes::find;
    let in_first = find(comm[0], b'/');
    if in_first != 0 {
        return [comm[0] & ((in_first & in_first.wrapping_neg()) >> 7).wrapping_sub(1), 0];
    }
    let in_second = find(comm[1], b'/');
    if in_second != 0 {
        return [comm[0], comm[1] & ((in_second & in_second.wrapping_neg()) >> 7).wrapping_sub(1)];
    }
    comm
}

/// A cheap mixing of 64 bits in which every input bit reaches every output bit.
#[inline(always)]
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let value = (value ^ (value >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    value ^ (value >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::text;

    #[test]
    fn kernel_threads_lose_their_cpu() {
        assert_eq!(cut_at_slash([text(b"kworker/"), text(b"u8:3")]), [text(b"kworker"), 0]);
        assert_eq!(cut_at_slash([text(b"ksoftirq"), text(b"d/1")]), [text(b"ksoftirq"), text(b"d")]);
        assert_eq!(cut_at_slash([text(b"nginx"), 0]), [text(b"nginx"), 0]);
    }

    #[test]
    fn group_and_name_both_tell() {
        let one = Workload { cgroup: 7, comm: [text(b"nginx"), 0], pid: 1, kernel_thread: 0 };
        assert_eq!(one.id(), Workload { pid: 2, ..one }.id());
        assert_ne!(one.id(), Workload { cgroup: 8, ..one }.id());
        assert_ne!(one.id(), Workload { comm: [text(b"nginx"), 1], ..one }.id());
        assert_eq!(one.comm_bytes(), (*b"nginx\0\0\0\0\0\0\0\0\0\0\0", 5));
    }
}
