//! A guest's processor as the control structure keeps it (SDM vol. 3C, 25.4): values after reset, segments, steps.

use super::field::{Access, Bits16, Bits32, Field, Natural, ReadWrite, Width, guest};
use crate::instruction::InstructionLength;
use crate::register::{Cr0, Cr4, DR7_RESET, Efer, Rflags};
use crate::segment::{Attributes, Segment, SegmentName};

/// Whatever keeps the fields of a virtual processor.
pub trait Fields {
    /// The field of this encoding.
    fn read_raw(&self, encoding: u32) -> u64;

    /// Sets it.
    fn write_raw(&mut self, encoding: u32, value: u64);

    /// A field.
    fn read<W: Width, A: Access>(&self, field: Field<W, A>) -> W::Value {
        W::narrow(self.read_raw(field.encoding()))
    }

    /// Sets a field.
    fn write<W: Width>(&mut self, field: Field<W, ReadWrite>, value: W::Value) {
        self.write_raw(field.encoding(), W::widen(value));
    }
}

/// The fields of a virtual processor in memory, while no processor works on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    values: [u64; guest::KEPT.len()],
}

impl Image {
    /// All zeroes.
    pub const ZEROES: Self = Self { values: [0; guest::KEPT.len()] };

    /// Each field with its value, in the order of encodings.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u64)> {
        guest::KEPT.iter().copied().zip(self.values)
    }

    /// Takes every field from `read`.
    pub fn fill(&mut self, read: impl Fn(u32) -> u64) {
        for (encoding, value) in guest::KEPT.iter().zip(&mut self.values) {
            *value = read(*encoding);
        }
    }
}

impl Fields for Image {
    fn read_raw(&self, encoding: u32) -> u64 {
        self.iter().find(|(kept, _)| *kept == encoding).map_or(0, |(_, value)| value)
    }

    fn write_raw(&mut self, encoding: u32, value: u64) {
        let slot = guest::KEPT.iter().zip(&mut self.values).find(|(kept, _)| **kept == encoding);
        if let Some((_, slot)) = slot {
            *slot = value;
        }
    }
}

/// The four fields of a segment register.
#[derive(Clone, Copy, Debug)]
struct Parts {
    selector: Field<Bits16>,
    limit: Field<Bits32>,
    rights: Field<Bits32>,
    base: Field<Natural>,
}

macro_rules! parts {
    ($selector:ident, $limit:ident, $rights:ident, $base:ident) => {
        Parts { selector: guest::$selector, limit: guest::$limit, rights: guest::$rights, base: guest::$base }
    };
}

const LDTR: Parts = parts!(LDTR_SELECTOR, LDTR_LIMIT, LDTR_RIGHTS, LDTR_BASE);
const TR: Parts = parts!(TR_SELECTOR, TR_LIMIT, TR_RIGHTS, TR_BASE);

const fn parts_of(name: SegmentName) -> Parts {
    match name {
        SegmentName::Es => parts!(ES_SELECTOR, ES_LIMIT, ES_RIGHTS, ES_BASE),
        SegmentName::Cs => parts!(CS_SELECTOR, CS_LIMIT, CS_RIGHTS, CS_BASE),
        SegmentName::Ss => parts!(SS_SELECTOR, SS_LIMIT, SS_RIGHTS, SS_BASE),
        SegmentName::Ds => parts!(DS_SELECTOR, DS_LIMIT, DS_RIGHTS, DS_BASE),
        SegmentName::Fs => parts!(FS_SELECTOR, FS_LIMIT, FS_RIGHTS, FS_BASE),
        SegmentName::Gs => parts!(GS_SELECTOR, GS_LIMIT, GS_RIGHTS, GS_BASE),
    }
}

/// Access rights: the register is not usable (table 25-2).
pub(super) const UNUSABLE: u32 = 1 << 16;

/// Access rights from the packed form: bits 11:8 move to 15:12, and what is not present is not usable.
fn rights_of(attributes: u16) -> u32 {
    let packed = u32::from(attributes);
    let unusable = if attributes & Attributes::PRESENT.bits() == 0 { UNUSABLE } else { 0 };
    packed & 0xff | (packed & 0xf00) << 4 | unusable
}

