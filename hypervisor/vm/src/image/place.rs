//! Finding room in guest RAM, and the structures that several boot protocols share.

use dolmen_arch::Gprs;
use dolmen_memory::{Gpa, GuestMemory, OutsideRam, PAGE_SIZE};

use super::{Boot, File, ImageError};
use crate::backend::{StartMode, StartState};
use crate::device::power;
use crate::layout::{CONVENTIONAL_END, IO_APIC_BASE, LOCAL_APIC_BASE, RESET_VECTOR, RamLayout};
use crate::manifest::MAX_TEXT;

/// Images and modules lie above; below are the structures of the boot protocols and the ACPI tables.
const FIRST_FREE: u64 = 0x10_0000;
/// Global descriptor table.
pub(super) const GDT: u64 = 0x1000;
/// Zero page, start info or Multiboot information.
pub(super) const BOOT_INFO: u64 = 0x2000;
/// Memory map, where it is a structure of its own.
pub(super) const MEMORY_MAP: u64 = 0x3000;
/// List of modules.
pub(super) const MODULES: u64 = 0x4000;
/// Texts of the modules, each with room for the longest.
pub(super) const TEXTS: u64 = 0x4100;
/// Room for one text and its terminator.
const TEXT_ROOM: usize = MAX_TEXT + 1;
/// Name of the boot loader.
pub(super) const LOADER_NAME: u64 = 0x5000;
/// Page tables: one of level 4, one of level 3, four of level 2.
pub(super) const PAGE_TABLES: u64 = 0x8000;
/// Command line.
pub(super) const CMDLINE: u64 = 0x1_0000;
/// Longest command line, without its terminator.
pub(super) const CMDLINE_LIMIT: usize = 0xefff;

/// Selectors that the Linux boot protocol prescribes; the others leave them open.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const CODE_64: u64 = 0x00af_9b00_0000_ffff;
const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
const DATA_32: u64 = 0x00cf_9300_0000_ffff;

const MAX_COPIES: usize = 32;

/// Bytes of a component that belong into guest RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    /// Which component.
    pub component: usize,
    /// First byte in it.
    pub offset: u64,
    /// Where it goes.
    pub to: Gpa,
    /// How many bytes.
    pub length: u64,
}

/// What is left to do to boot an image.
#[derive(Clone, Debug)]
pub struct Plan {
    copies: [Copy; MAX_COPIES],
    count: usize,
    /// How the first processor starts.
    pub start: StartState,
}

impl Plan {
    /// The copies to make. They do not overlap, and all are in RAM.
    pub fn copies(&self) -> &[Copy] {
        self.copies.get(..self.count).unwrap_or_default()
    }
}

/// A range of a guest's memory map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MapEntry {
    pub(super) start: u64,
    pub(super) length: u64,
    /// As the firmware call E820h codes it: 1 for RAM, 2 for reserved.
    pub(super) kind: u32,
}

const KIND_RAM: u32 = 1;
const KIND_RESERVED: u32 = 2;

/// The memory map that every boot protocol gets. The last entry is empty in a guest with little RAM.
pub(super) fn memory_map(ram: RamLayout) -> [MapEntry; 6] {
    let entry = |start: u64, end: u64, kind| MapEntry { start, length: end.saturating_sub(start), kind };
    let page = |start: u64| entry(start, start.saturating_add(PAGE_SIZE), KIND_RESERVED);
    [
        entry(0, CONVENTIONAL_END, KIND_RAM),
        entry(CONVENTIONAL_END, FIRST_FREE, KIND_RESERVED),
        entry(FIRST_FREE, ram.low().end, KIND_RAM),
        page(IO_APIC_BASE),
        page(LOCAL_APIC_BASE),
        entry(ram.high().start, ram.high().end, KIND_RAM),
    ]
}

#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    start: u64,
    end: u64,
}

