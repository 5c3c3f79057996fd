//! Checks the loader's hand-off: what it says is believed only after this, and only as far as this goes.
//!
//! Every extent has to be RAM by the processor's own registers ([`crate::map`]), aligned, of sensible length,
//! and clear of the secure loader block, of the registers of devices that matter, and of every other extent.
//! The firmware's memory map, the ACPI root pointer and the list of processors pass through unread.

use crate::handoff::{
    CoreHeader, Extent, Handoff, MAX_COMPONENTS, MAX_CPUS, MAX_RANGES, MemoryRange, REGION_ALIGN, SLB_SIZE,
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
    /// It lists more processors than there is room for.
    Cpus(u32),
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

/// A hand-off that can be worked with: its extents are RAM and disjoint. Made by [`check`] alone.
#[derive(Debug)]
pub struct CheckedHandoff<'a> {
    slb: Extent,
    handoff: &'a Handoff,
    components: usize,
    ranges: usize,
    cpus: usize,
}

impl<'a> CheckedHandoff<'a> {
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
    pub fn components(&self) -> &'a [Extent] {
        self.handoff.components.get(..self.components).unwrap_or(&[])
    }
    /// The firmware's memory map: still hostile.
    #[must_use]
    pub fn memory(&self) -> &'a [MemoryRange] {
        self.handoff.memory.get(..self.ranges).unwrap_or(&[])
    }
    /// Local APIC IDs of the processors: still hostile.
    #[must_use]
    pub fn apic_ids(&self) -> &'a [u32] {
        self.handoff.apic_ids.get(..self.cpus).unwrap_or(&[])
    }
    /// Processors that are not in that list, as the loader says.
    #[must_use]
    pub const fn cpus_left_out(&self) -> u32 {
        self.handoff.cpus_left_out
    }
    /// Takes what the launch image works on; the rest stays readable.
    #[must_use]
    pub const fn claim(self) -> (Claims, Passed<'a>) {
        let (core, manifest, region) = (self.core(), self.manifest(), self.region());
        (Claims { core, manifest, region }, Passed(self))
    }
}

/// What the launch image passes on to the core.
#[derive(Debug)]
pub struct Passed<'a>(CheckedHandoff<'a>);

impl<'a> core::ops::Deref for Passed<'a> {
    type Target = CheckedHandoff<'a>;
    fn deref(&self) -> &CheckedHandoff<'a> {
        &self.0
    }
}

/// Proof that these extents are RAM, disjoint from each other and from everything else of a checked hand-off.
/// Not to be copied: who has it, has the RAM.
#[derive(Debug)]
pub struct Claims {
    core: Extent,
    manifest: Extent,
    region: Extent,
}

impl Claims {
    /// The core's file, as staged.
    #[must_use]
    pub const fn core(&self) -> Extent {
        self.core
    }
    /// The manifest, as staged.
    #[must_use]
    pub const fn manifest(&self) -> Extent {
        self.manifest
    }
    /// The region.
    #[must_use]
    pub const fn region(&self) -> Extent {
        self.region
    }
}

/// What a part must be like.
#[derive(Clone, Copy)]
struct Rule {
    align: u64,
    min: u64,
    max: u64,
    is_low: bool,
}

impl Part {
    /// The parts that every hand-off has.
    const FIXED: [Self; 5] = [Self::Slb, Self::Core, Self::Manifest, Self::Region, Self::GuestPool];

    const fn rule(self) -> Rule {
        const CORE_MIN: u64 = 32;
        const _: () = assert!(size_of::<CoreHeader>() == 32);
        let (align, min, max, is_low) = match self {
            Self::Slb => (SLB_SIZE, SLB_SIZE, SLB_SIZE, true),
            Self::Core => (1, CORE_MIN, MAX_CORE, false),
            Self::Manifest => (1, 1, MAX_MANIFEST, false),
            Self::Region => (REGION_ALIGN, MIN_REGION, MAX_REGION, true),
            Self::GuestPool => (REGION_ALIGN, REGION_ALIGN, u64::MAX, false),
            Self::Component(_) | Self::Device(_) => (PAGE, 1, MAX_COMPONENT, false),
        };
        Rule { align, min, max, is_low }
    }
}

/// Checks `handoff`, which nobody else can write, and which was found in the secure loader block at `slb`,
/// against the registers in `map` and the register windows in `devices`.
///
/// # Errors
/// [`CheckError`] for the first thing that is wrong.
pub fn check<'a>(
    handoff: &'a Handoff,
    map: &Map,
    slb: u64,
    devices: &[Extent],
) -> Result<CheckedHandoff<'a>, CheckError> {
    check_head(handoff)?;
    let components = count(handoff.component_count, MAX_COMPONENTS, CheckError::Components)?;
    let ranges = count(handoff.memory_count, MAX_RANGES, CheckError::Ranges)?;
    let cpus = count(handoff.cpu_count, MAX_CPUS, CheckError::Cpus)?;
    let slb = Extent { base: slb, length: SLB_SIZE };
    let checked = CheckedHandoff { slb, handoff, components, ranges, cpus };
    let total = Part::FIXED.len().saturating_add(components);
    let part_at = |index: usize| part(&checked, devices, index);
    for index in 0..total {
        let (part, extent) = part_at(index);
        check_one(part, extent, map)?;
    }
    for index in 0..total {
        let (one, extent) = part_at(index);
        for other in index.saturating_add(1)..total.saturating_add(devices.len()) {
            let (other, other_extent) = part_at(other);
            if extent.meets(other_extent) {
                return Err(CheckError::Overlap(one, other));
            }
        }
    }
    Ok(checked)
}

/// The parts in one row: those that every hand-off has, the components, the devices.
#[inline(never)]
fn part(checked: &CheckedHandoff<'_>, devices: &[Extent], index: usize) -> (Part, Extent) {
    let Handoff { core, manifest, region, guest_pool, .. } = checked.handoff;
    let fixed = [&checked.slb, core, manifest, region, guest_pool];
    let in_components = index.saturating_sub(fixed.len());
    let in_devices = in_components.saturating_sub(checked.components);
    let (part, extent) = match (Part::FIXED.get(index), fixed.get(index)) {
        (Some(part), Some(extent)) => (*part, Some(*extent)),
        _ => match checked.components().get(in_components) {
            Some(extent) => (Part::Component(in_components), Some(extent)),
            None => (Part::Device(in_devices), devices.get(in_devices)),
        },
    };
    (part, extent.copied().unwrap_or_default())
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

fn check_one(part: Part, extent: Extent, map: &Map) -> Result<(), CheckError> {
    let rule = part.rule();
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

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
