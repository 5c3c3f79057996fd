//! Multiboot 1 kernels (Multiboot specification 0.6.96): ELF32, or any file with load addresses in its header.

use dolmen_arch::Gprs;
use dolmen_memory::{Gpa, GuestMemory};
use zerocopy::{Immutable, IntoBytes};

use super::elf::{Class, Elf};
use super::place::{
    self, BOOT_INFO, CMDLINE, CMDLINE_LIMIT, Copy, LOADER_NAME, MEMORY_MAP, MODULES, Placement,
};
use super::{Boot, Format, ImageError, ImageSource, bios, pvh};
use crate::backend::{StartMode, StartState};
use crate::layout::CONVENTIONAL_END;

const HEADER_MAGIC: u32 = 0x1bad_b002;
const LOADER_MAGIC: u64 = 0x2bad_b002;
/// The header lies in this much of the image, whole.
const SEARCHED: u64 = 8192;

/// Modules at page boundaries, which they always are; memory information, which there always is.
const FLAGS_OFFERED: u32 = 0b11;
/// Load addresses in the header.
const FLAG_ADDRESSES: u32 = 1 << 16;
/// Flags that a loader must refuse if it does not know them.
const FLAGS_MUST: u32 = 0xffff;

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Information {
    flags: u32,
    memory_lower: u32,
    memory_upper: u32,
    boot_device: u32,
    cmdline: u32,
    module_count: u32,
    modules: u32,
    symbols: [u32; 4],
    map_length: u32,
    map: u32,
    drives: [u32; 2],
    config_table: u32,
    loader_name: u32,
}

/// Memory, command line, modules, memory map, name of the loader.
const INFORMATION_FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Module {
    start: u32,
    end: u32,
    cmdline: u32,
    reserved: u32,
}

/// A range of the memory map; its size does not count itself.
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct MapRange {
    size: u32,
    start: [u8; 8],
    length: [u8; 8],
    kind: u32,
}

/// A header, and where it was found.
struct Header {
    at: u64,
    flags: u32,
    /// Header, load, load end, BSS end, entry.
    addresses: [u32; 5],
}

/// Loads the kernel, places the modules, fills the Multiboot information.
pub(super) fn load(
    image: &(impl ImageSource + ?Sized),
    boot: &Boot<'_>,
    placement: &mut Placement,
    memory: &mut impl GuestMemory,
) -> Result<StartState, ImageError> {
    let header = find_header(image)?;
    let refused = header.flags & FLAGS_MUST & !FLAGS_OFFERED;
    if refused != 0 {
        return Err(ImageError::UnsupportedFlags(refused));
    }
    let entry = if header.flags & FLAG_ADDRESSES != 0 {
        load_flat(image, &header, boot.kernel, placement)?
    } else {
        let elf = Elf::parse(image, Format::Multiboot)?;
        if elf.class != Class::Bits32 {
            return Err(ImageError::WrongElf);
        }
        let entry = elf.entry_in_memory(image)?;
        pvh::load_segments(image, &elf, entry, boot.kernel, placement)?;
        entry
    };
    bios::write(memory)?;
    place::write_cmdline(boot, CMDLINE_LIMIT, memory)?;
    write_information(boot, placement, memory)?;
    let gprs = Gprs { rax: LOADER_MAGIC, rbx: BOOT_INFO, ..Gprs::default() };
    Ok(place::start_state(StartMode::Flat32, entry, gprs, memory)?)
}

