//! The interval timer of PCs (Intel 8254) with the port that gates its third channel and shows its output.
//!
//! Software without another clock measures the processor by it: loads a channel, waits for its output or reads its
//! count. Counts are worked out from the time-stamp counter when somebody asks. The first channel is interrupt 0 once
//! a guest has programmed it; who drives it, sees to it that [`Timer::tick`] is called when [`Timer::next_tick`]
//! says. Counting is binary; the bit for decimal counting is ignored.

use crate::board::Tsc;

/// Counts of the first channel; the other two follow.
pub const COUNTERS: u16 = 0x40;
/// Where the last channel's count is.
pub const LAST_COUNTER: u16 = 0x42;
/// Mode and latch commands.
pub const COMMAND: u16 = 0x43;
/// Gate of the third channel, its output, and the memory refresh toggle.
pub const SYSTEM_CONTROL_B: u16 = 0x61;

/// The first channel's pin of the I/O APIC: as the guest's MADT says, that of its interrupt's number.
pub const PIN: u8 = 0;

/// Rate at which all channels count, in Hz.
const RATE: u128 = 1_193_182;
const CHANNELS: usize = 3;
/// No periodic timer of a guest ticks faster than every 200 microseconds (see [`crate::local`]).
const TICKS_PER_MS: u64 = 5;
/// The channel whose gate and output port 61h has.
const GATED: usize = 2;

const GATE: u8 = 1 << 0;
const SPEAKER: u8 = 1 << 1;
/// Old software counts this bit's changes to wait.
const REFRESH: u8 = 1 << 4;
const OUTPUT: u8 = 1 << 5;

/// How a channel's two bytes are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Low,
    High,
    Both,
}

impl Access {
    /// Bits 5:4 of a command; 0 is the latch command.
    const fn of(command: u8) -> Option<Self> {
        match (command >> 4) & 3 {
            1 => Some(Self::Low),
            2 => Some(Self::High),
            3 => Some(Self::Both),
            _ => None,
        }
    }

