//! Checks the loader's hand-off: what it says is believed only after this, and only as far as this goes.
//!
//! Every extent has to be RAM by the processor's own registers ([`crate::map`]), aligned, of sensible length,
//! and clear of the secure loader block, of the registers of devices that matter, and of every other extent.
//! The firmware's memory map and the ACPI root pointer pass through unread.

use crate::handoff::{
    CoreHeader, Extent, Handoff, MAX_COMPONENTS, MAX_RANGES, MemoryRange, REGION_ALIGN, SLB_SIZE,
};
use crate::map::{Map, MapError};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const PAGE: u64 = 0x1000;
/// Longest core.
pub const MAX_CORE: u64 = 16 * MIB;
/// Longest manifest.
pub const MAX_MANIFEST: u64 = MIB;
/// Shortest region: the core, the device table of 2 MiB, and room to work in.
pub const MIN_REGION: u64 = 8 * MIB;
/// Longest region: what one page directory maps.
pub const MAX_REGION: u64 = GIB;
/// Longest component.
pub const MAX_COMPONENT: u64 = 4 * GIB;

/// What an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The secure loader block.
    Slb,
    /// The core's file.
    Core,
    /// The manifest.
    Manifest,
    /// The region.
    Region,
    /// The guest pool.
    GuestPool,
    /// A guest component, by index.
    Component(usize),
    /// Registers of a device, by index in the list given.
    Device(usize),
}

/// What is wrong with the hand-off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckError {
    /// It does not start with the magic.
    Magic,
    /// Its layout is of another version.
    Version(u32),
    /// A field that must be zero is not.
    Reserved(u32),
    /// It lists more components than there is room for.
    Components(u32),
    /// It lists more memory ranges than there is room for.
    Ranges(u32),
    /// This part is not all RAM.
    NotRam(Part, MapError),
    /// This part is not aligned as it must be.
    Unaligned(Part),
    /// This part is too short.
    TooShort(Part),
    /// This part is too long.
    TooLong(Part),
    /// This part does not lie below 4 GiB.
    AboveFourGib(Part),
    /// These parts have bytes in common.
    Overlap(Part, Part),
}

/// A hand-off that can be worked with: its extents are RAM and disjoint. Made by [`check`] alone, and not to
/// be copied: who has it, has the RAM.
#[derive(Debug)]
pub struct CheckedHandoff {
    slb: Extent,
    handoff: Handoff,
    components: usize,
    ranges: usize,
}

impl CheckedHandoff {
    /// The secure loader block.
    #[must_use]
    pub const fn slb(&self) -> Extent {
        self.slb
    }
    /// The core's file, as staged.
    #[must_use]
    pub const fn core(&self) -> Extent {
        self.handoff.core
    }
    /// The manifest, as staged.
    #[must_use]
    pub const fn manifest(&self) -> Extent {
        self.handoff.manifest
    }
    /// The region.
    #[must_use]
    pub const fn region(&self) -> Extent {
        self.handoff.region
    }
    /// RAM for guests.
    #[must_use]
    pub const fn guest_pool(&self) -> Extent {
        self.handoff.guest_pool
    }
    /// ACPI root pointer as firmware told it, or 0: still hostile.
    #[must_use]
    pub const fn rsdp(&self) -> u64 {
        self.handoff.rsdp
    }
    /// Guest components, in manifest order.
    #[must_use]
    pub fn components(&self) -> &[Extent] {
        self.handoff.components.get(..self.components).unwrap_or(&[])
    }
    /// The firmware's memory map: still hostile.
    #[must_use]
    pub fn memory(&self) -> &[MemoryRange] {
        self.handoff.memory.get(..self.ranges).unwrap_or(&[])
    }
}

/// What a part must be like.
struct Rule {
    part: Part,
    extent: Extent,
    align: u64,
    min: u64,
    max: u64,
    is_low: bool,
}