/// RAM that is being filled.
pub(super) struct Placement {
    end: u64,
    taken: [Taken; MAX_COPIES],
    copies: [Copy; MAX_COPIES],
    taken_count: usize,
    copy_count: usize,
}

impl Placement {
    pub(super) fn new(ram: RamLayout) -> Self {
        Self {
            end: ram.low().end,
            taken: [Taken::default(); MAX_COPIES],
            copies: [Copy::default(); MAX_COPIES],
            taken_count: 0,
            copy_count: 0,
        }
    }

    pub(super) const fn into_plan(self, start: StartState) -> Plan {
        Plan { copies: self.copies, count: self.copy_count, start }
    }

    /// Takes exactly these addresses.
    pub(super) fn claim(&mut self, start: u64, length: u64) -> Result<(), ImageError> {
        let end = start.checked_add(length).filter(|end| start >= FIRST_FREE && *end <= self.end);
        let end = end.ok_or(ImageError::OutsideRam { start, length })?;
        if self.taken_in(start, end).is_some() {
            return Err(ImageError::Overlap { start });
        }
        let slot = self.taken.get_mut(self.taken_count).ok_or(ImageError::TooManyFiles)?;
        *slot = Taken { start, end };
        self.taken_count = self.taken_count.saturating_add(1);
        Ok(())
    }

    /// Notes a copy; its target must have been claimed.
    pub(super) fn copy(&mut self, copy: Copy) -> Result<(), ImageError> {
        if copy.length == 0 {
            return Ok(());
        }
        let slot = self.copies.get_mut(self.copy_count).ok_or(ImageError::TooManyFiles)?;
        *slot = copy;
        self.copy_count = self.copy_count.saturating_add(1);
        Ok(())
    }

    /// Takes the highest free pages below `limit`; answers where they start.
    pub(super) fn take_highest(&mut self, length: u64, limit: u64) -> Result<u64, ImageError> {
        let mut end = self.end.min(limit);
        // Each round gives up on the space above another taken range, so there are at most that many.
        for _ in 0..=self.taken_count {
            let start = end.checked_sub(length).map(|start| start & !(PAGE_SIZE - 1));
            let start = start.filter(|start| *start >= FIRST_FREE).ok_or(ImageError::NoRoom(length))?;
            match self.taken_in(start, end) {
                Some(taken) => end = taken.start,
                None => {
                    self.claim(start, length)?;
                    return Ok(start);
                }
            }
        }
        Err(ImageError::NoRoom(length))
    }

    /// Places a whole component as high as it goes.
    pub(super) fn place_file(&mut self, file: File<'_>, limit: u64) -> Result<u64, ImageError> {
        let start = self.take_highest(file.length, limit)?;
        self.copy(Copy { component: file.component, offset: 0, to: Gpa::new(start), length: file.length })?;
        Ok(start)
    }

    fn taken_in(&self, start: u64, end: u64) -> Option<Taken> {
        let taken = self.taken.get(..self.taken_count).unwrap_or_default();
        taken.iter().copied().find(|taken| taken.start < end && start < taken.end)
    }
}

/// Writes what a guest finds that jumps to the firmware's reset vector, as Linux does to restart a machine with
/// hardware-reduced ACPI: 16-bit code that resets through the port.
pub(super) fn write_reset_vector(memory: &mut impl GuestMemory) -> Result<(), OutsideRam> {
    let [port_low, port_high] = power::RESET_CONTROL.to_le_bytes();
    let code = [
        [0xba, port_low, port_high],      // mov dx, port
        [0xb0, power::RESET_VALUE, 0xee], // mov al, value; out dx, al
        [0xf4, 0xeb, 0xfd],               // hlt; jmp back to it
    ];
    memory.write(Gpa::new(RESET_VECTOR), code.as_flattened())
}

