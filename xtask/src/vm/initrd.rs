//! The guest's whole file system: an initramfs in the kernel's `newc` form, written by hand so that no root and no `cpio`
//! is needed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use object::read::elf::{FileHeader as _, ProgramHeader as _};

/// What goes into it from outside.
pub(super) struct Contents<'a> {
    pub(super) busybox: &'a Path,
    pub(super) agent: &'a Path,
    /// The program that drives the agent and prints what it finds.
    pub(super) guest: &'a Path,
    /// How cgroups are mounted: `v1`, `v2` or `hybrid`.
    pub(super) cgroup: &'a str,
}

/// Packs the initramfs.
pub(super) fn pack(contents: &Contents<'_>) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in ["bin", "proc", "sys", "dev", "tmp", "run", "etc"] {
        archive.add(dir, DIRECTORY | 0o755, &[], (0, 0));
    }
    // Before devtmpfs is mounted the kernel opens this for init.
    archive.add("dev/console", CHARACTER_DEVICE | 0o600, &[], (5, 1));
    archive.add("init", FILE | 0o755, INIT.replace("@CGROUP@", contents.cgroup).as_bytes(), (0, 0));
    archive.add("etc/passwd", FILE | 0o644, b"root:x:0:0:root:/:/bin/sh\n", (0, 0));
    for (name, path) in [
        ("bin/busybox", contents.busybox),
        ("bin/perf-agent", contents.agent),
        ("bin/vm-guest", contents.guest),
    ] {
        let program = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        if !is_static(&program).with_context(|| format!("{} is no program", path.display()))? {
            bail!(
                "{} needs shared libraries, which the guest has not; remedy: a static build of it",
                path.display()
            );
        }
        archive.add(name, FILE | 0o755, &program, (0, 0));
    }
    Ok(archive.finish())
}

/// Mounts what a host has mounted, runs the driver with its output on the second serial line, and powers off.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /bb
/bin/busybox --install -s /bb
export PATH=/bin:/bb HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t tracefs tracefs /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
case @CGROUP@ in
v2) mount -t cgroup2 cgroup2 /sys/fs/cgroup ;;
*)
    mount -t tmpfs cgroup /sys/fs/cgroup
    for c in cpu,cpuacct memory blkio pids freezer devices cpuset net_cls; do
        mkdir -p /sys/fs/cgroup/$c
        mount -t cgroup -o $c cgroup /sys/fs/cgroup/$c 2>/dev/null || rmdir /sys/fs/cgroup/$c
    done
    if [ @CGROUP@ = hybrid ]; then
        mkdir -p /sys/fs/cgroup/unified
        mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
    fi ;;
esac
ip link set lo up
stty -F /dev/ttyS1 raw -echo 2>/dev/null
exec 3>/dev/ttyS1
echo "@@START $(uname -r)" >&3
vm-guest >&3 2>&1 </dev/null
echo "@@EXIT $?" >&3
poweroff -f
"#;

const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, data: &[u8], (major, minor): (u32, u32)) {
        self.names.insert(name.to_owned());
        let inode = self.names.len() as u32;
        // inode, mode, uid, gid, links, mtime, size, device, device of a node, length of the name, checksum
        let fields =
            [inode, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, major, minor, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(data);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }
}

/// Whether a program runs without a dynamic loader.
pub(super) fn is_static(program: &[u8]) -> Result<bool> {
    let header = object::elf::FileHeader64::<object::Endianness>::parse(program)?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, program)?;
    Ok(!segments.iter().any(|segment| segment.p_type(endian) == object::elf::PT_INTERP))
}
