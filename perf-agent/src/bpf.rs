//! What the agent asks of `bpf(2)` that aya does not offer.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// The system call.
///
/// # Safety
/// `attr` is what the command wants, and what it points to is as long as it says.
pub(crate) unsafe fn call<A>(command: libc::c_long, attr: &mut A) -> io::Result<()> {
    // SAFETY: the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `bpf_prog_info.recursion_misses` (5.12): how often the kernel skipped a program because it was under way already.
pub(crate) fn recursion_misses(program: BorrowedFd<'_>) -> io::Result<u64> {
    /// Where it stands in `struct bpf_prog_info`, in words; part of the system call's interface.
    const AT: usize = 26;
    #[repr(C)]
    struct Attr {
        fd: i32,
        len: u32,
        info: u64,
    }
    let mut info = [0_u64; AT + 1];
    let mut attr =
        Attr { fd: program.as_raw_fd(), len: size_of_val(&info) as u32, info: info.as_mut_ptr() as u64 };
    // SAFETY: the kernel writes at most `len` bytes to `info`, all of whose pointers are null.
    unsafe { call(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info[AT])
}
