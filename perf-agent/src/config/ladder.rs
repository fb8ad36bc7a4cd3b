//! `histogram.buckets`: which of the bounds that the kernel counts by are exported.

use perf_common::histogram::BOUNDS_NS;
use serde::Deserialize;

/// One bound of the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "f64")]
#[cfg_attr(test, derive(serde::Serialize), serde(into = "f64"))]
pub(crate) struct Bound {
    cell: usize,
}

impl Bound {
    /// The last cell of `perf_common::histogram::Histogram` whose observations are at or below this bound.
    pub(crate) fn cell(self) -> usize {
        self.cell
    }

    /// The bound as `le` has it.
    pub(crate) fn seconds(self) -> f64 {
        BOUNDS_NS.get(self.cell).map_or(f64::INFINITY, |&ns| ns as f64 / 1e9)
    }
}

impl From<Bound> for f64 {
    fn from(bound: Bound) -> Self {
        bound.seconds()
    }
}

impl TryFrom<f64> for Bound {
    type Error = String;

    fn try_from(seconds: f64) -> Result<Self, String> {
        // Bounds are told apart by nanoseconds, and no decimal fraction of a second is exact in binary.
        let ns = seconds * 1e9;
        let above = BOUNDS_NS.partition_point(|&bound| (bound as f64) < ns - 0.5);
        match BOUNDS_NS.get(above) {
            Some(&bound) if (bound as f64 - ns).abs() <= 0.5 => Ok(Self { cell: above }),
            _ => {
                Err(format!("{seconds} s is no bound that the kernel counts by; {}", nearest(above, seconds)))
            }
        }
    }
}

fn nearest(above: usize, seconds: f64) -> String {
    let at = |cell| Bound { cell }.seconds();
    match above {
        _ if seconds.is_nan() => "write seconds, for example 0.005".to_owned(),
        0 => format!("the smallest is {} s", at(0)),
        above if above == BOUNDS_NS.len() => {
            format!("the largest is {} s (what is slower is counted in +Inf)", at(above - 1))
        }
        above => format!("the nearest are {} and {}", at(above - 1), at(above)),
    }
}

/// The `le` bounds of every latency histogram, ascending.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Vec<Bound>")]
#[cfg_attr(test, derive(serde::Serialize), serde(into = "Vec<Bound>"))]
pub(crate) struct Buckets(Vec<Bound>);

impl Buckets {
    pub(crate) fn bounds(&self) -> &[Bound] {
        &self.0
    }
}

impl TryFrom<Vec<Bound>> for Buckets {
    type Error = String;

    fn try_from(bounds: Vec<Bound>) -> Result<Self, String> {
        if bounds.is_empty() {
            return Err("a histogram needs at least one bucket; leave the key out for the default".to_owned());
        }
        if let Some([low, high]) = bounds.array_windows().find(|[low, high]| low >= high) {
            return Err(format!("buckets ascend, and {} follows {}", high.seconds(), low.seconds()));
        }
        Ok(Self(bounds))
    }
}

impl From<Buckets> for Vec<Bound> {
    fn from(buckets: Buckets) -> Self {
        buckets.0
    }
}

impl Default for Buckets {
    /// The bounds most dashboards and recording rules are written for, and two decades below for what is fast.
    fn default() -> Self {
        const CLASSIC_US: [u64; 16] = [
            100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
            2_500_000, 5_000_000, 10_000_000,
        ];
        Self(
            CLASSIC_US
                .iter()
                .filter_map(|us| BOUNDS_NS.iter().position(|&bound| bound == us * 1_000))
                .map(|cell| Bound { cell })
                .collect(),
        )
    }
}