    const fn bits(self) -> u8 {
        match self {
            Self::Low => 1 << 4,
            Self::High => 2 << 4,
            Self::Both => 3 << 4,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Channel {
    /// 0 to 5.
    mode: u8,
    access: Access,
    /// What it counts down from, 1 to 65,536.
    from: u32,
    /// Counts before `since`.
    counted: u64,
    /// When it began to count, unless it stands still.
    since: Option<Tsc>,
    /// Whether a count was written since the command.
    is_loaded: bool,
    /// The first of two bytes.
    low: Option<u8>,
    /// What a latch command has kept.
    latched: Option<u16>,
    status: Option<u8>,
    /// Whether the next read is of the second byte.
    reads_high: bool,
}

/// The timer of one board.
#[derive(Debug)]
pub struct Timer {
    tsc_khz: u32,
    /// Rises of the first channel's output since its count was written, as far as they were told.
    told: u64,
    channels: [Channel; CHANNELS],
    /// Bits 1:0 of port 61h.
    control: u8,
    refresh: bool,
}

impl Timer {
    /// A timer as PC firmware leaves it; `tsc_khz` is the rate of the time that all calls give.
    pub fn new(tsc_khz: u32) -> Self {
        let channel = |mode, from, since| Channel {
            mode,
            access: Access::Both,
            from,
            counted: 0,
            since,
            is_loaded: true,
            low: None,
            latched: None,
            status: None,
            reads_high: false,
        };
        let channels = [channel(3, 0x1_0000, Some(0)), channel(2, 18, Some(0)), channel(3, 0x1_0000, None)];
        Self { tsc_khz, told: 0, channels, control: 0, refresh: false }
    }

    /// Reads a byte of one of the timer's ports.
    pub fn read(&mut self, port: u16, now: Tsc) -> u8 {
        if port == SYSTEM_CONTROL_B {
            self.refresh = !self.refresh;
            let refresh = if self.refresh { REFRESH } else { 0 };
            let output = self.channels.get(GATED).is_some_and(|channel| channel.output(now, self.tsc_khz));
            return self.control | refresh | if output { OUTPUT } else { 0 };
        }
        let khz = self.tsc_khz;
        self.channel(port).map_or(u8::MAX, |channel| channel.read(now, khz))
    }

    /// Writes a byte to one of the timer's ports.
    pub fn write(&mut self, port: u16, value: u8, now: Tsc) {
        let (khz, gate) = (self.tsc_khz, self.control & GATE != 0);
        match port {
            SYSTEM_CONTROL_B => {
                self.control = value & (GATE | SPEAKER);
                let opens = value & GATE != 0;
                if let Some(channel) = self.channels.get_mut(GATED).filter(|_| opens != gate) {
                    channel.set_gate(opens, now, khz);
                }
            }
            COMMAND => self.command(value, now),
            _ => {
                if port == COUNTERS {
                    self.told = 0;
                }
                let is_open = gate || port != LAST_COUNTER;
                if let Some(channel) = self.channel(port) {
                    channel.write(value, is_open, now);
                }
            }
        }
    }

    /// Whether the first channel's output has risen since the last call. Rises that nobody waited for are one.
    pub fn tick(&mut self, now: Tsc) -> bool {
        let rises = self.channels[0].rises(now, self.tsc_khz);
        rises > core::mem::replace(&mut self.told, rises)
    }

    /// When the first channel's output rises next, but not sooner than 200 microseconds from now.
    pub fn next_tick(&self, now: Tsc) -> Option<Tsc> {
        let soonest = now.saturating_add(u64::from(self.tsc_khz).checked_div(TICKS_PER_MS).unwrap_or(0));
        let rise = self.channels[0].rises_at(self.told.saturating_add(1), self.tsc_khz)?;
        Some(rise.max(soonest))
    }

    fn channel(&mut self, port: u16) -> Option<&mut Channel> {
        let index = port.checked_sub(COUNTERS).map(usize::from)?;
        self.channels.get_mut(index)
    }

    fn command(&mut self, value: u8, now: Tsc) {
        const READ_BACK: u8 = 3;
        let khz = self.tsc_khz;
        if value >> 6 == READ_BACK {
            for (channel, bit) in self.channels.iter_mut().zip(1u32..) {
                if value & 1u8.wrapping_shl(bit) != 0 {
                    channel.read_back(value, now, khz);
                }
            }
            return;
        }
        let Some(channel) = self.channels.get_mut(usize::from(value >> 6)) else { return };
        match Access::of(value) {
            None => channel.latch(now, khz),
            Some(access) => channel.program((value >> 1) & 7, access),
        }
    }
}

impl Channel {
    /// Modes 6 and 7 are 2 and 3.
    const fn program(&mut self, mode: u8, access: Access) {
        self.mode = if mode > 5 { mode & 3 } else { mode };
        self.access = access;
        (self.counted, self.since, self.is_loaded) = (0, None, false);
        (self.low, self.latched, self.status, self.reads_high) = (None, None, None, false);
    }

    /// Whether the count starts with the gate's rise and not with its being written.
    const fn waits_for_gate(&self) -> bool {
        matches!(self.mode, 1 | 5)
    }

    const fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    fn write(&mut self, value: u8, is_open: bool, now: Tsc) {
        let count = match (self.access, self.low.take()) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::Both, Some(low)) => u16::from_le_bytes([low, value]),
            (Access::Both, None) => {
                self.low = Some(value);
                return;
            }
        };
        self.from = if count == 0 { 0x1_0000 } else { u32::from(count) };
        (self.counted, self.is_loaded) = (0, true);
        self.since = (is_open && !self.waits_for_gate()).then_some(now);
    }

    fn set_gate(&mut self, opens: bool, now: Tsc, khz: u32) {
        if !self.is_loaded {
            return;
        }
        match (opens, self.mode) {
            // The count goes on where it stood.
            (true, 0 | 4) => self.since = Some(now),
            (true, _) => (self.counted, self.since) = (0, Some(now)),
            (false, 1 | 5) => {}
            (false, _) => (self.counted, self.since) = (self.ticks(now, khz), None),
        }
    }

    /// Counts since the start.
    fn ticks(&self, now: Tsc, khz: u32) -> u64 {
        let elapsed = self.since.map_or(0, |since| now.saturating_sub(since));
        let per_second = u128::from(khz.max(1)).saturating_mul(1000);
        let ticks = u128::from(elapsed).saturating_mul(RATE).checked_div(per_second).unwrap_or(0);
        self.counted.saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX))
    }

    /// How often the output has risen since the start.
    fn rises(&self, now: Tsc, khz: u32) -> u64 {
        let (from, ticks) = (u64::from(self.from), self.ticks(now, khz));
        match self.mode {
            _ if !self.is_loaded => 0,
            2 | 3 => ticks.checked_div(from).unwrap_or(0),
            0 | 4 => u64::from(ticks >= from),
            _ => 0,
        }
    }

    /// When the output rises for the time `number` since the start.
    fn rises_at(&self, number: u64, khz: u32) -> Option<Tsc> {
        let is_once = matches!(self.mode, 0 | 4);
        let since =
            self.since.filter(|_| self.is_loaded && (self.is_periodic() || is_once && number == 1))?;
        let ticks = u128::from(number).saturating_mul(u128::from(self.from));
        let elapsed = ticks.saturating_mul(u128::from(khz.max(1))).saturating_mul(1000).div_ceil(RATE);
        Some(since.saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX)))
    }

    /// Counts since the last period began, or since the start.
    fn within_period(&self, now: Tsc, khz: u32) -> u64 {
        let ticks = self.ticks(now, khz);
        if self.is_periodic() { ticks.checked_rem(u64::from(self.from)).unwrap_or(0) } else { ticks }
    }

    /// The counting element.
    fn count(&self, now: Tsc, khz: u32) -> u16 {
        let done = self.within_period(now, khz);
        // A square wave counts by two, twice in each period.
        let done = if self.mode == 3 {
            done.saturating_mul(2).checked_rem(u64::from(self.from)).unwrap_or(0)
        } else {
            done
        };
        let [low, high, ..] = u64::from(self.from).wrapping_sub(done).to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    fn output(&self, now: Tsc, khz: u32) -> bool {
        let (from, done) = (u64::from(self.from), self.within_period(now, khz));
        let is_over = done >= from;
        match self.mode {
            0 => self.is_loaded && is_over,
            1 => self.since.is_none() || is_over,
            2 => self.since.is_none() || done.saturating_add(1) < from,
            3 => self.since.is_none() || done.saturating_mul(2) < from,
            // A strobe is low for one count.
            _ => self.since.is_none() || done != from,
        }
    }

    /// Keeps the count until it is read; a count that is kept already stays.
    fn latch(&mut self, now: Tsc, khz: u32) {
        if self.latched.is_none() {
            self.latched = Some(self.count(now, khz));
            self.reads_high = false;
        }
    }

    fn read_back(&mut self, command: u8, now: Tsc, khz: u32) {
        const NO_COUNT: u8 = 1 << 5;
        const NO_STATUS: u8 = 1 << 4;
        if command & NO_COUNT == 0 {
            self.latch(now, khz);
        }
        if command & NO_STATUS == 0 && self.status.is_none() {
            let output = if self.output(now, khz) { 1 << 7 } else { 0 };
            let no_count = if self.is_loaded { 0 } else { 1 << 6 };
            self.status = Some(output | no_count | self.access.bits() | self.mode << 1);
        }
    }

    fn read(&mut self, now: Tsc, khz: u32) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let [low, high] = self.latched.unwrap_or_else(|| self.count(now, khz)).to_le_bytes();
        let is_second = self.access == Access::Both && core::mem::take(&mut self.reads_high);
        self.reads_high = self.access == Access::Both && !is_second;
        if !self.reads_high {
            self.latched = None;
        }
        if self.access == Access::High || is_second { high } else { low }
    }
}

#[cfg(test)]
mod tests;
