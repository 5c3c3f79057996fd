//! The first stage of the development image: what stands in for the launch image on a machine without dynamic launch,
//! IOMMU or TPM.
//!
//! Nothing is measured and DMA is not closed. So it is a program of its own, which the release does not contain: it
//! says UNMEASURED, tells the core so, and only a core that was built for this takes that hand-off. What it shares with
//! the launch image is how memory is checked and how the core is entered. The loader jumps here in the state in which
//! `SKINIT` would have entered.
#![no_std]
#![no_main]

mod console;

use core::convert::Infallible;
use core::fmt;
use core::panic::PanicInfo;

use dolmen_abi::LaunchFacts;
use dolmen_drtm::Algorithm;
use dolmen_drtm::check::{self, CheckError, Passed};
use dolmen_drtm::handoff::{Bank, CoreHandoff, CoreHeader, Extent};
use dolmen_drtm::map::Map;
use dolmen_machine::launch::{Block, LoaderPage, Probe, ShieldedRegion, Staged, claim, extent_of, on_stack};
use dolmen_machine::{cpu, launch, msr};
use zerocopy::FromBytes;

use crate::console::line;

/// Bytes of the stack in the region.
const STACK_BYTES: u64 = 0x1_0000;
/// Bytes kept for the hand-off.
const HANDOFF_BYTES: u64 = 2 * PAGE;
const _: () = assert!(size_of::<CoreHandoff>() <= 0x2000, "the hand-off fits");
const PAGE: u64 = 0x1000;

/// Why there is no run.
#[derive(Clone, Copy, Debug)]
enum Reason {
    /// The processor does not tell where RAM is.
    Processor,
    /// The hand-off does not hold.
    Handoff(CheckError),
    /// The core's file is not one, or does not fit the region.
    Core,
    /// The region is too small.
    Region,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Processor => f.write_str("a processor of an unknown maker, or without MTRRs"),
            Self::Handoff(error) => write!(f, "hand-off: {error:?}; fix the loader"),
            Self::Core => f.write_str("damaged core; install it anew"),
            Self::Region => f.write_str("region too small; raise region_mib"),
        }
    }
}

impl From<CheckError> for Reason {
    fn from(error: CheckError) -> Self {
        Self::Handoff(error)
    }
}

/// What the loader's hand-off gives, checked.
struct Checked {
    staged: Staged,
    passed: Passed<'static>,
    region: ShieldedRegion,
    began: u64,
}

/// The first Rust of the stage.
#[expect(unsafe_code, reason = "the one name that the entry stub in `machine` calls")]
#[unsafe(no_mangle)]
fn launch_main(block: Block, page: LoaderPage, _: Probe) -> ! {
    line(format_args!("unmeasured: UNMEASURED development image: no launch, no DMA protection, no secrets"));
    match boot(&block, &page) {
        Ok(never) => match never {},
        Err(reason) => stop(&reason),
    }
}

fn boot(block: &Block, page: &LoaderPage) -> Result<Infallible, Reason> {
    let mut checked = check(block, page)?;
    let stack = checked.region.take_last(STACK_BYTES).ok_or(Reason::Region)?;
    on_stack(stack, move || match hand_over(checked) {
        Ok(never) => never,
        Err(reason) => stop(&reason),
    })
}

/// Checks the hand-off as the launch image does, but that no device's registers are kept clear of.
fn check(block: &Block, page: &LoaderPage) -> Result<Checked, Reason> {
    let began = cpu::read_tsc();
    let mut map = Map::default();
    if !msr::read_map(&mut map) && !msr::read_intel_map(&mut map) {
        return Err(Reason::Processor);
    }
    let (claims, passed) = check::check(page.handoff(), &map, block.base(), &[])?.claim();
    let (staged, region) = claim(claims);
    let Extent { base, length } = region.extent();
    // Devices can write it. That is why nobody may trust what runs here.
    let region = region.shielded(base.saturating_add(length));
    Ok(Checked { staged, passed, region, began })
}

