//! The system call that the running task is in: its number, its arguments, and the buffers they point to.
//!
//! At `sock_send_length` and `sock_recv_length` the registers still hold what the program passed, so payload is found
//! without an entry hook and without a table of descriptors.

use aya_ebpf::helpers::{bpf_probe_read_user, generated};
use perf_common::kernel::RegOffsets;
use perf_common::l7::Direction;

use crate::kernel::Ptr;

/// What `regs->ax` holds while a system call runs: elsewhere the registers belong to something else.
const ENOSYS: u64 = -38_i64 as u64;
/// How many pieces of a vector are looked at per read.
const MAX_SEEK: u32 = 8;

#[cfg(bpf_target_arch = "x86_64")]
mod number {
    pub(super) const READ: u64 = 0;
    pub(super) const WRITE: u64 = 1;
    pub(super) const READV: u64 = 19;
    pub(super) const WRITEV: u64 = 20;
    pub(super) const SENDFILE: u64 = 40;
    pub(super) const SENDTO: u64 = 44;
    pub(super) const RECVFROM: u64 = 45;
    pub(super) const SENDMSG: u64 = 46;
    pub(super) const RECVMSG: u64 = 47;
    pub(super) const FUTEX: u64 = 202;
    pub(super) const RECVMMSG: u64 = 299;
    pub(super) const SENDMMSG: u64 = 307;
    pub(super) const FUTEX_WAITV: u64 = 449;
    pub(super) const FUTEX_WAIT: u64 = 455;
}

/// `msg_iov` and `msg_iovlen` in `struct user_msghdr`, part of the system call interface.
const MSGHDR_IOV: u64 = 16;

/// `msg_len` in `struct mmsghdr`, and the distance from one to the next.
const MMSGHDR_LEN: u64 = 56;
pub const MMSGHDR: u64 = 64;
/// The port in `struct sockaddr_in` and `sockaddr_in6`, in network order.
const SOCKADDR_PORT: u64 = 2;

/// How a call passes its payload.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Buffer,
    Vector,
    Message,
    /// Many messages: `sendmmsg` and `recvmmsg`.
    Batch,
    /// Not from the program's memory: `sendfile`.
    None,
}

/// A system call that moves bytes through a descriptor, by its number.
#[derive(Clone, Copy)]
pub struct Call {
    pub direction: Direction,
    pub shape: Shape,
    /// Which argument holds the flags; 0 for none.
    pub flags_arg: usize,
}

impl Call {
    #[inline(always)]
    pub fn of(regs: Ptr, at: &RegOffsets) -> Option<Self> {
        use Direction::{Received, Sent};
        let (direction, shape, flags_arg) = match regs.load::<u64>(at.number) {
            number::READ => (Received, Shape::Buffer, 0),
            number::RECVFROM => (Received, Shape::Buffer, 3),
            number::READV => (Received, Shape::Vector, 0),
            number::RECVMSG => (Received, Shape::Message, 2),
            number::WRITE | number::SENDTO => (Sent, Shape::Buffer, 0),
            number::WRITEV => (Sent, Shape::Vector, 0),
            number::SENDMSG => (Sent, Shape::Message, 0),
            number::SENDFILE => (Sent, Shape::None, 0),
            _ => return None,
        };
        Some(Self { direction, shape, flags_arg })
    }

    /// The same, and also the calls for many messages at once.
    #[inline(always)]
    pub fn of_any(regs: Ptr, at: &RegOffsets) -> Option<Self> {
        let (direction, flags_arg) = match regs.load::<u64>(at.number) {
            number::RECVMMSG => (Direction::Received, 3),
            number::SENDMMSG => (Direction::Sent, 0),
            _ => return Self::of(regs, at),
        };
        Some(Self { direction, shape: Shape::Batch, flags_arg })
    }
}

/// Where a call's payload is in its program's memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Payload {
    /// One buffer, or the current piece of a vector.
    base: u64,
    /// The call's offset at which that piece begins, and its length.
    piece_at: u64,
    piece_len: u64,
    /// The next element of the vector, and how many follow.
    vector: u64,
    vector_left: u64,
}

impl Payload {
    pub const NONE: Self = Self { base: 0, piece_at: 0, piece_len: 0, vector: 0, vector_left: 0 };

