//! Closes a unit: after [`enforce`] it refuses every request of every device, and has said so.
//!
//! The order is what makes it hold against a device that writes to memory all the while:
//!
//! 1. [`build_deny_table`]; any device may still change it. Then [`arm`], for every unit: stopped, exclusion range
//!    off, enabled; a probe tells whether SL_DEV denies the unit's own fetches from the secure loader block. If so,
//!    its device table is then the block itself: no entry of it can be fetched, so no request passes. If not,
//!    it is the deny table, and what a device wrote into it before this moment is a race that the launch
//!    facts show. Caches dropped; completion seen.
//! 2. [`build_deny_table`] once more: no device can reach it now.
//! 3. [`enforce`], for every unit: the table compared, switched to it, caches dropped, completion seen with a fresh random
//!    value, table compared again, completion seen again, and no event but refusals logged in between.
//!
//! The value that COMPLETION_WAIT stores is random, so memory that merely holds it from before proves nothing.

use super::Unit;
use super::format::{
    COMMAND_BYTES, Command, DENY_ENTRY, DEVICE_TABLE_BYTES, EVENT_BYTES, EventCode, RING_BYTES, Register,
    control, feature, status,
};

/// Access to one unit's registers, to the memory that its tables are in, and to a clock.
pub trait UnitIo {
    /// Reads a register.
    fn read(&mut self, register: Register) -> u64;
    /// Writes a register.
    fn write(&mut self, register: Register, value: u64);
    /// Reads 64 bits of the tables, by physical address.
    fn load(&mut self, at: u64) -> u64;
    /// Writes 64 bits of the tables, by physical address.
    fn store(&mut self, at: u64, value: u64);
    /// A value that nobody can foresee.
    fn random(&mut self) -> u64;
    /// Begins a wait of that many microseconds.
    fn restart_deadline(&mut self, microseconds: u32);
    /// Whether the wait begun last is over.
    fn expired(&mut self) -> bool;
}

/// Where a unit's tables are, by physical address; all but the probe page-aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    /// The secure loader block, 64 KiB.
    pub block: u64,
    /// Room for one command in the block, a multiple of 16.
    pub probe: u64,
    /// The full device table, [`DEVICE_TABLE_BYTES`].
    pub devices: u64,
    /// The command buffer, [`RING_BYTES`].
    pub commands: u64,
    /// The event log, [`RING_BYTES`].
    pub events: u64,
    /// The completion store, 8 bytes.
    pub completion: u64,
}

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Stopping the unit.
    Stop,
    /// Enabling it.
    Arm,
    /// Dropping what it has cached.
    Invalidate,
    /// Switching to the full table.
    Switch,
    /// Restarting the event log.
    RestartEvents,
}

/// Why DMA could not be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShieldError {
    /// The status did not become what the step needs; it was last seen as this.
    Timeout(Step, u64),
    /// This register does not hold what was written to it, but this.
    NotTaken(Register, u64),
    /// The unit did not complete its commands: the store holds something else.
    NotCompleted(Step),
    /// The full table holds something else at this byte offset.
    TableDiffers(u64),
    /// The unit logged this event, which is more than a refusal.
    Event(EventCode),
}

/// Longest wait for a unit, in microseconds.
const PATIENCE: u32 = 1_000_000;
/// How long a unit gets to fetch a command that it must not be able to fetch.
const PROBE: u32 = 2_000;
/// Binary logarithm of the entries of a ring, where its base register wants it.
const RING_LENGTH: u64 = 8 << 56;
/// Length field of a device table as long as the block, and of the full one: pages less one.
const BLOCK_PAGES: u64 = 15;
const ALL_PAGES: u64 = 0x1ff;

/// Writes the deny entry to every place of the table of `bytes` bytes at `base`.
pub fn build_deny_table(io: &mut impl UnitIo, base: u64, bytes: u64) {
    for (at, word) in deny_words(base, bytes) {
        io.store(at, word);
    }
}

/// Compares the table at `base` with what [`build_deny_table`] wrote.
///
/// # Errors
/// [`ShieldError::TableDiffers`] at the first word that is something else.
pub fn verify_deny_table(io: &mut impl UnitIo, base: u64, bytes: u64) -> Result<(), ShieldError> {
    for (at, word) in deny_words(base, bytes) {
        if io.load(at) != word {
            return Err(ShieldError::TableDiffers(at.wrapping_sub(base)));
        }
    }
    Ok(())
}

