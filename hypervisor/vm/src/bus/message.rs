//! Interrupt messages: what, how and to whom (SDM vol. 3A, 11.6 and 11.11).

/// How an interrupt message is to be delivered (SDM vol. 3A, figure 11-12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// To each processor addressed.
    Fixed,
    /// To one of the processors addressed.
    LowestPriority,
    /// As a non-maskable interrupt.
    Nmi,
    /// Resets the processor.
    Init,
    /// Starts a processor that waits after INIT.
    StartUp,
    /// System management or external interrupt, remote read, or a reserved code: nothing here takes these.
    Unsupported,
}

impl Delivery {
    /// Decodes bits 10:8 of an interrupt command or a redirection entry.
    pub const fn of(word: u32) -> Self {
        match (word >> 8) & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            _ => Self::Unsupported,
        }
    }
}

/// Whom an interrupt message addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The processor with this APIC ID; `u32::MAX` means all.
    Physical(u32),
    /// Processors by their logical destination register; `u32::MAX` means all.
    Logical(u32),
    /// The sender.
    Sender,
    /// All processors.
    All,
    /// All but the sender.
    Others,
}

impl Destination {
    /// The destination of a message with eight address bits, in which a physical 0xff means all.
    pub fn of_byte(byte: u8, logical: bool) -> Self {
        match (logical, byte) {
            (false, 0xff) => Self::All,
            (false, id) => Self::Physical(u32::from(id)),
            (true, set) => Self::Logical(u32::from(set)),
        }
    }
}

/// An interrupt message on its way to local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// How.
    pub delivery: Delivery,
    /// Which vector; of a start-up, the page where the processor starts.
    pub vector: u8,
    /// Whether the end of interrupt must be told to the I/O APIC.
    pub level_triggered: bool,
    /// Whom.
    pub destination: Destination,
}
