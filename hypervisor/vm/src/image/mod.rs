//! Guest images: what of a kernel goes where in guest RAM, and how the first processor starts.
//!
//! An image is hostile input, read in pieces through [`ImageSource`]. Loading writes the small structures that
//! a boot protocol wants into guest RAM and answers a [`Plan`]: the copies that the caller still has to make,
//! none of which overlaps another or leaves RAM, and the processor's first state. RAM must be zero before.
//! [`check`] does the same without a guest, for building.

mod bios;
mod elf;
mod linux;
mod multiboot;
mod place;
mod pvh;

use core::fmt;

use dolmen_memory::{Gpa, GuestMemory, OutsideRam};

use crate::backend::StartState;
use crate::layout::RamLayout;
use place::Placement;

pub use place::{Copy, Plan};

/// Most components that an image can be loaded with, the kernel included.
pub const MAX_COMPONENTS: usize = 8;

/// The bytes of an image, somewhere.
pub trait ImageSource {
    /// How many there are.
    fn length(&self) -> u64;

    /// Copies bytes from `offset`.
    ///
    /// # Errors
    /// [`OutsideImage`] if any of them is not there.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), OutsideImage>;
}

/// Bytes beyond the end of an image were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutsideImage;

impl ImageSource for [u8] {
    fn length(&self) -> u64 {
        u64::try_from(self.len()).unwrap_or(u64::MAX)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), OutsideImage> {
        let start = usize::try_from(offset).map_err(|_| OutsideImage)?;
        let end = start.checked_add(into.len()).ok_or(OutsideImage)?;
        into.copy_from_slice(self.get(start..end).ok_or(OutsideImage)?);
        Ok(())
    }
}

/// How an image wants to be booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Linux bzImage by the 64-bit boot protocol.
    Linux,
    /// ELF with the PVH entry note.
    Pvh,
    /// Multiboot 1.
    Multiboot,
}

/// A component that is placed whole: an initial RAM disk or a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File<'a> {
    /// Which component it is; comes back in [`Copy::component`].
    pub component: usize,
    /// Its bytes.
    pub length: u64,
    /// What the boot protocol hands over beside it, without a terminator; Linux has no place for it.
    pub text: &'a [u8],
}

/// What is to be booted beside the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Boot<'a> {
    /// Where RAM is.
    pub ram: RamLayout,
    /// Which component the kernel is.
    pub kernel: usize,
    /// Initial RAM disks and modules, in order.
    pub files: &'a [File<'a>],
    /// Command line, without a terminator.
    pub cmdline: &'a [u8],
    /// The guest's root ACPI pointer.
    pub rsdp: Gpa,
}

/// Why an image cannot be loaded. Addresses are guest-physical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// The image ends before something it refers to.
    Truncated,
    /// The magic numbers of the format are not there.
    NotThisFormat(Format),
    /// A Linux boot protocol before 2.12.
    OldProtocol(u16),
    /// A Linux kernel without 64-bit entry, or one that is not loaded high.
    No64BitEntry,
    /// An ELF file of the wrong class, machine or header sizes.
    WrongElf,
    /// More segments than are taken.
    TooManySegments(u16),
    /// No segment to load.
    NothingToLoad,
    /// A segment whose file part is larger than its memory.
    SegmentSizes,
    /// No PVH entry note.
    NoEntryNote,
    /// The entry point is in no loaded segment.
    EntryOutside(u64),
    /// A Multiboot header asks for features that are not there, by its flags of the lower half.
    UnsupportedFlags(u32),
    /// A Multiboot header whose load addresses contradict each other.
    LoadAddresses,
    /// The image wants to be at addresses that are no RAM above 1 MiB and below 3 GiB.
    OutsideRam {
        /// First address.
        start: u64,
        /// How many bytes.
        length: u64,
    },
    /// Two parts of the image want the same addresses.
    Overlap {
        /// First address of the second part.
        start: u64,
    },
    /// No RAM is left for an initial RAM disk or module of this length.
    NoRoom(u64),
    /// The kernel takes a shorter command line.
    CmdlineTooLong {
        /// What it has.
        length: usize,
        /// What the kernel takes.
        limit: usize,
    },
    /// A text beside a module that is longer than a manifest's can be.
    TextTooLong(usize),
    /// More components than [`MAX_COMPONENTS`], or than the format takes.
    TooManyFiles,
    /// The guest has too little RAM for the structures of the boot protocol.
    NoLowRam,
}

impl From<OutsideImage> for ImageError {
    fn from(OutsideImage: OutsideImage) -> Self {
        Self::Truncated
    }
}

