//! The BPF objects, embedded, and how one becomes attached programs.

use std::collections::HashMap;
use std::num::NonZero;
use std::os::fd::AsFd as _;
use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, anyhow, bail};
use aya::maps::{Map, MapData, ProgramArray};
use aya::programs::{BtfTracePoint, Iter, Program};
use aya::{Btf, Ebpf, EbpfLoader, VerifierLogLevel};
use perf_common::kernel::{
    DiskOffsets, DropOffsets, ExitOffsets, FileOffsets, RegOffsets, SchedOffsets, SockOffsets, TaskOffsets,
};
use perf_common::request::Wanted;

use crate::bpf;
use crate::kernel::{Kernel, Missing};
use crate::probes::Status;

/// The object of each slice, as `build.rs` left it.
pub(crate) static TCP: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tcp"));
pub(crate) static SCHED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sched"));
pub(crate) static L7: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/l7"));
pub(crate) static DISK: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/disk"));
pub(crate) static DNS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dns"));
pub(crate) static PROCESS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/process"));
pub(crate) static DROPS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/drops"));
pub(crate) static IRQ: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/irq"));

/// One program and where it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hook {
    /// Its name in the object.
    pub(crate) program: &'static str,
    /// The tracepoint, or the iterator's target.
    pub(crate) target: &'static str,
    pub(crate) kind: HookKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HookKind {
    /// Attached for as long as the agent runs.
    TracePoint,
    /// The same for the second program of a hook, which stands in where the kernel skips the first; its name is that one's with
    /// [`AGAIN`] behind it.
    Again,
    /// Runs at start, this many times over; else when [`iterate`] is called.
    Iterator { passes: u32 },
    /// Only called by another program, by way of this program array and at this place in it. The array is the object's own,
    /// or one that the object of another slice has [shared](Loader::share).
    Tail { array: &'static str, at: u8 },
}

impl Hook {
    pub(crate) const fn tracepoint(program: &'static str, target: &'static str) -> Self {
        Self { program, target, kind: HookKind::TracePoint }
    }

    pub(crate) const fn again(program: &'static str, target: &'static str) -> Self {
        Self { program, target, kind: HookKind::Again }
    }

    pub(crate) const fn tail(
        program: &'static str,
        target: &'static str,
        array: &'static str,
        at: u8,
    ) -> Self {
        Self { program, target, kind: HookKind::Tail { array, at } }
    }

    /// As status pages show it.
    pub(crate) fn name(&self) -> String {
        match self.kind {
            HookKind::Iterator { .. } => format!("iter/{}", self.target),
            _ => format!("tp_btf/{}", self.target),
        }
    }
}

/// Where things are in this kernel, as the objects want it. An object without one of the globals ignores it.
#[derive(Default)]
pub(crate) struct Globals {
    pub(crate) task: TaskOffsets,
    pub(crate) sock: SockOffsets,
    pub(crate) sched: SchedOffsets,
    pub(crate) disk: DiskOffsets,
    pub(crate) exit: ExitOffsets,
    pub(crate) drop: DropOffsets,
    pub(crate) regs: RegOffsets,
    pub(crate) files: FileOffsets,
    /// A bit for each protocol of [`perf_common::l7`] that is switched on.
    pub(crate) protocols_on: u64,
    /// Whether UDP and UNIX sockets are counted.
    pub(crate) sockets_on: u64,
    /// How many series of one histogram the kernel makes before it counts as `other`.
    pub(crate) max_cells: u64,
    /// The same of queries to databases.
    pub(crate) max_db_cells: u64,
    /// How many domains the DNS slice tells apart; 0 for none.
    pub(crate) max_domains: u64,
    /// How many sets of distinct clients the kernel keeps; 0 for none.
    pub(crate) client_sets: u64,
    /// Which requests are sent up one by one.
    pub(crate) wanted: Wanted,
}

/// Loads objects. It keeps the kernel's BTF (30 ms and 25 MB to read), so there is one, dropped after start.
pub(crate) struct Loader<'k> {
    kernel: &'k Kernel,
    btf: Btf,
    objects: EbpfLoader<'k>,
    /// Program arrays that take programs of other objects than their own.
    shared: HashMap<&'static str, ProgramArray<MapData>>,
}