/// The packed form from access rights; what is not usable is not present.
fn attributes_of(rights: u32) -> u16 {
    let packed = rights & 0xff | rights >> 4 & 0xf00;
    let packed = u16::try_from(packed).unwrap_or(0);
    if rights & UNUSABLE == 0 { packed } else { packed & !Attributes::PRESENT.bits() }
}

/// One segment register.
pub fn segment(fields: &impl Fields, name: SegmentName) -> Segment {
    let parts = parts_of(name);
    Segment {
        selector: fields.read(parts.selector),
        attributes: attributes_of(fields.read(parts.rights)),
        limit: fields.read(parts.limit),
        base: fields.read(parts.base),
    }
}

/// Sets one.
pub fn set_segment(fields: &mut impl Fields, name: SegmentName, segment: Segment) {
    set_parts(fields, parts_of(name), segment);
}

fn set_parts(fields: &mut impl Fields, parts: Parts, segment: Segment) {
    fields.write(parts.selector, segment.selector);
    fields.write(parts.rights, rights_of(segment.attributes));
    fields.write(parts.limit, segment.limit);
    fields.write(parts.base, segment.base);
}

/// CR4 bits that a guest changes without an exit: those of features that its CPUID may show, which it shows where the
/// processor has them. The processor itself refuses the others of them. All further bits are the host's, and read zero.
const CR4_GUEST: Cr4 = Cr4::VME
    .union(Cr4::PVI)
    .union(Cr4::TSD)
    .union(Cr4::DE)
    .union(Cr4::PSE)
    .union(Cr4::PAE)
    .union(Cr4::MCE)
    .union(Cr4::PGE)
    .union(Cr4::PCE)
    .union(Cr4::OSFXSR)
    .union(Cr4::OSXMMEXCPT)
    .union(Cr4::UMIP)
    .union(Cr4::FSGSBASE)
    .union(Cr4::PCIDE)
    .union(Cr4::OSXSAVE)
    .union(Cr4::SMEP)
    .union(Cr4::SMAP);

/// Puts the guest's processor into the state after reset (SDM vol. 3A, table 10-1). `cr0` and `cr4` are the bits that
/// VMX operation wants: the guest does not see them, since they are the host's.
pub fn reset_processor(fields: &mut impl Fields, cr0: Cr0, cr4: u64) {
    let data = Attributes::ACCESSED | Attributes::WRITABLE | Attributes::USER | Attributes::PRESENT;
    let real = Segment { selector: 0, attributes: data.bits(), limit: 0xffff, base: 0 };
    let code = Segment {
        selector: 0xf000,
        attributes: data.union(Attributes::CODE).bits(),
        limit: 0xffff,
        base: 0xffff_0000,
    };
    for name in [SegmentName::Es, SegmentName::Ss, SegmentName::Ds, SegmentName::Fs, SegmentName::Gs] {
        set_segment(fields, name, real);
    }
    set_segment(fields, SegmentName::Cs, code);
    set_parts(fields, LDTR, Segment::table(0, 0xffff, Attributes::LDT));
    set_parts(fields, TR, Segment::table(0, 0xffff, Attributes::TSS_BUSY));
    for (base, limit) in [(guest::GDTR_BASE, guest::GDTR_LIMIT), (guest::IDTR_BASE, guest::IDTR_LIMIT)] {
        fields.write(base, 0);
        fields.write(limit, 0xffff);
    }
    fields.write(guest::CR0_MASK, cr0.bits());
    fields.write(guest::CR4_MASK, !CR4_GUEST.bits());
    fields.write(guest::CR4_SHADOW, 0);
    write_cr0(fields, Cr0::RESET);
    fields.write(guest::CR3, 0);
    fields.write(guest::CR4, cr4);
    write_efer(fields, Efer::empty());
    fields.write(guest::PAT, crate::msr::PAT_RESET);
    for field in [guest::RSP, guest::PENDING_DEBUG, guest::SYSENTER_ESP, guest::SYSENTER_EIP] {
        fields.write(field, 0);
    }
    fields.write(guest::SYSENTER_CS, 0);
    fields.write(guest::DEBUG_CONTROL, 0);
    fields.write(guest::RFLAGS, Rflags::FIXED.bits());
    fields.write(guest::RIP, 0xfff0);
    fields.write(guest::DR7, DR7_RESET);
    fields.write(guest::INTERRUPTIBILITY, 0);
    fields.write(guest::ACTIVITY, 0);
    fields.write(guest::LINK_POINTER, u64::MAX);
}