/// Checks `handoff`, the launch image's own copy, which was found in the secure loader block at `slb`, against
/// the registers in `map` and the register windows in `devices`.
///
/// # Errors
/// [`CheckError`] for the first thing that is wrong.
pub fn check(
    handoff: &Handoff,
    map: &Map,
    slb: u64,
    devices: &[Extent],
) -> Result<CheckedHandoff, CheckError> {
    check_head(handoff)?;
    let components = count(handoff.component_count, MAX_COMPONENTS, CheckError::Components)?;
    let ranges = count(handoff.memory_count, MAX_RANGES, CheckError::Ranges)?;
    let slb = Extent { base: slb, length: SLB_SIZE };
    let checked = CheckedHandoff { slb, handoff: *handoff, components, ranges };
    rules(&checked).try_for_each(|rule| check_one(&rule, map))?;
    for rule in rules(&checked) {
        let others = rules(&checked).map(|other| (other.part, other.extent));
        let windows = devices.iter().enumerate().map(|(index, window)| (Part::Device(index), *window));
        for (part, extent) in others.chain(windows) {
            if part != rule.part && extent.meets(rule.extent) {
                return Err(CheckError::Overlap(rule.part, part));
            }
        }
    }
    Ok(checked)
}

fn check_head(handoff: &Handoff) -> Result<(), CheckError> {
    if handoff.magic != Handoff::MAGIC {
        return Err(CheckError::Magic);
    }
    if handoff.version != Handoff::VERSION {
        return Err(CheckError::Version(handoff.version));
    }
    if handoff.reserved == 0 { Ok(()) } else { Err(CheckError::Reserved(handoff.reserved)) }
}

fn count(told: u32, most: usize, error: fn(u32) -> CheckError) -> Result<usize, CheckError> {
    usize::try_from(told).ok().filter(|count| *count <= most).ok_or_else(|| error(told))
}

fn rules(checked: &CheckedHandoff) -> impl Iterator<Item = Rule> + '_ {
    let core_min = u64::try_from(size_of::<CoreHeader>()).unwrap_or(u64::MAX);
    let rule = |part, extent, align, min, max, is_low| Rule { part, extent, align, min, max, is_low };
    let fixed = [
        rule(Part::Slb, checked.slb, SLB_SIZE, SLB_SIZE, SLB_SIZE, true),
        rule(Part::Core, checked.core(), 1, core_min, MAX_CORE, false),
        rule(Part::Manifest, checked.manifest(), 1, 1, MAX_MANIFEST, false),
        rule(Part::Region, checked.region(), REGION_ALIGN, MIN_REGION, MAX_REGION, true),
        rule(Part::GuestPool, checked.guest_pool(), REGION_ALIGN, REGION_ALIGN, u64::MAX, false),
    ];
    let components = checked.components().iter().enumerate();
    fixed.into_iter().chain(
        components
            .map(move |(index, extent)| rule(Part::Component(index), *extent, PAGE, 1, MAX_COMPONENT, false)),
    )
}

fn check_one(rule: &Rule, map: &Map) -> Result<(), CheckError> {
    let Rule { part, extent, .. } = *rule;
    // The two that are mapped in large pages must be of whole ones.
    let mapped = if rule.align == REGION_ALIGN { extent.base | extent.length } else { extent.base };
    if mapped & rule.align.wrapping_sub(1) != 0 {
        return Err(CheckError::Unaligned(part));
    }
    if extent.length < rule.min {
        return Err(CheckError::TooShort(part));
    }
    if extent.length > rule.max {
        return Err(CheckError::TooLong(part));
    }
    if rule.is_low && extent.base.saturating_add(extent.length) > 4 * GIB {
        return Err(CheckError::AboveFourGib(part));
    }
    map.ram(extent).map(|_| ()).map_err(|error| CheckError::NotRam(part, error))
}

/// The hand-off in a copy of the secure loader block's last page, whatever it says: for [`check`] and for
/// fuzzing.
#[must_use]
pub fn read(page: &[u8]) -> Option<Handoff> {
    use zerocopy::FromBytes;
    Handoff::read_from_prefix(page).ok().map(|(handoff, _)| handoff)
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
