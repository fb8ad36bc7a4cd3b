//! Counting what passed, by what cargo's two test harnesses print.

use std::fmt;
use std::ops::AddAssign;

/// How many lines about failures a step may hand on to the end of the run.
const MOST_FAILURES: usize = 40;
/// How many lines of a panic say what it was about.
const PANIC: usize = 6;

/// How many passed, failed and were skipped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
    /// What failed, to be said once more at the end, where it is not buried under what passed.
    pub(crate) failures: Vec<String>,
}

impl Tally {
    pub(crate) const PASSED: Self = Self { passed: 1, failed: 0, skipped: 0, failures: Vec::new() };
    pub(crate) const SKIPPED: Self = Self { passed: 0, failed: 0, skipped: 1, failures: Vec::new() };

    /// One failure and what it was.
    pub(crate) fn failed(what: String) -> Self {
        Self { failed: 1, failures: vec![what], ..Self::default() }
    }

    pub(crate) fn ran(&self) -> usize {
        self.passed + self.failed
    }

    /// What a line of output adds: the harness's summary, or a test's word that it could not run here.
    pub(crate) fn of_line(harness: Harness, line: &str) -> Self {
        let line = without_colours(line);
        if line.starts_with("SKIPPED ") {
            return Self::SKIPPED;
        }
        match harness {
            Harness::Cargo => {
                let Some(result) = line.trim_start().strip_prefix("test result: ") else {
                    return Self::default();
                };
                let of = |what| before(result, what);
                Self { passed: of("passed"), failed: of("failed"), skipped: of("ignored"), ..Self::default() }
            }
            // "skipped" is also what it says of what the filter left out, so only a test's own word counts as that.
            Harness::Nextest if line.trim_start().starts_with("Summary [") => {
                let failed =
                    ["failed", "timed out", "exec failed"].iter().map(|what| before(&line, what)).sum();
                Self { passed: before(&line, "passed"), failed, ..Self::default() }
            }
            Harness::Nextest => Self::default(),
        }
    }
}

/// Picks from a harness's output what has to be said of failures.
#[derive(Default)]
pub(crate) struct Failures {
    lines: Vec<String>,
    /// How many more lines belong to the panic that is being told.
    of_panic: usize,
}

impl Failures {
    pub(crate) fn line(&mut self, line: &str) {
        let line = without_colours(line);
        // Both harnesses tell a panic alike; nextest names a failed test by the first word, cargo by the last.
        let verdict = line.trim_start().starts_with("FAIL ")
            || line.trim_start().starts_with("TIMEOUT ")
            || line.starts_with("test ") && line.ends_with(" FAILED");
        if line.contains(" panicked at ") {
            self.of_panic = PANIC;
        }
        // nextest names it when it ends and in its summary.
        if (verdict || self.of_panic > 0) && !self.lines.contains(&line) && self.lines.len() < MOST_FAILURES {
            self.lines.push(line);
        }
        self.of_panic = self.of_panic.saturating_sub(1);
    }

    /// The lines, if anything failed: a test that expects a panic shows one, too.
    pub(crate) fn of(self, tally: &Tally) -> Vec<String> {
        if tally.failed == 0 { Vec::new() } else { self.lines }
    }
}

/// Who runs the tests. nextest runs each in a process of its own, which prints a summary like `cargo test`'s, of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Harness {
    Cargo,
    Nextest,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, Self { passed, failed, skipped, failures }: Self) {
        self.passed += passed;
        self.failed += failed;
        self.skipped += skipped;
        self.failures.extend(failures);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, skipped, .. } = self;
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
        Tally { passed, failed, skipped, ..Tally::default() }
    }

    #[test]
    fn failures_are_named_with_what_they_say() {
        let mut failures = Failures::default();
        for line in [
            "        PASS [   0.1s] (1/3) live-tests::dns fine",
            "thread 'slow' (7) panicked at tests/tests/dns.rs:7:5:",
            "assertion failed",
            "  left: 1",
            " right: 2",
            "        \u{1b}[31mFAIL\u{1b}[0m [   0.2s] (2/3) live-tests::dns slow",
            "",
            "of no interest",
            "        FAIL [   0.2s] (2/3) live-tests::dns slow",
            "test tests::other ... FAILED",
        ] {
            failures.line(line);
        }
        let said = failures.of(&tally(1, 2, 0));
        assert_eq!(
            said,
            [
                "thread 'slow' (7) panicked at tests/tests/dns.rs:7:5:",
                "assertion failed",
                "  left: 1",
                " right: 2",
                "        FAIL [   0.2s] (2/3) live-tests::dns slow",
                "",
                "test tests::other ... FAILED",
            ]
        );
    }

    #[test]
    fn counts_both_harnesses() {
        use Harness::{Cargo, Nextest};
        let ok =
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s";
        let bad = "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";
        let coloured = "\u{1b}[32;1m     Summary\u{1b}[0m [ 1.2s] \u{1b}[1m1\u{1b}[0m test run: \u{1b}[1m1\u{1b}[0m passed";
        let slow =
            "     Summary [   9.001s] 6 tests run: 4 passed (1 slow), 1 failed, 1 timed out, 0 skipped";
        for (harness, line, expected) in [
            (Cargo, ok, tally(12, 0, 1)),
            (Cargo, bad, tally(2, 1, 0)),
            (Nextest, bad, tally(0, 0, 0)),
            (Nextest, "     Summary [   0.012s] 5 tests run: 5 passed, 3 skipped", tally(5, 0, 0)),
            (Nextest, slow, tally(4, 2, 0)),
            (Nextest, coloured, tally(1, 0, 0)),
            (Nextest, "SKIPPED tcp: no netem", tally(0, 0, 1)),
            (Nextest, "    PASS [ 0.1s] xtask counts: 5 failed", tally(0, 0, 0)),
        ] {
            assert_eq!(Tally::of_line(harness, line), expected, "{line}");
        }
    }

    #[test]
    fn the_last_line_names_skips_only_if_there_are_any() {
        assert_eq!(tally(3, 0, 0).to_string(), "3 passed, 0 failed");
        assert_eq!(tally(3, 1, 2).to_string(), "3 passed, 1 failed, 2 skipped");
    }
}
