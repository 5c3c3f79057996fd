//! The control area (APM vol. 2, table B-1). Setters drop the processor's cached copy of what they change.

use core::mem::offset_of;

use bitflags::bitflags;
use dolmen_memory::Hpa;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::event;
use super::exit_code::ExitCode;
use super::intercept::Intercepts;
use crate::event::Event;

bitflags! {
    /// What the processor may keep from the last exit (APM vol. 2, 15.15.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Clean: u32 {
        /// Intercepts, TSC offset, pause filter.
        const INTERCEPTS = 1 << 0;
        /// Permission map addresses.
        const MAPS = 1 << 1;
        /// Address-space identifier.
        const ASID = 1 << 2;
        /// Virtual interrupt fields.
        const TPR = 1 << 3;
        /// Nested root and PAT.
        const NP = 1 << 4;
        /// CR0, CR3, CR4, EFER.
        const CRX = 1 << 5;
        /// DR6, DR7.
        const DRX = 1 << 6;
        /// GDTR, IDTR.
        const DT = 1 << 7;
        /// CS, DS, SS, ES, CPL.
        const SEG = 1 << 8;
        /// CR2.
        const CR2 = 1 << 9;
        /// Debug control and last branch.
        const LBR = 1 << 10;
        const _ = !0;
    }
}

/// What VMRUN flushes (APM vol. 2, 15.16.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlbControl {
    /// Nothing.
    Keep,
    /// Every translation of every address space.
    All,
    /// This guest's translations; needs flush-by-ASID.
    Guest,
}

const NESTED_PAGING: u64 = 1;
const SHADOW: u64 = 1;
const VIRTUAL_IRQ: u32 = 1 << 8;
const PRIORITY_HIGHEST: u32 = 0xf << 16;
const IGNORE_TPR: u32 = 1 << 20;
const INTR_MASKING: u32 = 1 << 24;

/// The control area; reserved ranges stay zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ControlArea {
    intercept_control: u32,        // 000h
    intercept_debug: u32,          // 004h
    intercept_exceptions: u32,     // 008h
    intercept_general: u32,        // 00Ch
    intercept_virtualisation: u32, // 010h
    intercept_extended: u32,       // 014h
    _rsvd0: [u8; 0x3c - 0x18],
    pause_threshold: u16,   // 03Ch
    pause_count: u16,       // 03Eh
    iopm_base: u64,         // 040h
    msrpm_base: u64,        // 048h
    tsc_offset: u64,        // 050h
    guest_asid: u32,        // 058h
    tlb_control: u32,       // 05Ch
    virtual_interrupt: u32, // 060h
    virtual_vector: u32,    // 064h
    interrupt_state: u64,   // 068h
    exit_code: u64,         // 070h
    exit_info1: u64,        // 078h
    exit_info2: u64,        // 080h
    exit_int_info: u64,     // 088h
    nested_control: u64,    // 090h
    _rsvd1: [u8; 0xa8 - 0x98],
    event_injection: u64, // 0A8h
    nested_cr3: u64,      // 0B0h
    lbr_control: u64,     // 0B8h
    clean: u32,           // 0C0h
    _rsvd2: u32,
    next_rip: u64,           // 0C8h
    fetched_count: u8,       // 0D0h
    fetched_bytes: [u8; 15], // 0D1h
    _rsvd3: [u8; 0x400 - 0xe0],
}

const _: () = {
    assert!(size_of::<ControlArea>() == 0x400);
    assert!(offset_of!(ControlArea, pause_threshold) == 0x3c);
    assert!(offset_of!(ControlArea, iopm_base) == 0x40);
    assert!(offset_of!(ControlArea, tsc_offset) == 0x50);
    assert!(offset_of!(ControlArea, guest_asid) == 0x58);
    assert!(offset_of!(ControlArea, virtual_interrupt) == 0x60);
    assert!(offset_of!(ControlArea, interrupt_state) == 0x68);
    assert!(offset_of!(ControlArea, exit_code) == 0x70);
    assert!(offset_of!(ControlArea, exit_int_info) == 0x88);
    assert!(offset_of!(ControlArea, nested_control) == 0x90);
    assert!(offset_of!(ControlArea, event_injection) == 0xa8);
    assert!(offset_of!(ControlArea, nested_cr3) == 0xb0);
    assert!(offset_of!(ControlArea, clean) == 0xc0);
    assert!(offset_of!(ControlArea, next_rip) == 0xc8);
    assert!(offset_of!(ControlArea, fetched_bytes) == 0xd1);
};

