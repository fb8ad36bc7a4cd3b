//! Dropped packets, by reason and network namespace. See `perf-ebpf/src/bin/drops.rs`.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use perf_common::drops::{DropKey, NO_REASON, OTHER};

use super::{Account, Common, Names, Probe, Start, Started, merged, started};
use crate::maps::{Counters, Table};
use crate::object::{self, Hook};
use crate::page::{Kind, Page};

const HOOKS: [Hook; 1] = [Hook::tracepoint("packet_dropped", "kfree_skb")];

struct Drops {
    common: Common,
    table: Table,
    events: Counters,
    /// The kernel's reasons.
    reasons: HashMap<u32, String>,
    /// The namespace of the host; 0 where it cannot be told.
    host: u32,
}

pub(super) fn start(Start { loader, config, globals }: Start<'_, '_>) -> Started {
    started("drops", globals, || {
        let mut object = loader.load(object::DROPS, &[])?;
        Table::prepare::<_, u64>(&mut object, "", &[OTHER])?;
        let status = loader.attach("drops", &mut object, &HOOKS);
        let table = Table::take(&mut object, "")?;
        let events = Counters::take(&mut object, "EVENTS")?;
        let reasons = loader.siblings("SKB_DROP_REASON_NOT_SPECIFIED").into_iter();
        let reasons = reasons.map(|(name, value)| (value, label(&name))).collect();
        let host = host_namespace(&config.paths.procfs).unwrap_or_default();
        let drops = Drops { table, events, reasons, host, common: Common::take(object)? };
        Ok((status, Some(Box::new(drops) as Box<dyn Probe>)))
    })
}

impl Probe for Drops {
    fn common(&self) -> &Common {
        &self.common
    }

    fn accounts(&self) -> Vec<Account> {
        vec![Account { probe: "drops", events: self.events.sums() }]
    }

    fn collect(&mut self, _: &Names, page: &mut Page) -> anyhow::Result<()> {
        let mut cells = Vec::new();
        self.table.each::<DropKey, u64>(|_, key, count| {
            cells.push(((self.reason(*key), self.netns(*key)), *count));
        })?;
        // A subsystem's reasons are one.
        let cells = merged(cells, |into, count| *into += count);
        let mut family = page.family(
            "network_packet_drops_total",
            "Packets that the kernel dropped, by its reason and by the inode of the network namespace.",
            Kind::Counter,
        );
        for ((reason, netns), count) in cells.iter().filter(|(_, count)| **count != 0) {
            family.sample(&[("reason", reason), ("netns", netns)], *count as f64);
        }
        Ok(())
    }
}

impl Drops {
    fn reason(&self, key: DropKey) -> String {
        if key == OTHER {
            return "other".to_owned();
        }
        match (key.reason, key.reason >> 16) {
            (NO_REASON, _) => "unknown".to_owned(),
            (reason, 0) => self.reasons.get(&reason).cloned().unwrap_or_else(|| format!("reason_{reason}")),
            // Modules number theirs themselves.
            (_, subsystem) => format!("subsystem_{subsystem}"),
        }
    }

    fn netns(&self, key: DropKey) -> String {
        match key.netns {
            _ if key == OTHER => "other".to_owned(),
            0 => "unknown".to_owned(),
            inode if inode == self.host => "host".to_owned(),
            inode => inode.to_string(),
        }
    }
}

/// The inode of the first process' network namespace, whichever one the agent is in.
fn host_namespace(procfs: &Path) -> Option<u32> {
    let inode = |path: &str| Some(procfs.join(path).metadata().ok()?.ino());
    let namespace = inode("1/ns/net").or_else(|| {
        // Whoever has less capabilities than that process may not ask. But a file of a namespace is the same one for all
        // who are in it, so that the agent knows whether it is.
        let shared = inode("1/net/snmp")? == inode("self/net/snmp")?;
        if shared { inode("self/ns/net") } else { None }
    });
    namespace.map(|inode| inode as u32)
}

fn label(enumerator: &str) -> String {
    enumerator.strip_prefix("SKB_DROP_REASON_").unwrap_or(enumerator).to_ascii_lowercase()
}
