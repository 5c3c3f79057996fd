//! From the boot loader's jump to the launch.
#![expect(unsafe_code, reason = "the boot loader enters here, and memory is its")]
// UNSAFETY: the entry runs once, on one processor, with the low 4 GiB mapped one to one by `entry.s`.

use core::arch::global_asm;
use core::fmt::Display;
use dolmen_drtm::handoff::Extent;
use dolmen_loader::config::{REGION_MIB, parse_region_mib};
use dolmen_loader::console::{self, fact, stop};
use dolmen_loader::hardware::physical::Memory;
#[cfg(not(feature = "unmeasured"))]
use dolmen_loader::hardware::tpm;
use dolmen_loader::launch::{Launch, is_complete, probe};
use dolmen_loader::map::{Kind, MemoryMap};
use dolmen_loader::multiboot::{self, BootInfo};
use dolmen_loader::plan::{DEFAULT_REGION_MIB, LIMIT_4G, LOW_MEMORY, PlanError, place_file};
use dolmen_loader::rsdp;
use dolmen_machine::cpu::halt_without_svm;
use dolmen_memory::PAGE_SIZE;

global_asm!(include_str!("entry.s"), start = sym multiboot_start);

unsafe extern "C" {
    safe static image_start: u8;
    safe static image_end: u8;
}

/// Where `entry.s` goes once the processor is in 64-bit mode.
extern "C" fn multiboot_start(magic: u32, info: u32) -> ! {
    console::open();
    // SAFETY: `entry.s` maps the low 4 GiB one to one; nothing that the planner places is in use.
    let mut memory = unsafe { Memory::new() };
    let mut map = MemoryMap::new();
    let boot = or_stop(multiboot::parse(&memory, magic, info, &mut map));
    fact(format_args!("started by=multiboot modules={}", boot.staged.files().len()));
    if !is_complete(&probe(), |_| {}) {
        halt_without_svm();
    }
    let launch = or_stop(prepare(&mut memory, &mut map, boot));
    start_tpm(&launch);
    match or_stop(launch.run(&mut memory)) {}
}

fn or_stop<T, E: Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|reason| stop(format_args!("{reason}")))
}

/// Marks what is in use, and moves modules to page borders.
fn prepare<'m>(memory: &mut Memory, map: &'m mut MemoryMap, boot: BootInfo) -> Result<Launch<'m>, PlanError> {
    let low = Extent { base: 0, length: LOW_MEMORY };
    map.occupy(low, Kind::Held)?;
    map.occupy(boot.info, Kind::Held)?;
    map.occupy(image(), Kind::UntilLaunch)?;
    let region_bytes = region_bytes(&boot);
    #[cfg(feature = "hostile")]
    let attack = attack(&boot);
    let mut staged = boot.staged;
    for file in staged.files() {
        map.occupy(*file, Kind::Held)?;
    }
    for file in staged.files_mut() {
        if !file.base.is_multiple_of(PAGE_SIZE) {
            let place = place_file(map, file.length, LIMIT_4G)?;
            memory.copy(*file, place.base);
            *file = place;
        }
    }
    let rsdp = rsdp::find(memory).unwrap_or(0);
    Ok(Launch {
        staged,
        map,
        slb: None,
        region_bytes,
        rsdp,
        #[cfg(feature = "hostile")]
        attack,
    })
}

fn image() -> Extent {
    let address = |symbol: &'static u8| (&raw const *symbol).expose_provenance();
    let (start, end) = (address(&image_start), address(&image_end));
    let wide = |n: usize| u64::try_from(n).unwrap_or(0);
    Extent { base: wide(start), length: wide(end.saturating_sub(start)) }
}

fn region_bytes(boot: &BootInfo) -> u64 {
    let mib = boot.option("region_mib").map_or(DEFAULT_REGION_MIB, |value| {
        parse_region_mib(value).unwrap_or_else(|| {
            let (low, high) = (REGION_MIB.start(), REGION_MIB.end());
            stop(format_args!(
                "region_mib={value} on the command line; give an even number from {low} to {high}"
            ))
        })
    });
    mib << 20
}

#[cfg(not(any(feature = "hostile", feature = "unmeasured")))]
fn start_tpm(_: &Launch<'_>) {
    start_tpm_now();
}

/// Nothing is measured, so no TPM is needed.
#[cfg(feature = "unmeasured")]
const fn start_tpm(_: &Launch<'_>) {}

#[cfg(feature = "hostile")]
fn start_tpm(launch: &Launch<'_>) {
    if launch.attack != Some(dolmen_loader::hostile::Attack::SkipTpmStartup) {
        start_tpm_now();
    }
}

#[cfg(not(feature = "unmeasured"))]
fn start_tpm_now() {
    match tpm::start() {
        Ok(()) => fact(format_args!("tpm started")),
        Err(error) => {
            stop(format_args!("the TPM does not start ({error:?}); switch the machine off and on again"))
        }
    }
}

#[cfg(feature = "hostile")]
fn attack(boot: &BootInfo) -> Option<dolmen_loader::hostile::Attack> {
    let word = boot.option("attack")?;
    let attack = dolmen_loader::hostile::Attack::named(word);
    if attack.is_none() {
        stop(format_args!("attack={word} on the command line; give one that the loader knows"));
    }
    attack
}
