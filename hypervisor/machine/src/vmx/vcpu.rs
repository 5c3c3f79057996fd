//! One virtual processor: its control structure and what goes on around an entry.

use dolmen_arch::register::{Cr0, Rflags};
use dolmen_arch::vmx::field::{exit, guest};
use dolmen_arch::vmx::intercept::{Pin, Primary, Secondary};
use dolmen_arch::vmx::{self, Capabilities, ExitInformation, ExitReason, Fields, Injection};
use dolmen_arch::{Gprs, Vector, VmExit};
use dolmen_memory::Hpa;

use super::frame::VmcsFrame;
use super::processor;
use super::resident::Resident;
use super::switch::{self, Entered};
use crate::cpus::{self, CpuId};
use crate::extended::Extended;

/// Interruptibility state (SDM vol. 3C, table 25-3).
mod shadow {
    /// STI.
    pub(super) const STI: u32 = 1 << 0;
    /// MOV SS.
    pub(super) const MOV_SS: u32 = 1 << 1;
    /// An NMI is being handled.
    pub(super) const NMI: u32 = 1 << 3;
}

/// Where a virtual processor runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) cpu: CpuId,
}

/// A virtual processor on VMX.
#[derive(Debug)]
pub struct Vmx {
    pub(super) vmcs: VmcsFrame,
    /// Its identifier, and the pointer to its nested tables.
    names: (u16, u64),
    pub(super) capabilities: Capabilities,
    /// Where it runs, or ran last.
    place: Option<Place>,
    is_loaded: bool,
    /// Translations are dropped before the next entry.
    must_flush: bool,
    /// The last [`cpus::flush_generation`] that it has flushed for.
    flushed: u64,
    pub(super) gprs: Gprs,
    pub(super) extended: Extended,
    pub(super) resident: Resident,
    /// What the last exit told.
    pub(super) told: ExitInformation,
    /// An event is on its way to the next entry.
    pub(super) is_injecting: bool,
    /// The state was made by us, and no processor has entered it yet.
    is_unchecked: bool,
}

impl Vmx {
    pub(super) fn new(
        vmcs: VmcsFrame,
        names: (u16, u64),
        capabilities: Capabilities,
        extended: Extended,
    ) -> Self {
        let mut vmx = Self {
            vmcs,
            names,
            capabilities,
            place: None,
            is_loaded: false,
            must_flush: true,
            flushed: 0,
            gprs: Gprs::default(),
            extended,
            resident: Resident::RESET,
            told: ExitInformation::default(),
            is_injecting: false,
            is_unchecked: true,
        };
        vmx.reset_processor();
        vmx
    }

    /// What tells it from all others.
    pub(super) const fn identity(&self) -> Hpa {
        self.vmcs.physical()
    }

    /// The processor that it ran on last.
    pub(super) fn ran_on(&self) -> Option<CpuId> {
        self.place.map(|place| place.cpu)
    }

    pub(super) const fn settle(&mut self, place: Place) {
        self.place = Some(place);
        self.is_loaded = true;
    }

    /// Leaves its processor.
    pub(super) const fn leave(&mut self) {
        self.is_loaded = false;
    }

    /// Puts the processor into the state after reset, as far as the control structure keeps it.
    pub(super) fn reset_processor(&mut self) {
        let (cr4, _) = self.capabilities.cr4;
        vmx::reset_processor(&mut self.vmcs, self.capabilities.guest_cr0(), cr4);
        self.is_unchecked = true;
    }

    /// Forgets what was under way, and where it ran: it starts anew.
    pub(super) fn forget(&mut self) {
        self.set_window(Primary::INTERRUPT_WINDOW, false);
        self.set_window(Primary::NMI_WINDOW, false);
        self.clear_injection();
        self.told = ExitInformation::default();
    }

    /// After how long in the guest the preemption timer exits, where the processor has one.
    pub(super) fn period(&self) -> Option<u32> {
        /// Of the time-stamp counter: a millisecond at 2 GHz.
        const TICKS: u32 = 1 << 21;
        let pin = Pin::from_bits_retain(self.vmcs.read(guest::PIN_CONTROLS));
        let period = TICKS.checked_shr(self.capabilities.timer_shift).unwrap_or(0).max(1);
        pin.contains(Pin::PREEMPTION_TIMER).then_some(period)
    }

