//! The paravirtual clock that KVM's guests know: the guest reads the time from two structures in its own RAM
//! and the time-stamp counter, without an exit.
//!
//! The counter's rate never changes and runs alike on all processors, so a structure is written once, when the
//! guest registers it, and never again. Layout and registers: Linux, `Documentation/virt/kvm/x86/msr.rst`.

use dolmen_memory::{Gpa, GuestMemory};
use zerocopy::{Immutable, IntoBytes};

use crate::board::Tsc;

/// Register: where the wall-clock structure goes.
pub const MSR_WALL_CLOCK: u32 = 0x4b56_4d00;
/// Register: where the system-time structure goes, bit 0 switches it on.
pub const MSR_SYSTEM_TIME: u32 = 0x4b56_4d01;

const SYSTEM_TIME_ENABLE: u64 = 1;
/// The clock is the same on every processor.
const FLAG_STABLE: u8 = 1;
const NS_PER_S: u64 = 1_000_000_000;

/// Version of a structure that is complete; an odd one says that it is being written.
const NOT_BEING_WRITTEN: u32 = 2;

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct WallClock {
    version: u32,
    seconds: u32,
    nanoseconds: u32,
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct SystemTime {
    version: u32,
    padding: u32,
    tsc: u64,
    nanoseconds: u64,
    multiplier: u32,
    shift: i8,
    flags: u8,
    padding_2: [u8; 2],
}

const _: () = assert!(size_of::<WallClock>() == 12 && size_of::<SystemTime>() == 32);

/// Turns ticks into nanoseconds: shift left (right if negative), multiply, take bits 95:32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Factor, in units of 2⁻³².
    pub multiplier: u32,
    /// Shift before it.
    pub shift: i8,
}

impl Scale {
    /// The scale for a counter of `khz`, which is taken for 1 if it is 0. The multiplier uses all its bits.
    pub fn new(khz: u32) -> Self {
        // ns per tick = 10^6 / khz, wanted as multiplier / 2^32 * 2^shift with the multiplier in 2^31..2^32.
        let khz = u128::from(khz.max(1));
        let scaled = (1_000_000u128 << 64).checked_div(khz).unwrap_or_default();
        let top = i32::try_from(scaled.checked_ilog2().unwrap_or_default()).unwrap_or_default();
        let drop = u32::try_from(top.saturating_sub(31)).unwrap_or_default();
        let multiplier = u32::try_from((scaled >> drop) & 0xffff_ffff).unwrap_or(u32::MAX);
        Self { multiplier, shift: i8::try_from(top.saturating_sub(63)).unwrap_or_default() }
    }

    /// `ticks` in nanoseconds, as the guest computes it but without its overflow.
    pub fn nanoseconds(self, ticks: u64) -> u64 {
        let by = u32::from(self.shift.unsigned_abs());
        let shifted = if self.shift < 0 { u128::from(ticks) >> by } else { u128::from(ticks) << by };
        u64::try_from(shifted.saturating_mul(u128::from(self.multiplier)) >> 32).unwrap_or(u64::MAX)
    }
}

/// The host's wall clock, read once.
#[derive(Clone, Copy, Debug)]
pub struct Epoch {
    /// Nanoseconds since 1970 ...
    pub wall_clock_ns: u64,
    /// ... when the guest's counter was this; its system time starts here.
    pub created_at: Tsc,
}

/// The time of one guest: the same for all its processors, wherever they run.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    scale: Scale,
    epoch: Epoch,
}

impl Clock {
    /// The time by a counter of `tsc_khz` that started with `epoch`.
    pub fn new(tsc_khz: u32, epoch: Epoch) -> Self {
        Self { scale: Scale::new(tsc_khz), epoch }
    }

    /// Nanoseconds since the guest was made.
    pub fn system_time(&self, now: Tsc) -> u64 {
        self.scale.nanoseconds(now.saturating_sub(self.epoch.created_at))
    }

    /// Nanoseconds since 1970.
    pub fn wall_clock(&self, now: Tsc) -> u64 {
        self.epoch.wall_clock_ns.saturating_add(self.system_time(now))
    }
}

/// The registers of one virtual processor.
#[derive(Debug)]
pub struct PvClock {
    clock: Clock,
    wall_clock: u64,
    system_time: u64,
}

/// The register points where a structure cannot be: #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAddress;

impl PvClock {
    /// The registers as after power-on.
    pub const fn new(clock: Clock) -> Self {
        Self { clock, wall_clock: 0, system_time: 0 }
    }

    /// What was last written to [`MSR_WALL_CLOCK`].
    pub const fn wall_clock_register(&self) -> u64 {
        self.wall_clock
    }

    /// What was last written to [`MSR_SYSTEM_TIME`].
    pub const fn system_time_register(&self) -> u64 {
        self.system_time
    }

