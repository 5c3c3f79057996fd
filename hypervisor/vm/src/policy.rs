//! What to do about each exit: a pure decision, one line for each.
//!
//! Nothing here touches a guest. The exit loop in [`crate::run`] applies what is decided here.

use dolmen_arch::msr;
use dolmen_memory::Gpa;

use crate::exit::{ControlRegister, Event, FaultAccess, PortAccess, Vector, VmExit};
use crate::pvclock;

/// What the exit loop does about an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Enter again.
    Resume,
    /// Let the host take what waits for it, then enter again.
    ServeHost,
    /// Answer CPUID.
    AnswerCpuid {
        /// EAX.
        leaf: u32,
        /// ECX.
        subleaf: u32,
    },
    /// Answer RDMSR by this rule.
    ReadMsr(u32, MsrRule),
    /// Do WRMSR of this value by this rule.
    WriteMsr(u32, MsrRule, u64),
    /// Hand a port access to the board.
    AccessPort(PortAccess),
    /// Wait for an interrupt.
    Wait,
    /// Check and do a write of a control register.
    WriteControl(ControlRegister),
    /// Give a control register's value.
    ReadControl(ControlRegister),
    /// Check and do XSETBV.
    WriteXcr {
        /// ECX.
        index: u32,
        /// EDX:EAX.
        value: u64,
    },
    /// Serve a hypercall.
    ServeCall,
    /// Step over an instruction that has nothing to do here.
    StepOver,
    /// The guest did what the bare machine would punish.
    Inject(Event),
    /// Deliver an exception that was intercepted.
    Reflect {
        /// Which.
        vector: Vector,
        /// Its error code.
        error_code: u32,
        /// For CR2, of a page fault.
        address: u64,
    },
    /// Emulate the instruction that touched device memory.
    EmulateDevice(Gpa),
    /// A write that the processor itself refuses, or a state it does not enter: find out which.
    ExplainInvalidState,
    /// Stop the guest.
    Stop(StopReason),
}

/// What an MSR is to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrRule {
    /// EFER, without SVME.
    Efer,
    /// The page attribute table.
    Pat,
    /// TSC_AUX.
    TscAux,
    /// A register of the processor's own devices: APIC, clocks.
    Device,
    /// Reads this, and takes only this.
    Constant(u64),
    /// Reads this; a write is dropped.
    Fixed(u64),
    /// Not there: #GP.
    Absent,
}

/// Why a guest stops for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// It asked for a reset.
    Reset,
    /// It switched itself off.
    PowerOff,
    /// Triple fault.
    TripleFault,
    /// It halted with interrupts off: nothing can wake it.
    HaltedForEver,
    /// The processor refuses its state.
    InvalidState,
    /// It switches hardware tasks on a processor that leaves this to software.
    TaskSwitch,
    /// Its page tables, or what an event is delivered through, lie outside its RAM.
    TablesOutsideRam(Gpa),
    /// An instruction on device memory that is not emulated.
    UnknownInstruction {
        /// Where.
        gpa: Gpa,
        /// Its bytes, as far as they can be read.
        bytes: [u8; 15],
    },
    /// A machine check while it ran: the host's memory or processor can no longer be trusted.
    MachineCheck,
    /// An exit that was never asked for.
    UnexpectedExit(u64),
}

/// HWCR.TscFreqSel: the time-stamp counter runs at a constant rate. Kernels warn of firmware bugs without it.
const HWCR_TSC_CONSTANT: u64 = 1 << 24;

/// IA32_MISC_ENABLE: string instructions are fast, and nothing that CPUID shows is switched off.
const MISC_FAST_STRINGS: u64 = 1;

/// NB_CFG.EnableCf8ExtCfg: kernels set it on every processor, unless it is set.
const NB_CFG_EXTENDED: u64 = 1 << 46;

/// MTRRs are on, and the default type is write-back (APM vol. 2, 7.7.2).
const MTRR_ALL_WRITE_BACK: u64 = 1 << 11 | 6;

/// Registers that the guest has itself, without an exit: the processor switches them by VMLOAD and VMSAVE
/// (APM vol. 2, 15.5.2).
pub const DIRECT_MSRS: [u32; 10] = [
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::SFMASK,
    msr::FS_BASE,
    msr::GS_BASE,
    msr::KERNEL_GS_BASE,
];

