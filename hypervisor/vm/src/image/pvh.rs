//! ELF kernels with the PVH entry note (Xen, `docs/misc/pvh.pandoc` and `hvm/start_info.h`).

use dolmen_arch::Gprs;
use dolmen_memory::{Gpa, GuestMemory};
use zerocopy::{Immutable, IntoBytes};

use super::elf::{Elf, Kind, Segment};
use super::place::{self, BOOT_INFO, CMDLINE, CMDLINE_LIMIT, Copy, MEMORY_MAP, MODULES, Placement};
use super::{Boot, Format, ImageError, ImageSource};
use crate::backend::{StartMode, StartState};

const NOTE_NAME: [u8; 4] = *b"Xen\0";
/// Type of the note whose contents is the physical address to enter at, in four or eight bytes.
const NOTE_ENTRY: u32 = 18;
/// Notes that are looked at, in each note segment.
const MAX_NOTES: usize = 64;
const MAGIC: u32 = 0x336e_c578;

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    module_count: u32,
    modules: u64,
    cmdline: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Module {
    address: u64,
    length: u64,
    cmdline: u64,
    reserved: u64,
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct Range {
    start: u64,
    length: u64,
    kind: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<StartInfo>() == 56 && size_of::<Module>() == 32 && size_of::<Range>() == 24);

/// Loads the segments, places the modules, fills the start info.
pub(super) fn load(
    image: &(impl ImageSource + ?Sized),
    boot: &Boot<'_>,
    placement: &mut Placement,
    memory: &mut impl GuestMemory,
) -> Result<StartState, ImageError> {
    let elf = Elf::parse(image, Format::Pvh)?;
    let entry = find_entry(image, &elf)?;
    load_segments(image, &elf, entry, boot.kernel, placement)?;
    place::write_cmdline(boot, CMDLINE_LIMIT, memory)?;
    let mut module_count = 0;
    for ((file, at), index) in boot.files.iter().zip((MODULES..).step_by(size_of::<Module>())).zip(0..) {
        let address = placement.place_file(*file, u64::MAX)?;
        // "The string may be absent": its address is zero then.
        let cmdline = if file.text.is_empty() { 0 } else { place::write_text(*file, index, memory)? };
        let module = Module { address, length: file.length, cmdline, reserved: 0 };
        memory.write(Gpa::new(at), module.as_bytes())?;
        module_count = u32::saturating_add(module_count, 1);
    }
    let mut memory_map_entries = 0;
    for (range, at) in place::memory_map(boot.ram)
        .into_iter()
        .filter(|range| range.length > 0)
        .zip((MEMORY_MAP..).step_by(size_of::<Range>()))
    {
        let range = Range { start: range.start, length: range.length, kind: range.kind, reserved: 0 };
        memory.write(Gpa::new(at), range.as_bytes())?;
        memory_map_entries = u32::saturating_add(memory_map_entries, 1);
    }
    let info = StartInfo {
        magic: MAGIC,
        version: 1,
        flags: 0,
        module_count,
        modules: if module_count == 0 { 0 } else { MODULES },
        cmdline: CMDLINE,
        rsdp: boot.rsdp.get(),
        memory_map: MEMORY_MAP,
        memory_map_entries,
        reserved: 0,
    };
    memory.write(Gpa::new(BOOT_INFO), info.as_bytes())?;
    let gprs = Gprs { rbx: BOOT_INFO, ..Gprs::default() };
    Ok(place::start_state(StartMode::Flat32, entry, gprs, memory)?)
}

/// Claims and copies every loadable segment; `entry` must be in one of them.
pub(super) fn load_segments(
    image: &(impl ImageSource + ?Sized),
    elf: &Elf,
    entry: u64,
    component: usize,
    placement: &mut Placement,
) -> Result<(), ImageError> {
    let (mut is_any, mut has_entry) = (false, false);
    for segment in elf.segments(image) {
        let segment: Segment = segment?;
        if segment.kind != Kind::Load || segment.memory_bytes == 0 {
            continue;
        }
        is_any = true;
        has_entry |= segment.contains(entry);
        placement.claim(segment.address, segment.memory_bytes)?;
        placement.copy(Copy {
            component,
            offset: segment.offset,
            to: Gpa::new(segment.address),
            length: segment.file_bytes,
        })?;
    }
    match (is_any, has_entry) {
        (false, _) => Err(ImageError::NothingToLoad),
        (true, false) => Err(ImageError::EntryOutside(entry)),
        (true, true) => Ok(()),
    }
}

fn find_entry(image: &(impl ImageSource + ?Sized), elf: &Elf) -> Result<u64, ImageError> {
    for segment in elf.segments(image) {
        let segment = segment?;
        if segment.kind == Kind::Note
            && let Some(entry) = entry_note(image, &segment)?
        {
            return Ok(entry);
        }
    }
    Err(ImageError::NoEntryNote)
}

/// Looks for the entry note among the notes of a segment. Each note moves on by its twelve-byte header at
/// least, and their number is bounded.
fn entry_note(image: &(impl ImageSource + ?Sized), segment: &Segment) -> Result<Option<u64>, ImageError> {
    const HEADER: u64 = 12;
    // Notes lie at multiples of four, but of eight in segments that say so.
    let multiple = if segment.alignment == 8 { 8 } else { 4 };
    let padded = |offset: u64, length: u32| {
        offset.saturating_add(u64::from(length)).checked_next_multiple_of(multiple).unwrap_or(u64::MAX)
    };
    let end = segment.offset.saturating_add(segment.file_bytes);
    let mut at = segment.offset;
    for _ in 0..MAX_NOTES {
        if at.saturating_add(HEADER) > end {
            break;
        }
        let mut header = [0; 12];
        image.read(at, &mut header)?;
        let [a, b, c, d, e, f, g, h, i, j, k, l] = header;
        let (name, contents, kind) = (
            u32::from_le_bytes([a, b, c, d]),
            u32::from_le_bytes([e, f, g, h]),
            u32::from_le_bytes([i, j, k, l]),
        );
        let name_at = at.saturating_add(HEADER);
        let contents_at = at.saturating_add(padded(HEADER, name));
        let contents_end = contents_at.saturating_add(u64::from(contents));
        if contents_end > end {
            return Err(ImageError::Truncated);
        }
        at = contents_at.saturating_add(padded(0, contents));
        if name == 4 && kind == NOTE_ENTRY && contents >= 4 {
            let (mut found_name, mut entry) = ([0; 4], [0; 8]);
            image.read(name_at, &mut found_name)?;
            let bytes = if contents >= 8 { 8 } else { 4 };
            image.read(contents_at, entry.get_mut(..bytes).unwrap_or_default())?;
            if found_name == NOTE_NAME {
                return Ok(Some(u64::from_le_bytes(entry)));
            }
        }
    }
    Ok(None)
}
