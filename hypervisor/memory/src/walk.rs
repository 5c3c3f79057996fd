//! Guest-virtual addresses, translated in software the way the guest's processor does.
//!
//! Needed to fetch an instruction that exited and to reach the memory operand of string port instructions.
//! Bounded: at most four table reads. What a table outside RAM would say is not asked.
//! Specification: APM vol. 2, chapter 5. Five-level paging is never offered to guests.

use crate::address::{Gpa, Gva};
use crate::guest::GuestMemory;

/// The registers that decide how an address is translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paging {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// RFLAGS, whose AC bit lifts supervisor-mode access prevention.
    pub rflags: u64,
}

/// What for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Data read at this privilege level.
    Read(u8),
    /// Data write at this privilege level.
    Write(u8),
    /// Instruction fetch at this privilege level.
    Fetch(u8),
}

/// A page fault as the guest must see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// For CR2.
    pub address: Gva,
    /// Error code (APM vol. 2, 8.4.2).
    pub error_code: u32,
}

/// Why guest-virtual memory cannot be touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessError {
    /// The guest's own tables forbid it.
    PageFault(PageFault),
    /// The address is not canonical.
    NotCanonical,
    /// A page table or the page itself is not RAM.
    OutsideRam,
}

const CR0_PE_PG: u64 = 1 << 31 | 1;
const CR0_WP: u64 = 1 << 16;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;
const RFLAGS_AC: u64 = 1 << 18;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

const FAULT_PRESENT: u32 = 1 << 0;
const FAULT_WRITE: u32 = 1 << 1;
const FAULT_USER: u32 = 1 << 2;
const FAULT_FETCH: u32 = 1 << 4;

/// One level of tables.
#[derive(Clone, Copy)]
struct Level {
    shift: u32,
    index_mask: u64,
    large: bool,
    has_rights: bool,
}

const fn level(shift: u32, bits: u32, large: bool, has_rights: bool) -> Level {
    Level { shift, index_mask: mask(bits), large, has_rights }
}

const LONG: [Level; 4] = [
    level(39, 9, false, true),
    level(30, 9, true, true),
    level(21, 9, true, true),
    level(12, 9, false, true),
];
const PAE: [Level; 3] = [level(30, 2, false, false), level(21, 9, true, true), level(12, 9, false, true)];
const LEGACY_PSE: [Level; 2] = [level(22, 10, true, true), level(12, 10, false, true)];
const LEGACY: [Level; 2] = [level(22, 10, false, true), level(12, 10, false, true)];

/// Table format in force.
struct Format {
    levels: &'static [Level],
    entry_bytes: u64,
    root: u64,
}

/// A finished walk.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    gpa: Gpa,
    /// Entries passed through: address and content.
    entries: [(u64, u64); 4],
    depth: usize,
    /// Four-level tables, whose every entry is looked at again at each walk.
    is_long: bool,
}

impl Walk {
    /// Where it led.
    pub const fn gpa(&self) -> Gpa {
        self.gpa
    }

    /// Whether the entries that it went through are still the same, so that under the same registers it would lead to
    /// the same place with the same rights. `false` outside of long mode, where nobody keeps track.
    #[inline]
    pub fn still_holds(&self, memory: &impl GuestMemory) -> bool {
        let passed = self.entries.get(..self.depth).unwrap_or_default();
        self.is_long
            && passed.iter().all(|(at, entry)| memory.word(Gpa::new(*at)).is_ok_and(|now| now == *entry))
    }
}

impl Paging {
    fn format(&self) -> Option<Format> {
        if self.cr0 & CR0_PE_PG != CR0_PE_PG {
            return None;
        }
        Some(if self.efer & EFER_LMA != 0 {
            Format { levels: &LONG, entry_bytes: 8, root: self.cr3 & 0x000f_ffff_ffff_f000 }
        } else if self.cr4 & CR4_PAE != 0 {
            Format { levels: &PAE, entry_bytes: 8, root: self.cr3 & 0xffff_ffe0 }
        } else {
            let levels: &'static [Level] = if self.cr4 & CR4_PSE != 0 { &LEGACY_PSE } else { &LEGACY };
            Format { levels, entry_bytes: 4, root: self.cr3 & 0xffff_f000 }
        })
    }

    const fn is_long(&self) -> bool {
        self.efer & EFER_LMA != 0
    }
}

