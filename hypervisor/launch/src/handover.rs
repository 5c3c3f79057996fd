//! Stage 4: tells the core what it has, and goes there.

use core::convert::Infallible;

use dolmen_abi::LaunchFacts;
use dolmen_drtm::handoff::{CoreHandoff, Extent};
use dolmen_machine::cpu;
use dolmen_machine::launch::extent_of;
use zerocopy::FromBytes;

use crate::console::Line;
use crate::measure::{LOG_CAPACITY, Measured, PAGE};
use crate::reason::{Reason, Stopped};

/// Bytes kept for the hand-off.
const HANDOFF_BYTES: u64 = 2 * PAGE;
const _: () = assert!(size_of::<CoreHandoff>() <= 0x2000, "the hand-off fits");

/// Writes the hand-off into the region and jumps to the core.
#[inline(never)]
pub(crate) fn enter_core(mut measured: Measured) -> Result<Infallible, Stopped> {
    let entry = measured.core.header.entry;
    Line::new("launch: core at ").hex(measured.region.extent().base).text(" entry=").hex(entry.into()).end();
    let bytes = measured.region.take(HANDOFF_BYTES).ok_or(Reason::Region)?;
    let tables = measured.region.take(3 * PAGE).ok_or(Reason::Region)?;
    bytes.fill(0);
    let (handoff, _) = CoreHandoff::mut_from_prefix(bytes).map_err(|_| Reason::Defect)?;
    describe(handoff, &measured);
    measured.region.enter_core(entry, handoff, tables)
}

fn describe(handoff: &mut CoreHandoff, measured: &Measured) {
    let Measured { passed, region, iommus, core, manifest, log, logged, pcrs, tsc } = measured;
    handoff.magic = CoreHandoff::MAGIC;
    handoff.version = CoreHandoff::VERSION;
    handoff.iommu_count = iommus.count;
    handoff.iommus = iommus.list;
    handoff.facts = facts(measured).bits();
    handoff.slb = passed.slb();
    handoff.region = region.extent();
    handoff.core = Extent { base: handoff.region.base, length: core.header.memory_length };
    handoff.manifest = extent_of(manifest);
    handoff.event_log = extent_of(log.get(..*logged).unwrap_or(&[]));
    handoff.event_log_capacity = LOG_CAPACITY;
    handoff.free = region.free();
    handoff.guest_pool = passed.guest_pool();
    handoff.rsdp = passed.rsdp();
    handoff.component_count = fill(&mut handoff.components, passed.components());
    handoff.memory_count = fill(&mut handoff.memory, passed.memory());
    let [code, configuration] = pcrs;
    handoff.bank_count = fill(&mut handoff.banks, code.banks().list());
    handoff.pcr17 = *code.values();
    handoff.pcr18 = *configuration.values();
    let [began, shielded, measured] = *tsc;
    handoff.tsc = [began, shielded, measured, cpu::read_tsc()];
}

/// What this launch was like. SMM runs from the first STGI on, and nothing isolates it.
fn facts(measured: &Measured) -> LaunchFacts {
    let mut facts = LaunchFacts::AMD_SKINIT | LaunchFacts::IOMMU_SHIELDED | LaunchFacts::SMM_NOT_ISOLATED;
    let [code, _] = &measured.pcrs;
    facts.set(LaunchFacts::SHIELD_RACE, measured.iommus.has_race);
    facts.set(LaunchFacts::BANKS_CAPPED, code.banks().has_capped());
    facts.set(LaunchFacts::DEBUG, cfg!(debug_assertions));
    facts
}

/// Copies to the start of an array of the hand-off; how many that were.
fn fill<T: Copy>(array: &mut [T], from: &[T]) -> u32 {
    let mut count = 0u32;
    for (slot, value) in array.iter_mut().zip(from) {
        *slot = *value;
        count = count.saturating_add(1);
    }
    count
}
