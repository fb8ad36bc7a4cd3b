//! The kernel's own counters of interrupts.

use std::collections::BTreeMap;
use std::fs;

/// `/proc/softirqs`, summed over the CPUs, by names as the agent writes them.
pub fn softirqs() -> BTreeMap<String, f64> {
    let text = fs::read_to_string("/proc/softirqs").unwrap();
    let rows = text.lines().filter_map(|line| line.split_once(':'));
    rows.map(|(name, counts)| (name.trim().to_ascii_lowercase(), sum(counts))).collect()
}

/// How often the interrupts that have a number came, which are those with a handler: `/proc/interrupts`, summed.
pub fn device_interrupts() -> f64 {
    let text = fs::read_to_string("/proc/interrupts").unwrap();
    let rows = text.lines().filter_map(|line| line.split_once(':'));
    rows.filter(|(name, _)| name.trim().parse::<u32>().is_ok()).map(|(_, counts)| sum(counts)).sum()
}

/// Up to the first word that is no number.
fn sum(counts: &str) -> f64 {
    counts.split_whitespace().map_while(|count| count.parse::<f64>().ok()).sum()
}

/// Seconds that the kernel's clock tick found CPUs in softirqs: `/proc/stat`.
pub fn softirq_seconds() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap();
    let ticks: f64 = text.split_whitespace().nth(7).unwrap().parse().unwrap();
    // SAFETY: a number of the system's, and no argument that is a pointer.
    ticks / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
}