    /// Whether the processor has enclaves, whose instructions must exit.
    pub(super) fn hides_enclaves(&self) -> bool {
        Secondary::from_bits_retain(self.vmcs.read(guest::SECONDARY_CONTROLS)).contains(Secondary::ENCLS)
    }

    /// Everything that no control structure holds gets its reset value; not while it is loaded.
    pub(super) fn reset_extended(&mut self) {
        assert!(!self.is_loaded, "a virtual processor is reset where it does not run");
        self.extended.reset();
        self.resident.reset();
        self.place = None;
    }

    /// XCR0 bits that this processor has and the guest may be offered.
    #[must_use]
    pub const fn xcr0_mask(&self) -> u64 {
        self.extended.xcr0_mask()
    }

    pub(super) const fn flush_translations(&mut self) {
        self.must_flush = true;
    }

    /// Drops the translations; whether the processor did.
    fn flush_now(&mut self) -> bool {
        let (vpid, pointer) = self.names;
        self.must_flush = false;
        processor::invalidate_vpid(vpid, self.capabilities.flushes_one_vpid)
            && processor::invalidate_ept(pointer, self.capabilities.flushes_one_ept)
    }

    /// Enters the guest until it exits for somebody else than this.
    pub(super) fn enter(&mut self) -> VmExit {
        if !self.is_loaded || self.ran_on() != Some(cpus::this()) {
            // A defect of ours; the guest pays for it with its end.
            return VmExit::Unknown { code: u64::MAX };
        }
        let generation = cpus::flush_generation();
        self.must_flush |= self.flushed != generation;
        self.flushed = generation;
        let is_flushed = !self.must_flush || self.flush_now();
        let is_sound = !self.is_unchecked || vmx::explain(&self.vmcs, &self.capabilities).is_ok();
        if self.vmcs.is_broken || !is_flushed || !is_sound {
            self.clear_injection();
            return VmExit::InvalidState;
        }
        self.is_unchecked = false;
        // Some processors, emulated ones, hold physical interrupts back for as long as a guest that was entered with
        // IF clear leaves it so: what waits is taken before the entry then, and the preemption timer ends the stretch.
        let is_masked = self.vmcs.read(guest::RFLAGS) & Rflags::IF.bits() == 0;
        if is_masked && switch::take_interrupts() {
            self.told = ExitInformation::default();
            return VmExit::HostInterrupt;
        }
        loop {
            self.vmcs.write(guest::RSP, self.gprs.rsp);
            if switch::enter(&mut self.gprs, &mut self.vmcs) == Entered::Failed {
                self.vmcs.is_broken = true;
                self.clear_injection();
                return VmExit::InvalidState;
            }
            let exit = self.after_exit();
            if !self.follow_cr0(exit) {
                return exit;
            }
        }
    }

    fn after_exit(&mut self) -> VmExit {
        self.gprs.rsp = self.vmcs.read(guest::RSP);
        self.told = self.read_exit();
        let decoded = vmx::decode(&self.told, &self.gprs);
        if decoded == VmExit::InvalidState {
            // Only exits take the event off the field.
            self.clear_injection();
        }
        self.is_injecting = false;
        if self.told.unblocked_nmi() {
            self.set_shadow(shadow::NMI, true);
        }
        if decoded == VmExit::InterruptWindow {
            self.set_window(Primary::INTERRUPT_WINDOW, false);
        } else if decoded == VmExit::NmiReturn {
            self.set_window(Primary::NMI_WINDOW, false);
        } else if decoded == VmExit::HostNmi {
            switch::take_nmi();
        } else if matches!(decoded, VmExit::Exception { vector: Vector::DB, .. }) {
            // The processor tells why, and leaves it to us to note it (SDM vol. 3C, 28.1).
            self.note_debug();
        }
        decoded
    }

    /// What the processor says of the exit, as far as it means something.
    fn read_exit(&self) -> ExitInformation {
        const VALID: u32 = 1 << 31;
        let vmcs = &self.vmcs;
        let reason = vmcs.exit(exit::REASON);
        let basic = ExitReason::from_raw(reason);
        let mut told = ExitInformation {
            reason,
            qualification: vmcs.exit(exit::QUALIFICATION),
            length: vmcs.exit(exit::INSTRUCTION_LENGTH),
            ..ExitInformation::default()
        };
        told.vectoring.information = vmcs.exit(exit::VECTORING_INFORMATION);
        if told.vectoring.information & VALID != 0 {
            told.vectoring.error_code = vmcs.exit(exit::VECTORING_ERROR_CODE);
            told.vectoring.length = told.length;
        }
        if basic == ExitReason::EXCEPTION_OR_NMI {
            told.interruption.information = vmcs.exit(exit::INTERRUPTION_INFORMATION);
            told.interruption.error_code = vmcs.exit(exit::INTERRUPTION_ERROR_CODE);
        } else if basic == ExitReason::EPT_VIOLATION {
            told.address = vmcs.exit(exit::GUEST_PHYSICAL_ADDRESS);
        }
        told
    }