/// Translates `gva`.
///
/// # Errors
/// [`AccessError`].
pub fn translate(
    memory: &impl GuestMemory,
    paging: &Paging,
    gva: Gva,
    access: Access,
) -> Result<Gpa, AccessError> {
    walk(memory, paging, gva, access).map(|done| done.gpa)
}

/// Reads as many bytes as can be read from `gva` on; answers how many. Accessed bits stay as they are.
///
/// # Errors
/// [`AccessError`] when not even the first byte can be read.
pub fn read_virtual(
    memory: &impl GuestMemory,
    paging: &Paging,
    gva: Gva,
    access: Access,
    into: &mut [u8],
) -> Result<usize, AccessError> {
    let mut done = 0usize;
    while done < into.len() {
        let at = advance(paging, gva, done);
        let piece = in_page(at, into.len().saturating_sub(done));
        let read = walk(memory, paging, at, access).and_then(|found| {
            let slot = into.get_mut(done..done.saturating_add(piece)).ok_or(AccessError::OutsideRam)?;
            memory.read(found.gpa, slot).map_err(|_| AccessError::OutsideRam)
        });
        match read {
            Ok(()) => done = done.saturating_add(piece),
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// Writes all of `from`, at most a page, to `gva`, or nothing; sets accessed and dirty bits.
///
/// # Errors
/// [`AccessError`].
pub fn write_virtual(
    memory: &mut impl GuestMemory,
    paging: &Paging,
    gva: Gva,
    cpl: u8,
    from: &[u8],
) -> Result<(), AccessError> {
    let access = Access::Write(cpl);
    let first = walk(memory, paging, gva, access)?;
    let split = in_page(gva, from.len());
    let (head, tail) = from.split_at_checked(split).ok_or(AccessError::OutsideRam)?;
    let mut probe = [0u8; 1];
    let rest = if tail.is_empty() {
        None
    } else {
        let second = walk(memory, paging, advance(paging, gva, split), access)?;
        memory.read(second.gpa, &mut probe).map_err(|_| AccessError::OutsideRam)?;
        Some(second)
    };
    memory.write(first.gpa, head).map_err(|_| AccessError::OutsideRam)?;
    mark(memory, &first)?;
    if let Some(second) = rest {
        memory.write(second.gpa, tail).map_err(|_| AccessError::OutsideRam)?;
        mark(memory, &second)?;
    }
    Ok(())
}

/// Translates `gva`, and tells which way it went.
///
/// # Errors
/// [`AccessError`].
pub fn walk(
    memory: &impl GuestMemory,
    paging: &Paging,
    gva: Gva,
    access: Access,
) -> Result<Walk, AccessError> {
    let mut done = Walk {
        gpa: Gpa::new(gva.get() & 0xffff_ffff),
        entries: [(0, 0); 4],
        depth: 0,
        is_long: paging.is_long(),
    };
    if paging.is_long() && !is_canonical(gva) {
        return Err(AccessError::NotCanonical);
    }
    let Some(format) = paging.format() else { return Ok(done) };
    let mut table = format.root;
    let mut rights = WRITE | USER;
    for level in format.levels {
        let index = gva.get().wrapping_shr(level.shift) & level.index_mask;
        let at = table.wrapping_add(index.wrapping_mul(format.entry_bytes));
        let entry = read_entry(memory, at, format.entry_bytes)?;
        if entry & PRESENT == 0 {
            return Err(fault(paging, gva, access, false));
        }
        if let Some(slot) = done.entries.get_mut(done.depth) {
            *slot = if level.has_rights { (at, entry) } else { (0, 0) };
        }
        done.depth = done.depth.saturating_add(1);
        if level.has_rights {
            rights = rights & entry | (rights | entry) & NO_EXECUTE;
        }
        if level.shift == 12 || level.large && entry & LARGE != 0 {
            check(paging, gva, access, rights)?;
            done.gpa = leaf(&format, *level, entry, gva);
            return Ok(done);
        }
        table = entry & 0x000f_ffff_ffff_f000;
    }
    Err(AccessError::OutsideRam)
}

fn read_entry(memory: &impl GuestMemory, at: u64, bytes: u64) -> Result<u64, AccessError> {
    if bytes == 4 {
        let mut raw = [0u8; 4];
        memory.read(Gpa::new(at), &mut raw).map_err(|_| AccessError::OutsideRam)?;
        Ok(u64::from(u32::from_le_bytes(raw)))
    } else {
        memory.word(Gpa::new(at)).map_err(|_| AccessError::OutsideRam)
    }
}

fn leaf(format: &Format, level: Level, entry: u64, gva: Gva) -> Gpa {
    let offset_mask = mask(level.shift);
    let mut base = entry & 0x000f_ffff_ffff_f000 & !offset_mask;
    if format.entry_bytes == 4 {
        base &= 0xffff_f000;
        if level.shift == 22 {
            // Bits 20:13 of a 4 MiB entry are address bits 39:32 (APM vol. 2, 5.2.2).
            base |= (entry >> 13 & 0xff) << 32;
        }
    }
    Gpa::new(base | gva.get() & offset_mask)
}

/// APM vol. 2, 5.6.
fn check(paging: &Paging, gva: Gva, access: Access, rights: u64) -> Result<(), AccessError> {
    let is_user_page = rights & USER != 0;
    let no_execute = rights & NO_EXECUTE != 0 && paging.efer & EFER_NXE != 0;
    let (Access::Read(cpl) | Access::Write(cpl) | Access::Fetch(cpl)) = access;
    let allowed = if cpl == 3 {
        is_user_page && (rights & WRITE != 0 || !matches!(access, Access::Write(_)))
    } else {
        let prevented = match access {
            Access::Fetch(_) => paging.cr4 & CR4_SMEP != 0,
            Access::Read(_) | Access::Write(_) => {
                paging.cr4 & CR4_SMAP != 0 && paging.rflags & RFLAGS_AC == 0
            }
        };
        let read_only = rights & WRITE == 0 && paging.cr0 & CR0_WP != 0;
        !(is_user_page && prevented || read_only && matches!(access, Access::Write(_)))
    };
    if allowed && !(no_execute && matches!(access, Access::Fetch(_))) {
        Ok(())
    } else {
        Err(fault(paging, gva, access, true))
    }
}

fn fault(paging: &Paging, gva: Gva, access: Access, is_present: bool) -> AccessError {
    let (kind, cpl) = match access {
        Access::Read(cpl) => (0, cpl),
        Access::Write(cpl) => (FAULT_WRITE, cpl),
        Access::Fetch(cpl) if paging.efer & EFER_NXE != 0 || paging.cr4 & CR4_SMEP != 0 => (FAULT_FETCH, cpl),
        Access::Fetch(cpl) => (0, cpl),
    };
    let user = if cpl == 3 { FAULT_USER } else { 0 };
    let present = if is_present { FAULT_PRESENT } else { 0 };
    AccessError::PageFault(PageFault { address: gva, error_code: kind | user | present })
}

/// Sets the accessed bits of a walk for a write, and the dirty bit of its leaf.
fn mark(memory: &mut impl GuestMemory, walk: &Walk) -> Result<(), AccessError> {
    for (index, (at, entry)) in walk.entries.iter().take(walk.depth).enumerate() {
        let is_leaf = index.saturating_add(1) == walk.depth;
        let wanted = entry | ACCESSED | if is_leaf { DIRTY } else { 0 };
        if *at != 0 && wanted != *entry {
            // Both bits lie in the lowest byte, which every entry size has.
            let [low, ..] = wanted.to_le_bytes();
            memory.write(Gpa::new(*at), &[low]).map_err(|_| AccessError::OutsideRam)?;
        }
    }
    Ok(())
}

/// The low `bits` bits; `bits` is 1 to 64.
const fn mask(bits: u32) -> u64 {
    u64::MAX.wrapping_shr(64u32.wrapping_sub(bits))
}

const fn is_canonical(gva: Gva) -> bool {
    let top = gva.get() >> 47;
    top == 0 || top == 0x1_ffff
}

/// Bytes of `wanted` that lie in the page of `gva`.
fn in_page(gva: Gva, wanted: usize) -> usize {
    let left = 4096u64.wrapping_sub(gva.get() & 0xfff);
    usize::try_from(left).unwrap_or(4096).min(wanted)
}

/// `gva` and `offset` bytes on; outside long mode addresses wrap at 4 GiB.
fn advance(paging: &Paging, gva: Gva, offset: usize) -> Gva {
    let sum = gva.get().wrapping_add(u64::try_from(offset).unwrap_or(u64::MAX));
    Gva::new(if paging.is_long() { sum } else { sum & 0xffff_ffff })
}

#[cfg(test)]
#[path = "walk_tests.rs"]
mod tests;
