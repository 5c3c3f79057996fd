//! Intercept bits of the control area (APM vol. 2, table B-1, 000h to 014h).

use bitflags::bitflags;

bitflags! {
    /// Reads (low half) and writes (high half) of control registers, 000h.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ControlAccess: u32 {
        /// Reads of CR8.
        const READ_CR8 = 1 << 8;
        /// Writes of CR4.
        const WRITE_CR4 = 1 << (16 + 4);
        /// Writes of CR8.
        const WRITE_CR8 = 1 << (16 + 8);
        const _ = !0;
    }

    /// The vector at 00Ch.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct General: u32 {
        /// Physical interrupts.
        const INTR = 1 << 0;
        /// Physical NMIs.
        const NMI = 1 << 1;
        /// SMIs.
        const SMI = 1 << 2;
        /// INIT.
        const INIT = 1 << 3;
        /// The guest can take the virtual interrupt.
        const VINTR = 1 << 4;
        /// CR0 writes that change more than TS and MP.
        const CR0_SELECTIVE = 1 << 5;
        /// RDPMC.
        const RDPMC = 1 << 15;
        /// CPUID.
        const CPUID = 1 << 18;
        /// RSM.
        const RSM = 1 << 19;
        /// IRET.
        const IRET = 1 << 20;
        /// INVD.
        const INVD = 1 << 22;
        /// PAUSE.
        const PAUSE = 1 << 23;
        /// HLT.
        const HLT = 1 << 24;
        /// INVLPGA.
        const INVLPGA = 1 << 26;
        /// Ports that the I/O permission map marks.
        const IO_PROT = 1 << 27;
        /// MSRs that the MSR permission map marks.
        const MSR_PROT = 1 << 28;
        /// Task switches.
        const TASK_SWITCH = 1 << 29;
        /// FERR_FREEZE.
        const FERR_FREEZE = 1 << 30;
        /// Shutdown.
        const SHUTDOWN = 1 << 31;
        const _ = !0;
    }

    /// The vector at 010h.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Virtualisation: u32 {
        /// VMRUN; must be set.
        const VMRUN = 1 << 0;
        /// VMMCALL.
        const VMMCALL = 1 << 1;
        /// VMLOAD.
        const VMLOAD = 1 << 2;
        /// VMSAVE.
        const VMSAVE = 1 << 3;
        /// STGI.
        const STGI = 1 << 4;
        /// CLGI.
        const CLGI = 1 << 5;
        /// SKINIT.
        const SKINIT = 1 << 6;
        /// WBINVD.
        const WBINVD = 1 << 9;
        /// MONITOR.
        const MONITOR = 1 << 10;
        /// MWAIT.
        const MWAIT = 1 << 11;
        /// MWAIT while the monitor is armed.
        const MWAIT_ARMED = 1 << 12;
        /// XSETBV.
        const XSETBV = 1 << 13;
        /// RDPRU.
        const RDPRU = 1 << 14;
        const _ = !0;
    }

    /// The vector at 014h.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Extended: u32 {
        /// INVLPGB.
        const INVLPGB = 1 << 0;
        /// INVLPGB that is not legal.
        const INVLPGB_ILLEGAL = 1 << 1;
        /// MCOMMIT.
        const MCOMMIT = 1 << 3;
        /// TLBSYNC.
        const TLBSYNC = 1 << 4;
        const _ = !0;
    }
}

/// All that every guest exits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intercepts {
    /// 000h.
    pub control: ControlAccess,
    /// 008h: exceptions by vector.
    pub exceptions: u32,
    /// 00Ch.
    pub general: General,
    /// 010h.
    pub virtualisation: Virtualisation,
    /// 014h.
    pub extended: Extended,
}

impl Intercepts {
    /// Exceptions that always exit: #DB and #AC, which a guest can make the processor raise without end while
    /// nothing interrupts it, and #MC, which is the host's.
    pub const EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;

    /// The base set: physical events, everything the guest must not have, everything that is emulated.
    pub const GUEST: Self = Self {
        control: ControlAccess::READ_CR8.union(ControlAccess::WRITE_CR4).union(ControlAccess::WRITE_CR8),
        exceptions: Self::EXCEPTIONS,
        general: General::INTR
            .union(General::NMI)
            .union(General::SMI)
            .union(General::INIT)
            .union(General::CR0_SELECTIVE)
            .union(General::RDPMC)
            .union(General::CPUID)
            .union(General::RSM)
            .union(General::INVD)
            .union(General::HLT)
            .union(General::INVLPGA)
            .union(General::IO_PROT)
            .union(General::MSR_PROT)
            .union(General::FERR_FREEZE)
            .union(General::SHUTDOWN),
        virtualisation: Virtualisation::VMRUN
            .union(Virtualisation::VMMCALL)
            .union(Virtualisation::VMLOAD)
            .union(Virtualisation::VMSAVE)
            .union(Virtualisation::STGI)
            .union(Virtualisation::CLGI)
            .union(Virtualisation::SKINIT)
            .union(Virtualisation::WBINVD)
            .union(Virtualisation::MONITOR)
            .union(Virtualisation::MWAIT)
            .union(Virtualisation::XSETBV)
            .union(Virtualisation::RDPRU),
        extended: Extended::INVLPGB
            .union(Extended::INVLPGB_ILLEGAL)
            .union(Extended::MCOMMIT)
            .union(Extended::TLBSYNC),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_svm_instruction_exits() {
        let set = Intercepts::GUEST;
        assert_eq!(set.virtualisation.bits() & 0x7f, 0x7f, "VMRUN to SKINIT");
        assert!(set.general.contains(General::INVLPGA));
    }

    #[test]
    fn physical_events_and_protected_resources_exit() {
        let must = General::INTR | General::NMI | General::SMI | General::INIT;
        assert!(
            Intercepts::GUEST
                .general
                .contains(must | General::IO_PROT | General::MSR_PROT | General::SHUTDOWN)
        );
    }
}
