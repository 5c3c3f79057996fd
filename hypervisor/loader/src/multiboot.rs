//! What a Multiboot boot loader tells: modules, memory map, command line.
//!
//! Multiboot 1 (QEMU's `-kernel`, GRUB's `multiboot`) and Multiboot 2 (GRUB's `multiboot2`). Nothing here is
//! believed further than needed: a wrong word leads to a refusal or to a launch that fails.
#![forbid(unsafe_code)]

use crate::map::{Kind, MapError, MemoryMap};
use crate::staged::{FIXED_FILES, FIXED_NAMES, MAX_FILES, Staged};
use core::fmt;
use dolmen_drtm::handoff::Extent;

/// EAX at the entry from a Multiboot 1 boot loader (Multiboot 0.6.96, 3.2).
pub const MAGIC_1: u32 = 0x2bad_b002;
/// EAX at the entry from a Multiboot 2 boot loader (Multiboot2 2.0, 3.3).
pub const MAGIC_2: u32 = 0x36d7_6289;
/// Longest command line that is kept, in bytes.
pub const MAX_COMMAND_LINE: usize = 512;
/// Longest Multiboot 2 information that is read, in bytes.
const MAX_INFO_2: u64 = 0x1_0000;
/// Most memory map entries that are read.
const MAX_ENTRIES: usize = 1024;

/// Physical memory, to be read by address.
pub trait Physical {
    /// Copies memory from `address` on into `bytes`; what is not there reads as zero or ones.
    fn read(&self, address: u64, bytes: &mut [u8]);
}

/// Why the boot loader's word cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MultibootError {
    /// Not started by a Multiboot boot loader.
    Magic(u32),
    /// No memory map.
    NoMemoryMap,
    /// Fewer modules than launch image, core and manifest.
    TooFewModules(usize),
    /// More modules than a hand-off can tell of.
    TooManyModules,
    /// A structure that ends before it begins, or never ends.
    Malformed(&'static str),
    /// The memory map is too long.
    Map(MapError),
}

impl From<MapError> for MultibootError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

impl fmt::Display for MultibootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(magic) => {
                write!(
                    f,
                    "started with {magic:#x} in EAX; start the loader by a Multiboot or Multiboot2 boot loader"
                )
            }
            Self::NoMemoryMap => f.write_str("the boot loader gave no memory map; use one that does"),
            Self::TooFewModules(count) => {
                let missing = FIXED_NAMES.get(*count).copied().unwrap_or_default();
                write!(
                    f,
                    "the boot loader gave {count} modules, and no {missing}; give launch image, core and manifest, \
                     then the guests' components in the manifest's order"
                )
            }
            Self::TooManyModules => {
                write!(f, "the boot loader gave more than {MAX_FILES} modules; give fewer")
            }
            Self::Malformed(what) => {
                write!(f, "the boot loader's {what} is malformed; use another boot loader")
            }
            Self::Map(error) => error.fmt(f),
        }
    }
}

/// What the boot loader told.
#[derive(Debug)]
pub struct BootInfo {
    /// Modules as boot files, where the boot loader put them.
    pub staged: Staged,
    /// Where the information itself lies: not to be overwritten before it has been read.
    pub info: Extent,
    command_line: [u8; MAX_COMMAND_LINE],
    command_line_length: usize,
}

impl BootInfo {
    /// The value of the word `key=value` of the command line.
    #[must_use]
    pub fn option(&self, key: &str) -> Option<&str> {
        let line = self.command_line.get(..self.command_line_length)?;
        line.split(|b| b.is_ascii_whitespace())
            .filter_map(|word| core::str::from_utf8(word).ok()?.split_once('='))
            .find_map(|(name, value)| (name == key).then_some(value))
    }

    fn set_command_line(&mut self, memory: &impl Physical, address: u64) {
        memory.read(address, &mut self.command_line);
        self.command_line_length =
            self.command_line.iter().position(|b| *b == 0).unwrap_or(self.command_line.len());
    }

    fn push_module(&mut self, start: u32, end: u32) -> Result<(), MultibootError> {
        let length = end.checked_sub(start).ok_or(MultibootError::Malformed("module list"))?;
        let file = Extent { base: start.into(), length: length.into() };
        if self.staged.push(file) { Ok(()) } else { Err(MultibootError::TooManyModules) }
    }
}