impl From<OutsideRam> for ImageError {
    fn from(OutsideRam: OutsideRam) -> Self {
        Self::NoLowRam
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Truncated => f.write_str("the image is cut short; build or copy it again"),
            Self::NotThisFormat(Format::Linux) => f.write_str("not a Linux bzImage; check `format`"),
            Self::NotThisFormat(Format::Pvh) => f.write_str("not an ELF file; check `format`"),
            Self::NotThisFormat(Format::Multiboot) => {
                f.write_str("no Multiboot header in the first 8 KiB; check `format`")
            }
            Self::OldProtocol(version) => {
                write!(f, "Linux boot protocol {version:#06x} is older than 2.12; use Linux 3.8 or newer")
            }
            Self::No64BitEntry => f.write_str("the kernel has no 64-bit entry; use an x86-64 kernel"),
            Self::WrongElf => f.write_str("an ELF file of another class or machine; build it for x86"),
            Self::TooManySegments(count) => {
                write!(f, "{count} program headers; at most {} are taken", elf::MAX_SEGMENTS)
            }
            Self::NothingToLoad => f.write_str("the ELF file has no segment to load"),
            Self::SegmentSizes => f.write_str("a segment is larger in the file than in memory"),
            Self::NoEntryNote => f.write_str("no PVH entry note; link one in, or check `format`"),
            Self::EntryOutside(entry) => write!(f, "entry point {entry:#x} is in no loaded segment"),
            Self::UnsupportedFlags(flags) => {
                let video = if flags & 1 << 2 != 0 { " (bit 2: a video mode)" } else { "" };
                write!(f, "the Multiboot header asks for features {flags:#x}{video}, which are not offered")
            }
            Self::LoadAddresses => f.write_str("the Multiboot header's load addresses contradict each other"),
            Self::OutsideRam { start, length } => write!(
                f,
                "needs {length:#x} bytes at {start:#x}, which is not RAM of the guest from 1 MiB to 3 GiB; \
                 raise `memory_mib` or link the kernel elsewhere"
            ),
            Self::Overlap { start } => write!(f, "two parts overlap at {start:#x}"),
            Self::NoRoom(length) => {
                write!(
                    f,
                    "no room for an initial RAM disk or module of {length:#x} bytes; raise `memory_mib`"
                )
            }
            Self::CmdlineTooLong { length, limit } => {
                write!(f, "the command line has {length} bytes, the kernel takes {limit}")
            }
            Self::TextTooLong(length) => write!(f, "a module's text has {length} bytes"),
            Self::TooManyFiles => f.write_str("more components than this format takes"),
            Self::NoLowRam => f.write_str("too little RAM for the boot protocol; raise `memory_mib`"),
        }
    }
}

/// Writes the boot protocol's structures and answers what is left to do.
///
/// # Errors
/// [`ImageError`], which says what is wrong with the image.
pub fn load(
    format: Format,
    kernel: &(impl ImageSource + ?Sized),
    boot: &Boot<'_>,
    memory: &mut impl GuestMemory,
) -> Result<Plan, ImageError> {
    if boot.files.len() >= MAX_COMPONENTS {
        return Err(ImageError::TooManyFiles);
    }
    place::write_reset_vector(memory)?;
    let mut placement = Placement::new(boot.ram);
    let start: StartState = match format {
        Format::Linux => linux::load(kernel, boot, &mut placement, memory)?,
        Format::Pvh => pvh::load(kernel, boot, &mut placement, memory)?,
        Format::Multiboot => multiboot::load(kernel, boot, &mut placement, memory)?,
    };
    Ok(placement.into_plan(start))
}

/// Checks that an image could be loaded.
///
/// # Errors
/// [`ImageError`], which says what is wrong with the image.
pub fn check(
    format: Format,
    kernel: &(impl ImageSource + ?Sized),
    boot: &Boot<'_>,
) -> Result<Plan, ImageError> {
    load(format, kernel, boot, &mut DryRun(boot.ram))
}

/// RAM that takes everything and keeps nothing.
struct DryRun(RamLayout);

impl DryRun {
    fn holds(&self, at: Gpa, length: usize) -> bool {
        let end = u64::try_from(length).ok().and_then(|length| at.get().checked_add(length));
        end.is_some_and(|end| end <= self.0.low().end)
    }
}

impl GuestMemory for DryRun {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), OutsideRam> {
        if !self.holds(at, into.len()) {
            return Err(OutsideRam);
        }
        into.fill(0);
        Ok(())
    }

    fn write(&mut self, at: Gpa, from: &[u8]) -> Result<(), OutsideRam> {
        if self.holds(at, from.len()) { Ok(()) } else { Err(OutsideRam) }
    }
}

#[cfg(test)]
mod tests;
