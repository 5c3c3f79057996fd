//! Puts a measured image into the guest's RAM, as its format promises: all at once while the core boots, part by
//! part when a guest starts later.

use dolmen_drtm::handoff::Extent;
use dolmen_machine::own::{GuestRam, StagedFiles};
use dolmen_memory::{Gpa, GuestMemory, Hpa};
use dolmen_vm::acpi::{self, TablesConfig};
use dolmen_vm::backend::StartState;
use dolmen_vm::image::{self, Boot, File, ImageError, ImageSource, OutsideImage, Plan};
use dolmen_vm::layout::RamLayout;

use crate::measure::MeasuredGuest;
use crate::stop::Reason;

/// An image that is being put into RAM.
pub(crate) struct Loading {
    plan: Plan,
    /// Which of the plan's copies is made.
    copy: usize,
    /// Bytes of it that are copied.
    done: u64,
}

/// Loads the guest's components; answers how its processor starts. `piece` is where bytes pass through.
pub(crate) fn guest(
    files: &StagedFiles,
    guest: &MeasuredGuest,
    ram: &GuestRam,
    piece: &mut [u8],
) -> Result<StartState, Reason> {
    let mut loading = Loading::begin(files, guest, ram)?;
    loop {
        if let Some(start) = loading.go_on(files, guest, ram, piece)? {
            return Ok(start);
        }
    }
}

impl Loading {
    /// Writes what the boot protocol wants, and plans the copies.
    pub(crate) fn begin(files: &StagedFiles, guest: &MeasuredGuest, ram: &GuestRam) -> Result<Self, Reason> {
        let mut ram = ram.in_sight();
        let config = &guest.config;
        let tables = TablesConfig { vcpus: config.vcpus, second_uart: config.has_second_uart() };
        let rsdp = acpi::write_tables(&mut ram, &tables)
            .map_err(|_| Reason::Unsupported("too little memory for ACPI tables"))?;
        let format = config.format().ok_or(Reason::Unsupported("an unknown image format"))?;
        // The manifest's check puts the kernel first.
        let (kernel, rest) = guest.components.split_first().ok_or(Reason::Components)?;
        let mut list = [File { component: 0, length: 0, text: b"" }; image::MAX_COMPONENTS];
        let mut count = 0usize;
        let described = config.components().iter().skip(1);
        for (((component, at), described), slot) in (1..).zip(rest).zip(described).zip(list.iter_mut()) {
            *slot = File { component, length: at.length, text: described.text() };
            count = component;
        }
        let boot = Boot {
            ram: RamLayout::new(config.memory),
            kernel: 0,
            files: list.get(..count).ok_or(Reason::Components)?,
            cmdline: config.cmdline(),
            rsdp,
        };
        let image = Staged { files, at: *kernel };
        let plan = image::load(format, &image, &boot, &mut ram).map_err(Reason::Image)?;
        Ok(Self { plan, copy: 0, done: 0 })
    }

    /// Makes the next part of the copies, as long as `piece`; how the processor starts, when all are made.
    pub(crate) fn go_on(
        &mut self,
        files: &StagedFiles,
        guest: &MeasuredGuest,
        ram: &GuestRam,
        piece: &mut [u8],
    ) -> Result<Option<StartState>, Reason> {
        let Some(copy) = self.plan.copies().get(self.copy) else { return Ok(Some(self.plan.start)) };
        let left = usize::try_from(copy.length.saturating_sub(self.done)).unwrap_or(usize::MAX);
        let size = left.min(piece.len());
        if size > 0 {
            let part = piece.get_mut(..size).unwrap_or_default();
            let from = guest.components.get(copy.component).ok_or(Reason::Components)?;
            let offset = copy.offset.checked_add(self.done).ok_or(Reason::Image(ImageError::Truncated))?;
            read(files, *from, offset, part).map_err(|OutsideImage| Reason::Image(ImageError::Truncated))?;
            let outside = Reason::Image(ImageError::OutsideRam { start: copy.to.get(), length: copy.length });
            let to: Option<Gpa> = copy.to.checked_add(self.done);
            if to.is_none_or(|to| ram.in_sight().write(to, part).is_err()) {
                return Err(outside);
            }
        }
        self.done = self.done.saturating_add(u64::try_from(size).unwrap_or(u64::MAX));
        if self.done >= copy.length {
            (self.copy, self.done) = (self.copy.saturating_add(1), 0);
        }
        Ok(None)
    }
}

/// Reads a part of a staged file.
pub(crate) fn read(
    files: &StagedFiles,
    file: Extent,
    offset: u64,
    into: &mut [u8],
) -> Result<(), OutsideImage> {
    let length = u64::try_from(into.len()).map_err(|_| OutsideImage)?;
    let end = offset.checked_add(length).ok_or(OutsideImage)?;
    if end > file.length {
        return Err(OutsideImage);
    }
    if length == 0 {
        return Ok(());
    }
    let from = file.base.checked_add(offset).ok_or(OutsideImage)?;
    files.read(Hpa::new(from), into).map_err(|_| OutsideImage)
}

/// A component as the loader staged it.
struct Staged<'a> {
    files: &'a StagedFiles,
    at: Extent,
}

impl ImageSource for Staged<'_> {
    fn length(&self) -> u64 {
        self.at.length
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), OutsideImage> {
        read(self.files, self.at, offset, into)
    }
}
