//! Registers of the FIFO interface (TCG PC Client Platform TPM Profile 1.05, 6.5), and access to them.

/// Physical address of locality 0's page; each further locality is one page on.
pub const TIS_BASE: u64 = 0xfed4_0000;
/// Bytes between the pages of two localities.
pub const LOCALITY_STRIDE: u64 = 0x1000;

/// Who speaks to the TPM. The dynamic launch environment is [`Locality::Two`]; only the CPU can be four.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Locality {
    /// Legacy and general use.
    Zero,
    /// The dynamically launched operating system.
    One,
    /// The dynamically launched environment: Dolmen.
    Two,
    /// Auxiliary components.
    Three,
    /// The CPU's hash sequence.
    Four,
}

impl Locality {
    /// The number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Zero => 0,
            Self::One => 1,
            Self::Two => 2,
            Self::Three => 3,
            Self::Four => 4,
        }
    }

    /// The bit of TPMA_LOCALITY: `0x04` is locality *two*.
    #[must_use]
    pub const fn attribute(self) -> u8 {
        match self {
            Self::Zero => 0x01,
            Self::One => 0x02,
            Self::Two => 0x04,
            Self::Three => 0x08,
            Self::Four => 0x10,
        }
    }

    /// Physical address of this locality's page.
    #[must_use]
    pub const fn page(self) -> u64 {
        match self {
            Self::Zero => TIS_BASE,
            Self::One => 0xfed4_1000,
            Self::Two => 0xfed4_2000,
            Self::Three => 0xfed4_3000,
            Self::Four => 0xfed4_4000,
        }
    }
}

/// A register, the same in each locality's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TisReg {
    /// TPM_ACCESS, 8 bits.
    Access,
    /// TPM_STS, 32 bits; writes of its first byte only.
    Status,
    /// The last byte of TPM_STS: cancelling.
    StatusControl,
    /// TPM_DATA_FIFO, 8 bits at a time.
    DataFifo,
    /// TPM_INTERFACE_ID, 32 bits.
    InterfaceId,
    /// TPM_DID_VID, 32 bits.
    DeviceVendor,
}

impl TisReg {
    /// Offset in the locality's page.
    #[must_use]
    pub const fn offset(self) -> u16 {
        match self {
            Self::Access => 0x00,
            Self::Status => 0x18,
            Self::StatusControl => 0x1b,
            Self::DataFifo => 0x24,
            Self::InterfaceId => 0x30,
            Self::DeviceVendor => 0xf00,
        }
    }
}

/// Access to the registers, and a clock. `machine` implements it with volatile accesses and the time-stamp
/// counter, tests with a TPM that never answers.
pub trait TisIo {
    /// Reads 8 bits.
    fn read8(&mut self, locality: Locality, register: TisReg) -> u8;
    /// Reads 32 bits.
    fn read32(&mut self, locality: Locality, register: TisReg) -> u32;
    /// Writes 8 bits.
    fn write8(&mut self, locality: Locality, register: TisReg, value: u8);
    /// Begins a wait of that many microseconds.
    fn restart_deadline(&mut self, microseconds: u32);
    /// Whether the wait begun last is over.
    fn expired(&mut self) -> bool;
}

impl<T: TisIo + ?Sized> TisIo for &mut T {
    fn read8(&mut self, locality: Locality, register: TisReg) -> u8 {
        (**self).read8(locality, register)
    }

    fn read32(&mut self, locality: Locality, register: TisReg) -> u32 {
        (**self).read32(locality, register)
    }

    fn write8(&mut self, locality: Locality, register: TisReg, value: u8) {
        (**self).write8(locality, register, value);
    }

    fn restart_deadline(&mut self, microseconds: u32) {
        (**self).restart_deadline(microseconds);
    }

    fn expired(&mut self) -> bool {
        (**self).expired()
    }
}

/// Bits of TPM_ACCESS.
pub(crate) mod access {
    pub(crate) const REQUEST_USE: u8 = 1 << 1;
    pub(crate) const SEIZE: u8 = 1 << 3;
    pub(crate) const BEEN_SEIZED: u8 = 1 << 4;
    pub(crate) const ACTIVE: u8 = 1 << 5;
    pub(crate) const VALID: u8 = 1 << 7;
    /// What a page reads as when no TPM decodes it. No TPM_ACCESS does: bit 6 is always zero.
    pub(crate) const NOBODY: u8 = 0xff;
}

/// Bits of TPM_STS.
pub(crate) mod status {
    pub(crate) const EXPECT: u32 = 1 << 3;
    pub(crate) const DATA_AVAILABLE: u32 = 1 << 4;
    pub(crate) const VALID: u32 = 1 << 7;
    pub(crate) const COMMAND_READY: u32 = 1 << 6;
    /// The bytes that can be moved through the FIFO without a wait.
    pub(crate) const BURST: u32 = 0x00ff_ff00;
    pub(crate) const BURST_SHIFT: u32 = 8;
    /// To be written: become ready, or give up what is going on.
    pub(crate) const WRITE_READY: u8 = 1 << 6;
    /// To be written: execute.
    pub(crate) const WRITE_GO: u8 = 1 << 5;
    /// To be written to [`super::TisReg::StatusControl`]: cancel the command that executes.
    pub(crate) const WRITE_CANCEL: u8 = 1;
    /// What the low byte reads as when the locality is not ours. No TPM_STS does: bit 0 is always zero.
    pub(crate) const NOBODY: u32 = 0xff;
}

/// Fields of TPM_INTERFACE_ID. Type 0 is FIFO, 15 the older FIFO that lacks this register.
pub(crate) mod interface {
    pub(crate) const TYPE: u32 = 0xf;
    pub(crate) const CRB: u32 = 1;
}

/// Longest waits, in microseconds: at least what the profile's TIMEOUT_A to D and the slowest command need
/// (6.5.1.4). They end a boot that hangs; a TPM in order answers far sooner.
pub(crate) mod wait {
    /// For a locality.
    pub(crate) const LOCALITY: u32 = 750_000;
    /// For commandReady the first time, which may end an old command instead, and the second time.
    pub(crate) const FLUSH: u32 = 200_000;
    pub(crate) const READY: u32 = 2_000_000;
    /// For room or data in the FIFO.
    pub(crate) const FIFO: u32 = 750_000;
    /// For a command to be executed: most, and those that derive keys or test the TPM itself.
    pub(crate) const COMMAND: u32 = 10_000_000;
    pub(crate) const KEY_COMMAND: u32 = 120_000_000;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_locality_has_its_own_page_and_attribute_bit() {
        let all = [Locality::Zero, Locality::One, Locality::Two, Locality::Three, Locality::Four];
        for (number, locality) in (0u8..).zip(all) {
            assert_eq!(locality.number(), number);
            assert_eq!(locality.attribute(), 1 << number);
            assert_eq!(locality.page(), TIS_BASE + u64::from(number) * LOCALITY_STRIDE);
        }
    }
}