/// CR0 as the guest sees it: the host's bits from the shadow.
pub fn read_cr0(fields: &impl Fields) -> u64 {
    let mask = fields.read(guest::CR0_MASK);
    fields.read(guest::CR0) & !mask | fields.read(guest::CR0_SHADOW) & mask
}

/// Sets CR0 as the guest sees it.
pub fn write_cr0(fields: &mut impl Fields, value: Cr0) {
    let mask = fields.read(guest::CR0_MASK);
    fields.write(guest::CR0_SHADOW, value.bits());
    fields.write(guest::CR0, value.bits() | mask);
}

/// CR4 as the guest sees it.
pub fn read_cr4(fields: &impl Fields) -> u64 {
    let mask = fields.read(guest::CR4_MASK);
    fields.read(guest::CR4) & !mask | fields.read(guest::CR4_SHADOW) & mask
}

/// Sets CR4 as the guest sees it: of its own bits.
pub fn write_cr4(fields: &mut impl Fields, value: u64) {
    let mask = fields.read(guest::CR4_MASK);
    let now = fields.read(guest::CR4);
    fields.write(guest::CR4, now & mask | value & !mask);
}

/// Sets EFER, and the entry control that must agree with its bit LMA (27.3.1.1).
pub fn write_efer(fields: &mut impl Fields, value: Efer) {
    use super::intercept::Entry;
    let entry = Entry::from_bits_retain(fields.read(guest::ENTRY_CONTROLS));
    let is_long = value.contains(Efer::LMA);
    let entry = if is_long { entry.union(Entry::LONG) } else { entry.difference(Entry::LONG) };
    fields.write(guest::ENTRY_CONTROLS, entry.bits());
    fields.write(guest::EFER, value.bits());
}

/// The current privilege level: that of the stack segment (25.4.1), outside of real and virtual-8086 mode.
pub fn privilege(fields: &impl Fields) -> u8 {
    if fields.read(guest::CR0) & Cr0::PE.bits() == 0 {
        return 0;
    }
    if fields.read(guest::RFLAGS) & Rflags::VM.bits() != 0 {
        return 3;
    }
    Attributes::from_bits_retain(attributes_of(fields.read(guest::SS_RIGHTS))).dpl()
}

