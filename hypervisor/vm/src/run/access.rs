//! Instructions that touch device memory, decoded once.
//!
//! A kernel reaches its devices from a handful of places, so what stands there is remembered with everything that it
//! was found by: the registers that decide about translation, the page-table entries on the way, the bytes
//! themselves. All of that is compared before it is used again, the part that lies in guest memory by a glance. What
//! is remembered is therefore what a new walk and a new decoding would find, no matter what the guest rewrote;
//! `docs/adr/0013-exit-path.md` has the figures.

use dolmen_arch::bits::low8;
use dolmen_arch::instruction::{CodeSize, DecodeError};
use dolmen_arch::segment::SegmentName;
use dolmen_memory::{Access, GuestMemory, Gva, Walk, walk};

use super::code::Bytes;
use super::{Host, Running};
use crate::backend::{Backend, Register};
use crate::decode::{MemoryAccess, decode};

/// How many are remembered.
const PLACES: usize = 8;
/// Bytes of code that one glance shows.
const GLANCE: u64 = 8;
/// Within a page.
const OFFSET: u64 = 0xfff;

/// Instructions that touched device memory before, by the low bits of their addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KnownAccesses([Option<KnownAccess>; PLACES]);

impl KnownAccesses {
    /// None.
    pub(crate) const EMPTY: Self = Self([None; PLACES]);

    /// Instructions are a few bytes long: neighbours differ in the bits above the lowest two.
    #[inline]
    fn place(rip: u64) -> usize {
        usize::from(low8(rip >> 2)) & PLACES.wrapping_sub(1)
    }
}

/// One such instruction, in 64-bit code, within eight bytes of one page.
#[derive(Clone, Copy, Debug)]
struct KnownAccess {
    key: Key,
    walk: Walk,
    /// The instruction's bytes, lowest first, and which bits of the eight they are.
    bytes: u64,
    mask: u64,
    access: MemoryAccess,
}

/// What decides where code is and what it means, outside of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    rip: u64,
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    code_attributes: u16,
    privilege: u8,
}

impl<B: Backend, M: GuestMemory, H: Host> Running<'_, B, M, H> {
    /// The instruction at RIP, which touched device memory; the bytes there if it is not one that is emulated.
    pub(super) fn device_access(&mut self) -> Result<MemoryAccess, (DecodeError, Bytes)> {
        if let Some(access) = self.known_access() {
            return Ok(access);
        }
        let (bytes, count) = self.fetch();
        let access = decode(bytes.get(..count).unwrap_or_default(), self.code_size())
            .map_err(|error| (error, bytes))?;
        self.remember_access(&bytes, access);
        Ok(access)
    }

    #[inline]
    fn known_access(&self) -> Option<MemoryAccess> {
        let rip = self.vcpu.backend.read(Register::Rip);
        let known = self.vcpu.accesses.0.get(KnownAccesses::place(rip))?.as_ref()?;
        let is_same = known.key == self.access_key(rip)
            && known.walk.still_holds(self.memory)
            && (self.memory.word(known.walk.gpa()).ok()? ^ known.bytes) & known.mask == 0;
        is_same.then_some(known.access)
    }

    #[inline]
    fn access_key(&self, rip: u64) -> Key {
        let backend = &self.vcpu.backend;
        Key {
            rip,
            cr0: backend.read(Register::Cr0),
            cr3: backend.read(Register::Cr3),
            cr4: backend.read(Register::Cr4),
            efer: backend.read(Register::Efer),
            code_attributes: backend.segment(SegmentName::Cs).attributes,
            privilege: backend.privilege(),
        }
    }

    #[inline(never)]
    fn remember_access(&mut self, bytes: &Bytes, access: MemoryAccess) {
        let rip = self.vcpu.backend.read(Register::Rip);
        let is_whole = access.length.get() <= GLANCE && rip & OFFSET <= OFFSET.wrapping_sub(GLANCE - 1);
        if !is_whole || self.code_size() != CodeSize::Bits64 {
            return;
        }
        let key = self.access_key(rip);
        let found =
            walk(self.memory, &self.vcpu.backend.paging(), Gva::new(rip), Access::Fetch(key.privilege));
        let Ok(walk) = found else { return };
        let bytes = bytes.first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
        let unused = GLANCE.wrapping_sub(access.length.get()).wrapping_mul(8);
        let mask = u32::try_from(unused).map_or(0, |unused| u64::MAX.wrapping_shr(unused));
        if let Some(place) = self.vcpu.accesses.0.get_mut(KnownAccesses::place(rip)) {
            *place = Some(KnownAccess { key, walk, bytes: bytes & mask, mask, access });
        }
    }
}