/// The rule for an MSR. Default: absent.
#[inline(always)]
pub const fn msr_rule(index: u32) -> MsrRule {
    match index {
        msr::EFER => MsrRule::Efer,
        msr::PAT => MsrRule::Pat,
        msr::TSC_AUX => MsrRule::TscAux,
        msr::TSC
        | msr::APIC_BASE
        | msr::TSC_DEADLINE
        | msr::X2APIC_FIRST..=msr::X2APIC_LAST
        | pvclock::MSR_WALL_CLOCK
        | pvclock::MSR_SYSTEM_TIME => MsrRule::Device,
        msr::HWCR => MsrRule::Constant(HWCR_TSC_CONSTANT),
        msr::NB_CFG => MsrRule::Constant(NB_CFG_EXTENDED),
        // Machine checks exist, with no banks to report anything.
        msr::MCG_CAP | msr::MCG_STATUS => MsrRule::Constant(0),
        // Kernels read these without looking at CPUID first.
        msr::PATCH_LEVEL | msr::SYSCFG => MsrRule::Constant(0),
        // On Intel even before they can take a fault.
        msr::MISC_ENABLE => MsrRule::Constant(MISC_FAST_STRINGS),
        // The counters of before CPUID told of any: kernels and test programs reset them without asking (APM vol. 2,
        // 13.2.1). They stand still, as ones do whose events never happen; RDPMC stays a fault.
        msr::PERF_LEGACY_FIRST..=msr::PERF_LEGACY_LAST => MsrRule::Fixed(0),
        // No range has a memory type of its own, and the rest is write-back whatever is written: a guest's memory is the
        // host's, and CPUID tells of no such registers. Xen reads and writes them without asking it.
        msr::MTRR_CAP => MsrRule::Constant(0),
        msr::MTRR_DEF_TYPE => MsrRule::Fixed(MTRR_ALL_WRITE_BACK),
        _ => MsrRule::Absent,
    }
}

