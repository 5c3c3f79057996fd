//! What a hypervisor may inject into a guest.

/// Exception vectors (APM vol. 2, 8.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vector(pub u8);

impl Vector {
    /// Debug.
    pub const DB: Self = Self(1);
    /// Non-maskable interrupt.
    pub const NMI: Self = Self(2);
    /// Breakpoint.
    pub const BP: Self = Self(3);
    /// Overflow.
    pub const OF: Self = Self(4);
    /// Invalid opcode.
    pub const UD: Self = Self(6);
    /// Double fault.
    pub const DF: Self = Self(8);
    /// Invalid TSS.
    pub const TS: Self = Self(10);
    /// Segment not present.
    pub const NP: Self = Self(11);
    /// Stack fault.
    pub const SS: Self = Self(12);
    /// General protection.
    pub const GP: Self = Self(13);
    /// Page fault.
    pub const PF: Self = Self(14);
    /// Alignment check.
    pub const AC: Self = Self(17);
    /// Machine check.
    pub const MC: Self = Self(18);

    /// Whether the processor pushes an error code with this exception (APM vol. 2, table 8-1).
    pub const fn has_error_code(self) -> bool {
        matches!(
            self,
            Self::DF | Self::TS | Self::NP | Self::SS | Self::GP | Self::PF | Self::AC | Self(21 | 29 | 30)
        )
    }
}

/// An event to deliver at the next entry of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A maskable interrupt; the guest must be ready for it.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// An exception, with the error code of those that have one.
    Exception {
        /// Which.
        vector: Vector,
        /// Pushed by the vectors that push one, and ignored for others.
        error_code: u32,
    },
    /// A software interrupt (`int n`) whose delivery was cut short.
    SoftwareInterrupt(u8),
}

impl Event {
    /// #UD.
    pub const INVALID_OPCODE: Self = Self::Exception { vector: Vector::UD, error_code: 0 };
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self = Self::Exception { vector: Vector::GP, error_code: 0 };
    /// #SS(0).
    pub const STACK_FAULT: Self = Self::Exception { vector: Vector::SS, error_code: 0 };
}