impl<'k> Loader<'k> {
    pub(crate) fn new(kernel: &'k Kernel, globals: &'k Globals) -> anyhow::Result<Self> {
        raise_memlock();
        let mut objects = EbpfLoader::new();
        objects
            // Why a program was refused, in a few lines; the full log is megabytes and minutes.
            .verifier_log_level(VerifierLogLevel::STATS)
            .override_global("TASK", &globals.task, false)
            .override_global("SOCK", &globals.sock, false)
            .override_global("SCHED", &globals.sched, false)
            .override_global("DISK", &globals.disk, false)
            .override_global("EXIT", &globals.exit, false)
            .override_global("DROP", &globals.drop, false)
            .override_global("REGS", &globals.regs, false)
            .override_global("FILES", &globals.files, false)
            .override_global("PROTOCOLS_ON", &globals.protocols_on, false)
            .override_global("SOCKETS_ON", &globals.sockets_on, false)
            .override_global("MAX_CELLS", &globals.max_cells, false)
            .override_global("MAX_DB_CELLS", &globals.max_db_cells, false)
            .override_global("MAX_DOMAINS", &globals.max_domains, false)
            .override_global("CLIENT_SETS", &globals.client_sets, false)
            .override_global("WANTED", &globals.wanted, false);
        let shared = HashMap::new();
        Ok(Self {
            kernel,
            btf: Btf::from_sys_fs().context("the kernel's BTF cannot be read")?,
            objects,
            shared,
        })
    }

    pub(crate) fn has_tracepoint(&self, name: &str) -> bool {
        self.kernel.has_tracepoint(name)
    }

    /// See [`Kernel::siblings`].
    pub(crate) fn siblings(&self, enumerator: &str) -> Vec<(String, u32)> {
        self.kernel.siblings(enumerator)
    }

    /// Whether a socket can carry a program's state.
    pub(crate) fn has_socket_storage(&self) -> bool {
        self.kernel.has_typed_pointers()
    }

    /// How many places the kernel's tasks have among those that wait.
    pub(crate) fn sleepers(&self) -> u32 {
        self.kernel.sleepers
    }

