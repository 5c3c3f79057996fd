//! Stage 1: what the launch image says, against what the core is.

use dolmen_abi::LaunchFacts;
use dolmen_drtm::BankSet;
#[cfg(not(feature = "unmeasured"))]
use dolmen_drtm::handoff::MAX_IOMMUS;
use dolmen_drtm::handoff::{CoreHandoff, MAX_COMPONENTS, MAX_CPUS, MAX_RANGES, REGION_ALIGN};
use dolmen_machine::entry_core;
use dolmen_machine::own::Entered;

use crate::stop::Reason;

/// The launch image's hand-off, checked.
pub(crate) struct Launched {
    pub(crate) entered: Entered,
    pub(crate) banks: BankSet,
}

/// Checks the hand-off's shape. Its maker was measured by the processor and is trusted; what is checked is
/// that launch image and core are of one build.
pub(crate) fn verify(entered: Entered) -> Result<Launched, Reason> {
    let handoff = entered.handoff();
    check(handoff)?;
    let list = handoff.banks.get(..to_usize(handoff.bank_count)).ok_or(Reason::Handoff("too many banks"))?;
    let banks = BankSet::from_list(list).map_err(|_| Reason::Handoff("a bank list without SHA-256"))?;
    log::info!(target: "launch", "core entered region={:#x} free_kib={} banks={}",
        handoff.region.base, handoff.free.length / 1024, list.len());
    let [began, shielded, measured, left] = handoff.tsc;
    log::info!(target: "launch", "ticks began={began} shielded={shielded} measured={measured} left={left}");
    Ok(Launched { entered, banks })
}

fn check(handoff: &CoreHandoff) -> Result<(), Reason> {
    let ensure = |holds: bool, what: &'static str| if holds { Ok(()) } else { Err(Reason::Handoff(what)) };
    let end = |base: u64, length: u64| base.checked_add(length);
    let region_end = end(handoff.region.base, handoff.region.length);
    ensure(handoff.magic == CoreHandoff::MAGIC, "no hand-off of a launch image")?;
    ensure(handoff.version == CoreHandoff::VERSION, "a launch image of another version")?;
    ensure(handoff.region.base.is_multiple_of(REGION_ALIGN), "a region that is not aligned")?;
    ensure(handoff.core.base == handoff.region.base, "a core that is not at the region's base")?;
    ensure(handoff.core.length == entry_core::memory_length(), "a core of another length")?;
    ensure(region_end.is_some_and(|end| end <= 1 << 32), "a region above 4 GiB")?;
    for part in [handoff.manifest, handoff.event_log, handoff.free] {
        let is_inside = part.base >= handoff.region.base
            && end(part.base, part.length).is_some_and(|part_end| Some(part_end) <= region_end);
        ensure(is_inside, "a part outside the region")?;
    }
    ensure(to_usize(handoff.component_count) <= MAX_COMPONENTS, "too many components")?;
    ensure(to_usize(handoff.memory_count) <= MAX_RANGES, "too many memory ranges")?;
    ensure(to_usize(handoff.cpu_count) <= MAX_CPUS, "too many processors")?;
    check_kind(handoff)
}

/// A measured launch, of which there is no other kind here: the development image is another build.
#[cfg(not(feature = "unmeasured"))]
fn check_kind(handoff: &CoreHandoff) -> Result<(), Reason> {
    if !LaunchFacts::from_bits_retain(handoff.facts).is_launched() {
        return Err(Reason::Handoff("an UNMEASURED start, which only the development image takes"));
    }
    let has_iommus = (1..=MAX_IOMMUS).contains(&to_usize(handoff.iommu_count));
    if has_iommus { Ok(()) } else { Err(Reason::Handoff("no IOMMU")) }
}

/// The development image: nothing was measured, and whoever claims that it was is not heard.
#[cfg(feature = "unmeasured")]
fn check_kind(handoff: &CoreHandoff) -> Result<(), Reason> {
    let facts = LaunchFacts::from_bits_retain(handoff.facts);
    let is_unmeasured = facts.is_consistent() && facts.contains(LaunchFacts::UNMEASURED);
    if is_unmeasured && handoff.iommu_count == 0 {
        log::warn!(target: "launch", "UNMEASURED development image: DMA is open, nothing is sealed, nothing is quoted");
        return Ok(());
    }
    Err(Reason::Handoff("a measured launch of the UNMEASURED development image"))
}

/// The list of processors is the loader's: one that is named twice would be started twice. Asked once there is a way out
/// that caps the registers: unlike the rest of the hand-off, this can be wrong without a defect of ours.
pub(crate) fn check_cpus(handoff: &CoreHandoff) -> Result<(), Reason> {
    let ids = handoff.apic_ids.get(..to_usize(handoff.cpu_count)).unwrap_or(&[]);
    let twice = (1..).zip(ids).find(|(next, id)| ids.get(*next..).is_some_and(|rest| rest.contains(id)));
    twice.map_or(Ok(()), |(_, id)| Err(Reason::CpuTwice(*id)))
}

/// Counts are small; a count that does not fit is larger than every limit.
pub(crate) fn to_usize(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
