//! The instruction that exited, and its length.
//!
//! Few processors tell them, so they are read from the guest's memory. That takes a walk of the guest's page
//! tables, unless the code page is one that exited before: `docs/adr/0013-exit-path.md` says why that is enough.

use dolmen_arch::bits::{low_bytes, low8};
use dolmen_arch::instruction::{self, CodeSize, Instruction, InstructionLength};
use dolmen_arch::segment::SegmentName;
use dolmen_memory::{Access, Gpa, GuestMemory, Gva, read_virtual, translate};

use super::{Host, Running};
use crate::backend::{Backend, Register};

const PAGE_MASK: u64 = 0xfff;
const PAGE_SHIFT: u32 = 12;

/// Code as it was read: as many bytes as an instruction can have.
pub(super) type Bytes = [u8; instruction::MAX_LENGTH];

/// Pages of code that are remembered: kernels have a handful of places that exit often.
const PAGES: usize = 8;

/// Pages of code that exited before, by the low bits of their numbers. Hints, checked at each use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CodePages([CodePage; PAGES]);

impl CodePages {
    /// None is remembered.
    pub(crate) const EMPTY: Self = Self([CodePage::NONE; PAGES]);

    #[inline(always)]
    fn place(page: u64) -> usize {
        usize::from(low8(page >> PAGE_SHIFT)) & PAGES.wrapping_sub(1)
    }

    #[inline(always)]
    fn find(&self, key: Key) -> Option<Gpa> {
        let known = self.0.get(Self::place(key.page))?;
        (known.key == key).then_some(known.at)
    }

    fn put(&mut self, found: CodePage) {
        if let Some(place) = self.0.get_mut(Self::place(found.key.page)) {
            *place = found;
        }
    }
}

/// Where a page of 64-bit code was found.
#[derive(Clone, Copy, Debug)]
struct CodePage {
    key: Key,
    at: Gpa,
}

impl CodePage {
    /// Matches nothing: no page of code begins there.
    const NONE: Self =
        Self { key: Key { tables: 0, efer: 0, code_attributes: 0, page: u64::MAX }, at: Gpa::new(0) };
}

/// What decides where code is, but for the page tables themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    tables: u64,
    efer: u64,
    code_attributes: u16,
    page: u64,
}

impl<B: Backend, M: GuestMemory, H: Host> Running<'_, B, M, H> {
    /// The length of the instruction that exited, which is `expected`.
    ///
    /// `None` when memory holds another one: its bytes or their translation changed meanwhile. The guest then
    /// runs again as things are now.
    #[inline(always)]
    pub(super) fn length(&mut self, expected: Instruction) -> Option<InstructionLength> {
        let told = self.vcpu.backend.instruction_length();
        told.or_else(|| self.known_length(expected))
            .or_else(|| self.decoded_length(|found| found == expected))
    }

    /// The same where several can have exited.
    pub(super) fn length_of(&mut self, expected: impl Fn(Instruction) -> bool) -> Option<InstructionLength> {
        self.vcpu.backend.instruction_length().or_else(|| self.decoded_length(expected))
    }

    #[inline(never)]
    fn decoded_length(&mut self, expected: impl Fn(Instruction) -> bool) -> Option<InstructionLength> {
        let found = self.instruction().filter(|(found, _)| expected(*found)).map(|(_, length)| length);
        if found.is_some() {
            self.remember_page();
        } else {
            self.vcpu.backend.flush();
        }
        found
    }

    /// The length of `expected`, if it stands without prefixes where the code page was found before.
    #[inline(always)]
    fn known_length(&self, expected: Instruction) -> Option<InstructionLength> {
        let (encoding, length) = expected.plain()?;
        let rip = self.vcpu.backend.read(Register::Rip);
        let page = self.vcpu.code.find(self.key(rip))?;
        let offset = rip & PAGE_MASK;
        if offset > PAGE_MASK.wrapping_sub(7) {
            return None;
        }
        let word = self.memory.word(page.checked_add(offset)?).ok()?;
        let bytes = u8::try_from(length.get()).ok()?;
        (low_bytes(word, bytes) == encoding).then_some(length)
    }

    #[inline(always)]
    fn key(&self, rip: u64) -> Key {
        Key {
            tables: self.vcpu.backend.read(Register::Cr3),
            efer: self.vcpu.backend.read(Register::Efer),
            code_attributes: self.vcpu.backend.segment(SegmentName::Cs).attributes,
            page: rip & !PAGE_MASK,
        }
    }

    fn remember_page(&mut self) {
        let key = self.key(self.vcpu.backend.read(Register::Rip));
        let is_64_bit = self.code_size() == CodeSize::Bits64;
        let access = Access::Fetch(self.vcpu.backend.privilege());
        let found = translate(self.memory, &self.vcpu.backend.paging(), Gva::new(key.page), access);
        if let Some(at) = found.ok().filter(|_| is_64_bit) {
            self.vcpu.code.put(CodePage { key, at });
        }
    }

    /// The instruction at RIP, if it is one that exits.
    pub(super) fn instruction(&self) -> Option<(Instruction, InstructionLength)> {
        let (bytes, count) = self.fetch();
        instruction::decode(bytes.get(..count)?, self.code_size()).ok()
    }

    /// Up to 15 bytes at RIP, and how many could be read.
    pub(super) fn fetch(&self) -> (Bytes, usize) {
        let mut bytes = [0; instruction::MAX_LENGTH];
        let rip = self.vcpu.backend.read(Register::Rip);
        let at = match self.code_size() {
            CodeSize::Bits64 => rip,
            CodeSize::Bits16 | CodeSize::Bits32 => {
                self.vcpu.backend.segment(SegmentName::Cs).base.wrapping_add(rip) & 0xffff_ffff
            }
        };
        let access = Access::Fetch(self.vcpu.backend.privilege());
        let count = read_virtual(self.memory, &self.vcpu.backend.paging(), Gva::new(at), access, &mut bytes);
        (bytes, count.unwrap_or(0))
    }
}