/// Writes the command line with its terminator.
pub(super) fn write_cmdline(
    boot: &Boot<'_>,
    limit: usize,
    memory: &mut impl GuestMemory,
) -> Result<(), ImageError> {
    let (length, limit) = (boot.cmdline.len(), limit.min(CMDLINE_LIMIT));
    if length > limit {
        return Err(ImageError::CmdlineTooLong { length, limit });
    }
    let end = CMDLINE.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
    memory.write(Gpa::new(CMDLINE), boot.cmdline)?;
    memory.write(Gpa::new(end), &[0])?;
    Ok(())
}

/// Writes the text beside the module `index` with its terminator; answers where it is.
pub(super) fn write_text(
    file: File<'_>,
    index: u64,
    memory: &mut impl GuestMemory,
) -> Result<u64, ImageError> {
    let mut bytes = [0; TEXT_ROOM];
    let room = bytes.get_mut(..MAX_TEXT).and_then(|room| room.get_mut(..file.text.len()));
    room.ok_or(ImageError::TextTooLong(file.text.len()))?.copy_from_slice(file.text);
    let room = u64::try_from(TEXT_ROOM).unwrap_or(u64::MAX);
    let at = TEXTS.saturating_add(index.saturating_mul(room));
    memory.write(Gpa::new(at), &bytes)?;
    Ok(at)
}

/// The first state of a processor that starts at `entry`; writes the descriptor table for it.
pub(super) fn start_state(
    mode: StartMode,
    entry: u64,
    gprs: Gprs,
    memory: &mut impl GuestMemory,
) -> Result<StartState, OutsideRam> {
    let code = match mode {
        StartMode::Long64 { .. } => CODE_64,
        StartMode::Flat32 => CODE_32,
    };
    for (at, descriptor) in (GDT..).step_by(8).zip([0, 0, code, DATA_32]) {
        memory.write(Gpa::new(at), &descriptor.to_le_bytes())?;
    }
    Ok(StartState {
        mode,
        entry,
        gprs,
        code_selector: CODE_SELECTOR,
        data_selector: DATA_SELECTOR,
        gdt_base: Gpa::new(GDT),
        gdt_limit: 31,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn placement() -> Placement {
        Placement::new(RamLayout::new(0x100_0000))
    }

    #[test]
    fn files_go_to_the_highest_free_pages() {
        let mut placement = placement();
        placement.claim(0xf0_0000, 0x1000).unwrap();
        assert_eq!(placement.take_highest(0x1001, u64::MAX), Ok(0xff_e000));
        assert_eq!(placement.take_highest(0xf_f000, u64::MAX), Ok(0xe0_1000), "not where it would overlap");
        assert_eq!(placement.take_highest(0x1000, 0x20_0000), Ok(0x1f_f000));
    }

    #[test]
    fn nothing_goes_below_1_mib_or_beyond_ram() {
        let mut placement = placement();
        for (start, length) in [(0xf_f000, 0x2000), (0xff_f000, 0x1001), (u64::MAX, 2), (0x100_0000, 1)] {
            assert_eq!(placement.claim(start, length), Err(ImageError::OutsideRam { start, length }));
        }
        assert_eq!(placement.take_highest(0xf0_0001, u64::MAX), Err(ImageError::NoRoom(0xf0_0001)));
        assert_eq!(placement.take_highest(u64::MAX, u64::MAX), Err(ImageError::NoRoom(u64::MAX)));
    }

    proptest! {
        #[test]
        fn what_is_taken_never_overlaps(
            requests in prop::collection::vec((any::<bool>(), 0u64..0x110_0000, 0u64..0x80_0000), 0..40)
        ) {
            let mut placement = placement();
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for (exact, at, length) in requests {
                let start = if exact {
                    placement.claim(at, length).ok().map(|()| at)
                } else {
                    placement.take_highest(length, at).ok()
                };
                if let Some(start) = start {
                    prop_assert!(start >= 0x10_0000 && start + length <= 0x100_0000);
                    prop_assert!(taken.iter().all(|(s, e)| start + length <= *s || *e <= start || length == 0));
                    taken.push((start, start + length));
                }
            }
        }
    }
}