/// The first header with a right checksum, at a multiple of four.
fn find_header(image: &(impl ImageSource + ?Sized)) -> Result<Header, ImageError> {
    const FIRST_PART: u64 = 12;
    const ADDRESSES: u64 = 20;
    let end = image.length().min(SEARCHED);
    let mut at = 0;
    while at <= end.saturating_sub(FIRST_PART) && end >= FIRST_PART {
        let mut words = [[0; 4]; 3];
        image.read(at, words.as_flattened_mut())?;
        let [magic, flags, checksum] = words.map(u32::from_le_bytes);
        if magic == HEADER_MAGIC && magic.wrapping_add(flags).wrapping_add(checksum) == 0 {
            let mut addresses = [[0; 4]; 5];
            if flags & FLAG_ADDRESSES != 0 {
                if at.saturating_add(FIRST_PART).saturating_add(ADDRESSES) > end {
                    return Err(ImageError::Truncated);
                }
                image.read(at.saturating_add(FIRST_PART), addresses.as_flattened_mut())?;
            }
            return Ok(Header { at, flags, addresses: addresses.map(u32::from_le_bytes) });
        }
        at = at.saturating_add(4);
    }
    Err(ImageError::NotThisFormat(Format::Multiboot))
}

/// Loads by the header's addresses (specification, 3.1.3); answers the entry point.
fn load_flat(
    image: &(impl ImageSource + ?Sized),
    header: &Header,
    component: usize,
    placement: &mut Placement,
) -> Result<u64, ImageError> {
    let [own, load, load_end, bss_end, entry] = header.addresses.map(u64::from);
    let before = own.checked_sub(load).ok_or(ImageError::LoadAddresses)?;
    let offset = header.at.checked_sub(before).ok_or(ImageError::LoadAddresses)?;
    let rest = image.length().saturating_sub(offset);
    let length =
        if load_end == 0 { rest } else { load_end.checked_sub(load).ok_or(ImageError::LoadAddresses)? };
    if length > rest {
        return Err(ImageError::Truncated);
    }
    let total = if bss_end == 0 {
        length
    } else {
        bss_end.checked_sub(load).filter(|total| *total >= length).ok_or(ImageError::LoadAddresses)?
    };
    if entry.checked_sub(load).is_none_or(|within| within >= total) {
        return Err(ImageError::EntryOutside(entry));
    }
    placement.claim(load, total)?;
    placement.copy(Copy { component, offset, to: Gpa::new(load), length })?;
    Ok(entry)
}

fn write_information(
    boot: &Boot<'_>,
    placement: &mut Placement,
    memory: &mut impl GuestMemory,
) -> Result<(), ImageError> {
    let low = |value: u64| u32::try_from(value).map_err(|_| ImageError::NoLowRam);
    let mut module_count = 0u32;
    for ((file, at), index) in boot.files.iter().zip((MODULES..).step_by(size_of::<Module>())).zip(0..) {
        let start = placement.place_file(*file, u64::MAX)?;
        let end = low(start.saturating_add(file.length))?;
        let cmdline = low(place::write_text(*file, index, memory)?)?;
        let module = Module { start: low(start)?, end, cmdline, reserved: 0 };
        memory.write(Gpa::new(at), module.as_bytes())?;
        module_count = module_count.saturating_add(1);
    }
    let mut map_length = 0u32;
    for range in place::memory_map(boot.ram).into_iter().filter(|range| range.length > 0) {
        let at = Gpa::new(MEMORY_MAP.saturating_add(u64::from(map_length)));
        let range = MapRange {
            size: 20,
            start: range.start.to_le_bytes(),
            length: range.length.to_le_bytes(),
            kind: range.kind,
        };
        memory.write(at, range.as_bytes())?;
        map_length = map_length.saturating_add(24);
    }
    memory.write(Gpa::new(LOADER_NAME), b"Dolmen\0")?;
    let information = Information {
        flags: INFORMATION_FLAGS,
        memory_lower: low(CONVENTIONAL_END / 1024)?,
        memory_upper: low(boot.ram.low().end.saturating_sub(0x10_0000) / 1024)?,
        boot_device: 0,
        cmdline: low(CMDLINE)?,
        module_count,
        modules: low(MODULES)?,
        symbols: [0; 4],
        map_length,
        map: low(MEMORY_MAP)?,
        drives: [0; 2],
        config_table: 0,
        loader_name: low(LOADER_NAME)?,
    };
    memory.write(Gpa::new(BOOT_INFO), information.as_bytes())?;
    Ok(())
}
