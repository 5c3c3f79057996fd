//! Controls: what makes a guest exit, and what entries and exits load and save (SDM vol. 3C, 25.6 to 25.8).

use bitflags::bitflags;

use super::capability::{Capabilities, Lack};

bitflags! {
    /// Pin-based controls (table 25-5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Pin: u32 {
        /// Physical interrupts.
        const INTERRUPTS = 1 << 0;
        /// Physical NMIs.
        const NMIS = 1 << 3;
        /// The processor keeps whether the guest handles an NMI.
        const VIRTUAL_NMIS = 1 << 5;
        /// The preemption timer runs in the guest.
        const PREEMPTION_TIMER = 1 << 6;
        const _ = !0;
    }

    /// Primary processor-based controls (table 25-6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Primary: u32 {
        /// The guest can take an interrupt.
        const INTERRUPT_WINDOW = 1 << 2;
        /// The guest's time-stamp counter is shifted.
        const TSC_OFFSET = 1 << 3;
        /// HLT.
        const HLT = 1 << 7;
        /// MWAIT.
        const MWAIT = 1 << 10;
        /// RDPMC.
        const RDPMC = 1 << 11;
        /// Writes of CR8.
        const WRITE_CR8 = 1 << 19;
        /// Reads of CR8.
        const READ_CR8 = 1 << 20;
        /// The guest can take an NMI.
        const NMI_WINDOW = 1 << 22;
        /// All ports.
        const PORTS = 1 << 24;
        /// MSRs that the bitmaps mark.
        const MSR_BITMAPS = 1 << 28;
        /// MONITOR.
        const MONITOR = 1 << 29;
        /// There are secondary controls.
        const SECONDARY = 1 << 31;
        const _ = !0;
    }

    /// Secondary processor-based controls (table 25-7).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Secondary: u32 {
        /// Extended page tables.
        const EPT = 1 << 1;
        /// RDTSCP and RDPID are there.
        const RDTSCP = 1 << 3;
        /// Translations carry an identifier.
        const VPID = 1 << 5;
        /// WBINVD.
        const WBINVD = 1 << 6;
        /// Real mode runs as it is.
        const UNRESTRICTED_GUEST = 1 << 7;
        /// INVPCID is there.
        const INVPCID = 1 << 12;
        /// ENCLS, the kernel's instructions of enclaves (SGX), by the bitmap of its leaves.
        const ENCLS = 1 << 15;
        const _ = !0;
    }

    /// Exit controls (table 25-13).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Exit: u32 {
        /// DR7 and IA32_DEBUGCTL are saved.
        const SAVE_DEBUG = 1 << 2;
        /// The host is in 64-bit mode.
        const HOST_LONG = 1 << 9;
        /// IA32_PAT is saved.
        const SAVE_PAT = 1 << 18;
        /// IA32_PAT is loaded.
        const LOAD_PAT = 1 << 19;
        /// EFER is saved.
        const SAVE_EFER = 1 << 20;
        /// EFER is loaded.
        const LOAD_EFER = 1 << 21;
        const _ = !0;
    }

    /// Entry controls (table 25-15).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Entry: u32 {
        /// DR7 and IA32_DEBUGCTL are loaded.
        const LOAD_DEBUG = 1 << 2;
        /// The guest is in long mode; the processor keeps it.
        const LONG = 1 << 9;
        /// IA32_PAT is loaded.
        const LOAD_PAT = 1 << 14;
        /// EFER is loaded.
        const LOAD_EFER = 1 << 15;
        const _ = !0;
    }
}

/// Exceptions that always exit: #DB and #AC, which a guest can make the processor raise without end while
/// nothing interrupts it, and #MC, which is the host's.
pub const EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;

/// All controls of a guest, as this processor takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controls {
    /// Pin-based.
    pub pin: Pin,
    /// Primary processor-based.
    pub primary: Primary,
    /// Secondary processor-based.
    pub secondary: Secondary,
    /// Exit.
    pub exit: Exit,
    /// Entry.
    pub entry: Entry,
}

impl Controls {
    /// The base set: physical events, everything the guest must not have, everything that is emulated. What always
    /// exits has no bit: CPUID, GETSEC, INVD, XSETBV, all of VMX, task switches.
    const GUEST: Self = Self {
        pin: Pin::INTERRUPTS.union(Pin::NMIS).union(Pin::VIRTUAL_NMIS),
        primary: Primary::TSC_OFFSET
            .union(Primary::HLT)
            .union(Primary::MWAIT)
            .union(Primary::RDPMC)
            .union(Primary::WRITE_CR8)
            .union(Primary::READ_CR8)
            .union(Primary::PORTS)
            .union(Primary::MSR_BITMAPS)
            .union(Primary::MONITOR)
            .union(Primary::SECONDARY),
        secondary: Secondary::EPT
            .union(Secondary::VPID)
            .union(Secondary::WBINVD)
            .union(Secondary::UNRESTRICTED_GUEST),
        exit: Exit::SAVE_DEBUG
            .union(Exit::HOST_LONG)
            .union(Exit::SAVE_PAT)
            .union(Exit::LOAD_PAT)
            .union(Exit::SAVE_EFER)
            .union(Exit::LOAD_EFER),
        entry: Entry::LOAD_DEBUG.union(Entry::LOAD_PAT).union(Entry::LOAD_EFER),
    };

