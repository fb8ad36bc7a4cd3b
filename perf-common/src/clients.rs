//! From how many addresses requests came: `HyperLogLog` over a sliding window.
//!
//! Where the original keeps for each register the largest rank that was seen, this keeps when each rank was seen last, so that
//! the registers of any window are there at any time (Chabchoub and Hébrail, "Sliding `HyperLogLog`", 2010; stamps in place
//! of lists). One store for each request, nothing to lock, nothing that grows.

use crate::peer::Peer;
use crate::workload::mix;

/// The error is 1.04 / √2048, 2.3 %; less for few clients.
pub const REGISTERS: u32 = 2048;
pub const RANKS: usize = 32;
/// How many sets are kept at the most.
pub const SETS: u32 = 32;

/// When each rank was seen last in one register, by [`stamp`]; 0 for never.
pub type Register = [u32; RANKS];

/// What is known of a cell: a bit for each set that its requests' clients belong to, and this one.
pub const DECIDED: u64 = 1 << 63;

/// Where a client leaves its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub register: u32,
    pub rank: u32,
}

impl Place {
    #[inline(always)]
    pub const fn of(peer: &Peer) -> Self {
        let high = (peer.address[0] as u64) << 32 | peer.address[1] as u64;
        let low = (peer.address[2] as u64) << 32 | peer.address[3] as u64;
        let hash = mix(mix(high) ^ low);
        // The bit ends the count where all others are 0.
        let rest = hash >> 11 | 1 << (RANKS as u64 - 1);
        // The lowest bit that is set, without a loop: there is no instruction for it.
        let rank = ones(!rest & rest.wrapping_sub(1));
        Self { register: (hash & (REGISTERS as u64 - 1)) as u32, rank }
    }

    /// The place and the cell, in one number.
    #[inline(always)]
    pub const fn key(self, cell: u32) -> u64 {
        (cell as u64) << 32 | (self.register as u64) << 8 | self.rank as u64
    }

    /// The reverse of [`Self::key`].
    #[inline(always)]
    pub const fn of_key(key: u64) -> (u32, Self) {
        let rank = (key & 0xff) as u32 & (RANKS as u32 - 1);
        ((key >> 32) as u32, Self { register: (key >> 8) as u32 & (REGISTERS - 1), rank })
    }
}

/// How many bits are set.
#[inline(always)]
const fn ones(bits: u64) -> u32 {
    let pairs = bits - (bits >> 1 & 0x5555_5555_5555_5555);
    let fours = (pairs & 0x3333_3333_3333_3333) + (pairs >> 2 & 0x3333_3333_3333_3333);
    let bytes = (fours + (fours >> 4)) & 0x0f0f_0f0f_0f0f_0f0f;
    (bytes.wrapping_mul(0x0101_0101_0101_0101) >> 56) as u32
}

/// `CLOCK_MONOTONIC` nanoseconds in steps of 2^30, some 1.07 s.
#[inline(always)]
pub const fn stamp(ns: u64) -> u32 {
    (ns >> 30) as u32 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_as_frequent_as_they_should_be() {
        let mut ranks = [0_u32; RANKS];
        let mut registers = std::collections::HashSet::new();
        for n in 0..1_u32 << 20 {
            let place = Place::of(&Peer::v4(n.to_be(), 80));
            assert_eq!(Place::of_key(place.key(77)), (77, place));
            ranks[place.rank as usize] += 1;
            registers.insert(place.register);
        }
        assert_eq!(registers.len(), REGISTERS as usize);
        for (rank, count) in ranks.iter().enumerate().take(10) {
            let expected = f64::from(1 << 19) / f64::from(1 << rank);
            assert!((f64::from(*count) / expected - 1.0).abs() < 0.1, "{rank}: {count}, expected {expected}");
        }
    }
}
