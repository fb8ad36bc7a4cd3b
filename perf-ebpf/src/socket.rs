//! Sockets: their remote end and their state of ours.

use aya_ebpf::bindings::{BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{bpf_sk_storage_get, bpf_skc_to_tcp_sock};
use aya_ebpf::maps::{HashMap, PerCpuArray};
use perf_common::kernel::{FileOffsets, SockOffsets};
use perf_common::peer::{CLASS_OTHER, Peer};

use crate::kernel::Ptr;

const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;
pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;
pub const IPPROTO_TCP: u16 = 6;
pub const IPPROTO_UDP: u16 = 17;

/// How many destinations a map can name.
pub const MAX_PEERS: u32 = 4_096;

/// Whether this is a TCP socket over IPv4 or IPv6.
#[inline(always)]
pub fn is_tcp(sk: Ptr, at: &SockOffsets) -> bool {
    let family: u16 = sk.load(at.family);
    let protocol: u16 = sk.load(at.protocol);
    protocol == IPPROTO_TCP && (family == AF_INET || family == AF_INET6)
}

/// The port by which a connection over TCP is one for DNS.
pub const DNS_PORT: u16 = 53;

/// Whether this socket's messages may be DNS: UDP on any port, or TCP on the port for it. `protocol` is the socket's.
#[inline(always)]
pub fn may_be_dns(sk: Ptr, at: &SockOffsets) -> bool {
    let protocol: u16 = sk.load(at.protocol);
    if protocol != IPPROTO_TCP {
        return protocol == IPPROTO_UDP;
    }
    let (port, peer_port): (u16, u16) = (sk.load(at.num), sk.load(at.dport));
    port == DNS_PORT || peer_port == DNS_PORT.to_be()
}

/// The same socket as a `tcp_sock`; null where it is none.
#[inline(always)]
pub fn tcp(sk: Ptr) -> Ptr {
    if !sk.is_direct() {
        return sk;
    }
    // SAFETY: the helper checks the socket.
    Ptr::new(unsafe { bpf_skc_to_tcp_sock(sk.raw()) }.cast(), true)
}

/// The remote end of a socket.
#[inline(always)]
pub fn peer(sk: Ptr, at: &SockOffsets) -> Peer {
    let family: u16 = sk.load(at.family);
    let port = u16::from_be(sk.load(at.dport));
    if family == AF_INET {
        return Peer::v4(sk.load(at.daddr), port);
    }
    let mut address = [0_u32; 4];
    let v6 = sk.member(at.v6_daddr);
    address[0] = v6.load(0);
    address[1] = v6.load(4);
    address[2] = v6.load(8);
    address[3] = v6.load(12);
    Peer::v6(address, port)
}

/// The id of a client's remote end, made known to user space; by class where the port names no service or the map is full.
#[inline(always)]
pub fn destination(peers: &HashMap<u64, Peer>, peer: &Peer, at: &SockOffsets) -> u64 {
    if peer.port >= at.first_ephemeral_port {
        return peer.classed().id();
    }
    let id = peer.id();
    if !crate::count::contains(core::ptr::from_ref(peers).cast_mut().cast(), &id)
        && peers.insert(id, peer, u64::from(BPF_NOEXIST)).is_err()
        && !crate::count::contains(core::ptr::from_ref(peers).cast_mut().cast(), &id)
    {
        return u64::from(CLASS_OTHER);
    }
    id
}

/// The socket behind a descriptor of a task; null where it is none.
#[inline(always)]
pub fn of_descriptor(task: Ptr, descriptor: u64, files: &FileOffsets, at: &SockOffsets) -> Ptr {
    let table = task.follow(files.task_files).indirect().follow(files.files_fdt);
    if descriptor >= u64::from(table.load::<u32>(files.fdt_max_fds)) {
        return Ptr::NULL;
    }
    let slot = table.follow(files.fdt_fd).element(descriptor);
    let file = slot.follow(0);
    let mode: u16 = file.follow(files.file_inode).load(files.inode_mode);
    if mode & S_IFMT != S_IFSOCK {
        return Ptr::NULL;
    }
    file.follow(files.file_private_data).follow(at.socket_sk)
}

/// The inode of the socket's network namespace.
#[inline(always)]
pub fn netns(sk: Ptr, at: &SockOffsets) -> u32 {
    sk.follow(at.net).load(at.net_inum)
}

/// What is kept per socket: in storage on the socket where tracing programs may use it, else in a hash by address.
///
/// # Safety
/// `sk` comes from the tracepoint, and `storage` and `hash` are maps of this object with values that may be all zero.
#[inline(always)]
pub unsafe fn state<T>(
    storage: &SkStorage<T>,
    hash: &HashMap<u64, T>,
    template: &PerCpuArray<T>,
    sk: Ptr,
    on_socket: bool,
    create: bool,
) -> Option<&'static mut T> {
    if on_socket {
        // SAFETY: the caller's promise.
        return unsafe { self::storage(storage, sk, create) };
    }
    let key = sk.key();
    let found = if create {
        crate::count::get_or_insert(hash, &key, template).map(|(value, _)| value)
    } else {
        hash.get_ptr_mut(key)
    };
    // SAFETY: a live element; it is deleted when its socket closes.
    found.and_then(|value| unsafe { value.as_mut() })
}

/// What a socket carries of this storage; a new value is all zero.
///
/// # Safety
/// `sk` comes from a tracepoint, typed, and `storage` is a map of this object with values that may be all zero.
#[inline(always)]
pub unsafe fn storage<T>(storage: &SkStorage<T>, sk: Ptr, create: bool) -> Option<&'static mut T> {
    let flags = if create { u64::from(BPF_SK_STORAGE_GET_F_CREATE) } else { 0 };
    // SAFETY: the helper checks the socket.
    let found = unsafe {
        bpf_sk_storage_get(
            core::ptr::from_ref(storage).cast_mut().cast(),
            sk.raw(),
            core::ptr::null_mut(),
            flags,
        )
    };
    // SAFETY: the value lives as long as the socket, which lives as long as this program's run.
    unsafe { found.cast::<T>().as_mut() }
}