    /// A guest that writes a bit of CR0 which is the host's executes the instruction again, once the shadow agrees: so
    /// the processor itself does all else that the write does, such as loading page-directory pointers. Whether this was
    /// such an exit, and all that there was to do.
    fn follow_cr0(&mut self, exit: VmExit) -> bool {
        const MOVE_TO_CR0: u64 = 0;
        const WHAT: u64 = 0x3f;
        let is_move = exit == VmExit::WriteControl(dolmen_arch::ControlRegister::Cr0)
            && self.told.qualification & WHAT == MOVE_TO_CR0;
        if !is_move {
            return false;
        }
        let wanted = self.gprs.read(vmx::moved_register(self.told.qualification));
        let (mask, now) = (self.vmcs.read(guest::CR0_MASK), self.vmcs.read(guest::CR0_SHADOW));
        if (wanted ^ now) & mask == 0 || !Cr0::from_bits_retain(wanted).is_valid() {
            return false;
        }
        self.vmcs.write(guest::CR0_SHADOW, now & !mask | wanted & mask);
        true
    }

    /// DR6 and DR7 as the delivery of #DB leaves them (SDM vol. 3B, 18.2.3 and 18.2.4).
    fn note_debug(&mut self) {
        const GENERAL_DETECT: u64 = 1 << 13;
        self.resident.note_debug(self.told.qualification);
        let dr7 = self.vmcs.read(guest::DR7);
        if dr7 & GENERAL_DETECT != 0 {
            self.vmcs.write(guest::DR7, dr7 & !GENERAL_DETECT);
        }
    }

    /// Puts an event on its way.
    pub(super) fn set_injection(&mut self, injection: Injection) {
        self.vmcs.write(guest::ENTRY_INTERRUPTION, injection.information);
        self.vmcs.write(guest::ENTRY_ERROR_CODE, injection.error_code);
        self.vmcs.write(guest::ENTRY_INSTRUCTION_LENGTH, injection.length);
        self.is_injecting = true;
    }

    fn clear_injection(&mut self) {
        self.vmcs.write(guest::ENTRY_INTERRUPTION, Injection::NONE.information);
        self.is_injecting = false;
    }

    /// The guest handles an NMI from the next entry on; its end exits.
    pub(super) fn begin_nmi(&mut self) {
        // Its delivery sets the bit; one that was cut short has done so already, and would be refused.
        self.set_shadow(shadow::NMI, false);
        self.set_window(Primary::NMI_WINDOW, true);
    }

    pub(super) fn is_open_for_nmi(&self) -> bool {
        const CLOSED: u32 = shadow::STI | shadow::MOV_SS | shadow::NMI;
        !self.is_injecting && self.vmcs.read(guest::INTERRUPTIBILITY) & CLOSED == 0
    }

    /// Whether the guest stands in an interrupt shadow.
    pub(super) fn is_shadowed(&self) -> bool {
        self.vmcs.read(guest::INTERRUPTIBILITY) & (shadow::STI | shadow::MOV_SS) != 0
    }

    pub(super) fn end_shadow(&mut self) {
        self.set_shadow(shadow::STI | shadow::MOV_SS, false);
    }

    fn set_shadow(&mut self, bits: u32, is_set: bool) {
        let now = self.vmcs.read(guest::INTERRUPTIBILITY);
        let next = if is_set { now | bits } else { now & !bits };
        if next != now {
            self.vmcs.write(guest::INTERRUPTIBILITY, next);
        }
    }

    /// Asks for an exit as soon as the guest can take an event, or no longer.
    pub(super) fn set_window(&mut self, window: Primary, is_wanted: bool) {
        let now = Primary::from_bits_retain(self.vmcs.read(guest::PRIMARY_CONTROLS));
        let next = if is_wanted { now.union(window) } else { now.difference(window) };
        if next != now {
            self.vmcs.write(guest::PRIMARY_CONTROLS, next.bits());
        }
    }
}