/// Decides about one exit.
#[inline(always)]
pub const fn decide(exit: VmExit) -> Action {
    match exit {
        VmExit::HostInterrupt | VmExit::HostNmi | VmExit::HostSmi | VmExit::HostInit => Action::ServeHost,
        VmExit::InterruptWindow | VmExit::Stepped | VmExit::NmiReturn | VmExit::Pause => Action::Resume,
        VmExit::Exception { vector: Vector::MC, .. } => Action::Stop(StopReason::MachineCheck),
        VmExit::Exception { vector, error_code, address } => Action::Reflect { vector, error_code, address },
        VmExit::Cpuid { leaf, subleaf } => Action::AnswerCpuid { leaf, subleaf },
        VmExit::ReadMsr { msr } => Action::ReadMsr(msr, msr_rule(msr)),
        VmExit::WriteMsr { msr, value } => Action::WriteMsr(msr, msr_rule(msr), value),
        VmExit::Port(access) => Action::AccessPort(access),
        VmExit::Halt => Action::Wait,
        VmExit::WriteControl(register) => Action::WriteControl(register),
        VmExit::ReadControl(register) => Action::ReadControl(register),
        VmExit::WriteXcr { index, value } => Action::WriteXcr { index, value },
        VmExit::Hypercall => Action::ServeCall,
        VmExit::Virtualisation | VmExit::HiddenFeature => Action::Inject(Event::INVALID_OPCODE),
        // No device of a guest reads its caches, so they need no flush.
        VmExit::CacheFlush => Action::StepOver,
        VmExit::ReadCounter => Action::Inject(Event::GENERAL_PROTECTION),
        VmExit::NestedFault { gpa, access: FaultAccess::Read | FaultAccess::Write } => {
            Action::EmulateDevice(gpa)
        }
        // A device page reads as all ones, which is no instruction.
        VmExit::NestedFault { access: FaultAccess::Fetch, .. } => Action::Inject(Event::INVALID_OPCODE),
        VmExit::NestedFault { gpa, access: FaultAccess::TableWalk } => {
            Action::Stop(StopReason::TablesOutsideRam(gpa))
        }
        VmExit::Shutdown => Action::Stop(StopReason::TripleFault),
        VmExit::TaskSwitch => Action::Stop(StopReason::TaskSwitch),
        VmExit::InvalidState => Action::ExplainInvalidState,
        VmExit::Unknown { code } => Action::Stop(StopReason::UnexpectedExit(code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::{Direction, Width};

    const PORT: PortAccess =
        PortAccess { port: 0x3f8, width: Width::Byte, direction: Direction::Out, string: false };

    #[test]
    fn every_exit_has_the_action_the_table_says() {
        let gpa = Gpa::new(0xfed4_0000);
        let fault = |access| VmExit::NestedFault { gpa, access };
        for (exit, want) in [
            (VmExit::HostInterrupt, Action::ServeHost),
            (VmExit::HostNmi, Action::ServeHost),
            (VmExit::HostSmi, Action::ServeHost),
            (VmExit::HostInit, Action::ServeHost),
            (VmExit::InterruptWindow, Action::Resume),
            (VmExit::Stepped, Action::Resume),
            (VmExit::NmiReturn, Action::Resume),
            (VmExit::Pause, Action::Resume),
            (
                VmExit::Exception { vector: Vector::MC, error_code: 0, address: 0 },
                Action::Stop(StopReason::MachineCheck),
            ),
            (
                VmExit::Exception { vector: Vector::PF, error_code: 2, address: 7 },
                Action::Reflect { vector: Vector::PF, error_code: 2, address: 7 },
            ),
            (VmExit::Cpuid { leaf: 1, subleaf: 2 }, Action::AnswerCpuid { leaf: 1, subleaf: 2 }),
            (VmExit::ReadMsr { msr: msr::EFER }, Action::ReadMsr(msr::EFER, MsrRule::Efer)),
            (VmExit::WriteMsr { msr: msr::PAT, value: 6 }, Action::WriteMsr(msr::PAT, MsrRule::Pat, 6)),
            (VmExit::Port(PORT), Action::AccessPort(PORT)),
            (VmExit::Halt, Action::Wait),
            (VmExit::WriteControl(ControlRegister::Cr4), Action::WriteControl(ControlRegister::Cr4)),
            (VmExit::ReadControl(ControlRegister::Cr8), Action::ReadControl(ControlRegister::Cr8)),
            (VmExit::WriteXcr { index: 0, value: 7 }, Action::WriteXcr { index: 0, value: 7 }),
            (VmExit::Hypercall, Action::ServeCall),
            (VmExit::Virtualisation, Action::Inject(Event::INVALID_OPCODE)),
            (VmExit::HiddenFeature, Action::Inject(Event::INVALID_OPCODE)),
            (VmExit::CacheFlush, Action::StepOver),
            (VmExit::ReadCounter, Action::Inject(Event::GENERAL_PROTECTION)),
            (fault(FaultAccess::Read), Action::EmulateDevice(gpa)),
            (fault(FaultAccess::Write), Action::EmulateDevice(gpa)),
            (fault(FaultAccess::Fetch), Action::Inject(Event::INVALID_OPCODE)),
            (fault(FaultAccess::TableWalk), Action::Stop(StopReason::TablesOutsideRam(gpa))),
            (VmExit::Shutdown, Action::Stop(StopReason::TripleFault)),
            (VmExit::TaskSwitch, Action::Stop(StopReason::TaskSwitch)),
            (VmExit::InvalidState, Action::ExplainInvalidState),
            (VmExit::Unknown { code: 0x999 }, Action::Stop(StopReason::UnexpectedExit(0x999))),
        ] {
            assert_eq!(decide(exit), want, "{exit:?}");
        }
    }

    #[test]
    fn registers_that_are_not_listed_are_absent() {
        for index in [
            msr::VM_CR,
            msr::VM_HSAVE_PA,
            msr::SMM_CTL,
            msr::IGNNE,
            msr::FEATURE_CONTROL,
            msr::TSC_ADJUST,
            msr::SPEC_CTRL,
            msr::PRED_CMD,
            0x200, // variable and fixed MTRRs: MTRR_CAP says that there are none
            0x250,
            msr::MCG_CTL,
            msr::DEBUG_CTL,
            msr::XSS,
            msr::DE_CFG,
            msr::KVM_SYSTEM_TIME_OLD,
            0x4b56_4d02, // asynchronous page faults
            0x570,       // Intel PT
            0xffff_ffff,
        ] {
            assert_eq!(msr_rule(index), MsrRule::Absent, "{index:#x}");
        }
    }

    #[test]
    fn of_the_performance_counters_only_the_oldest_exist() {
        for index in 0xc001_0000..=0xc001_0007 {
            assert_eq!(msr_rule(index), MsrRule::Fixed(0), "{index:#x}");
        }
        // The next registers, six core counters, and those of cache and northbridge, which CPUID would tell of.
        for index in
            [0xc001_0008, 0xc001_0200, 0xc001_020b, 0xc001_0230, 0xc001_0240, 0xc000_0300, 0xc000_0301]
        {
            assert_eq!(msr_rule(index), MsrRule::Absent, "{index:#x}");
        }
    }

    #[test]
    fn the_registers_of_devices_go_to_them() {
        for index in [0x10, 0x1b, 0x6e0, 0x800, 0x83f, 0x8ff, 0x4b56_4d00, 0x4b56_4d01] {
            assert_eq!(msr_rule(index), MsrRule::Device, "{index:#x}");
        }
    }
}
