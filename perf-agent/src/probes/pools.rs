//! Pools of connections to databases: how many there are, and how many of them are waited on. See
//! `perf-ebpf/src/bin/l7/pools.rs`.

use std::collections::BTreeMap;

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray, Stack};
use perf_common::db::SYSTEMS;
use perf_common::peer::CLASS_OTHER;
use perf_common::pools::PoolConn;
use perf_common::workload::OTHER;

use super::{Names, Write};
use crate::config::MaxSizes;
use crate::identity::Identity;
use crate::maps::MapReader;
use crate::page::{Kind, Page};

/// Ticks from one look to the next: a second.
const TICKS: u32 = 4;
/// Pools that are told apart; what comes on top is one.
const MAX_POOLS: usize = 4096;

pub(super) struct Pools {
    conns: MapReader,
    /// How many of them each CPU has ever reached; beyond all of those there are none.
    high: PerCpuArray<MapData, u32>,
    max_sizes: MaxSizes,
    ticks: u32,
    /// Once seen, a pool stays: its size is 0 when all its connections are closed.
    pools: BTreeMap<Key, Size>,
    /// The most connections at once that a series has had.
    most: BTreeMap<Series, u64>,
}

/// Workload, peer and system.
type Key = (u64, u64, u32);
type Series = (Identity, u32, String);

/// One number of a pool.
type Field = fn(&Size) -> u64;

#[derive(Clone, Copy, Default)]
struct Size {
    size: u64,
    active: u64,
    most: u64,
}

impl Pools {
    /// Makes the maps ready: before anything is counted.
    pub(super) fn prepare(object: &mut Ebpf) -> anyhow::Result<()> {
        let elements = MapReader::of(object.map("POOL").context("the object has no map POOL")?);
        let elements = elements.context("POOL is no array")??.max_entries();
        let free = object.map_mut("POOL_FREE").context("the object has no map POOL_FREE")?;
        let mut free = Stack::<_, u32>::try_from(free)?;
        (0..elements).rev().try_for_each(|at| free.push(at, 0)).context("POOL_FREE cannot be filled")
    }

    /// Once the object's programs are loaded, which need the maps to be in it.
    pub(super) fn take(object: &mut Ebpf, max_sizes: MaxSizes) -> anyhow::Result<Self> {
        let conns = MapReader::take(object, "POOL")?;
        let high = object.take_map("POOL_HIGH").context("the object has no map POOL_HIGH")?;
        let high = PerCpuArray::try_from(high)?;
        Ok(Self { conns, high, max_sizes, ticks: 0, pools: BTreeMap::new(), most: BTreeMap::new() })
    }

    /// Looks now and then, so that a pool's largest size does not depend on when somebody scrapes.
    pub(super) fn tick(&mut self) -> anyhow::Result<()> {
        self.ticks += 1;
        if self.ticks.is_multiple_of(TICKS) {
            self.look()?;
        }
        Ok(())
    }

    fn look(&mut self) -> anyhow::Result<()> {
        let high = self.high.get(&0, 0)?.iter().copied().max().unwrap_or(0);
        let mut conns = Vec::new();
        if high != 0 {
            self.conns.batches::<u32, PoolConn>(|places, all| {
                conns.extend(all.iter().filter(|conn| conn.workload != 0));
                places.last().is_some_and(|last| last + 1 < high)
            })?;
        }
        self.count(&conns);
        Ok(())
    }

    /// Takes these connections for all there are.
    fn count(&mut self, conns: &[PoolConn]) {
        for size in self.pools.values_mut() {
            *size = Size { most: size.most, ..Size::default() };
        }
        for conn in conns {
            let mut key = (conn.workload, conn.peer, conn.system);
            if !self.pools.contains_key(&key) && self.pools.len() >= MAX_POOLS {
                key = (OTHER, u64::from(CLASS_OTHER), conn.system);
            }
            let size = self.pools.entry(key).or_default();
            size.size += 1;
            size.active += u64::from(conn.active);
            size.most = size.most.max(size.size);
        }
    }

    pub(super) fn collect(&mut self, names: &Names, page: &mut Page) -> anyhow::Result<()> {
        self.look()?;
        let mut series: BTreeMap<Series, Size> = BTreeMap::new();
        for ((workload, peer, system), size) in &self.pools {
            let sum =
                series.entry((names.identity(*workload), *system, names.destination(*peer))).or_default();
            sum.size += size.size;
            sum.active += size.active;
            // A service that was started anew is another workload of the same name: its largest sizes do not add up.
            sum.most = sum.most.max(size.most);
        }
        for (key, size) in &mut series {
            let most = self.most.entry(key.clone()).or_default();
            *most = size.size.max(size.most).max(*most);
            let (identity, _, destination) = key;
            let told = self.max_sizes.get(&identity.service, destination);
            size.most = told.map_or(*most, u64::from);
        }
        let families: [(&str, &str, Field); 3] = [
            (
                "db_connection_pool_size",
                "Connections to a database that a service has open and has sent a query on.",
                |size| size.size,
            ),
            (
                "db_connection_pool_active_connections",
                "Those of them on which a query waits for its answer.",
                |size| size.active,
            ),
            (
                "db_connection_pool_max_size",
                "The most connections that were open at once, looked at once a second, or what the configuration says.",
                |size| size.most,
            ),
        ];
        for (name, help, value) in families {
            let mut family = page.family(name, help, Kind::Gauge);
            for ((identity, system, destination), size) in &series {
                let write: Write<'_> = &mut |labels| family.sample(labels, value(size) as f64);
                let [service, container, pod] = identity.labels();
                let system = SYSTEMS.get(*system as usize).copied().unwrap_or("other");
                write(&[service, container, pod, ("db_system", system), ("destination", destination)]);
            }
        }
        Ok(())
    }
}