/// Reads what the boot loader left at `info`; the memory map goes into `map`.
///
/// # Errors
/// Something needed is missing or malformed.
pub fn parse(
    memory: &impl Physical,
    magic: u32,
    info: u32,
    map: &mut MemoryMap,
) -> Result<BootInfo, MultibootError> {
    let mut boot = BootInfo {
        staged: Staged::default(),
        info: Extent { base: info.into(), length: 0 },
        command_line: [0; MAX_COMMAND_LINE],
        command_line_length: 0,
    };
    match magic {
        MAGIC_1 => parse_1(memory, &mut boot, map)?,
        MAGIC_2 => parse_2(memory, &mut boot, map)?,
        _ => return Err(MultibootError::Magic(magic)),
    }
    if map.runs().is_empty() {
        return Err(MultibootError::NoMemoryMap);
    }
    let modules = boot.staged.files().len();
    if modules < FIXED_FILES { Err(MultibootError::TooFewModules(modules)) } else { Ok(boot) }
}

/// Multiboot 0.6.96, 3.3.
fn parse_1(memory: &impl Physical, boot: &mut BootInfo, map: &mut MemoryMap) -> Result<(), MultibootError> {
    const COMMAND_LINE: u32 = 1 << 2;
    const MODULES: u32 = 1 << 3;
    const MEMORY_MAP: u32 = 1 << 6;
    let base = boot.info.base;
    boot.info.length = 52;
    let [flags, ..] = words::<1>(memory, base);
    let [command_line, module_count, modules] = words(memory, base.saturating_add(16));
    let [map_bytes, map_address] = words(memory, base.saturating_add(44));
    if flags & COMMAND_LINE != 0 {
        boot.set_command_line(memory, command_line.into());
    }
    if flags & MODULES != 0 {
        for n in 0..module_count {
            let [start, end] =
                words(memory, u64::from(modules).saturating_add(u64::from(n).saturating_mul(16)));
            boot.push_module(start, end)?;
        }
    }
    if flags & MEMORY_MAP == 0 {
        return Err(MultibootError::NoMemoryMap);
    }
    let (mut at, end) = (u64::from(map_address), u64::from(map_address).saturating_add(map_bytes.into()));
    for _ in 0..MAX_ENTRIES {
        if at >= end {
            return Ok(());
        }
        let [size] = words(memory, at);
        at = at.saturating_add(4);
        add_entry(memory, at, map)?;
        at = at.saturating_add(size.into());
    }
    Err(MultibootError::Malformed("memory map"))
}

/// Multiboot2 2.0, 3.4 and 3.6.
fn parse_2(memory: &impl Physical, boot: &mut BootInfo, map: &mut MemoryMap) -> Result<(), MultibootError> {
    const END: u32 = 0;
    const COMMAND_LINE: u32 = 1;
    const MODULE: u32 = 3;
    const MEMORY_MAP: u32 = 6;
    let malformed = MultibootError::Malformed("information");
    let [total] = words(memory, boot.info.base);
    boot.info.length = u64::from(total).min(MAX_INFO_2);
    let end = boot.info.base.saturating_add(boot.info.length);
    let mut at = boot.info.base.saturating_add(8);
    while at < end {
        let [tag, size] = words(memory, at);
        let next = at.saturating_add(u64::from(size).next_multiple_of(8));
        if size < 8 || next > end {
            return Err(malformed);
        }
        match tag {
            END => return Ok(()),
            COMMAND_LINE => boot.set_command_line(memory, at.saturating_add(8)),
            MODULE => {
                let [start, module_end] = words(memory, at.saturating_add(8));
                boot.push_module(start, module_end)?;
            }
            MEMORY_MAP => entries_2(memory, at, size, map)?,
            _ => {}
        }
        at = next;
    }
    Err(malformed)
}

fn entries_2(memory: &impl Physical, tag: u64, size: u32, map: &mut MemoryMap) -> Result<(), MultibootError> {
    let [entry_size] = words(memory, tag.saturating_add(8));
    if entry_size < 24 {
        return Err(MultibootError::Malformed("memory map"));
    }
    let (mut at, end) = (tag.saturating_add(16), tag.saturating_add(size.into()));
    while at < end {
        add_entry(memory, at, map)?;
        at = at.saturating_add(entry_size.into());
    }
    Ok(())
}

/// Base, length and kind of one entry lie alike in both versions; kind 1 is usable RAM.
fn add_entry(memory: &impl Physical, at: u64, map: &mut MemoryMap) -> Result<(), MultibootError> {
    let [base_low, base_high, length_low, length_high, kind] = words(memory, at);
    let join = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    let kind = if kind == 1 { Kind::Free } else { Kind::Reserved };
    Ok(map.add(join(base_low, base_high), join(length_low, length_high), kind)?)
}

fn words<const N: usize>(memory: &impl Physical, address: u64) -> [u32; N] {
    let mut words = [0; N];
    for (word, at) in words.iter_mut().zip((address..).step_by(4)) {
        let mut bytes = [0; 4];
        memory.read(at, &mut bytes);
        *word = u32::from_le_bytes(bytes);
    }
    words
}

#[cfg(test)]
#[path = "multiboot_tests.rs"]
mod tests;