/// Steps over the instruction at RIP. Answers whether the guest single-steps: #DB is then to be delivered.
#[must_use]
pub fn skip(fields: &mut impl Fields, length: InstructionLength) -> bool {
    let code = Attributes::from_bits_retain(attributes_of(fields.read(guest::CS_RIGHTS)));
    let is_long = fields.read(guest::EFER) & Efer::LMA.bits() != 0 && code.contains(Attributes::LONG);
    let next = fields.read(guest::RIP).wrapping_add(length.get());
    fields.write(guest::RIP, if is_long { next } else { next & 0xffff_ffff });
    let flags = fields.read(guest::RFLAGS);
    if flags & Rflags::RF.bits() != 0 {
        fields.write(guest::RFLAGS, flags & !Rflags::RF.bits());
    }
    flags & Rflags::TF.bits() != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reset() -> Image {
        let mut fields = Image::ZEROES;
        reset_processor(&mut fields, Cr0::NE, 1 << 13);
        fields
    }

    #[test]
    fn after_reset_the_processor_starts_at_the_top_of_4_gib() {
        let fields = reset();
        assert_eq!(fields.read(guest::CS_BASE) + fields.read(guest::RIP), 0xffff_fff0);
        assert_eq!((read_cr0(&fields), fields.read(guest::CR0)), (0x6000_0010, 0x6000_0030));
        assert_eq!(
            (read_cr4(&fields), fields.read(guest::CR4)),
            (0, 0x2000),
            "VMX is not the guest's to see"
        );
        assert_eq!(privilege(&fields), 0);
        assert_eq!(segment(&fields, SegmentName::Cs).selector, 0xf000);
    }

    #[test]
    fn segments_come_back_as_they_were_set() {
        let mut fields = reset();
        for attributes in [Attributes::CODE64, Attributes::DATA32, Attributes::CODE32] {
            let want =
                Segment { selector: 8, attributes: attributes.bits(), limit: 0xffff_ffff, base: 0x1000 };
            set_segment(&mut fields, SegmentName::Gs, want);
            assert_eq!(segment(&fields, SegmentName::Gs), want);
        }
        assert_eq!(fields.read(guest::GS_RIGHTS), 0xc09b);
    }

    #[test]
    fn a_null_segment_is_unusable_and_reads_as_not_present() {
        let mut fields = reset();
        set_segment(&mut fields, SegmentName::Fs, Segment::default());
        assert_eq!(fields.read(guest::FS_RIGHTS), UNUSABLE);
        fields.write(guest::FS_RIGHTS, UNUSABLE | 0x93);
        assert!(!segment(&fields, SegmentName::Fs).attributes().contains(Attributes::PRESENT));
    }

    #[test]
    fn the_hosts_bits_of_control_registers_are_neither_seen_nor_lost() {
        let mut fields = reset();
        write_cr0(&mut fields, Cr0::PE | Cr0::ET);
        assert_eq!((read_cr0(&fields), fields.read(guest::CR0)), (0x11, 0x31));
        write_cr4(&mut fields, 0x2_0020 | 1 << 13);
        assert_eq!((read_cr4(&fields), fields.read(guest::CR4)), (0x2_0020, 0x2_2020));
        write_cr4(&mut fields, 0);
        assert_eq!((read_cr4(&fields), fields.read(guest::CR4)), (0, 0x2000));
    }

    #[test]
    fn the_entry_control_follows_long_mode() {
        let mut fields = reset();
        write_efer(&mut fields, Efer::LME | Efer::LMA);
        assert_eq!(fields.read(guest::ENTRY_CONTROLS), 1 << 9);
        write_efer(&mut fields, Efer::LME);
        assert_eq!((fields.read(guest::ENTRY_CONTROLS), fields.read(guest::EFER)), (0, 0x100));
    }

    #[test]
    fn privilege_is_the_stack_segments() {
        let mut fields = reset();
        write_cr0(&mut fields, Cr0::PE | Cr0::ET);
        fields.write(guest::SS_RIGHTS, 0xc0f3);
        assert_eq!(privilege(&fields), 3);
        fields.write(guest::SS_RIGHTS, 0xc093);
        fields.write(guest::RFLAGS, 0x2_0002);
        assert_eq!(privilege(&fields), 3, "virtual-8086 mode");
    }

    #[test]
    fn a_skipped_instruction_is_single_stepped_like_one_that_ran() {
        let mut fields = reset();
        let two = InstructionLength::new(2).unwrap();
        fields.write(guest::RIP, 0xffff_ffff);
        fields.write(guest::RFLAGS, 0x1_0002);
        assert!(!skip(&mut fields, two));
        assert_eq!(fields.read(guest::RIP), 1, "RIP has 32 bits outside long mode");
        assert_eq!(fields.read(guest::RFLAGS), 2);
        fields.write(guest::RFLAGS, 0x102);
        assert!(skip(&mut fields, two));
    }

    #[test]
    fn an_image_keeps_every_field_and_no_other() {
        let mut image = Image::ZEROES;
        image.fill(|encoding| u64::from(encoding) + 1);
        assert!(image.iter().all(|(encoding, value)| value == u64::from(encoding) + 1));
        assert_eq!(image.read_raw(0x681e), 0x681f);
        image.write_raw(0x4402, 5);
        assert_eq!(image.read_raw(0x4402), 0, "exit information is the processor's");
    }
}
