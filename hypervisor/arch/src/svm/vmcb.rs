//! One guest's control block: a page of control area and save area.

use core::mem::offset_of;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::control::{Clean, ControlArea};
use super::save::SaveArea;
use crate::instruction::InstructionLength;
use crate::register::{Cr0, DR6_RESET, DR6_SINGLE_STEP, DR7_RESET, Efer, Rflags};
use crate::segment::{Attributes, Segment, SegmentName};

/// A VMCB: 4 KiB, to be put at a page boundary.
#[repr(C, align(4096))]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Vmcb {
    /// Control area.
    pub control: ControlArea,
    save: SaveArea,
}

const _: () = {
    assert!(size_of::<Vmcb>() == 0x1000);
    assert!(offset_of!(Vmcb, save) == 0x400);
};

impl Vmcb {
    /// Offset of the save area's RAX, which world switches never touch themselves.
    pub const RAX_OFFSET: usize = offset_of!(Vmcb, save).wrapping_add(offset_of!(SaveArea, rax));

    /// Puts the guest's processor into the state after reset (APM vol. 2, table 14-1), except that EFER.SVME
    /// is set, as VMRUN demands.
    pub fn reset_processor(&mut self) {
        let data = Attributes::ACCESSED | Attributes::WRITABLE | Attributes::USER | Attributes::PRESENT;
        let real = Segment { selector: 0, attributes: data.bits(), limit: 0xffff, base: 0 };
        let code = Segment {
            selector: 0xf000,
            attributes: data.union(Attributes::CODE).bits(),
            limit: 0xffff,
            base: 0xffff_0000,
        };
        let mut save = SaveArea::new_zeroed();
        (save.es, save.ss, save.ds, save.fs, save.gs) = (real, real, real, real, real);
        save.cs = code;
        save.gdtr.limit = 0xffff;
        save.idtr.limit = 0xffff;
        save.ldtr = Segment::table(0, 0xffff, Attributes::LDT);
        save.tr = Segment::table(0, 0xffff, Attributes::TSS_BUSY);
        save.efer = Efer::SVME.bits();
        save.cr0 = Cr0::RESET.bits();
        save.rflags = Rflags::FIXED.bits();
        save.rip = 0xfff0;
        save.dr6 = DR6_RESET;
        save.dr7 = DR7_RESET;
        save.pat = crate::msr::PAT_RESET;
        self.save = save;
        self.control.set_clean(Clean::empty());
    }

    /// The guest's registers.
    pub const fn save(&self) -> &SaveArea {
        &self.save
    }

    /// The guest's registers, to be changed: `what` names the cached parts that this drops.
    pub fn save_mut(&mut self, what: Clean) -> &mut SaveArea {
        self.control.dirty_save(what);
        &mut self.save
    }

    /// One segment register.
    pub const fn segment(&self, name: SegmentName) -> Segment {
        match name {
            SegmentName::Es => self.save.es,
            SegmentName::Cs => self.save.cs,
            SegmentName::Ss => self.save.ss,
            SegmentName::Ds => self.save.ds,
            SegmentName::Fs => self.save.fs,
            SegmentName::Gs => self.save.gs,
        }
    }

    /// The privilege level, 0 to 3, at which the guest was interrupted: #VMEXIT saves it (APM vol. 2, 15.6). The stack
    /// segment's level may be another one: SYSRET leaves in it what STAR says.
    pub const fn privilege(&self) -> u8 {
        self.save.cpl & 3
    }

    /// Steps over the instruction at RIP. Answers whether the guest single-steps: the trap that follows each
    /// instruction (APM vol. 2, 13.1.4) is then noted in DR6, and #DB is to be delivered.
    #[must_use]
    pub fn skip(&mut self, length: InstructionLength) -> bool {
        let is_long =
            self.save.efer & Efer::LMA.bits() != 0 && self.save.cs.attributes().contains(Attributes::LONG);
        let next = self.save.rip.wrapping_add(length.get());
        self.save.rip = if is_long { next } else { next & 0xffff_ffff };
        self.save.rflags &= !Rflags::RF.bits();
        let is_stepped = self.save.rflags & Rflags::TF.bits() != 0;
        if is_stepped {
            self.save_mut(Clean::DRX).dr6 |= DR6_SINGLE_STEP;
        }
        is_stepped
    }

    /// Clears what a guest may have set that no processor accepts at entry although it let the guest set it:
    /// the upper halves of DR6 and DR7 (APM vol. 2, 15.5.1).
    pub fn sanitise_debug(&mut self) {
        if (self.save.dr6 | self.save.dr7) >> 32 != 0 {
            self.save.dr6 &= 0xffff_ffff;
            self.save.dr7 &= 0xffff_ffff;
            self.control.dirty_save(Clean::DRX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_reset_the_processor_starts_at_the_top_of_4_gib_with_svm_enabled() {
        let mut vmcb = Vmcb::new_zeroed();
        vmcb.reset_processor();
        assert_eq!(vmcb.save().cs.base + vmcb.save().rip, 0xffff_fff0);
        assert_eq!(vmcb.save().efer, 1 << 12);
        assert_eq!(vmcb.save().cr0, 0x6000_0010);
        assert_eq!(vmcb.privilege(), 0);
    }

    #[test]
    fn privilege_is_the_processors_own_and_not_the_stack_segments() {
        let mut vmcb = Vmcb::new_zeroed();
        vmcb.reset_processor();
        let save = vmcb.save_mut(Clean::SEG);
        save.cr0 = 0x8000_0011;
        save.cpl = 3;
        save.ss.attributes = 0xc93;
        assert_eq!(vmcb.privilege(), 3, "a program that SYSRET returned to");
        let save = vmcb.save_mut(Clean::SEG);
        save.cpl = 0;
        save.ss.attributes = 0xcf3;
        assert_eq!(vmcb.privilege(), 0);
    }

    #[test]
    fn upper_halves_of_debug_registers_never_reach_an_entry() {
        let mut vmcb = Vmcb::new_zeroed();
        vmcb.save_mut(Clean::DRX).dr7 = 0xff00_0000_0000_0401;
        vmcb.sanitise_debug();
        assert_eq!(vmcb.save().dr7, 0x401);
    }
    #[test]
    fn a_skipped_instruction_is_single_stepped_like_one_that_ran() {
        let mut vmcb = Vmcb::new_zeroed();
        vmcb.reset_processor();
        let two = InstructionLength::new(2).unwrap();
        vmcb.save_mut(Clean::empty()).rip = 0xffff_ffff;
        vmcb.save_mut(Clean::empty()).rflags |= Rflags::RF.bits();
        assert!(!vmcb.skip(two));
        assert_eq!((vmcb.save().rip, vmcb.save().dr6), (1, DR6_RESET), "RIP has 32 bits outside long mode");
        assert_eq!(vmcb.save().rflags & Rflags::RF.bits(), 0);
        vmcb.save_mut(Clean::empty()).rflags |= Rflags::TF.bits();
        assert!(vmcb.skip(two));
        assert_eq!((vmcb.save().rip, vmcb.save().dr6), (3, DR6_RESET | DR6_SINGLE_STEP));
    }
}
