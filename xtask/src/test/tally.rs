//! Counting what passed, by what cargo's two test harnesses print.

use std::fmt;
use std::ops::AddAssign;

/// How many passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl Tally {
    pub(crate) const PASSED: Self = Self { passed: 1, failed: 0, skipped: 0 };
    pub(crate) const FAILED: Self = Self { passed: 0, failed: 1, skipped: 0 };
    pub(crate) const SKIPPED: Self = Self { passed: 0, failed: 0, skipped: 1 };

    pub(crate) fn ran(self) -> usize {
        self.passed + self.failed
    }

    /// What a line of output adds: nextest's summary, `cargo test`'s, or a test's word that it could not run here.
    pub(crate) fn of_line(line: &str) -> Self {
        let line = without_colours(line);
        if let Some(result) = line.trim_start().strip_prefix("test result: ") {
            let of = |what| before(result, what);
            return Self { passed: of("passed"), failed: of("failed"), skipped: of("ignored") };
        }
        if line.trim_start().starts_with("Summary [") {
            // nextest says "skipped" of what the filter left out as well, so only a test's own word counts as that.
            let failed = ["failed", "timed out", "exec failed", "failed due to leaky handles"];
            return Self {
                passed: before(&line, "passed"),
                failed: failed.iter().map(|what| before(&line, what)).sum(),
                skipped: 0,
            };
        }
        if line.starts_with("SKIPPED ") { Self::SKIPPED } else { Self::default() }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, Self { passed, failed, skipped }: Self) {
        self.passed += passed;
        self.failed += failed;
        self.skipped += skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, skipped } = self;
        write!(f, "{passed} passed, {failed} failed")?;
        if *skipped > 0 { write!(f, ", {skipped} skipped") } else { Ok(()) }
    }
}

/// The number right before a word, as in `3 passed`; 0 where the word does not occur so.
fn before(text: &str, word: &str) -> usize {
    let mut parts = text.split([',', ';', ':', '.']).map(str::trim);
    let number = |part: &str| part.strip_suffix(word)?.trim_end().split(' ').next_back()?.parse().ok();
    // nextest: `4 passed (1 slow)`.
    parts.find_map(|part| number(part.split(" (").next().unwrap_or(part))).unwrap_or(0)
}

fn without_colours(line: &str) -> String {
    let mut parts = line.split('\u{1b}');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or("", |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(passed: usize, failed: usize, skipped: usize) -> Tally {
        Tally { passed, failed, skipped }
    }

    #[test]
    fn counts_both_harnesses() {
        for (line, expected) in [
            (
                "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s",
                tally(12, 0, 1),
            ),
            (
                "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
                tally(2, 1, 0),
            ),
            ("     Summary [   0.012s] 5 tests run: 5 passed, 3 skipped", tally(5, 0, 0)),
            (
                "     Summary [   9.001s] 6 tests run: 4 passed (1 slow), 1 failed, 1 timed out, 0 skipped",
                tally(4, 2, 0),
            ),
            (
                "\u{1b}[32;1m     Summary\u{1b}[0m [ 1.2s] \u{1b}[1m1\u{1b}[0m test run: \u{1b}[1m1\u{1b}[0m passed, 0 skipped",
                tally(1, 0, 0),
            ),
            ("SKIPPED tcp: no netem", tally(0, 0, 1)),
            ("    PASS [ 0.1s] xtask counts: 5 failed", tally(0, 0, 0)),
        ] {
            assert_eq!(Tally::of_line(line), expected, "{line}");
        }
    }

    #[test]
    fn the_last_line_names_skips_only_if_there_are_any() {
        assert_eq!(tally(3, 0, 0).to_string(), "3 passed, 0 failed");
        assert_eq!(tally(3, 1, 2).to_string(), "3 passed, 1 failed, 2 skipped");
    }
}