    /// Finds the buffers of the call that `task` is in.
    #[inline(always)]
    pub fn of(task: Ptr, at: &RegOffsets, direction: Direction, total: u32) -> Self {
        let regs = registers(task, at);
        if !is_running(regs, at) {
            return Self::NONE;
        }
        let Some(call) = Call::of(regs, at) else { return Self::NONE };
        if call.direction as u8 == direction as u8 {
            Self::of_call(regs, at, &call, total)
        } else {
            Self::NONE
        }
    }

    /// Finds the buffers of a call whose registers are known.
    #[inline(always)]
    pub fn of_call(regs: Ptr, at: &RegOffsets, call: &Call, total: u32) -> Self {
        let buffer: u64 = regs.load(at.arg[1]);
        match call.shape {
            Shape::Buffer => Self { base: buffer, piece_len: u64::from(total), ..Self::NONE },
            Shape::Vector => Self { vector: buffer, vector_left: regs.load(at.arg[2]), ..Self::NONE },
            Shape::Message => Self::of_message(buffer),
            Shape::Batch | Shape::None => Self::NONE,
        }
    }

    /// Finds the buffers of the message whose header is at this address of the program's.
    #[inline(always)]
    pub fn of_message(header: u64) -> Self {
        let iov: [u64; 2] = read_user(header + MSGHDR_IOV);
        Self { vector: iov[0], vector_left: iov[1], ..Self::NONE }
    }

    /// The address of the byte at `offset` and how many follow it in one piece; `None` where it cannot be had.
    #[inline(always)]
    pub fn seek(&mut self, offset: u64) -> Option<(u64, u64)> {
        for _ in 0..MAX_SEEK {
            let inside = offset.wrapping_sub(self.piece_at);
            if inside < self.piece_len {
                return Some((self.base + inside, self.piece_len - inside));
            }
            if self.vector_left == 0 {
                return None;
            }
            // SAFETY: the helper survives any address.
            let piece: [u64; 2] = unsafe { bpf_probe_read_user(self.vector as *const _) }.ok()?;
            self.piece_at += self.piece_len;
            self.base = piece[0];
            self.piece_len = piece[1];
            self.vector += 16;
            self.vector_left -= 1;
        }
        None
    }
}

/// Whether the registers are those of a system call under way, and not of a kernel thread.
#[inline(always)]
pub fn is_running(regs: Ptr, at: &RegOffsets) -> bool {
    let result: u64 = regs.load(at.result);
    result == ENOSYS
}

/// Whether a task is in a system call that waits for a futex.
#[inline(always)]
pub fn is_futex(regs: Ptr, at: &RegOffsets) -> bool {
    let number: u64 = regs.load(at.number);
    (number == number::FUTEX || number == number::FUTEX_WAITV || number == number::FUTEX_WAIT)
        && is_running(regs, at)
}

/// How long one of many messages was, once its call is done; `header` is one `struct mmsghdr`.
#[inline(always)]
pub fn length_of_message(header: u64) -> u32 {
    read_user(header + MMSGHDR_LEN)
}

/// Where the address stands that a call sends to; 0 where it names none.
#[inline(always)]
pub fn name_of_call(regs: Ptr, at: &RegOffsets, call: &Call) -> u64 {
    match call.shape {
        Shape::Message => name_of_message(regs.load(at.arg[1])),
        Shape::Buffer if regs.load::<u64>(at.number) == number::SENDTO => regs.load(at.name_arg),
        _ => 0,
    }
}

/// The same for a message by its header.
#[inline(always)]
pub fn name_of_message(header: u64) -> u64 {
    read_user(header)
}

/// The port in an address of the program's; 0 where there is none.
#[inline(always)]
pub fn port_at(name: u64) -> u16 {
    if name == 0 { 0 } else { u16::from_be(read_user(name + SOCKADDR_PORT)) }
}

#[inline(always)]
fn read_user<T: Default>(address: u64) -> T {
    // SAFETY: the helper survives any address.
    unsafe { bpf_probe_read_user(address as *const T) }.unwrap_or_default()
}

/// The registers with which a task entered the kernel.
#[inline(always)]
pub fn registers(task: Ptr, at: &RegOffsets) -> Ptr {
    if at.helper != 0 {
        // SAFETY: a task from `bpf_get_current_task_btf`.
        Ptr::new(unsafe { generated::bpf_task_pt_regs(task.raw().cast()) } as *const _, true)
    } else {
        task.follow(at.task_stack).member(at.stack_to_regs)
    }
}