    /// Loads an object with its maps; `entries` resizes some of them.
    pub(crate) fn load(&mut self, elf: &[u8], entries: &[(&'static str, u32)]) -> anyhow::Result<Ebpf> {
        for (map, entries) in entries {
            self.objects.map_max_entries(map, *entries);
        }
        Ok(self.objects.load(elf)?)
    }

    /// Lets objects that are loaded later put programs into an array of this one, under whose hooks they then run. The
    /// object has to keep the array: the kernel empties one that no process holds.
    pub(crate) fn share(&mut self, object: &Ebpf, array: &'static str) -> anyhow::Result<()> {
        let Some(Map::ProgramArray(data)) = object.map(array) else {
            bail!("the object has no program array {array}");
        };
        let data = MapData::from_fd(data.fd().as_fd().try_clone_to_owned()?)?;
        self.shared.insert(array, ProgramArray::try_from(Map::ProgramArray(data))?);
        Ok(())
    }

    pub(crate) fn shares(&self, array: &str) -> bool {
        self.shared.contains_key(array)
    }

    /// Loads the hooks' programs and attaches them in their order.
    pub(crate) fn attach(&mut self, probe: &'static str, object: &mut Ebpf, hooks: &[Hook]) -> Vec<Status> {
        let loaded = verify(self.kernel, &self.btf, object, hooks);
        let mut status = Vec::new();
        for (hook, loaded) in hooks.iter().zip(loaded) {
            let outcome = loaded.and_then(|()| self.attach_one(object, hook));
            // What another program of the object calls, or stands in for, is no hook of its own, unless it is missing.
            let inner = match hook.kind {
                HookKind::Tail { array, .. } => object.map(array).is_some(),
                HookKind::Again => true,
                HookKind::TracePoint | HookKind::Iterator { .. } => false,
            };
            if !inner || outcome.is_err() {
                status.push(Status::of(probe, hook.name(), outcome));
            }
        }
        status
    }

    fn attach_one(&mut self, object: &mut Ebpf, hook: &Hook) -> anyhow::Result<()> {
        if let HookKind::Iterator { passes } = hook.kind {
            return (0..passes).try_for_each(|_| iterate(object, hook));
        }
        let program = object.program_mut(hook.program).ok_or_else(|| no_program(hook))?;
        let program: &mut BtfTracePoint = program.try_into()?;
        let HookKind::Tail { array, at } = hook.kind else {
            program.attach()?;
            return Ok(());
        };
        let fd = program.fd()?.try_clone()?;
        if let Some(map) = object.map_mut(array) {
            return Ok(ProgramArray::try_from(map)?.set(at.into(), &fd, 0)?);
        }
        let shared = self.shared.get_mut(array);
        let shared = shared.ok_or_else(|| anyhow!("no object has a program array {array} to share"))?;
        Ok(shared.set(at.into(), &fd, 0)?)
    }
}

/// Runs an iterator's program once over all that it iterates over.
pub(crate) fn iterate(object: &mut Ebpf, hook: &Hook) -> anyhow::Result<()> {
    let program: &mut Iter = object.program_mut(hook.program).ok_or_else(|| no_program(hook))?.try_into()?;
    let link = program.attach()?;
    let mut file = program.take_link(link)?.into_file()?;
    std::io::copy(&mut file, &mut std::io::sink())?;
    Ok(())
}

/// Has the kernel verify the hooks' programs, on all CPUs at once: nearly all of the agent's start is this.
fn verify(kernel: &Kernel, btf: &Btf, object: &mut Ebpf, hooks: &[Hook]) -> Vec<anyhow::Result<()>> {
    let mut programs: HashMap<&str, &mut Program> = object.programs_mut().collect();
    let jobs: Vec<_> = hooks.iter().map(|hook| (hook, programs.remove(hook.program))).collect();
    let jobs = Mutex::new(jobs.into_iter().enumerate());
    let work = || {
        let mut done = Vec::new();
        loop {
            // A lock of its own statement, or it would be held while the kernel works.
            let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((at, (hook, program))) = job else { return done };
            let outcome =
                program.ok_or_else(|| no_program(hook)).and_then(|program| load(kernel, btf, program, hook));
            done.push((at, outcome));
        }
    };
    let cpus = thread::available_parallelism().map_or(1, NonZero::get).min(hooks.len());
    let mut done = thread::scope(|scope| {
        let helpers: Vec<_> = (1..cpus).map(|_| scope.spawn(work)).collect();
        let mut done = work();
        for helper in helpers {
            done.extend(helper.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        done
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

fn load(kernel: &Kernel, btf: &Btf, program: &mut Program, hook: &Hook) -> anyhow::Result<()> {
    if let HookKind::Iterator { .. } = hook.kind {
        if !kernel.has_helper("sock_from_file") {
            return Err(Missing("helper bpf_sock_from_file (5.11)".to_owned()).into());
        }
        let program: &mut Iter = program.try_into()?;
        return Ok(program.load(hook.target, btf)?);
    }
    if !kernel.has_tracepoint(hook.target) {
        return Err(Missing(format!("tracepoint {}", hook.target)).into());
    }
    let program: &mut BtfTracePoint = program.try_into()?;
    Ok(program.load(hook.target, btf)?)
}

fn no_program(hook: &Hook) -> anyhow::Error {
    anyhow!("the object has no {}", hook.program)
}

/// What the name of a second program ends with; see [`HookKind::Again`].
const AGAIN: &str = "_again";

/// How often the kernel skipped a run of one of the object's programs, because the program was under way on that CPU already:
/// in a task that was preempted there, or that an interrupt came to. What those runs would have seen, nobody knows.
pub(crate) fn missed_runs(object: &Ebpf) -> u64 {
    let of = |program: &Program| program.fd().ok().and_then(|fd| bpf::recursion_misses(fd.as_fd()).ok());
    let missed = |(name, program)| {
        let missed = of(program).unwrap_or(0);
        // What two programs see is missed where both miss it.
        match object.program(&format!("{name}{AGAIN}")).and_then(of) {
            Some(again) => missed.min(again),
            None if str::ends_with(name, AGAIN) => 0,
            None => missed,
        }
    };
    object.programs().map(missed).sum()
}

/// Before 5.11 the memory of maps counts against this limit, and 64 KiB is the default. A refusal shows as a failed load.
fn raise_memlock() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a pointer to a live struct.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) } != 0 {
        tracing::debug!("RLIMIT_MEMLOCK stays as it is: {}", std::io::Error::last_os_error());
    }
}
