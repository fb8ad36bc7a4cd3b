//! Time in interrupts. See `perf-ebpf/src/bin/irq.rs`.

use anyhow::Context as _;
use aya::maps::{MapData, PerCpuArray};
use perf_common::events::{COUNTERS, DROPPED, RECORDED, Reason, SEEN};
use perf_common::irq::{IrqCpu, IrqSum};

use super::{Account, Common, Names, Probe, Start, Started, started};
use crate::object::{self, Hook};
use crate::page::{Kind, Page};

/// Beginnings first, so that few ends have none.
const HOOKS: [Hook; 4] = [
    Hook::tracepoint("soft_entry", "softirq_entry"),
    Hook::tracepoint("soft_exit", "softirq_exit"),
    Hook::tracepoint("hard_entry", "irq_handler_entry"),
    Hook::tracepoint("hard_exit", "irq_handler_exit"),
];

struct Irq {
    common: Common,
    cpus: PerCpuArray<MapData, IrqCpu>,
    /// What the kernel calls its softirqs, by vector.
    vectors: Vec<String>,
}

pub(super) fn start(Start { loader, config: _, globals }: Start<'_, '_>) -> Started {
    started("irq", globals, || {
        let mut object = loader.load(object::IRQ, &[])?;
        let status = loader.attach("irq", &mut object, &HOOKS);
        let cpus = object.take_map("CPU").context("the object has no map CPU")?;
        let cpus = PerCpuArray::try_from(cpus)?;
        let mut vectors = loader.siblings("NET_RX_SOFTIRQ");
        vectors.sort_by_key(|(_, vector)| *vector);
        let names = vectors.iter().filter_map(|(name, _)| name.strip_suffix("_SOFTIRQ"));
        let vectors = names.map(str::to_ascii_lowercase).collect();
        Ok((status, Some(Box::new(Irq { cpus, vectors, common: Common::take(object)? }) as Box<dyn Probe>)))
    })
}

impl Probe for Irq {
    fn common(&self) -> &Common {
        &self.common
    }

    fn accounts(&self) -> Vec<Account> {
        let all = self.sums();
        let mut events = [0; COUNTERS as usize];
        let (recorded, unbegun) = (all.soft_ended + all.hard_ended, all.soft_unbegun + all.hard_unbegun);
        // An event is an end: whether one that has begun is still under way would be asked of CPUs that do not stand still.
        events[SEEN as usize] = recorded + unbegun;
        events[RECORDED as usize] = recorded;
        events[(DROPPED + Reason::NoRequest as u32) as usize] = unbegun;
        vec![Account { probe: "irq", events }]
    }

    fn collect(&mut self, _: &Names, page: &mut Page) -> anyhow::Result<()> {
        let all = self.sums();
        let soft = self.vectors.iter().zip(all.soft).map(|(name, sum)| ("soft", name.as_str(), sum));
        let series: Vec<_> = soft.chain([("hard", "all", all.hard)]).collect();
        let mut family = page.family(
            "irq_seconds_total",
            "Time in interrupts: softirqs, without what interrupted them, and handlers of devices' interrupts.",
            Kind::Counter,
        );
        for (kind, name, IrqSum { ns, .. }) in &series {
            family.sample(&[("kind", kind), ("name", name)], *ns as f64 / 1e9);
        }
        let mut family = page.family("irqs_total", "Softirqs, and calls of handlers of devices' interrupts, of which a shared line has several, as they began.", Kind::Counter);
        for (kind, name, IrqSum { count, .. }) in &series {
            family.sample(&[("kind", kind), ("name", name)], *count as f64);
        }
        Ok(())
    }
}

impl Irq {
    /// Of all CPUs; what is about a moment stays zero.
    fn sums(&self) -> IrqCpu {
        let cpus = self.cpus.get(&0, 0).map(|cpus| cpus.to_vec()).unwrap_or_default();
        let mut all = IrqCpu::default();
        for IrqCpu {
            soft,
            soft_since: _,
            soft_hard_ns: _,
            soft_ended,
            soft_unbegun,
            hard,
            hard_since: _,
            hard_ended,
            hard_unbegun,
        } in cpus
        {
            for (into, from) in all.soft.iter_mut().zip(soft) {
                add(into, from);
            }
            add(&mut all.hard, hard);
            all.soft_ended += soft_ended;
            all.soft_unbegun += soft_unbegun;
            all.hard_ended += hard_ended;
            all.hard_unbegun += hard_unbegun;
        }
        all
    }
}

fn add(into: &mut IrqSum, IrqSum { count, ns }: IrqSum) {
    into.count += count;
    into.ns += ns;
}
