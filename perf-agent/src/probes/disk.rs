//! Block I/O by workload, device and operation. See `perf-ebpf/src/bin/disk.rs`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use perf_common::disk::{DiskCell, DiskKey, MINOR_BITS, OPERATIONS};
use perf_common::workload::OTHER;

use super::{Account, Common, Names, Probe, Start, Started, Write, merged, started};
use crate::identity::Identity;
use crate::maps::{Counters, Table};
use crate::object::{self, Hook};
use crate::page::{Kind, Page};

const HOOKS: [Hook; 3] = [
    // Completions first: one whose beginning was seen is then never without its end.
    Hook::tracepoint("completed", "block_rq_complete"),
    Hook::tracepoint("issued", "block_rq_issue"),
    Hook::tracepoint("inserted", "block_rq_insert"),
];

struct Disk {
    common: Common,
    table: Table,
    events: Counters,
    devices: Devices,
}

pub(super) fn start(Start { loader, config, globals }: Start<'_, '_>) -> Started {
    started("disk", globals, || {
        let mut object = loader.load(object::DISK, &[])?;
        let others: Vec<_> = (0..OPERATIONS.len() as u32)
            .map(|operation| DiskKey { workload: OTHER, device: 0, operation })
            .collect();
        Table::prepare::<_, DiskCell>(&mut object, "", &others)?;
        let status = loader.attach("disk", &mut object, &HOOKS);
        let table = Table::take(&mut object, "")?;
        let events = Counters::take(&mut object, "EVENTS")?;
        let devices = Devices { sysfs: config.paths.sysfs.clone(), names: HashMap::new() };
        let disk = Disk { table, events, common: Common::take(object)?, devices };
        Ok((status, Some(Box::new(disk) as Box<dyn Probe>)))
    })
}

/// Names of block devices, as `/sys/dev/block` has them.
struct Devices {
    sysfs: PathBuf,
    names: HashMap<u32, String>,
}

impl Devices {
    /// `vda`, or `254:0` where sysfs does not know it (any more): a name once found stays.
    fn name(&mut self, device: u32) -> String {
        if let Some(name) = self.names.get(&device) {
            return name.clone();
        }
        let numbers = format!("{}:{}", device >> MINOR_BITS, device & ((1 << MINOR_BITS) - 1));
        let link = std::fs::read_link(self.sysfs.join("dev/block").join(&numbers));
        let name =
            link.as_deref().ok().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        let Some(name) = name else { return numbers };
        self.names.insert(device, name.clone());
        name
    }
}

impl Probe for Disk {
    fn common(&self) -> &Common {
        &self.common
    }

    fn accounts(&self) -> Vec<Account> {
        vec![Account { probe: "disk", events: self.events.sums() }]
    }

    fn collect(&mut self, names: &Names, page: &mut Page) -> anyhow::Result<()> {
        let Self { common: _, table, events: _, devices } = self;
        let mut cells = Vec::new();
        table.each::<DiskKey, DiskCell>(|_, key, cell| {
            if cell.device.count() == 0 {
                return;
            }
            let device = if key.workload == OTHER { "other".to_owned() } else { devices.name(key.device) };
            let operation = OPERATIONS.get(key.operation as usize).copied().unwrap_or("other");
            cells.push(((names.identity(key.workload), device, operation), *cell));
        })?;
        let cells = merged(cells, |into, DiskCell { bytes, errors, queue, device }| {
            into.bytes += bytes;
            into.errors += errors;
            into.queue.merge(queue);
            into.device.merge(device);
        });

        let series = |(identity, device, operation): &(Identity, String, &str), write: Write<'_>| {
            let [service, container, pod] = identity.labels();
            write(&[service, container, pod, ("device", device), ("operation", operation)]);
        };
        let mut family = page.family(
            "block_io_duration_seconds",
            "How long block devices took for a request, from when the driver got it until it was complete.",
            Kind::Histogram,
        );
        for (key, cell) in &cells {
            series(key, &mut |labels| names.histogram(&mut family, labels, &cell.device));
        }
        let mut family = page.family(
            "block_io_queue_duration_seconds",
            "How long requests to block devices waited until the driver got them: in the I/O scheduler, or because the device was full.",
            Kind::Histogram,
        );
        for (key, cell) in &cells {
            series(key, &mut |labels| names.histogram(&mut family, labels, &cell.queue));
        }
        let mut family = page.family(
            "block_io_bytes_total",
            "Bytes of completed requests to block devices.",
            Kind::Counter,
        );
        for (key, cell) in &cells {
            series(key, &mut |labels| family.sample(labels, cell.bytes as f64));
        }
        let mut family = page.family(
            "block_io_errors_total",
            "Requests to block devices that ended with an error.",
            Kind::Counter,
        );
        for (key, cell) in &cells {
            series(key, &mut |labels| family.sample(labels, cell.errors as f64));
        }
        Ok(())
    }
}
