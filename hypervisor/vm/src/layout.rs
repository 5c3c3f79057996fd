//! Where things lie in a guest's physical address space.
//!
//! RAM starts at 0 without a hole up to [`LOW_RAM_END`] and goes on at 4 GiB. The legacy area below 1 MiB is
//! RAM too (so that large pages map it); the memory maps that guests get keep it back for ACPI tables.

use core::ops::Range;

/// End of the RAM that may lie below 4 GiB: 3 GiB, the rest is for devices.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// Start of the RAM above the device hole.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;
/// Conventional memory ends here; up to 1 MiB guests' memory maps keep the RAM back.
pub const CONVENTIONAL_END: u64 = 0x9_fc00;
/// RAM that the ACPI tables may take.
pub const ACPI_TABLES: Range<u64> = 0xe_0000..0xf_0000;
/// 16-bit code that answers calls of a BIOS, in the legacy area.
pub const FIRMWARE_CALLS: u64 = 0xf_ff00;
/// Where a processor starts after reset, in the legacy area.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// I/O APIC registers.
pub const IO_APIC_BASE: u64 = 0xfec0_0000;
/// Local APIC registers after reset.
pub const LOCAL_APIC_BASE: u64 = 0xfee0_0000;

/// Where a guest's RAM lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamLayout {
    bytes: u64,
}

impl RamLayout {
    /// The layout of `bytes` of RAM.
    pub const fn new(bytes: u64) -> Self {
        Self { bytes }
    }

    /// RAM from address 0.
    pub const fn low(self) -> Range<u64> {
        if self.bytes < LOW_RAM_END { 0..self.bytes } else { 0..LOW_RAM_END }
    }

    /// RAM from 4 GiB; empty for a guest of up to 3 GiB.
    pub const fn high(self) -> Range<u64> {
        HIGH_RAM_START..HIGH_RAM_START.saturating_add(self.bytes.saturating_sub(LOW_RAM_END))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_up_to_three_gib_lies_at_zero_and_the_rest_above_four_gib() {
        for (bytes, low, high) in [
            (0x20_0000, 0..0x20_0000, 0x1_0000_0000..0x1_0000_0000),
            (0xc000_0000, 0..0xc000_0000, 0x1_0000_0000..0x1_0000_0000),
            (0xc020_0000, 0..0xc000_0000, 0x1_0000_0000..0x1_0020_0000),
        ] {
            let layout = RamLayout::new(bytes);
            assert_eq!((layout.low(), layout.high()), (low, high), "{bytes:#x}");
        }
    }
}
