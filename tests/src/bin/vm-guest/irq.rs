//! Interrupts, which never rest: what is counted lies between two readings of the kernel's own counters.

use anyhow::Result;
use live_tests::interrupts::softirqs;

use crate::metrics::Page;
use crate::{AGENT, drops, missed, traffic};

/// Has some datagrams received, and compares.
pub(crate) fn check() -> Result<()> {
    let page = || Ok::<_, anyhow::Error>(Page::read(&traffic::get(AGENT, "/metrics")?));
    let kernel = || softirqs().get("net_rx").copied().unwrap_or_default();
    let outer = kernel();
    let before = page()?;
    let inner = kernel();
    drops::run()?;
    let inner = kernel() - inner;
    let after = page()?;
    let outer = kernel() - outer;
    let labels = [("kind", "soft"), ("name", "net_rx")];
    for (metric, least, most) in [("irqs_total", inner, outer), ("irq_seconds_total", 1e-9, f64::INFINITY)] {
        let got = after.sum(metric, &labels) - before.sum(metric, &labels);
        let expected = got.clamp(least, most);
        let missed = missed(&after, &["irq"]);
        println!(
            "@@COUNT {metric}{{kind=\"soft\",name=\"net_rx\"}} expected={expected} got={got} missed={missed}"
        );
    }
    Ok(())
}