/// Copies core and manifest in, and goes to the core.
fn hand_over(checked: Checked) -> Result<Infallible, Reason> {
    let Checked { staged, passed, mut region, began } = checked;
    let (header, manifest) = copy(&staged, &mut region)?;
    let handoff = region.take(HANDOFF_BYTES).ok_or(Reason::Region)?;
    handoff.fill(0);
    let (handoff, _) = CoreHandoff::mut_from_prefix(handoff).map_err(|_| Reason::Region)?;
    describe(handoff, &passed);
    handoff.region = region.extent();
    handoff.core = Extent { base: handoff.region.base, length: header.memory_length };
    handoff.manifest = extent_of(manifest);
    handoff.event_log = Extent { base: handoff.manifest.base, length: 0 };
    let root = region.map_for_core().ok_or(Reason::Region)?;
    line(format_args!("unmeasured: core at {:#x} entry={:#x}", region.extent().base, header.entry));
    handoff.magic = CoreHandoff::MAGIC;
    handoff.version = CoreHandoff::VERSION;
    handoff.free = region.free();
    let now = cpu::read_tsc();
    handoff.tsc = [began, began, began, now];
    region.enter_core(root, header.entry, handoff)
}

/// Says what the loader said, and that nothing was measured.
fn describe(handoff: &mut CoreHandoff, passed: &Passed<'_>) {
    handoff.slb = passed.slb();
    handoff.guest_pool = passed.guest_pool();
    handoff.rsdp = passed.rsdp();
    handoff.component_count = fill(&mut handoff.components, passed.components());
    handoff.memory_count = fill(&mut handoff.memory, passed.memory());
    handoff.cpu_count = fill(&mut handoff.apic_ids, passed.apic_ids());
    handoff.cpus_left_out = passed.cpus_left_out();
    handoff.facts = (LaunchFacts::UNMEASURED | LaunchFacts::SMM_NOT_ISOLATED).bits();
    // No PCR is behind it: it is what the guests' files are hashed with.
    let sha256 = Bank { algorithm: Algorithm::Sha256.id(), digest_size: 32, measured: 1 };
    handoff.bank_count = fill(&mut handoff.banks, &[sha256]);
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

/// Copies core and manifest in, and checks the copy's header; gives header and manifest.
fn copy(
    staged: &Staged,
    region: &mut ShieldedRegion,
) -> Result<(&'static CoreHeader, &'static [u8]), Reason> {
    let length = staged.core_bytes();
    let file = region.take(length).ok_or(Reason::Region)?;
    let is_copied = staged.copy_core(file);
    let file: &[u8] = file;
    let (header, _) = CoreHeader::ref_from_prefix(file).map_err(|_| Reason::Core)?;
    let is_core = is_copied
        && header.magic == CoreHeader::MAGIC
        && header.version == CoreHeader::VERSION
        && header.file_length == length
        && u64::from(header.entry) < length
        && header.memory_length >= length
        && header.memory_length % PAGE == 0;
    if !is_core {
        return Err(Reason::Core);
    }
    region.take(header.memory_length.saturating_sub(length)).ok_or(Reason::Region)?.fill(0);
    let length = staged.manifest_bytes();
    let manifest = region.take(length).ok_or(Reason::Region)?;
    if !staged.copy_manifest(manifest) {
        return Err(Reason::Core);
    }
    // What follows begins at a page again.
    region.take(length.wrapping_neg() % PAGE).ok_or(Reason::Region)?.fill(0);
    Ok((header, manifest))
}

/// Ends the run. Nothing secret exists.
fn stop(reason: &Reason) -> ! {
    line(format_args!("stop: the development image does not start: {reason}"));
    launch::on_first_stack(leave)
}

extern "C" fn leave() -> ! {
    cpu::halt_without_svm()
}

/// An exception: a defect of ours, or a failing machine.
#[expect(unsafe_code, reason = "the name that the exception stub in `machine` calls")]
#[unsafe(no_mangle)]
fn launch_fault(frame: [u64; 3]) -> ! {
    line(format_args!("stop: exception frame={frame:x?} cr2={:#x}; please report it", cpu::read_cr2()));
    launch::on_first_stack(leave)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    line(format_args!("stop: {info}; please report it"));
    launch::on_first_stack(leave)
}