fn deny_words(base: u64, bytes: u64) -> impl Iterator<Item = (u64, u64)> {
    let addresses = (base..base.saturating_add(bytes)).step_by(8);
    addresses.zip(DENY_ENTRY.into_iter().cycle())
}

/// Enables the unit so that it refuses every request; the deny table has been built. Gives whether SL_DEV denies the unit's own fetches: if not, a race remains.
///
/// # Errors
/// [`ShieldError`]; the unit refuses nothing for certain then.
pub fn arm(io: &mut impl UnitIo, unit: &Unit, tables: &Tables) -> Result<bool, ShieldError> {
    stop(io)?;
    set(io, Register::DeviceTable, tables.devices | ALL_PAGES)?;
    start(io, unit, tables.probe, tables.events)?;
    let is_denied = !probe_fetch(io, tables);
    // The probe may have halted the command fetches: start afresh.
    stop(io)?;
    if is_denied {
        set(io, Register::DeviceTable, tables.block | BLOCK_PAGES)?;
    }
    start(io, unit, tables.commands, tables.events)?;
    invalidate(io, unit, tables)?;
    Ok(is_denied)
}

/// Switches an armed unit to the full table, which has been built since, and makes it say that it uses it.
///
/// # Errors
/// [`ShieldError`]; the machine must stop then.
pub fn enforce(io: &mut impl UnitIo, unit: &Unit, tables: &Tables) -> Result<(), ShieldError> {
    verify_deny_table(io, tables.devices, DEVICE_TABLE_BYTES)?;
    set(io, Register::DeviceTable, tables.devices | ALL_PAGES)?;
    invalidate(io, unit, tables)?;
    restart_events(io, unit, tables.events)?;
    verify_deny_table(io, tables.devices, DEVICE_TABLE_BYTES)?;
    let mut ring = Ring::open(io, tables);
    ring.complete(io, Step::Switch)?;
    check_events(io, tables.events)?;
    let expected = enabled(unit) | control::EVENT_LOG | control::COMMANDS;
    let seen = io.read(Register::Control);
    if seen & expected == expected { Ok(()) } else { Err(ShieldError::NotTaken(Register::Control, seen)) }
}

/// Stops the unit, whatever it was doing, and takes away its ways around the table (2.2.1: the exclusion range).
fn stop(io: &mut impl UnitIo) -> Result<(), ShieldError> {
    const RUNNING: u64 = status::COMMANDS_RUNNING | status::EVENT_RUNNING | status::PPR_RUNNING;
    io.write(Register::Control, 0);
    wait_status(io, Step::Stop, RUNNING, 0)?;
    set(io, Register::ExclusionBase, 0)?;
    set(io, Register::ExclusionLimit, 0)
}

/// Enables the unit with its present device table, an empty event log, and an empty command buffer that goes on
/// at `commands`.
fn start(io: &mut impl UnitIo, unit: &Unit, commands: u64, events: u64) -> Result<(), ShieldError> {
    let at = commands % RING_BYTES;
    set(io, Register::CommandBase, commands.wrapping_sub(at) | RING_LENGTH)?;
    io.write(Register::CommandHead, at);
    io.write(Register::CommandTail, at);
    empty_events(io, events)?;
    io.write(Register::Control, enabled(unit));
    io.write(Register::Control, enabled(unit) | control::EVENT_LOG | control::COMMANDS);
    let running = status::EVENT_RUNNING | status::COMMANDS_RUNNING;
    wait_status(io, Step::Arm, running, running)
}

const fn enabled(unit: &Unit) -> u64 {
    let tunnel = if unit.has_tunnel() { control::TUNNEL } else { 0 };
    control::ENABLE | control::COHERENT | tunnel
}

fn empty_events(io: &mut impl UnitIo, events: u64) -> Result<(), ShieldError> {
    for at in (events..events.saturating_add(RING_BYTES)).step_by(8) {
        io.store(at, 0);
    }
    set(io, Register::EventBase, events | RING_LENGTH)?;
    io.write(Register::EventHead, 0);
    io.write(Register::EventTail, 0);
    io.write(Register::Status, status::WRITE_TO_CLEAR);
    Ok(())
}

