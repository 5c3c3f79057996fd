//! The way that both programs end in: fill the block, park the other processors, `SKINIT`.
#![expect(unsafe_code, reason = "SKINIT gives the machine away")]
// UNSAFETY: one call, after everything that it needs was checked.

use crate::check::{Machine, Missing};
use crate::console::fact;
#[cfg(not(feature = "unmeasured"))]
use crate::console::refuse;
use crate::cpus::CpuList;
use crate::hardware::parking::{ParkError, park_others};
use crate::hardware::physical::Memory;
use crate::hardware::processor::{self, Processor};
use crate::hardware::{exception, pci, tpm};
#[cfg(feature = "hostile")]
use crate::hostile::{Attack, Surroundings};
use crate::image::{self, CORE_HEADER, ImageError, LAUNCH_HEADER, LaunchImage};
use crate::map::{MapError, MemoryMap};
use crate::multiboot::Physical;
use crate::plan::{Plan, PlanError, lay_out};
use crate::staged::Staged;
use core::convert::Infallible;
use core::fmt;
use dolmen_drtm::handoff::{Extent, HANDOFF_OFFSET, Handoff};
use zerocopy::IntoBytes;

/// Why there was no launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaunchError {
    /// A boot file is not what it should be.
    Image(ImageError),
    /// No place for something.
    Plan(PlanError),
    /// The other processors could not be parked.
    Park(ParkError),
}

impl fmt::Display for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(error) => error.fmt(f),
            Self::Plan(error) => error.fmt(f),
            Self::Park(error) => error.fmt(f),
        }
    }
}

impl From<ImageError> for LaunchError {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl From<PlanError> for LaunchError {
    fn from(error: PlanError) -> Self {
        Self::Plan(error)
    }
}

impl From<MapError> for LaunchError {
    fn from(error: MapError) -> Self {
        Self::Plan(PlanError::Map(error))
    }
}

impl From<ParkError> for LaunchError {
    fn from(error: ParkError) -> Self {
        Self::Park(error)
    }
}

/// Finds out about the machine.
#[must_use]
pub fn probe() -> Machine {
    let p = Processor::probe();
    Machine {
        vendor: p.vendor,
        has_svm: p.has_svm,
        has_skinit: p.has_skinit,
        has_gib_pages: p.has_gib_pages,
        has_nested_paging: p.has_nested_paging,
        svm_disabled: p.svm_disabled,
        is_boot_processor: p.is_boot_processor,
        iommus: count(pci::iommus()),
        iommus_off: count(pci::iommus().filter(|unit| !unit.is_enabled())),
        tpm: tpm::probe(),
    }
}

/// The development image takes any machine; what it lacks is said by those who need it.
#[cfg(feature = "unmeasured")]
pub fn is_complete(_: &Machine, _: impl FnMut(Missing)) -> bool {
    fact(format_args!("UNMEASURED development image: this machine is not asked for SKINIT, IOMMU or TPM"));
    true
}

fn count(units: impl Iterator<Item = pci::Iommu>) -> u32 {
    units.fold(0, |count, _| count.saturating_add(1))
}

/// Logs what the machine lacks, and shows each lack to `show`; false if something is missing.
#[cfg(not(feature = "unmeasured"))]
pub fn is_complete(machine: &Machine, mut show: impl FnMut(Missing)) -> bool {
    let mut count = 0u32;
    for missing in machine.missing() {
        fact(format_args!("missing {}: {missing}", missing.word()));
        show(missing);
        count = count.saturating_add(1);
    }
    if count == 0 {
        for unit in pci::iommus() {
            fact(format_args!("iommu registers={:#x}", unit.registers()));
        }
        fact(format_args!("machine complete iommus={}", machine.iommus));
        return true;
    }
    refuse(format_args!(
        "this machine lacks {count} of the things that Dolmen needs; do what the lines above say"
    ));
    false
}

/// Looks at the heads of launch image and core, before anything is given up for them.
///
/// # Errors
/// A file is not what it should be.
pub fn check_files(memory: &Memory, staged: &Staged, region_bytes: u64) -> Result<LaunchImage, ImageError> {
    let mut header = [0; LAUNCH_HEADER];
    memory.read(staged.launch().base, &mut header);
    let launch = image::check_launch(header, staged.launch().length)?;
    let mut header = [0; CORE_HEADER];
    memory.read(staged.core().base, &mut header);
    image::check_core(&header, staged.core().length, region_bytes)?;
    if staged.manifest().length == 0 {
        return Err(ImageError::ManifestEmpty);
    }
    Ok(launch)
}

/// Everything that a launch is made of.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The boot files.
    pub staged: Staged,
    /// The memory map; files in it need not be marked yet.
    pub map: &'a mut MemoryMap,
    /// A place for the secure loader block, if the caller has one.
    pub slb: Option<Extent>,
    /// Size of the region.
    pub region_bytes: u64,
    /// ACPI root pointer, or 0.
    pub rsdp: u64,
    /// What to lie about.
    #[cfg(feature = "hostile")]
    pub attack: Option<Attack>,
}

