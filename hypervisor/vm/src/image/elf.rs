//! Program headers of an ELF file, 32 or 64 bits (System V ABI, chapter 5).

use super::{Format, ImageError, ImageSource};

/// Most program headers that are looked at.
pub(super) const MAX_SEGMENTS: u16 = 16;

/// Which classes a boot protocol takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Bits32,
    Bits64,
}

const MAGIC: [u8; 4] = *b"\x7fELF";
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_386: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const KIND_LOAD: u32 = 1;
const KIND_NOTE: u32 = 4;

/// What a program header is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Load,
    Note,
    Other,
}

/// One program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) kind: Kind,
    /// In the file.
    pub(super) offset: u64,
    pub(super) file_bytes: u64,
    /// In memory.
    pub(super) address: u64,
    /// Where the file's own addresses have it.
    pub(super) linked_at: u64,
    /// Multiple at which notes start.
    pub(super) alignment: u64,
    pub(super) memory_bytes: u64,
}

impl Segment {
    /// Whether `address` is in the segment's memory.
    pub(super) fn contains(&self, address: u64) -> bool {
        address.checked_sub(self.address).is_some_and(|offset| offset < self.memory_bytes)
    }
}

/// An ELF file whose header is checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Elf {
    pub(super) class: Class,
    pub(super) entry: u64,
    headers: u64,
    count: u16,
}

impl Elf {
    /// Reads and checks the header. `format` is for the error.
    pub(super) fn parse(image: &(impl ImageSource + ?Sized), format: Format) -> Result<Self, ImageError> {
        let mut head = [0; 64];
        image.read(0, head.first_chunk_mut::<52>().ok_or(ImageError::Truncated)?)?;
        if head[..4] != MAGIC {
            return Err(ImageError::NotThisFormat(format));
        }
        let (class, machine, header_size) = match (head[4], head[5]) {
            (1, LITTLE_ENDIAN) => (Class::Bits32, MACHINE_386, 32),
            (2, LITTLE_ENDIAN) => (Class::Bits64, MACHINE_X86_64, 56),
            _ => return Err(ImageError::WrongElf),
        };
        image.read(0, head.get_mut(..if class == Class::Bits64 { 64 } else { 52 }).unwrap_or_default())?;
        let (entry, headers, sizes) = match class {
            Class::Bits32 => (u64::from(u32_at(&head, 24)), u64::from(u32_at(&head, 28)), 42),
            Class::Bits64 => (u64_at(&head, 24), u64_at(&head, 32), 54),
        };
        if u16_at(&head, 18) != machine || u16_at(&head, sizes) != header_size {
            return Err(ImageError::WrongElf);
        }
        let count = u16_at(&head, sizes.saturating_add(2));
        if count > MAX_SEGMENTS {
            return Err(ImageError::TooManySegments(count));
        }
        Ok(Self { class, entry, headers, count })
    }

    /// The entry point as an address in memory: where a segment is linked at other addresses than it is loaded at,
    /// the header has the former.
    pub(super) fn entry_in_memory(&self, image: &(impl ImageSource + ?Sized)) -> Result<u64, ImageError> {
        for segment in self.segments(image) {
            let segment = segment?;
            let within = self.entry.checked_sub(segment.linked_at);
            if let (Kind::Load, Some(within)) = (segment.kind, within)
                && within < segment.memory_bytes
            {
                return Ok(segment.address.saturating_add(within));
            }
        }
        Ok(self.entry)
    }

    /// The program headers, in order.
    pub(super) fn segments<'a, I: ImageSource + ?Sized>(
        &self,
        image: &'a I,
    ) -> impl Iterator<Item = Result<Segment, ImageError>> + use<'a, I> {
        let Self { class, headers, count, .. } = *self;
        (0..u64::from(count)).map(move |index| read_segment(image, class, headers, index))
    }
}

fn read_segment(
    image: &(impl ImageSource + ?Sized),
    class: Class,
    headers: u64,
    index: u64,
) -> Result<Segment, ImageError> {
    let mut bytes = [0; 56];
    let size = match class {
        Class::Bits32 => 32,
        Class::Bits64 => 56,
    };
    let at = headers.checked_add(index.saturating_mul(size)).ok_or(ImageError::Truncated)?;
    let used = usize::try_from(size).ok().and_then(|size| bytes.get_mut(..size));
    image.read(at, used.ok_or(ImageError::Truncated)?)?;
    let kind = match u32_at(&bytes, 0) {
        KIND_LOAD => Kind::Load,
        KIND_NOTE => Kind::Note,
        _ => Kind::Other,
    };
    let [offset, linked_at, address, file_bytes, memory_bytes, alignment] = match class {
        Class::Bits32 => [4, 8, 12, 16, 20, 28].map(|at| u64::from(u32_at(&bytes, at))),
        Class::Bits64 => [8, 16, 24, 32, 40, 48].map(|at| u64_at(&bytes, at)),
    };
    let is_sane = file_bytes <= memory_bytes || kind != Kind::Load;
    let in_file = offset.checked_add(file_bytes).is_some_and(|end| end <= image.length());
    match (is_sane, in_file || kind == Kind::Other) {
        (false, _) => Err(ImageError::SegmentSizes),
        (_, false) => Err(ImageError::Truncated),
        _ => Ok(Segment { kind, offset, file_bytes, address, linked_at, alignment, memory_bytes }),
    }
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let found = bytes.get(at..at.saturating_add(N)).and_then(|found| found.try_into().ok());
    found.unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(bytes, at))
}
