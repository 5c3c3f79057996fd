//! Registers, device-table entries, commands and events.

/// Bytes of the register window that are used; units with performance counters have 512 KiB (3.4).
pub const WINDOW_BYTES: u64 = 0x4000;
/// Bytes of a device table with an entry for every requester id.
pub const DEVICE_TABLE_BYTES: u64 = 0x20_0000;
/// Bytes of the command buffer and of the event log: 256 entries, the fewest there can be (3.4.2).
pub const RING_BYTES: u64 = 0x1000;
/// Bytes of a command.
pub const COMMAND_BYTES: u64 = 16;
/// Bytes of an event.
pub const EVENT_BYTES: u64 = 16;

/// 64-bit registers, by offset (3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Device table base address: address, and length in pages less one.
    DeviceTable,
    /// Command buffer base address: address, and binary logarithm of the entries at bit 56.
    CommandBase,
    /// Event log base address, as above.
    EventBase,
    /// Control.
    Control,
    /// Exclusion base: what is inside bypasses translation.
    ExclusionBase,
    /// Exclusion limit.
    ExclusionLimit,
    /// Extended features.
    Features,
    /// Command buffer head.
    CommandHead,
    /// Command buffer tail.
    CommandTail,
    /// Event log head.
    EventHead,
    /// Event log tail.
    EventTail,
    /// Status.
    Status,
}

impl Register {
    /// Offset in the register window.
    #[must_use]
    pub const fn offset(self) -> u64 {
        match self {
            Self::DeviceTable => 0x00,
            Self::CommandBase => 0x08,
            Self::EventBase => 0x10,
            Self::Control => 0x18,
            Self::ExclusionBase => 0x20,
            Self::ExclusionLimit => 0x28,
            Self::Features => 0x30,
            Self::CommandHead => 0x2000,
            Self::CommandTail => 0x2008,
            Self::EventHead => 0x2010,
            Self::EventTail => 0x2018,
            Self::Status => 0x2020,
        }
    }
}

/// Bits of [`Register::Control`].
pub mod control {
    /// Translate.
    pub const ENABLE: u64 = 1 << 0;
    /// Translate what comes through a HyperTransport tunnel as well.
    pub const TUNNEL: u64 = 1 << 1;
    /// Write events.
    pub const EVENT_LOG: u64 = 1 << 2;
    /// Fetch the device table coherently.
    pub const COHERENT: u64 = 1 << 10;
    /// Fetch commands.
    pub const COMMANDS: u64 = 1 << 12;
}

/// Bits of [`Register::Status`].
pub mod status {
    /// The event log has overflowed. Written to clear it.
    pub const EVENT_OVERFLOW: u64 = 1 << 0;
    /// An event was logged. Written to clear it.
    pub const EVENT_LOGGED: u64 = 1 << 1;
    /// Events are written.
    pub const EVENT_RUNNING: u64 = 1 << 3;
    /// Commands are fetched.
    pub const COMMANDS_RUNNING: u64 = 1 << 4;
    /// Peripheral page requests are written.
    pub const PPR_RUNNING: u64 = 1 << 7;
    /// All that are cleared by writing them.
    pub const WRITE_TO_CLEAR: u64 = 0x67;
}

/// Bits of [`Register::Features`].
pub mod feature {
    /// INVALIDATE_IOMMU_ALL is supported.
    pub const INVALIDATE_ALL: u64 = 1 << 6;
    /// Performance counters: the window is 512 KiB.
    pub const COUNTERS: u64 = 1 << 9;
}

/// The device-table entry that refuses everything (2.2.2.1, tables 7 and 8): V = 1 and TV = 1 with mode 0, so
/// that IR = 0 and IW = 0 refuse reads and writes; I = 0 refuses requests that claim to be translated; EX = 0:
/// no exclusion range; IoCtl = 0 and SysMgt = 0 refuse ports and system messages; IV = 1 with IntCtl = 0 and
/// no pass bits refuses interrupts. An entry with V = 0 would pass everything through.
pub const DENY_ENTRY: [u64; 4] = [0b11, 0, 1, 0];