impl ControlArea {
    fn dirty(&mut self, what: Clean) {
        self.clean &= !what.bits();
    }

    /// Sets all intercepts.
    pub fn set_intercepts(&mut self, set: Intercepts) {
        self.intercept_control = set.control.bits();
        self.intercept_exceptions = set.exceptions;
        self.intercept_general = set.general.bits();
        self.intercept_virtualisation = set.virtualisation.bits();
        self.intercept_extended = set.extended.bits();
        self.dirty(Clean::INTERCEPTS);
    }

    /// Points the processor at the I/O and MSR permission maps.
    pub fn set_permission_maps(&mut self, io: Hpa, msr: Hpa) {
        self.iopm_base = io.get();
        self.msrpm_base = msr.get();
        self.dirty(Clean::MAPS);
    }

    /// What is added to the time-stamp counter as the guest reads it.
    pub fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
        self.dirty(Clean::INTERCEPTS);
    }

    /// What is added to the time-stamp counter as the guest reads it.
    pub const fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }

    /// Names the guest's address space; 0 is the host's and refused by VMRUN.
    pub fn set_asid(&mut self, asid: u32) {
        self.guest_asid = asid;
        self.dirty(Clean::ASID);
    }

    /// What the next entry flushes. Everything stays everything, until nothing is to be flushed any more.
    pub fn set_tlb_control(&mut self, what: TlbControl) {
        const ALL: u32 = 1;
        self.tlb_control = match what {
            TlbControl::Keep => 0,
            TlbControl::Guest if self.tlb_control != ALL => 3,
            TlbControl::Guest | TlbControl::All => ALL,
        };
    }

    /// Whether the next entry flushes every translation of every address space.
    pub const fn flushes_all(&self) -> bool {
        self.tlb_control == 1
    }

    /// Switches nested paging on, rooted at `root`, which is page-aligned.
    pub fn set_nested_root(&mut self, root: Hpa) {
        self.nested_control = NESTED_PAGING;
        self.nested_cr3 = root.get();
        self.dirty(Clean::NP);
    }

    /// Makes the guest's IF and CR8 its own: neither masks physical interrupts (APM vol. 2, 15.21.1).
    pub fn virtualise_interrupt_masking(&mut self) {
        self.virtual_interrupt |= INTR_MASKING;
        self.dirty(Clean::TPR);
    }

    /// Asks for an exit as soon as the guest can take an interrupt, or takes the wish back.
    /// The virtual interrupt behind it is never delivered: its intercept comes first.
    pub fn set_interrupt_window(&mut self, wanted: bool) {
        let irq = VIRTUAL_IRQ | PRIORITY_HIGHEST | IGNORE_TPR;
        let vintr = super::intercept::General::VINTR.bits();
        let is_set = self.virtual_interrupt & VIRTUAL_IRQ != 0;
        if wanted == is_set {
            return;
        }
        if wanted {
            self.virtual_interrupt |= irq;
            self.intercept_general |= vintr;
        } else {
            self.virtual_interrupt &= !irq;
            self.intercept_general &= !vintr;
        }
        self.dirty(Clean::TPR.union(Clean::INTERCEPTS));
    }

    /// Makes IRET exit, or no longer.
    pub fn set_return_intercept(&mut self, wanted: bool) {
        let iret = super::intercept::General::IRET.bits();
        self.intercept_general =
            if wanted { self.intercept_general | iret } else { self.intercept_general & !iret };
        self.dirty(Clean::INTERCEPTS);
    }

    /// Whether the next instruction stands in an interrupt shadow (APM vol. 2, 15.21.5).
    pub const fn is_shadowed(&self) -> bool {
        self.interrupt_state & SHADOW != 0
    }

    /// Ends the interrupt shadow, as finishing an instruction does.
    pub const fn clear_shadow(&mut self) {
        self.interrupt_state &= !SHADOW;
    }

    /// Begins an interrupt shadow.
    pub const fn set_shadow(&mut self) {
        self.interrupt_state |= SHADOW;
    }

    /// Delivers `event` at the next entry.
    pub fn inject(&mut self, event: Event) {
        self.event_injection = event::encode(event);
    }

    /// Takes an event that waits for the next entry back.
    pub const fn clear_injection(&mut self) {
        self.event_injection = 0;
    }

    /// Whether an event waits for the next entry.
    pub const fn is_injecting(&self) -> bool {
        self.event_injection >> 31 & 1 != 0
    }

    /// Which exceptions exit, by vector.
    pub fn set_exceptions(&mut self, vectors: u32) {
        if self.intercept_exceptions != vectors {
            self.intercept_exceptions = vectors;
            self.dirty(Clean::INTERCEPTS);
        }
    }

    /// Why the guest left.
    pub const fn exit_code(&self) -> ExitCode {
        ExitCode::from_raw(self.exit_code)
    }

    /// The exit's first word.
    pub const fn exit_info1(&self) -> u64 {
        self.exit_info1
    }

    /// The exit's second word.
    pub const fn exit_info2(&self) -> u64 {
        self.exit_info2
    }

    /// The event whose delivery the exit cut short.
    pub fn interrupted_event(&self) -> Option<Event> {
        event::decode(self.exit_int_info)
    }

    /// The next instruction's address, on processors that save it, else 0.
    pub const fn next_rip(&self) -> u64 {
        self.next_rip
    }

    /// Says which parts the processor may keep; nothing on processors without clean bits.
    pub const fn set_clean(&mut self, what: Clean) {
        self.clean = what.bits();
    }

    pub(super) fn dirty_save(&mut self, what: Clean) {
        self.dirty(what);
    }

    /// An exit as a processor would leave it; for tests.
    #[cfg(test)]
    pub(super) fn exited(code: u64, info1: u64, info2: u64) -> Self {
        let mut area: Self = zerocopy::FromZeros::new_zeroed();
        (area.exit_code, area.exit_info1, area.exit_info2) = (code, info1, info2);
        area
    }

    /// Sets what the exit says of a cut-short delivery and of the next instruction; for tests.
    #[cfg(test)]
    pub(super) fn with(mut self, exit_int_info: u64, next_rip: u64) -> Self {
        (self.exit_int_info, self.next_rip) = (exit_int_info, next_rip);
        self
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn a_setter_drops_only_its_own_clean_bit() {
        let mut area = ControlArea::new_zeroed();
        area.set_clean(Clean::all());
        area.set_nested_root(Hpa::new(0x5000));
        assert_eq!(!area.clean, Clean::NP.bits());
        area.set_asid(1);
        assert_eq!(!area.clean, (Clean::NP | Clean::ASID).bits());
    }

    #[test]
    fn a_flush_of_everything_is_never_taken_for_less() {
        let mut area = ControlArea::new_zeroed();
        area.set_tlb_control(TlbControl::Guest);
        assert_eq!(area.tlb_control, 3);
        area.set_tlb_control(TlbControl::All);
        area.set_tlb_control(TlbControl::Guest);
        assert_eq!(area.tlb_control, 1);
        area.set_tlb_control(TlbControl::Keep);
        assert_eq!(area.tlb_control, 0);
    }

    #[test]
    fn a_window_is_a_virtual_interrupt_above_all_priorities_and_its_intercept() {
        let mut area = ControlArea::new_zeroed();
        area.virtualise_interrupt_masking();
        area.set_interrupt_window(true);
        assert_eq!(area.virtual_interrupt, 0x011f_0100);
        assert_eq!(area.intercept_general, 0x10);
        area.set_interrupt_window(false);
        assert_eq!((area.virtual_interrupt, area.intercept_general), (0x0100_0000, 0));
    }

    #[test]
    fn asking_again_for_what_stands_costs_no_clean_bit() {
        let mut area = ControlArea::new_zeroed();
        area.set_interrupt_window(true);
        area.set_clean(Clean::all());
        area.set_interrupt_window(true);
        area.set_exceptions(0);
        assert_eq!(area.clean, u32::MAX);
    }

    #[test]
    fn the_shadow_is_bit_0_of_068h() {
        let mut area = ControlArea::new_zeroed();
        area.set_shadow();
        assert_eq!(area.as_bytes()[0x68], 1);
        area.clear_shadow();
        assert!(!area.is_shadowed());
    }
}
