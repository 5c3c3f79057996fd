//! Linux bzImage by the 64-bit boot protocol (Linux, `Documentation/arch/x86/boot.rst` and `zero-page.rst`).

use dolmen_arch::Gprs;
use dolmen_memory::{Gpa, GuestMemory, OutsideRam, PAGE_SIZE};

use super::place::{self, BOOT_INFO, CMDLINE, Copy, MapEntry, PAGE_TABLES, Placement};
use super::{Boot, Format, ImageError, ImageSource};
use crate::backend::{StartMode, StartState};

/// Enough of the image to hold the setup header.
const HEAD: usize = 0x290;
/// The setup header starts here, in the image and in the zero page.
const HEADER_START: usize = 0x1f1;
const OLDEST_PROTOCOL: u16 = 0x020c;
const SECTOR: u64 = 512;
const PARAGRAPH: u64 = 16;
const ENTRY_64: u64 = 0x200;
const LOADED_HIGH: u8 = 1 << 0;
const XLOAD_64_BIT: u16 = 1 << 0;
/// Kind of boot loader: none that is registered.
const LOADER_UNREGISTERED: u8 = 0xff;
/// More alignment than a kernel can want.
const MAX_ALIGNMENT: u64 = 1 << 30;

/// Offsets of setup header fields.
mod at {
    pub(super) const SETUP_SECTORS: usize = 0x1f1;
    pub(super) const SYSTEM_PARAGRAPHS: usize = 0x1f4;
    pub(super) const BOOT_FLAG: usize = 0x1fe;
    pub(super) const HEADER_LENGTH: usize = 0x201;
    pub(super) const MAGIC: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const LOADER: usize = 0x210;
    pub(super) const LOAD_FLAGS: usize = 0x211;
    pub(super) const CODE32_START: usize = 0x214;
    pub(super) const RAMDISK: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21c;
    pub(super) const CMDLINE: usize = 0x228;
    pub(super) const INITRD_MAX: usize = 0x22c;
    pub(super) const ALIGNMENT: usize = 0x230;
    pub(super) const RELOCATABLE: usize = 0x234;
    pub(super) const XLOAD_FLAGS: usize = 0x236;
    pub(super) const CMDLINE_SIZE: usize = 0x238;
    pub(super) const SETUP_DATA: usize = 0x250;
    pub(super) const PREFERRED: usize = 0x258;
    pub(super) const INIT_SIZE: usize = 0x260;
    // Beyond the header, in the zero page:
    pub(super) const RSDP: u64 = 0x070;
    pub(super) const MAP_ENTRIES: u64 = 0x1e8;
    pub(super) const MAP: u64 = 0x2d0;
}

/// What the setup header says, checked.
struct Kernel {
    head: [u8; HEAD],
    /// The protected-mode part in the image.
    offset: u64,
    length: u64,
    address: u64,
    init_size: u64,
    initrd_limit: u64,
    cmdline_limit: usize,
}

/// Loads the kernel, places the initial RAM disks one after another, fills the zero page.
pub(super) fn load(
    image: &(impl ImageSource + ?Sized),
    boot: &Boot<'_>,
    placement: &mut Placement,
    memory: &mut impl GuestMemory,
) -> Result<StartState, ImageError> {
    let kernel = parse(image)?;
    placement.claim(kernel.address, kernel.init_size)?;
    placement.copy(Copy {
        component: boot.kernel,
        offset: kernel.offset,
        to: Gpa::new(kernel.address),
        length: kernel.length,
    })?;
    let initrd = place_initrds(boot, placement, kernel.initrd_limit)?;
    place::write_cmdline(boot, kernel.cmdline_limit, memory)?;
    write_zero_page(&kernel, initrd, boot, memory)?;
    write_page_tables(memory)?;
    let mode = StartMode::Long64 { tables: Gpa::new(PAGE_TABLES) };
    let entry = kernel.address.saturating_add(ENTRY_64);
    let gprs = Gprs { rsi: BOOT_INFO, ..Gprs::default() };
    Ok(place::start_state(mode, entry, gprs, memory)?)
}

fn parse(image: &(impl ImageSource + ?Sized)) -> Result<Kernel, ImageError> {
    let mut head = [0; HEAD];
    image.read(0, &mut head).map_err(|_| ImageError::NotThisFormat(Format::Linux))?;
    let long = |at| field(&head, at).map(u32::from_le_bytes);
    let word = |at| field(&head, at).map(u16::from_le_bytes);
    if word(at::BOOT_FLAG)? != 0xaa55 || field(&head, at::MAGIC)? != *b"HdrS" {
        return Err(ImageError::NotThisFormat(Format::Linux));
    }
    let version = word(at::VERSION)?;
    if version < OLDEST_PROTOCOL {
        return Err(ImageError::OldProtocol(version));
    }
    let [load_flags] = field(&head, at::LOAD_FLAGS)?;
    if load_flags & LOADED_HIGH == 0 || word(at::XLOAD_FLAGS)? & XLOAD_64_BIT == 0 {
        return Err(ImageError::No64BitEntry);
    }
    let [setup_sectors] = field(&head, at::SETUP_SECTORS)?;
    let setup_sectors = if setup_sectors == 0 { 4 } else { u64::from(setup_sectors) };
    let offset = setup_sectors.saturating_add(1).saturating_mul(SECTOR);
    // The header counts whole paragraphs; the last one may be cut short at the end of the file.
    let rest = image.length().saturating_sub(offset);
    let length = match u64::from(long(at::SYSTEM_PARAGRAPHS)?).saturating_mul(PARAGRAPH) {
        length if length.saturating_sub(rest) < PARAGRAPH => length.min(rest),
        _ => return Err(ImageError::Truncated),
    };
    let init_size = u64::from(long(at::INIT_SIZE)?);
    if length <= ENTRY_64 {
        return Err(ImageError::Truncated);
    }
    let address = u64::from_le_bytes(field(&head, at::PREFERRED)?);
    let [is_relocatable] = field(&head, at::RELOCATABLE)?;
    // The alignment is of relocatable kernels only; others run at the preferred address and nowhere else.
    let alignment = if is_relocatable == 0 { 1 } else { u64::from(long(at::ALIGNMENT)?) };
    if init_size < length || !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        return Err(ImageError::SegmentSizes);
    }
    // A kernel below its preferred address would move itself there; above, it would waste RAM.
    let address = address.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
    Ok(Kernel {
        head,
        offset,
        length,
        address,
        init_size,
        initrd_limit: u64::from(long(at::INITRD_MAX)?).saturating_add(1),
        cmdline_limit: usize::try_from(long(at::CMDLINE_SIZE)?).unwrap_or(usize::MAX),
    })
}

