//! How fast the time-stamp counter and the APIC timer run.
//!
//! Both are measured against channel 2 of the 8254 timer, whose rate is fixed and which no firmware table
//! has to be believed for.

use crate::{apic, cpu, port};

/// Rate of the 8254, in Hz.
const PIT_HZ: u64 = 1_193_182;
/// PIT ticks of one measurement: 20 ms.
const PIT_COUNT: u16 = 23_864;
const PIT_CHANNEL_2: u16 = 0x42;
const PIT_COMMAND: u16 = 0x43;
/// Channel 2, both bytes, mode 0 (interrupt on terminal count), binary.
const CHANNEL_2_ONE_SHOT: u8 = 0xb0;
const SYSTEM_CONTROL_B: u16 = 0x61;
const GATE_2: u8 = 0x01;
const SPEAKER: u8 = 0x02;
const OUTPUT_2: u8 = 0x20;
/// TSC ticks after which a PIT that never reaches its count is taken to be missing: 20 ms at 500 GHz.
const LIMIT_TICKS: u64 = 10_000_000_000;

/// The clock that measured time refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Time-stamp counter, in kHz.
    pub tsc_khz: u64,
    /// APIC timer, in kHz.
    pub apic_khz: u64,
}

/// Why there is no clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockError {
    /// The 8254 never reached its count.
    NoPit,
    /// The time-stamp counter or the APIC timer did not move.
    StandsStill,
}

impl Clock {
    /// Measures both rates; takes 20 ms. The APIC must be enabled.
    ///
    /// # Errors
    /// [`ClockError`] when a needed timer is missing.
    pub fn measure() -> Result<Self, ClockError> {
        start_pit();
        apic::start_timer(u32::MAX);
        let start = cpu::read_tsc();
        while port::read8(SYSTEM_CONTROL_B) & OUTPUT_2 == 0 {
            if cpu::read_tsc().wrapping_sub(start) > LIMIT_TICKS {
                return Err(ClockError::NoPit);
            }
        }
        let tsc = cpu::read_tsc().wrapping_sub(start);
        let apic = u64::from(u32::MAX.wrapping_sub(apic::timer_left()));
        apic::start_timer(0);
        let clock = Self { tsc_khz: per_millisecond(tsc), apic_khz: per_millisecond(apic) };
        if clock.tsc_khz == 0 || clock.apic_khz == 0 {
            return Err(ClockError::StandsStill);
        }
        Ok(clock)
    }

    /// APIC timer ticks that last `tsc` ticks of the time-stamp counter: at least 1, at most what the
    /// timer can count.
    #[must_use]
    pub fn apic_ticks(&self, tsc: u64) -> u32 {
        let ticks = u128::from(tsc)
            .saturating_mul(u128::from(self.apic_khz))
            .checked_div(u128::from(self.tsc_khz))
            .unwrap_or(u128::from(u32::MAX));
        u32::try_from(ticks).unwrap_or(u32::MAX).max(1)
    }
}

fn start_pit() {
    let control = port::read8(SYSTEM_CONTROL_B) & !(SPEAKER | GATE_2);
    port::write8(SYSTEM_CONTROL_B, control);
    port::write8(PIT_COMMAND, CHANNEL_2_ONE_SHOT);
    let [low, high] = PIT_COUNT.to_le_bytes();
    port::write8(PIT_CHANNEL_2, low);
    port::write8(PIT_CHANNEL_2, high);
    port::write8(SYSTEM_CONTROL_B, control | GATE_2);
}

/// Ticks per millisecond, given the ticks of one measurement.
fn per_millisecond(ticks: u64) -> u64 {
    ticks.saturating_mul(PIT_HZ).checked_div(u64::from(PIT_COUNT).saturating_mul(1000)).unwrap_or(0)
}
