//! Requests that go up one by one: those that failed or were slow, as many a second as user space grants.
//!
//! How many those are is counted twice: user space writes how many there may have been, the programs how many there were. So
//! there is nothing to be taken away by two at once: CPUs that find the last one granted in the same moment may all send it,
//! which is one too many for each of them beyond the first, and is made up for later.

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::maps::{Array, PerCpuArray, RingBuf};
use perf_common::kernel::SockOffsets;
use perf_common::request::{BY_SOCKET, NEVER, Request, Small, Wanted};

use crate::kernel::Ptr;
use crate::{count, get, socket};

/// What [`crate::requests!`] makes.
pub struct Requests {
    pub wanted: &'static Global<Wanted>,
    pub sock: &'static Global<SockOffsets>,
    /// One of [`Request`] each.
    pub ring: &'static RingBuf,
    pub granted: &'static Array<u64>,
    pub taken: &'static Array<u64>,
    /// By protocol: what there was no room for.
    pub unsampled: &'static PerCpuArray<u64>,
}

impl Requests {
    /// Whether a request is one of those. All that most requests pay.
    #[inline(always)]
    pub fn want(&self, failed: bool, ns: u64) -> bool {
        let slower_than = get(self.wanted).slower_than;
        slower_than != NEVER && (failed || ns >= slower_than)
    }

    /// Sends it up if it is granted, and counts it if not. `peer` is as the flags say, and `small` is packed.
    #[inline(always)]
    pub fn sample(&self, workload: u64, what: u64, peer: u64, small: u64, ns: u64) {
        let Small { protocol, count, .. } = Small::unpack(small);
        if !self.send(workload, what, peer, small, ns)
            && let Some(unsampled) = self.unsampled.get_ptr_mut(u32::from(protocol))
        {
            count::add(unsampled, u64::from(count));
        }
    }

    /// Written where it goes up from: this function stands at the end of calls that have used up most of the stack.
    #[inline(always)]
    fn send(&self, workload: u64, what: u64, peer: u64, small: u64, ns: u64) -> bool {
        if !self.take() {
            return false;
        }
        let Some(mut entry) = self.ring.reserve::<Request>(0) else { return false };
        let request = entry.as_mut_ptr();
        let Small { protocol, flags, status, kind, count } = Small::unpack(small);
        // SAFETY: the entry's own, and written as a whole.
        unsafe {
            (&raw mut (*request).took).write(ns);
            (&raw mut (*request).workload).write(workload);
            (&raw mut (*request).what).write(what);
            (&raw mut (*request).peer).write(if flags & BY_SOCKET == 0 { peer } else { 0 });
            (&raw mut (*request).remote).write([0; 4]);
            (&raw mut (*request).port).write(0);
            (&raw mut (*request).status).write(status);
            (&raw mut (*request).count).write(count);
            (&raw mut (*request).protocol).write(protocol);
            (&raw mut (*request).flags).write(flags);
            (&raw mut (*request).kind).write(kind);
            (&raw mut (*request).pad).write([0; 5]);
        }
        if flags & BY_SOCKET != 0 && get(self.wanted).by_address != 0 {
            // Which socket it is, the caller knows; what it is, the verifier has forgotten on the way here.
            let remote = socket::peer(Ptr::new(peer as *const _, false), get(self.sock));
            // SAFETY: as above.
            unsafe {
                (&raw mut (*request).remote).write(remote.address);
                (&raw mut (*request).port).write(remote.port as u16);
            }
        }
        // SAFETY: no arguments; as above.
        unsafe { (&raw mut (*request).at).write(bpf_ktime_get_ns()) };
        // Nobody waits: user space comes by a few times a second.
        entry.submit(u64::from(BPF_RB_NO_WAKEUP));
        true
    }

    /// Takes one of those that are granted.
    #[inline(always)]
    fn take(&self) -> bool {
        let Some(granted) = self.granted.get_ptr(0) else { return false };
        // SAFETY: a live element.
        let granted = unsafe { granted.read_volatile() };
        let Some(taken) = self.taken.get_ptr_mut(0) else { return false };
        // SAFETY: as above.
        if unsafe { taken.read_volatile() } >= granted {
            return false;
        }
        count::add(taken, 1);
        true
    }
}

/// The maps, and the one function, apart from the programs so that it is verified once.
#[macro_export]
macro_rules! requests {
    () => {
        #[unsafe(no_mangle)]
        static WANTED: aya_ebpf::Global<perf_common::request::Wanted> =
            aya_ebpf::Global::new($crate::unset());
        #[aya_ebpf::macros::map]
        static REQUESTS: aya_ebpf::maps::RingBuf = aya_ebpf::maps::RingBuf::with_byte_size(4096, 0);
        #[aya_ebpf::macros::map]
        static GRANTED: aya_ebpf::maps::Array<u64> = aya_ebpf::maps::Array::with_max_entries(1, 0);
        #[aya_ebpf::macros::map]
        static TAKEN: aya_ebpf::maps::Array<u64> = aya_ebpf::maps::Array::with_max_entries(1, 0);
        #[aya_ebpf::macros::map]
        static UNSAMPLED: aya_ebpf::maps::PerCpuArray<u64> =
            aya_ebpf::maps::PerCpuArray::with_max_entries(perf_common::request::PROTOCOLS as u32, 0);

        const SAMPLED: $crate::requests::Requests = $crate::requests::Requests {
            wanted: &WANTED,
            sock: &SOCK,
            ring: &REQUESTS,
            granted: &GRANTED,
            taken: &TAKEN,
            unsampled: &UNSAMPLED,
        };

        /// Samples a request that is wanted.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn sample_request(workload: u64, what: u64, peer: u64, small: u64, ns: u64) -> u64 {
            SAMPLED.sample(workload, what, peer, small, ns);
            0
        }
    };
}
