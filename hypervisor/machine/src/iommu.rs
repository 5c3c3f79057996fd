//! One AMD-Vi unit as the launch image drives it: its registers, its tables, a clock and random values.

use dolmen_platform::amdvi::{Register, UnitIo};

use crate::cpu;
use crate::launch::{MOST_TICKS_PER_MICROSECOND, Probe, Region};
use crate::mmio::Mmio;

/// [`UnitIo`] on the real registers.
#[derive(Debug)]
pub struct UnitAccess<'a> {
    /// The unit's registers.
    pub registers: &'a mut Mmio,
    /// The memory of its tables.
    pub region: &'a mut Region,
    /// Room for one command in the block.
    pub probe: &'a mut Probe,
    started: u64,
    wait_ticks: u64,
}

impl<'a> UnitAccess<'a> {
    /// Access to the unit behind `registers`.
    #[must_use]
    pub const fn new(registers: &'a mut Mmio, region: &'a mut Region, probe: &'a mut Probe) -> Self {
        Self { registers, region, probe, started: 0, wait_ticks: 0 }
    }
}

impl UnitIo for UnitAccess<'_> {
    #[inline(never)]
    fn read(&mut self, register: Register) -> u64 {
        self.registers.read64(register.offset())
    }

    #[inline(never)]
    fn write(&mut self, register: Register, value: u64) {
        self.registers.write64(register.offset(), value);
    }

    #[inline(never)]
    fn load(&mut self, at: u64) -> u64 {
        self.region.load(at).unwrap_or(u64::MAX)
    }

    #[inline(never)]
    fn store(&mut self, at: u64, value: u64) {
        if !self.region.store(at, value) {
            self.probe.store(at, value);
        }
    }

    /// RDRAND where the processor has it, mixed with the time-stamp counter: no device has seen either.
    #[inline(never)]
    fn random(&mut self) -> u64 {
        let hardware = cpu::read_random().unwrap_or(0x9e37_79b9_7f4a_7c15);
        hardware ^ cpu::read_tsc().wrapping_mul(0x5851_f42d_4c95_7f2d).rotate_left(32)
    }

    #[inline(never)]
    fn restart_deadline(&mut self, microseconds: u32) {
        self.started = cpu::read_tsc();
        self.wait_ticks = u64::from(microseconds).saturating_mul(MOST_TICKS_PER_MICROSECOND);
    }

    #[inline(never)]
    fn expired(&mut self) -> bool {
        cpu::read_tsc().wrapping_sub(self.started) > self.wait_ticks
    }
}
