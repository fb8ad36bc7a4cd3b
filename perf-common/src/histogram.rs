//! One ladder for every latency: the R10 preferred numbers from 1 µs to 100 s, in integer nanoseconds.
//!
//! Ten bounds a decade, none more than 28 % above the one below, and every classic Prometheus bound among them, so that
//! a classic `le` series is exact for any subset of the ladder. Changing a bound breaks users' history.

/// How many upper bounds the ladder has: ten in each of eight decades, and 100 s.
pub const BOUNDS: usize = 81;
/// One cell below or at each bound, and one for what is above the last.
pub const CELLS: usize = BOUNDS + 1;

const DECADE: [u64; 10] = [1_000, 1_250, 1_600, 2_000, 2_500, 3_150, 4_000, 5_000, 6_300, 8_000];

/// The upper bounds in nanoseconds, inclusive as Prometheus' `le` is, ascending.
pub static BOUNDS_NS: [u64; BOUNDS] = bounds();

const fn bounds() -> [u64; BOUNDS] {
    let mut all = [0; BOUNDS];
    let mut scale = 1;
    let mut i = 0;
    while i < BOUNDS {
        all[i] = DECADE[i % 10] * scale;
        if i % 10 == 9 {
            scale *= 10;
        }
        i += 1;
    }
    all
}

/// [`BOUNDS_NS`] with three unreachable bounds behind it, so that the three compares need no check of their own.
static LADDER: [u64; 128] = {
    let exact = bounds();
    let mut all = [u64::MAX >> 1; 128];
    let mut i = 0;
    while i < BOUNDS {
        all[i] = exact[i];
        i += 1;
    }
    all
};

/// Multiplying an all-ones-below-the-top-bit number by this leaves a distinct index for each bit length in the top six bits.
const DE_BRUIJN: u64 = 0x03f7_9d71_b4cb_0a89;

/// For each bit length, at its De Bruijn position: how many bounds lie below every number of that length.
static START: [u8; 64] = {
    let ladder = bounds();
    let mut table = [0; 64];
    let mut bit = 0;
    while bit < 64 {
        let lowest = 1_u64 << bit;
        let filled = (lowest - 1) | lowest;
        let mut below = 0;
        while below < BOUNDS && ladder[below] <= lowest {
            below += 1;
        }
        let octave_end = filled;
        let mut within = below;
        while within < BOUNDS && ladder[within] <= octave_end {
            within += 1;
        }
        assert!(within - below <= 3, "an octave holds more bounds than `index` compares");
        table[(filled.wrapping_mul(DE_BRUIJN) >> 58) as usize] = below as u8;
        bit += 1;
    }
    table
};

/// The cell of a duration: the number of bounds below it. Branch-free, because every branch here would double the
/// states in which the verifier walks through the rest of the program.
#[inline(always)]
pub fn index(ns: u64) -> usize {
    // Cells are inclusive above, so the question is how many bounds are <= ns - 1. Beyond 146 years all is one cell,
    // and the subtractions below keep their sign.
    let below = if ns > 1 << 62 { 1 << 62 } else { ns.wrapping_sub(u64::from(ns != 0)) };
    let mut filled = below;
    filled |= filled >> 1;
    filled |= filled >> 2;
    filled |= filled >> 4;
    filled |= filled >> 8;
    filled |= filled >> 16;
    filled |= filled >> 32;
    let slot = crate::bytes::opaque(filled.wrapping_mul(DE_BRUIJN) >> 58) & 63;
    // SAFETY: masked to the table's 64 entries.
    let start = u64::from(unsafe { *START.as_ptr().add(slot as usize) });
    let at = |i: u64| {
        // SAFETY: masked to the table's 128 entries.
        let bound = unsafe { *LADDER.as_ptr().add((crate::bytes::opaque(start + i) & 127) as usize) };
        1 - (below.wrapping_sub(bound) >> 63)
    };
    (start + at(0) + at(1) + at(2)) as usize
}

/// A latency histogram as it stands in a map: `cells[index(ns)]` counts, `sum` adds nanoseconds.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Histogram {
    pub sum: u64,
    pub cells: [u64; CELLS],
}

crate::pod!(Histogram: 8 * (1 + CELLS));

impl Histogram {
    pub const EMPTY: Self = Self { sum: 0, cells: [0; CELLS] };

    /// Adds one duration; for user space and tests. The kernel adds atomically, see `perf-ebpf`.
    pub fn record(&mut self, ns: u64) {
        self.sum += ns;
        if let Some(cell) = self.cells.get_mut(index(ns)) {
            *cell += 1;
        }
    }

    /// How many durations were recorded.
    pub fn count(&self) -> u64 {
        self.cells.iter().sum()
    }

    /// Adds another histogram to this one.
    pub fn merge(&mut self, other: &Self) {
        self.sum += other.sum;
        for (cell, more) in self.cells.iter_mut().zip(&other.cells) {
            *cell += more;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow_index(ns: u64) -> usize {
        BOUNDS_NS.iter().filter(|&&bound| bound < ns).count()
    }

    #[test]
    fn ladder_ends_and_classic_bounds() {
        assert_eq!(BOUNDS_NS[0], 1_000);
        assert_eq!(BOUNDS_NS[BOUNDS - 1], 100_000_000_000);
        for classic in [
            0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 2.5,
            5.0, 10.0,
        ] {
            let ns = (classic * 1e9_f64).round() as u64;
            assert!(BOUNDS_NS.contains(&ns), "{classic} s is no bound");
        }
        for pair in BOUNDS_NS.windows(2) {
            assert!(pair[1] * 100 <= pair[0] * 128, "{pair:?} is a step over 28 %");
        }
    }

    #[test]
    fn every_edge_and_its_neighbours() {
        for (i, &bound) in BOUNDS_NS.iter().enumerate() {
            assert_eq!(index(bound - 1), i, "{bound} - 1");
            assert_eq!(index(bound), i, "{bound}");
            assert_eq!(index(bound + 1), i + 1, "{bound} + 1");
        }
        for bit in 0..64 {
            for ns in [(1_u64 << bit) - 1, 1 << bit, (1 << bit) + 1] {
                assert_eq!(index(ns), slow_index(ns), "{ns}");
            }
        }
        assert_eq!(index(0), 0);
        assert_eq!(index(u64::MAX), CELLS - 1);
    }

    proptest::proptest! {
        #[test]
        fn index_counts_the_bounds_below(ns in proptest::prelude::any::<u64>(), shift in 0_u32..64) {
            proptest::prop_assert_eq!(index(ns >> shift), slow_index(ns >> shift));
        }
    }
}
