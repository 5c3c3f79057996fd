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
/// Most measurements.
const ATTEMPTS: u32 = 10;
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
    /// Measures both rates; takes 20 ms, and up to [`ATTEMPTS`] times that where something else (firmware, or
    /// the host of an emulator) keeps the processor meanwhile. The APIC must be enabled.
    ///
    /// # Errors
    /// [`ClockError`] when a needed timer is missing.
    pub fn measure() -> Result<Self, ClockError> {
        let mut best = Sample::take()?;
        for _ in 1..ATTEMPTS {
            if best.is_sure() {
                break;
            }
            let sample = Sample::take()?;
            if sample.doubt < best.doubt {
                best = sample;
            }
        }
        apic::start_timer(0);
        let clock = Self { tsc_khz: per_millisecond(best.tsc), apic_khz: per_millisecond(best.apic) };
        if clock.tsc_khz == 0 || clock.apic_khz == 0 {
            return Err(ClockError::StandsStill);
        }
        Ok(clock)
    }

    /// APIC timer ticks that last `tsc` ticks of the time-stamp counter: at least 1, at most what the
    /// timer can count.
    #[must_use]
    pub fn apic_ticks(&self, tsc: u64) -> u32 {
        // Rounded up: a timer that fires too early only has to be started again.
        let ticks = u128::from(tsc)
            .saturating_mul(u128::from(self.apic_khz))
            .div_ceil(u128::from(self.tsc_khz.max(1)));
        u32::try_from(ticks).unwrap_or(u32::MAX).max(1)
    }
}

/// One measurement.
struct Sample {
    tsc: u64,
    apic: u64,
    /// By how many TSC ticks it may be wrong: what passed around its start and its end.
    doubt: u64,
}

impl Sample {
    /// Whether it is right to one part in two thousand.
    const fn is_sure(&self) -> bool {
        self.doubt < self.tsc >> 11
    }

    fn take() -> Result<Self, ClockError> {
        let gate = load_pit();
        let before = cpu::read_tsc();
        apic::start_timer(u32::MAX);
        port::write8(SYSTEM_CONTROL_B, gate);
        let start = cpu::read_tsc();
        let mut running = start;
        loop {
            let polled = cpu::read_tsc();
            if port::read8(SYSTEM_CONTROL_B) & OUTPUT_2 != 0 {
                break;
            }
            running = polled;
            if running.wrapping_sub(start) > LIMIT_TICKS {
                return Err(ClockError::NoPit);
            }
        }
        let end = cpu::read_tsc();
        let apic = u64::from(u32::MAX.wrapping_sub(apic::timer_left()));
        let doubt = start.wrapping_sub(before).wrapping_add(cpu::read_tsc().wrapping_sub(running));
        Ok(Self { tsc: end.wrapping_sub(start), apic, doubt })
    }
}

/// Loads channel 2; answers what opens its gate, which starts it.
fn load_pit() -> u8 {
    let control = port::read8(SYSTEM_CONTROL_B) & !(SPEAKER | GATE_2);
    port::write8(SYSTEM_CONTROL_B, control);
    port::write8(PIT_COMMAND, CHANNEL_2_ONE_SHOT);
    let [low, high] = PIT_COUNT.to_le_bytes();
    port::write8(PIT_CHANNEL_2, low);
    port::write8(PIT_CHANNEL_2, high);
    control | GATE_2
}

/// Ticks per millisecond, given the ticks of one measurement.
fn per_millisecond(ticks: u64) -> u64 {
    ticks.saturating_mul(PIT_HZ).checked_div(u64::from(PIT_COUNT).saturating_mul(1000)).unwrap_or(0)
}
