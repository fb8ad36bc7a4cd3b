//! Distinct clients: which cells' requests count for which set, and how many addresses a set has.

use std::collections::BTreeMap;

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData};
use perf_common::clients::{DECIDED, Place, RANKS, REGISTERS, Register, SETS, stamp};

use super::derived::Labels;
use crate::maps::MapReader;

/// The window of a metric, in steps of [`stamp`]: five minutes.
const WINDOW: u32 = stamp(300_000_000_000);

pub(super) struct Clients {
    watched: Array<MapData, u64>,
    registers: MapReader,
    undecided: HashMap<MapData, u64, u64>,
    /// By metric and labels, in the order in which they came.
    sets: Vec<Set>,
    /// Sets for which there was no room.
    refused: bool,
}

struct Set {
    metric: usize,
    labels: Labels,
    /// Clients of requests that came before it was known that they count here.
    early: BTreeMap<u32, Register>,
}

impl Clients {
    /// The sizes of the object's maps, for so many cells.
    pub(super) const fn sizes(cells: u32) -> [(&'static str, u32); 2] {
        [("WATCHED", cells), ("CLIENTS", SETS * REGISTERS)]
    }

    pub(super) fn take(object: &mut Ebpf) -> anyhow::Result<Self> {
        let mut map =
            |name: &str| object.take_map(name).with_context(|| format!("the object has no map {name}"));
        let (watched, registers, undecided) = (map("WATCHED")?, map("CLIENTS")?, map("UNDECIDED")?);
        Ok(Self {
            watched: watched.try_into()?,
            registers: MapReader::of(&registers).context("CLIENTS is no array")??,
            undecided: undecided.try_into()?,
            sets: Vec::new(),
            refused: false,
        })
    }

    pub(super) fn has_undecided(&self) -> bool {
        self.undecided.keys().next().is_some()
    }

    /// The cells that had requests and wait for a decision, each with where its clients left their marks.
    pub(super) fn undecided(&self) -> anyhow::Result<BTreeMap<u32, Vec<(Place, u32)>>> {
        let mut cells: BTreeMap<u32, Vec<(Place, u32)>> = BTreeMap::new();
        for entry in &self.undecided {
            let (key, stamp) = entry?;
            let (cell, place) = Place::of_key(key);
            cells.entry(cell).or_default().push((place, stamp as u32));
        }
        Ok(cells)
    }

    /// Says to which sets a cell's requests count, and counts those that came before.
    pub(super) fn decide(
        &mut self,
        cell: u32,
        marks: &[(Place, u32)],
        sets: impl Iterator<Item = (usize, Labels)>,
    ) -> anyhow::Result<()> {
        let mut bits = DECIDED;
        for (metric, labels) in sets {
            let Some(at) = self.set(metric, labels) else { continue };
            bits |= 1 << at;
            let Some(set) = self.sets.get_mut(at) else { continue };
            for (place, stamp) in marks {
                let register = set.early.entry(place.register).or_default();
                if let Some(rank) = register.get_mut(place.rank as usize) {
                    *rank = (*rank).max(*stamp);
                }
            }
        }
        self.watched.set(cell, bits, 0)?;
        for (place, _) in marks {
            // What came since is marked in the set already, but for a moment; it is not worth a second look.
            _ = self.undecided.remove(&place.key(cell));
        }
        Ok(())
    }

    /// The number of a set, which is new where it has to be.
    fn set(&mut self, metric: usize, labels: Labels) -> Option<usize> {
        let known = self.sets.iter().position(|set| set.metric == metric && set.labels == labels);
        if known.is_some() {
            return known;
        }
        if self.sets.len() >= SETS as usize {
            if !self.refused {
                tracing::warn!(
                    "there are {SETS} sets of distinct clients, and no room for one more: use fewer labels"
                );
            }
            self.refused = true;
            return None;
        }
        self.sets.push(Set { metric, labels, early: BTreeMap::new() });
        Some(self.sets.len() - 1)
    }

    /// Each set: metric, labels, number of clients. `now` is `CLOCK_MONOTONIC` in nanoseconds.
    pub(super) fn counts(&self, now: u64) -> anyhow::Result<Vec<(usize, &Labels, f64)>> {
        let since = stamp(now).saturating_sub(WINDOW).max(1);
        let mut largest = vec![[0_u8; REGISTERS as usize]; self.sets.len()];
        if !self.sets.is_empty() {
            let mut each = |at: u32, stamps: &Register| {
                let place = largest.get_mut((at / REGISTERS) as usize);
                if let Some(value) = place.and_then(|set| set.get_mut((at % REGISTERS) as usize)) {
                    *value = (*value).max(highest(stamps, since));
                }
            };
            for (number, set) in (0..).zip(&self.sets) {
                for (register, stamps) in &set.early {
                    each(number * REGISTERS + register, stamps);
                }
            }
            let end = self.sets.len() as u32 * REGISTERS;
            self.registers.batches::<u32, Register>(|at, stamps| {
                at.iter().zip(stamps).for_each(|(at, stamps)| each(*at, stamps));
                at.last().is_some_and(|at| *at < end)
            })?;
        }
        let sets = self.sets.iter().zip(&largest);
        Ok(sets.map(|(set, largest)| (set.metric, &set.labels, estimate(largest))).collect())
    }
}

/// The largest rank that was seen since, plus one; 0 for none.
fn highest(stamps: &Register, since: u32) -> u8 {
    (0..RANKS as u8)
        .zip(stamps)
        .filter(|(_, stamp)| **stamp >= since)
        .map(|(rank, _)| rank + 1)
        .max()
        .unwrap_or(0)
}

/// How many distinct ones leave such registers (Flajolet et al., "`HyperLogLog`", 2007).
fn estimate(registers: &[u8; REGISTERS as usize]) -> f64 {
    let count = f64::from(REGISTERS);
    let alpha = 0.7213 / (1.0 + 1.079 / count);
    let sum: f64 = registers.iter().map(|rank| (-f64::from(*rank)).exp2()).sum();
    let estimate = alpha * count * count / sum;
    let empty: u32 = registers.iter().map(|rank| u32::from(*rank == 0)).sum();
    let few = if estimate <= 2.5 * count && empty != 0 {
        count * (count / f64::from(empty)).ln()
    } else {
        estimate
    };
    few.round()
}

#[cfg(test)]
mod tests {
    use perf_common::peer::Peer;

    use super::*;

    #[test]
    fn the_estimate_is_close_and_forgets() {
        for clients in [0_u32, 1, 10, 100, 1_000, 10_000, 1_000_000] {
            let mut registers = vec![Register::default(); REGISTERS as usize];
            for n in 0..clients {
                let place = Place::of(&Peer::v4((0x0a00_0000 + n * 7).to_be(), 80));
                // One half was here long ago.
                registers[place.register as usize][place.rank as usize] = 1000;
            }
            for n in 0..clients / 2 {
                let place = Place::of(&Peer::v4((0x0a00_0000 + n * 7).to_be(), 80));
                registers[place.register as usize][place.rank as usize] = 2000;
            }
            for (since, expected) in [(1, clients), (1500, clients / 2), (2001, 0)] {
                let mut largest = [0; REGISTERS as usize];
                for (value, stamps) in largest.iter_mut().zip(&registers) {
                    *value = highest(stamps, since);
                }
                let (estimate, expected) = (estimate(&largest), f64::from(expected));
                // Three times the standard error.
                assert!((estimate - expected).abs() <= 0.07 * expected + 0.5, "{estimate} for {expected}");
            }
        }
    }
}