/// A command (2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Store `value` at `store` when all earlier commands are complete.
    CompletionWait {
        /// Where, a multiple of 8.
        store: u64,
        /// What.
        value: u64,
    },
    /// Drop what is cached of this requester's device-table entry.
    InvalidateDevice(u16),
    /// Drop every translation of this domain.
    InvalidateDomain(u16),
    /// Drop what is cached of this requester's interrupt table.
    InvalidateInterrupts(u16),
    /// Drop everything.
    InvalidateAll,
}

impl Command {
    /// The command's 16 bytes.
    #[must_use]
    pub const fn encode(self) -> [u64; 2] {
        const STORE: u64 = 1;
        /// All addresses: S = 1 and PDE = 1 with the largest one (2.4.3).
        const EVERY_PAGE: u64 = 0x7fff_ffff_ffff_f003;
        match self {
            Self::CompletionWait { store, value } => [1 << 60 | store & 0x000f_ffff_ffff_fff8 | STORE, value],
            Self::InvalidateDevice(id) => [2 << 60 | widen(id), 0],
            Self::InvalidateDomain(id) => [3 << 60 | widen(id) << 32, EVERY_PAGE],
            Self::InvalidateInterrupts(id) => [5 << 60 | widen(id), 0],
            Self::InvalidateAll => [8 << 60, 0],
        }
    }
}

#[expect(clippy::as_conversions, reason = "u16 to u64 in a const function, where From is not to be had")]
const fn widen(id: u16) -> u64 {
    id as u64
}

/// What an event is about: its top four bits (2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventCode(pub u8);

impl EventCode {
    /// A request was refused by a good table: what a device gets that tries.
    pub const PAGE_FAULT: Self = Self(2);
    /// A request of a kind that is refused, translated ones among them.
    pub const INVALID_REQUEST: Self = Self(8);

    /// The code in the first 64 bits of an event.
    #[must_use]
    pub const fn of(first: u64) -> Self {
        let [.., top] = first.to_le_bytes();
        Self(top >> 4)
    }

    /// Whether it says no more than that a device was refused.
    #[must_use]
    pub const fn is_refusal(self) -> bool {
        matches!(self, Self::PAGE_FAULT | Self::INVALID_REQUEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_laid_out_as_the_specification_draws_them() {
        for (command, want) in [
            (Command::CompletionWait { store: 0x1234_5678, value: 0xabcd }, [0x1000_0000_1234_5679, 0xabcd]),
            (Command::InvalidateDevice(0x0102), [0x2000_0000_0000_0102, 0]),
            (Command::InvalidateDomain(0xffff), [0x3000_ffff_0000_0000, 0x7fff_ffff_ffff_f003]),
            (Command::InvalidateInterrupts(0x0102), [0x5000_0000_0000_0102, 0]),
            (Command::InvalidateAll, [0x8000_0000_0000_0000, 0]),
        ] {
            assert_eq!(command.encode(), want, "{command:?}");
        }
    }

    #[test]
    fn only_refusals_of_devices_are_harmless_events() {
        let harmless: Vec<_> = (0..16).filter(|code| EventCode(*code).is_refusal()).collect();
        assert_eq!(harmless, [2, 8]);
        assert_eq!(EventCode::of(0x2abc_0000_0000_0010), EventCode::PAGE_FAULT);
    }

    #[test]
    fn the_deny_entry_is_valid_and_gives_nothing() {
        let [translation, domain, interrupts, rest] = DENY_ENTRY;
        assert_eq!(translation & 0b11, 0b11, "V and TV");
        assert_eq!(translation >> 9 & 7, 0, "mode");
        assert_eq!(translation >> 61, 0, "IR and IW");
        assert_eq!((domain, rest), (0, 0));
        assert_eq!(interrupts & 1, 1, "IV");
        assert_eq!(interrupts >> 56, 0, "IntCtl and the pass bits");
    }
}
