//! Arithmetic of interleaved pairs: a machine drifts and neighbours disturb it, so each measurement is only compared with
//! those just before and just after it.

/// One slot of a load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Slot {
    pub(super) operations: f64,
    pub(super) seconds: f64,
    /// CPU time of the processes that carried the load.
    pub(super) cpu_seconds: f64,
}

impl Slot {
    pub(super) fn per_second(self) -> f64 {
        self.operations / self.seconds
    }

    pub(super) fn cpu_ns(self) -> f64 {
        self.cpu_seconds * 1e9 / self.operations
    }
}

/// A slot with the subject, and those without it just before and just after.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    pub(super) before: Slot,
    pub(super) with: Slot,
    pub(super) after: Slot,
}

impl Pair {
    pub(super) fn rate_without(self) -> f64 {
        f64::midpoint(self.before.per_second(), self.after.per_second())
    }

    /// Of operations per second: what a user of a busy machine sees.
    pub(super) fn ratio(self) -> f64 {
        self.with.per_second() / self.rate_without()
    }

    /// Of operations per second of CPU time: the same on a machine that is busy with nothing else, and still true on one
    /// whose CPUs others use as well.
    pub(super) fn cpu_ratio(self) -> f64 {
        self.cpu_ns_without() / self.with.cpu_ns()
    }

    /// CPU time that each operation takes more.
    pub(super) fn added_cpu_ns(self) -> f64 {
        self.with.cpu_ns() - self.cpu_ns_without()
    }

    fn cpu_ns_without(self) -> f64 {
        f64::midpoint(self.before.cpu_ns(), self.after.cpu_ns())
    }
}

/// The middle of some numbers and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    /// `None` of no numbers.
    pub(super) fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let upper = *sorted.get(sorted.len() / 2)?;
        let lower = *sorted.get((sorted.len() - 1) / 2)?;
        Some(Self { median: f64::midpoint(lower, upper), min, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_cancel_a_steady_drift() {
        let slot = |operations, cpu_seconds| Slot { operations, seconds: 2.0, cpu_seconds };
        // The machine gets slower by 20 operations per slot, the subject costs a tenth; others took half of the first CPU.
        let pair = Pair { before: slot(220.0, 1.1), with: slot(180.0, 2.0), after: slot(180.0, 0.9) };
        assert!((pair.rate_without() - 100.0).abs() < 1e-9);
        assert!((pair.ratio() - 0.9).abs() < 1e-9);
        assert!((pair.cpu_ratio() - 0.45).abs() < 1e-9);
        assert!((pair.added_cpu_ns() - (2e9 / 180.0 - 5e6)).abs() < 1e-3);
    }

    #[test]
    fn median_of_odd_and_even_counts() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of([]), None);
    }
}