    /// Windows that a guest in service may ask for.
    const WINDOWS: Primary = Primary::INTERRUPT_WINDOW.union(Primary::NMI_WINDOW);

    /// What processors have that have enclaves: ENCLS then works for a guest unless it exits, whatever CPUID says.
    const ENCLAVES: Secondary = Secondary::ENCLS;

    /// Instructions that CPUID may show the guest and that need a control to be there.
    const INSTRUCTIONS: Secondary = Secondary::RDTSCP.union(Secondary::INVPCID);

    /// The base set on a processor of these capabilities.
    ///
    /// # Errors
    /// [`Lack::Control`] if the processor does not take a control that keeps a guest in.
    pub fn guest(capabilities: &Capabilities) -> Result<Self, Lack> {
        let want = Self::GUEST;
        let lack = |register| move |missing| Lack::Control(register, missing);
        let primary = want.primary.union(Self::WINDOWS).bits();
        let primary = capabilities.primary.adjust(primary, 0).map_err(lack(0x48e))?;
        let secondary = (want.secondary.bits(), Self::INSTRUCTIONS.union(Self::ENCLAVES).bits());
        let secondary = capabilities.secondary.adjust(secondary.0, secondary.1).map_err(lack(0x48b))?;
        Ok(Self {
            pin: Pin::from_bits_retain(
                capabilities
                    .pin
                    .adjust(want.pin.bits(), Pin::PREEMPTION_TIMER.bits())
                    .map_err(lack(0x48d))?,
            ),
            primary: Primary::from_bits_retain(primary).difference(Self::WINDOWS),
            secondary: Secondary::from_bits_retain(secondary),
            exit: Exit::from_bits_retain(capabilities.exit.adjust(want.exit.bits(), 0).map_err(lack(0x48f))?),
            entry: Entry::from_bits_retain(
                capabilities.entry.adjust(want.entry.bits(), 0).map_err(lack(0x490))?,
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmx::capability::Allowed;
    use crate::vmx::capability::tests::skylake;

    #[test]
    fn physical_events_and_protected_resources_exit() {
        let set = Controls::guest(&skylake()).unwrap();
        assert!(set.pin.contains(Pin::INTERRUPTS | Pin::NMIS | Pin::VIRTUAL_NMIS | Pin::PREEMPTION_TIMER));
        assert!(
            set.primary.contains(Primary::PORTS | Primary::MSR_BITMAPS | Primary::HLT | Primary::SECONDARY)
        );
        assert!(set.secondary.contains(Secondary::EPT | Secondary::UNRESTRICTED_GUEST | Secondary::WBINVD));
        assert!(set.secondary.contains(Secondary::RDTSCP | Secondary::INVPCID), "this processor has them");
    }

    #[test]
    fn no_control_gives_the_guest_an_instruction_that_it_is_not_told_of() {
        const VMFUNC: u32 = 1 << 13;
        const SHADOW: u32 = 1 << 14;
        const XSAVES: u32 = 1 << 20;
        let set = Controls::guest(&skylake()).unwrap();
        assert_eq!(set.secondary.bits() & (VMFUNC | SHADOW | XSAVES), 0);
    }

    #[test]
    fn enclaves_are_kept_from_guests_by_processors_that_have_them() {
        let mut able = skylake();
        able.secondary.may |= Secondary::ENCLS.bits();
        assert!(Controls::guest(&able).unwrap().secondary.contains(Secondary::ENCLS));
        able.secondary.may &= !Secondary::ENCLS.bits();
        assert!(!Controls::guest(&able).unwrap().secondary.contains(Secondary::ENCLS), "none to keep");
    }

    #[test]
    fn cr3_moves_do_not_exit_where_the_processor_can_do_without() {
        let set = Controls::guest(&skylake()).unwrap();
        assert_eq!(set.primary.bits() & (1 << 15 | 1 << 16), 0);
        assert_eq!(set.primary.bits() & 0x0400_6172, 0x0400_6172, "what must be 1 is");
    }

    #[test]
    fn a_processor_without_a_preemption_timer_is_taken() {
        let mut plain = skylake();
        plain.pin.may &= !Pin::PREEMPTION_TIMER.bits();
        assert!(!Controls::guest(&plain).unwrap().pin.contains(Pin::PREEMPTION_TIMER));
    }

    #[test]
    fn a_processor_that_cannot_keep_a_guest_in_is_refused_with_the_bit() {
        let mut poor = skylake();
        poor.pin = Allowed { must: 0x16, may: 0x5f };
        assert_eq!(Controls::guest(&poor), Err(Lack::Control(0x48d, 1 << 5)));
        let mut poor = skylake();
        poor.primary.may &= !(1 << 22);
        assert_eq!(Controls::guest(&poor), Err(Lack::Control(0x48e, 1 << 22)), "windows are needed, too");
        let mut plain = skylake();
        plain.secondary.may &= !(1 << 12);
        assert!(!Controls::guest(&plain).unwrap().secondary.contains(Secondary::INVPCID), "this one is not");
    }
}
