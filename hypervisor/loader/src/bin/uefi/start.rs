//! From the firmware's call to the launch.
#![expect(unsafe_code, reason = "boot services end here, and memory becomes ours")]
// UNSAFETY: boot services are not used after their end.

use super::file::{Volume, allocate, extent};
use super::problem::Problem;
use super::say;
use core::time::Duration;
use dolmen_drtm::handoff::{Extent, SLB_SIZE};
use dolmen_loader::config::{CONFIG_PATH, Config};
use dolmen_loader::console::{self, fact, refuse, stop};
use dolmen_loader::hardware::{physical::Memory, tpm};
use dolmen_loader::launch::{Launch, check_files, is_complete, probe};
use dolmen_loader::map::{Kind, MapError, MemoryMap};
use dolmen_loader::plan::{LIMIT_4G, LOW_MEMORY, lay_out};
use dolmen_loader::staged::Staged;
use uefi::boot::{self, MemoryAttribute, MemoryType};
use uefi::mem::memory_map::MemoryMap as FirmwareMap;
use uefi::table::cfg::ConfigTableEntry;
use uefi::{Status, entry, system};

/// How long an error stays on the screen before firmware clears it.
const READING_TIME: Duration = Duration::from_secs(5);

/// What has been read and placed while the firmware still listened.
struct Ready {
    staged: Staged,
    slb: Extent,
    region_bytes: u64,
    rsdp: u64,
}

#[entry]
fn main() -> Status {
    console::open();
    fact(format_args!("started by=uefi"));
    say!("Dolmen loader");
    // SAFETY: UEFI maps memory one to one; what is written was allocated for it.
    let mut memory = unsafe { Memory::new() };
    match prepare(&memory) {
        Ok(ready) => launch(&mut memory, ready),
        Err(problem) => {
            say!("Dolmen was not started: {problem}.");
            if !matches!(problem, Problem::Incomplete) {
                refuse(format_args!("{problem}"));
            }
            boot::stall(READING_TIME);
            problem.status()
        }
    }
}

/// Everything that can fail in a way that the firmware's user should hear of.
fn prepare(memory: &Memory) -> Result<Ready, Problem> {
    if !is_complete(&probe(), |missing| say!("Missing: {missing}.")) {
        return Err(Problem::Incomplete);
    }
    let (config, staged) = load()?;
    let region_bytes = config.region_mib << 20;
    check_files(memory, &staged, region_bytes)?;
    tpm::start().map_err(Problem::Tpm)?;
    fact(format_args!("tpm started"));
    let slb = allocate_slb()?;
    // A rehearsal: after the end of boot services it is too late to say that there is too little memory.
    let firmware = boot::memory_map(MemoryType::LOADER_DATA).map_err(|e| Problem::MemoryMap(e.status()))?;
    let mut map = MemoryMap::new();
    convert(&firmware, &mut map)?;
    lay_out(&mut map, &staged, Some(slb), region_bytes)?;
    Ok(Ready { staged, slb, region_bytes, rsdp: find_rsdp() })
}

fn load() -> Result<(Config<'static>, Staged), Problem> {
    let mut volume = Volume::open()?;
    let config = Config::parse(volume.load(CONFIG_PATH)?).map_err(Problem::Config)?;
    let mut staged = Staged::default();
    let files = [config.launch, config.core, config.manifest];
    for path in files.iter().chain(config.components()) {
        // The configuration has no more files than there is room for.
        let bytes = volume.load(path)?;
        if !staged.push(extent(bytes)) {
            return Err(Problem::NoMemory(0));
        }
    }
    Ok((config, staged))
}

/// A block of 64 KiB on its own border: twice that, less a page, always has one inside.
fn allocate_slb() -> Result<Extent, Problem> {
    let pages = extent(allocate(SLB_SIZE.saturating_mul(2).saturating_sub(0x1000), LIMIT_4G)?);
    Ok(Extent { base: pages.base.next_multiple_of(SLB_SIZE), length: SLB_SIZE })
}

/// Ends boot services and launches.
fn launch(memory: &mut Memory, ready: Ready) -> ! {
    say!("Launching. Further lines are on the first serial port.");
    // SAFETY: nothing of boot services is used from here on: the files lie in pages that stay ours.
    let firmware = unsafe { boot::exit_boot_services(None) };
    fact(format_args!("boot services ended"));
    let mut map = MemoryMap::new();
    if let Err(error) = convert(&firmware, &mut map) {
        stop(format_args!("{error}"));
    }
    let launch = Launch {
        staged: ready.staged,
        map: &mut map,
        slb: Some(ready.slb),
        region_bytes: ready.region_bytes,
        rsdp: ready.rsdp,
        #[cfg(feature = "hostile")]
        attack: None,
    };
    match launch.run(memory) {
        Err(error) => stop(format_args!("{error}")),
    }
}

/// The firmware's map in our terms (UEFI 2.10, tables 7.6 and 7.10). Boot services and the loader itself are
/// gone after the launch; ACPI tables and all else stay untouched.
fn convert(firmware: &impl FirmwareMap, map: &mut MemoryMap) -> Result<(), MapError> {
    for entry in firmware.entries() {
        let kind = match entry.ty {
            MemoryType::CONVENTIONAL => Kind::Free,
            MemoryType::LOADER_CODE
            | MemoryType::LOADER_DATA
            | MemoryType::BOOT_SERVICES_CODE
            | MemoryType::BOOT_SERVICES_DATA => Kind::UntilLaunch,
            _ => Kind::Reserved,
        };
        let plain = entry.att.contains(MemoryAttribute::WRITE_BACK)
            && !entry.att.contains(MemoryAttribute::SPECIAL_PURPOSE);
        let kind = if plain { kind } else { Kind::Reserved };
        map.add(entry.phys_start, entry.page_count.saturating_mul(0x1000), kind)?;
    }
    map.occupy(Extent { base: 0, length: LOW_MEMORY }, Kind::Held)
}

fn find_rsdp() -> u64 {
    system::with_config_table(|tables| {
        let address = |guid| tables.iter().find(|t| t.guid == guid).map(|t| t.address.expose_provenance());
        let found = address(ConfigTableEntry::ACPI2_GUID).or_else(|| address(ConfigTableEntry::ACPI_GUID));
        found.and_then(|at| u64::try_from(at).ok()).unwrap_or(0)
    })
}