impl Launch<'_> {
    /// Launches. Comes back only with the reason why not.
    ///
    /// # Errors
    /// A file is wrong, there is no room, or the other processors could not be parked.
    pub fn run(self, memory: &mut Memory) -> Result<Infallible, LaunchError> {
        let image = check_files(memory, &self.staged, self.region_bytes)?;
        let plan = lay_out(self.map, &self.staged, self.slb, self.region_bytes)?;
        self.log(&plan);
        let cpus = self.list_cpus(memory);
        let handoff = self.staged.handoff(&plan, self.map, self.rsdp, &cpus)?;
        let block = Block { base: plan.slb, image: self.staged.launch(), handoff };
        #[cfg(feature = "hostile")]
        let block = self.attack(memory, &plan, block)?;
        block.fill(memory);
        exception::install();
        processor::disable_interrupts();
        if self.parks_others() {
            park_others()?;
            fact(format_args!("processors parked"));
        }
        leave(block.base, image)
    }

    /// The processors that firmware names. Without its list the boot processor works alone.
    fn list_cpus(&self, memory: &Memory) -> CpuList {
        match CpuList::read(memory, self.rsdp) {
            Ok(cpus) => {
                fact(format_args!("processors listed={} left_out={}", cpus.count, cpus.left_out));
                cpus
            }
            Err(error) => {
                fact(format_args!("no list of processors ({error:?}); one will work: update the firmware"));
                CpuList::default()
            }
        }
    }

    fn log(&self, plan: &Plan) {
        let names = ["launch", "core", "manifest"].into_iter().chain(core::iter::repeat("component"));
        for (file, name) in self.staged.files().iter().zip(names) {
            fact(format_args!("staged {name}={:#x} bytes={}", file.base, file.length));
        }
        for (name, place) in [("slb", plan.slb), ("region", plan.region), ("guest_pool", plan.guest_pool)] {
            fact(format_args!("placed {name}={:#x} bytes={:#x}", place.base, place.length));
        }
    }

    #[cfg(not(feature = "hostile"))]
    #[expect(clippy::unused_self, reason = "the hostile build asks it")]
    const fn parks_others(&self) -> bool {
        true
    }

    #[cfg(feature = "hostile")]
    fn parks_others(&self) -> bool {
        self.attack != Some(Attack::ApsNotParked)
    }

    /// Carries the attack out; gives the block to launch.
    #[cfg(feature = "hostile")]
    #[expect(clippy::wildcard_enum_match_arm, reason = "the others only change the hand-off")]
    fn attack(&self, memory: &mut Memory, plan: &Plan, mut block: Block) -> Result<Block, LaunchError> {
        use crate::plan::place_slb;
        let Some(attack) = self.attack else { return Ok(block) };
        fact(format_args!("attack {}", attack.word()));
        let around = Surroundings { slb: plan.slb, tseg: processor::tseg_base() };
        attack.corrupt(&mut block.handoff, around);
        processor::write_registers(attack.registers(&block.handoff).into_iter().flatten());
        match attack {
            Attack::IommuBaseMoved => rewrite_bases(|_| processor::low_half(plan.guest_pool.base) | 1),
            Attack::IommuOff => rewrite_bases(|unit| processor::low_half(unit.registers())),
            Attack::LocalityHeld => {
                let held = tpm::hold_locality();
                fact(format_args!("locality 0 held ok={}", held.is_ok()));
            }
            Attack::EvilLaunch => block.image = self.last_file(),
            Attack::SkinitTwice => {
                block.fill(memory);
                let mut map = self.map.clone();
                let mut second = block;
                second.base = place_slb(&mut map)?;
                second.image = self.last_file();
                second.handoff.rsdp = plan.slb.base;
                return Ok(second);
            }
            _ => {}
        }
        Ok(block)
    }

    #[cfg(feature = "hostile")]
    fn last_file(&self) -> Extent {
        self.staged.files().last().copied().unwrap_or_default()
    }
}

/// Executes `SKINIT`.
#[cfg(not(feature = "unmeasured"))]
fn leave(slb: Extent, LaunchImage { entry, measured }: LaunchImage) -> ! {
    let tsc = processor::time_stamp();
    let slb = slb.base;
    fact(format_args!("skinit slb={slb:#x} entry={entry:#x} measured={measured:#x} tsc={tsc}"));
    let slb = u32::try_from(slb).unwrap_or(0);
    // SAFETY: `probe` found SKINIT; the block is filled; this program has nothing left to do.
    unsafe { processor::skinit(slb) }
}

/// Goes to the development image, which no processor measures. The release's launch image stops when it is entered so:
/// PCR 17 does not hold what a launch leaves there.
#[cfg(feature = "unmeasured")]
fn leave(block: Extent, LaunchImage { entry, measured }: LaunchImage) -> ! {
    let tsc = processor::time_stamp();
    let block = block.base;
    fact(format_args!("UNMEASURED jump block={block:#x} entry={entry:#x} bytes={measured:#x} tsc={tsc}"));
    let block = u32::try_from(block).unwrap_or(0);
    // SAFETY: the block is filled with a file of the launch image's layout; this program has nothing left to do.
    unsafe { crate::hardware::direct::enter(block, entry) }
}

/// Writes base registers, and logs what stands there then: where firmware has locked them, the attack is void,
/// and a test must know.
#[cfg(feature = "hostile")]
fn rewrite_bases(low: impl Fn(pci::Iommu) -> u32) {
    for unit in pci::iommus() {
        unit.write_base(low(unit));
        fact(format_args!("iommu registers={:#x} enabled={}", unit.registers(), unit.is_enabled()));
    }
}

/// A secure loader block to be: where, from which file, with which hand-off.
struct Block {
    base: Extent,
    image: Extent,
    handoff: Handoff,
}

impl Block {
    /// Fills the block: image, zeroes, hand-off.
    fn fill(&self, memory: &mut Memory) {
        memory.clear(self.base);
        memory.copy(self.image, self.base.base);
        memory.write(self.base.base.saturating_add(HANDOFF_OFFSET), self.handoff.as_bytes());
    }
}
