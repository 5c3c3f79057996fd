//! The TPM's FIFO registers, and the clock that bounds each wait for them.

use dolmen_tpm::tis::{LOCALITY_STRIDE, Locality, TisIo, TisReg};

use crate::cpu;
use crate::mmio::Mmio;

/// Bytes of the five locality pages.
pub const TIS_BYTES: u64 = 5 * LOCALITY_STRIDE;

/// [`TisIo`] on the real registers.
#[derive(Debug)]
pub struct TisRegisters {
    pages: Mmio,
    ticks_per_microsecond: u64,
    started: u64,
    wait_ticks: u64,
}

impl TisRegisters {
    /// Registers behind `pages`, which shows [`TIS_BYTES`] from `TIS_BASE`; `tsc_khz` bounds the waits: too
    /// high a rate makes them longer, never shorter.
    #[must_use]
    pub fn new(pages: Mmio, tsc_khz: u64) -> Self {
        Self { pages, ticks_per_microsecond: tsc_khz.div_ceil(1000), started: 0, wait_ticks: 0 }
    }

    fn offset(locality: Locality, register: TisReg) -> u64 {
        u64::from(locality.number()).wrapping_mul(LOCALITY_STRIDE).wrapping_add(u64::from(register.offset()))
    }
}

impl TisIo for TisRegisters {
    fn read8(&mut self, locality: Locality, register: TisReg) -> u8 {
        self.pages.read8(Self::offset(locality, register))
    }

    fn read32(&mut self, locality: Locality, register: TisReg) -> u32 {
        self.pages.read32(Self::offset(locality, register))
    }

    fn write8(&mut self, locality: Locality, register: TisReg, value: u8) {
        self.pages.write8(Self::offset(locality, register), value);
    }

    fn restart_deadline(&mut self, microseconds: u32) {
        self.started = cpu::read_tsc();
        self.wait_ticks = u64::from(microseconds).saturating_mul(self.ticks_per_microsecond);
    }

    fn expired(&mut self) -> bool {
        // A TPM may take seconds: whoever waits for it hears other processors meanwhile.
        #[cfg(feature = "core")]
        crate::cpus::relax();
        // Another processor may have begun to wait, whose counter may be a little ahead.
        cpu::read_tsc().saturating_sub(self.started) > self.wait_ticks
    }
}
