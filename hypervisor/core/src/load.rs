//! Puts a measured image into the guest's RAM, as its format promises.

use alloc::vec;

use dolmen_drtm::handoff::Extent;
use dolmen_machine::own::{GuestRam, Machine};
use dolmen_memory::{Gpa, GuestMemory, Hpa};
use dolmen_vm::acpi::{self, TablesConfig};
use dolmen_vm::backend::StartState;
use dolmen_vm::image::{self, Boot, File, ImageError, ImageSource, OutsideImage};
use dolmen_vm::layout::RamLayout;

use crate::measure::MeasuredGuest;
use crate::stop::Reason;

/// Bytes that are copied at a time.
const PIECE: usize = 0x1_0000;

/// Loads the guest's components; answers how its processor starts.
pub(crate) fn guest(
    machine: &Machine,
    guest: &MeasuredGuest,
    ram: &mut GuestRam,
) -> Result<StartState, Reason> {
    let config = &guest.config;
    let tables = TablesConfig { vcpus: config.vcpus, second_uart: config.has_second_uart() };
    let rsdp = acpi::write_tables(ram, &tables)
        .map_err(|_| Reason::Unsupported("too little memory for ACPI tables"))?;
    let format = config.format().ok_or(Reason::Unsupported("an unknown image format"))?;
    // The manifest's check puts the kernel first.
    let (kernel, rest) = guest.components.split_first().ok_or(Reason::Components)?;
    let mut files = [File { component: 0, length: 0, text: b"" }; image::MAX_COMPONENTS];
    let mut count = 0usize;
    let described = config.components().iter().skip(1);
    for (((component, at), described), slot) in (1..).zip(rest).zip(described).zip(files.iter_mut()) {
        *slot = File { component, length: at.length, text: described.text() };
        count = component;
    }
    let boot = Boot {
        ram: RamLayout::new(config.memory),
        kernel: 0,
        files: files.get(..count).ok_or(Reason::Components)?,
        cmdline: config.cmdline(),
        rsdp,
    };
    let plan = image::load(format, &Staged { machine, at: *kernel }, &boot, ram).map_err(Reason::Image)?;
    let mut piece = vec![0; PIECE];
    for copy in plan.copies() {
        let from = guest.components.get(copy.component).ok_or(Reason::Components)?;
        let part = part_of(*from, copy.offset, copy.length).ok_or(Reason::Image(ImageError::Truncated))?;
        copy_in(machine, part, copy.to, ram, &mut piece)?;
    }
    Ok(plan.start)
}

fn part_of(whole: Extent, offset: u64, length: u64) -> Option<Extent> {
    let is_inside = offset.checked_add(length)? <= whole.length;
    is_inside.then_some(Extent { base: whole.base.checked_add(offset)?, length })
}

fn copy_in(
    machine: &Machine,
    from: Extent,
    to: Gpa,
    ram: &mut GuestRam,
    piece: &mut [u8],
) -> Result<(), Reason> {
    let mut done = 0u64;
    while done < from.length {
        let left = usize::try_from(from.length.wrapping_sub(done)).unwrap_or(usize::MAX);
        let size = left.min(piece.len());
        let part = piece.get_mut(..size).unwrap_or_default();
        machine.read(Hpa::new(from.base.wrapping_add(done)), part)?;
        let outside = Reason::Image(ImageError::OutsideRam { start: to.get(), length: from.length });
        let Some(at) = to.checked_add(done) else { return Err(outside) };
        ram.write(at, part).map_err(|_| outside)?;
        done = done.wrapping_add(u64::try_from(size).unwrap_or(u64::MAX));
    }
    Ok(())
}

/// A component as the loader staged it.
struct Staged<'a> {
    machine: &'a Machine,
    at: Extent,
}

impl ImageSource for Staged<'_> {
    fn length(&self) -> u64 {
        self.at.length
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), OutsideImage> {
        let length = u64::try_from(into.len()).map_err(|_| OutsideImage)?;
        if length == 0 {
            return if offset <= self.at.length { Ok(()) } else { Err(OutsideImage) };
        }
        let part = part_of(self.at, offset, length).ok_or(OutsideImage)?;
        self.machine.read(Hpa::new(part.base), into).map_err(|_| OutsideImage)
    }
}