    /// Writes [`MSR_WALL_CLOCK`]: the wall clock at system time zero goes to that address.
    ///
    /// # Errors
    /// [`BadAddress`] if the structure is not wholly in the guest's RAM.
    pub fn write_wall_clock(&mut self, at: u64, memory: &mut impl GuestMemory) -> Result<(), BadAddress> {
        let base = self.clock.epoch.wall_clock_ns;
        let structure = WallClock {
            version: NOT_BEING_WRITTEN,
            seconds: u32::try_from(base / NS_PER_S).unwrap_or(u32::MAX),
            nanoseconds: u32::try_from(base % NS_PER_S).unwrap_or_default(),
        };
        memory.write(Gpa::new(at), structure.as_bytes()).map_err(|_| BadAddress)?;
        self.wall_clock = at;
        Ok(())
    }

    /// Writes [`MSR_SYSTEM_TIME`]: if it switches the clock on, the structure goes to that address. It counts
    /// from the start of the guest's time, so that all processors compute from the same numbers.
    ///
    /// # Errors
    /// [`BadAddress`] if the structure is not wholly in the guest's RAM.
    pub fn write_system_time(&mut self, value: u64, memory: &mut impl GuestMemory) -> Result<(), BadAddress> {
        if value & SYSTEM_TIME_ENABLE != 0 {
            let structure = SystemTime {
                version: NOT_BEING_WRITTEN,
                padding: 0,
                tsc: self.clock.epoch.created_at,
                nanoseconds: 0,
                multiplier: self.clock.scale.multiplier,
                shift: self.clock.scale.shift,
                flags: FLAG_STABLE,
                padding_2: [0; 2],
            };
            memory
                .write(Gpa::new(value & !SYSTEM_TIME_ENABLE), structure.as_bytes())
                .map_err(|_| BadAddress)?;
        }
        self.system_time = value;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Ram;
    use proptest::prelude::*;

    const EPOCH: Epoch = Epoch { wall_clock_ns: 1_709_210_096_123_456_789, created_at: 1000 };

    fn clock() -> PvClock {
        PvClock::new(Clock::new(2_600_000, EPOCH))
    }

    #[test]
    fn the_wall_clock_structure_holds_the_time_of_creation() {
        let (mut clock, mut ram) = (clock(), Ram::new(4096));
        clock.write_wall_clock(0x100, &mut ram).unwrap();
        assert_eq!(ram.u32(0x100), 2);
        assert_eq!((ram.u32(0x104), ram.u32(0x108)), (1_709_210_096, 123_456_789));
        assert_eq!(clock.wall_clock_register(), 0x100);
    }

    #[test]
    fn the_system_time_structure_lets_the_guest_compute_our_time() {
        let (mut clock, mut ram) = (clock(), Ram::new(4096));
        clock.write_system_time(0x201, &mut ram).unwrap();
        assert_eq!(ram.u32(0x200), 2);
        assert_eq!((ram.u64(0x208), ram.u64(0x210)), (EPOCH.created_at, 0));
        assert_eq!((ram.u32(0x218), ram.bytes(0x21c, 2)), (3_303_820_996, &[0xff, 1][..]));
    }

    #[test]
    fn a_structure_outside_of_ram_is_refused() {
        let (mut clock, mut ram) = (clock(), Ram::new(4096));
        assert_eq!(clock.write_system_time(4096 - 30 + 1, &mut ram), Err(BadAddress));
        assert_eq!(clock.write_wall_clock(u64::MAX, &mut ram), Err(BadAddress));
        assert_eq!(clock.system_time_register(), 0);
    }

    #[test]
    fn switched_off_nothing_is_written() {
        let (mut clock, mut ram) = (clock(), Ram::new(4096));
        clock.write_system_time(0xffff_0000, &mut ram).unwrap();
        assert_eq!(clock.system_time_register(), 0xffff_0000);
    }

    #[test]
    fn time_does_not_run_before_its_start() {
        let clock = Clock::new(2_600_000, EPOCH);
        assert_eq!((clock.system_time(10), clock.wall_clock(1000)), (0, EPOCH.wall_clock_ns));
        assert_eq!(clock.system_time(2_600_001_000), 999_999_999);
    }

    proptest! {
        /// The multiplier has 32 good bits: the error stays below one part in a billion.
        #[test]
        fn the_scale_is_right_for_every_rate(khz in 1u32.., seconds in 1u64..100_000) {
            let scale = Scale::new(khz);
            prop_assert!(scale.multiplier >= 1 << 31);
            let nanoseconds = scale.nanoseconds(u64::from(khz) * 1000 * seconds);
            let wanted = seconds * NS_PER_S;
            prop_assert!(nanoseconds <= wanted && wanted - nanoseconds <= wanted / 1_000_000_000 + 2,
                "{nanoseconds} {wanted}");
        }
    }
}