/// Whether the unit can fetch from the block: it is given a command there, to store a value outside.
fn probe_fetch(io: &mut impl UnitIo, tables: &Tables) -> bool {
    let tail = tables.probe % RING_BYTES;
    let mut ring = Ring { commands: tables.probe.wrapping_sub(tail), completion: tables.completion, tail };
    let value = io.random();
    ring.put(io, Command::CompletionWait { store: tables.completion, value });
    io.store(tables.completion, !value);
    io.write(Register::CommandTail, ring.tail);
    io.restart_deadline(PROBE);
    loop {
        if io.load(tables.completion) == value {
            return true;
        }
        if io.read(Register::Status) & status::COMMANDS_RUNNING == 0 || io.expired() {
            return false;
        }
    }
}

/// Makes the unit forget everything it has cached, and say that it has.
fn invalidate(io: &mut impl UnitIo, unit: &Unit, tables: &Tables) -> Result<(), ShieldError> {
    let mut ring = Ring::open(io, tables);
    if unit.has_features() && io.read(Register::Features) & feature::INVALIDATE_ALL != 0 {
        ring.put(io, Command::InvalidateAll);
        return ring.complete(io, Step::Invalidate);
    }
    // Which requesters and domains it has cached nobody can tell: all of them.
    for id in 0..=u16::MAX {
        ring.put(io, Command::InvalidateDevice(id));
        ring.put(io, Command::InvalidateDomain(id));
        ring.put(io, Command::InvalidateInterrupts(id));
        if id & 0x3f == 0x3f {
            ring.complete(io, Step::Invalidate)?;
        }
    }
    ring.complete(io, Step::Invalidate)
}

/// Gives the unit an empty event log, so that what it logged before the switch does not count.
fn restart_events(io: &mut impl UnitIo, unit: &Unit, events: u64) -> Result<(), ShieldError> {
    io.write(Register::Control, enabled(unit) | control::COMMANDS);
    wait_status(io, Step::RestartEvents, status::EVENT_RUNNING, 0)?;
    empty_events(io, events)?;
    io.write(Register::Control, enabled(unit) | control::COMMANDS | control::EVENT_LOG);
    wait_status(io, Step::RestartEvents, status::EVENT_RUNNING, status::EVENT_RUNNING)
}

/// Every event must be a refusal. An overflow only says that there were many: the log has stopped, the table
/// refuses on.
fn check_events(io: &mut impl UnitIo, events: u64) -> Result<(), ShieldError> {
    let tail = io.read(Register::EventTail).min(RING_BYTES);
    for offset in (0..tail).step_by(to_usize(EVENT_BYTES)) {
        let code = EventCode::of(io.load(events.saturating_add(offset)));
        if !code.is_refusal() {
            return Err(ShieldError::Event(code));
        }
    }
    Ok(())
}

/// Writes a register that must hold exactly that afterwards.
fn set(io: &mut impl UnitIo, register: Register, value: u64) -> Result<(), ShieldError> {
    io.write(register, value);
    let seen = io.read(register);
    if seen == value { Ok(()) } else { Err(ShieldError::NotTaken(register, seen)) }
}

fn wait_status(io: &mut impl UnitIo, step: Step, mask: u64, want: u64) -> Result<(), ShieldError> {
    io.restart_deadline(PATIENCE);
    loop {
        let seen = io.read(Register::Status);
        if seen & mask == want {
            return Ok(());
        }
        if io.expired() {
            return Err(ShieldError::Timeout(step, seen));
        }
    }
}

/// The command buffer. At most 255 commands are put between two completions.
struct Ring {
    commands: u64,
    completion: u64,
    tail: u64,
}

impl Ring {
    fn open(io: &mut impl UnitIo, tables: &Tables) -> Self {
        let tail = io.read(Register::CommandTail) % RING_BYTES;
        Self { commands: tables.commands, completion: tables.completion, tail }
    }

    fn put(&mut self, io: &mut impl UnitIo, command: Command) {
        let [first, second] = command.encode();
        let at = self.commands.saturating_add(self.tail);
        io.store(at, first);
        io.store(at.saturating_add(8), second);
        self.tail = self.tail.wrapping_add(COMMAND_BYTES) % RING_BYTES;
    }

    /// Lets the unit run to here, and waits until it has stored a value that is new.
    fn complete(&mut self, io: &mut impl UnitIo, step: Step) -> Result<(), ShieldError> {
        let value = io.random();
        io.store(self.completion, !value);
        self.put(io, Command::CompletionWait { store: self.completion, value });
        io.write(Register::CommandTail, self.tail);
        io.restart_deadline(PATIENCE);
        while io.load(self.completion) != value {
            if io.expired() {
                return Err(ShieldError::NotCompleted(step));
            }
        }
        Ok(())
    }
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
#[path = "shield_tests.rs"]
mod tests;
