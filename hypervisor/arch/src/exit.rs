//! Why a guest stopped running, in words that fit every vendor.

use dolmen_memory::Gpa;

use crate::event::Vector;

/// Bytes of one port or memory access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Word,
    /// 4 bytes.
    Double,
}

impl Width {
    /// The width in bytes.
    pub const fn bytes(self) -> u8 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Double => 4,
        }
    }
}

/// Which way a port access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Port to guest.
    In,
    /// Guest to port.
    Out,
}

/// One port instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAccess {
    /// First port.
    pub port: u16,
    /// Bytes each time.
    pub width: Width,
    /// Which way.
    pub direction: Direction,
    /// INS or OUTS: the other operand is guest memory.
    pub string: bool,
}

/// What a guest wanted at a guest-physical address that it could not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultAccess {
    /// A data read.
    Read,
    /// A data write.
    Write,
    /// An instruction fetch.
    Fetch,
    /// The processor's own walk of the guest's page tables.
    TableWalk,
}

/// A control register whose access exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlRegister {
    /// CR0.
    Cr0,
    /// CR3.
    Cr3,
    /// CR4.
    Cr4,
    /// CR8, the task priority.
    Cr8,
}

/// Why the guest stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmExit {
    /// A physical interrupt waits for the host.
    HostInterrupt,
    /// A physical NMI waits for the host.
    HostNmi,
    /// An SMI waits for the host.
    HostSmi,
    /// An INIT waits for the host.
    HostInit,
    /// The guest can take an interrupt now, as was asked for.
    InterruptWindow,
    /// The one instruction that an interrupt shadow covers is done, or needs service itself.
    Stepped,
    /// The guest is about to return from its NMI handler, which ends the blocking of further NMIs.
    NmiReturn,
    /// An exception that was intercepted, with its error code and, for #PF, address.
    Exception {
        /// Which.
        vector: Vector,
        /// The error code, or 0.
        error_code: u32,
        /// The faulting address of a page fault.
        address: u64,
    },
    /// CPUID.
    Cpuid {
        /// EAX.
        leaf: u32,
        /// ECX.
        subleaf: u32,
    },
    /// RDMSR.
    ReadMsr {
        /// ECX.
        msr: u32,
    },
    /// WRMSR.
    WriteMsr {
        /// ECX.
        msr: u32,
        /// EDX:EAX.
        value: u64,
    },
    /// IN, OUT, INS, OUTS.
    Port(PortAccess),
    /// HLT.
    Halt,
    /// A write to a control register that is intercepted; which instruction it was must be decoded.
    WriteControl(ControlRegister),
    /// A read of a control register that is intercepted.
    ReadControl(ControlRegister),
    /// XSETBV.
    WriteXcr {
        /// ECX.
        index: u32,
        /// EDX:EAX.
        value: u64,
    },
    /// The hypercall instruction, at any privilege level.
    Hypercall,
    /// An instruction of a virtualisation extension that the guest is told it does not have.
    Virtualisation,
    /// An instruction whose feature the guest is told it does not have (MONITOR, RDPRU, RSM, …).
    HiddenFeature,
    /// INVD or WBINVD.
    CacheFlush,
    /// RDPMC.
    ReadCounter,
    /// PAUSE, when intercepted.
    Pause,
    /// A guest-physical address that is not mapped, or not for this access.
    NestedFault {
        /// Where.
        gpa: Gpa,
        /// How.
        access: FaultAccess,
    },
    /// Triple fault, or another cause of a processor shutdown.
    Shutdown,
    /// A switch of hardware tasks, on a processor that leaves it to software.
    TaskSwitch,
    /// The processor refused the guest's state: at entry, or on a write of a reserved register bit.
    InvalidState,
    /// An exit that was never asked for.
    Unknown {
        /// The vendor's code.
        code: u64,
    },
}