/// Initial RAM disks lie in one piece, each at a multiple of four bytes; answers first address and length.
fn place_initrds(boot: &Boot<'_>, placement: &mut Placement, limit: u64) -> Result<(u64, u64), ImageError> {
    let padded = |length: u64| length.checked_next_multiple_of(4).unwrap_or(u64::MAX);
    let total = boot.files.iter().fold(0u64, |sum, file| sum.saturating_add(padded(file.length)));
    if total == 0 {
        return Ok((0, 0));
    }
    let start = placement.take_highest(total, limit)?;
    let mut next = start;
    for file in boot.files {
        placement.copy(Copy {
            component: file.component,
            offset: 0,
            to: Gpa::new(next),
            length: file.length,
        })?;
        next = next.saturating_add(padded(file.length));
    }
    Ok((start, total))
}

fn write_zero_page(
    kernel: &Kernel,
    initrd: (u64, u64),
    boot: &Boot<'_>,
    memory: &mut impl GuestMemory,
) -> Result<(), ImageError> {
    let low = |value: u64| u32::try_from(value).map_err(|_| ImageError::NoRoom(value));
    let mut header = kernel.head;
    let [length] = field(&header, at::HEADER_LENGTH)?;
    let end = at::MAGIC.saturating_add(usize::from(length)).min(HEAD);
    set(&mut header, at::LOADER, &[LOADER_UNREGISTERED]);
    set(&mut header, at::LOAD_FLAGS, &[LOADED_HIGH]);
    set(&mut header, at::CODE32_START, &low(kernel.address)?.to_le_bytes());
    set(&mut header, at::RAMDISK, &low(initrd.0)?.to_le_bytes());
    set(&mut header, at::RAMDISK_SIZE, &low(initrd.1)?.to_le_bytes());
    set(&mut header, at::CMDLINE, &low(CMDLINE)?.to_le_bytes());
    set(&mut header, at::SETUP_DATA, &[0; 8]);
    let at = |offset: u64| Gpa::new(BOOT_INFO.saturating_add(offset));
    let header_offset = u64::try_from(HEADER_START).map_err(|_| ImageError::NoLowRam)?;
    memory.write(at(header_offset), header.get(HEADER_START..end).ok_or(ImageError::Truncated)?)?;
    memory.write(at(at::RSDP), &boot.rsdp.get().to_le_bytes())?;
    let mut entries = 0u8;
    for (MapEntry { start, length, kind }, entry_at) in
        place::memory_map(boot.ram).into_iter().filter(|e| e.length > 0).zip((at::MAP..).step_by(20))
    {
        memory.write(at(entry_at), &start.to_le_bytes())?;
        memory.write(at(entry_at.saturating_add(8)), &length.to_le_bytes())?;
        memory.write(at(entry_at.saturating_add(16)), &kind.to_le_bytes())?;
        entries = entries.saturating_add(1);
    }
    memory.write(at(at::MAP_ENTRIES), &[entries])?;
    Ok(())
}

/// Maps the low 4 GiB to themselves with 2 MiB pages, which every processor in long mode has.
fn write_page_tables(memory: &mut impl GuestMemory) -> Result<(), OutsideRam> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    const LARGE_SIZE: u64 = 0x20_0000;
    let table = |number: u64| PAGE_TABLES.saturating_add(number.saturating_mul(PAGE_SIZE));
    memory.write(Gpa::new(table(0)), &(table(1) | PRESENT_WRITABLE).to_le_bytes())?;
    for directory in 0..4u64 {
        let link = table(directory.saturating_add(2)) | PRESENT_WRITABLE;
        let slot = table(1).saturating_add(directory.saturating_mul(8));
        memory.write(Gpa::new(slot), &link.to_le_bytes())?;
    }
    for (slot, page) in (table(2)..table(6)).step_by(8).zip(0u64..) {
        let entry = page.saturating_mul(LARGE_SIZE) | LARGE | PRESENT_WRITABLE;
        memory.write(Gpa::new(slot), &entry.to_le_bytes())?;
    }
    Ok(())
}

fn field<const N: usize>(head: &[u8; HEAD], at: usize) -> Result<[u8; N], ImageError> {
    let bytes = head.get(at..at.saturating_add(N)).ok_or(ImageError::Truncated)?;
    bytes.try_into().map_err(|_| ImageError::Truncated)
}

fn set(head: &mut [u8; HEAD], at: usize, bytes: &[u8]) {
    if let Some(place) = head.get_mut(at..at.saturating_add(bytes.len())) {
        place.copy_from_slice(bytes);
    }
}
