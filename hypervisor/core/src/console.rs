//! The hypervisor's log, and where the guests' serial ports lead.
//!
//! COM1 carries the log: lines `stage: fact key=value`. Guests whose manifest says `multiplexed` or `com1` share it, through
//! [`Multiplexer`]; until the guests are built the log has it for itself. The lock is a leaf, and on the way out
//! it is not waited for: whoever holds it may have been parked.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use dolmen_machine::cpus;
use dolmen_machine::serial::Serial;
use dolmen_vm::console::{Line, Multiplexer, Pressed};
use log::{LevelFilter, Log, Metadata, Record};

use crate::lock::{Mutex, MutexGuard};

/// Turns of the wait for the lock: more than the longest line takes on a slow port.
const PATIENCE: u32 = 5_000_000;
/// Most bytes that are sent at a time; a port without a real wire takes them at once.
const BURST: usize = 256;
/// Most keys that are taken at a time.
const KEYS: usize = 64;
/// Bytes of a FIFO of a port, in either direction.
const FIFO_BYTES: usize = 16;

struct SerialLog;

static LOG: SerialLog = SerialLog;

/// The shared port, once guests share it.
static SHARED: Mutex<Option<Multiplexer<'static>>> = Mutex::new(None);

impl Log for SerialLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // The stage is the record's target.
        print(format_args!("{}: {}\n", record.target(), record.args()));
    }

    fn flush(&self) {}
}

/// Writes to COM1 without the log: for the way out too.
pub(crate) fn print(text: fmt::Arguments<'_>) {
    // A line that cannot be written has nobody to be reported to.
    if with(|log| log.write_fmt(text)).is_err() {}
}

/// COM1 for whoever writes more than a line on the fatal path.
pub(crate) fn raw(writer: impl FnOnce(&mut dyn Write) -> fmt::Result) {
    if with(|log| writer(log)).is_err() {}
}

/// Sends the log to COM1 from here on.
pub(crate) fn open() {
    if log::set_logger(&LOG).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

fn with(writer: impl FnOnce(&mut LogPort<'_>) -> fmt::Result) -> fmt::Result {
    let mut lock = patiently();
    writer(&mut LogPort { shared: lock.as_mut().and_then(|shared| shared.as_mut()) })
}

/// The lock, unless its holder is gone.
fn patiently() -> Option<MutexGuard<'static, Option<Multiplexer<'static>>>> {
    for _ in 0..PATIENCE {
        if let Some(guard) = SHARED.try_lock() {
            return Some(guard);
        }
        cpus::relax();
    }
    None
}

/// The log's way to COM1: through the multiplexer, which keeps guests off its lines, or straight.
struct LogPort<'a> {
    shared: Option<&'a mut Multiplexer<'static>>,
}

impl Write for LogPort<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let port = Serial::at(Serial::COM1);
        match &mut self.shared {
            Some(shared) => shared.log(text, |byte| port.send(byte)),
            None => port.send_text(text),
        }
        Ok(())
    }
}

/// Lets guests use COM1 from here on, if any of `lines` does.
pub(crate) fn share(lines: &'static [Line]) {
    if lines.iter().any(Line::is_shared) {
        *SHARED.lock() = Some(Multiplexer::new(lines));
    }
}

/// Sends what waits for the shared port and takes its keys, without waiting. Nothing if somebody else is at it.
pub(crate) fn pump(now_ms: u64) {
    let Some(mut lock) = SHARED.try_lock() else { return };
    let Some(shared) = lock.as_mut() else { return };
    let port = Serial::at(Serial::COM1);
    port.send_burst(BURST, || shared.pull(now_ms));
    for _ in 0..KEYS {
        if !shared.wants_key(now_ms) {
            return;
        }
        let Some(key) = port.receive() else { return };
        // Whose it is, its line knows: whoever looks after the guest's ports finds it there.
        let (Pressed::Nothing | Pressed::For(_)) = shared.press(key);
    }
}

/// Where a serial port of a guest leads.
pub(crate) enum Wire {
    /// Nowhere.
    None,
    /// To a physical port of its own.
    Own {
        /// The port.
        port: Serial,
        /// Bytes that its FIFO takes before it is looked at again.
        room: AtomicUsize,
    },
    /// To the shared port.
    Shared(&'static Line),
}

/// A serial port of a guest, seen from outside.
pub(crate) struct Outlet {
    wire: Wire,
    /// It refused a byte, which the guest's UART holds.
    is_held: AtomicBool,
}

impl Outlet {
    pub(crate) const fn new(wire: Wire) -> Self {
        Self { wire, is_held: AtomicBool::new(false) }
    }

    /// Takes a byte of the guest's, unless the wire is full.
    pub(crate) fn send(&self, byte: u8) -> bool {
        let is_taken = match &self.wire {
            Wire::None => true,
            Wire::Own { port, room } => send_own(port, room, byte),
            Wire::Shared(line) => line.output.push(byte),
        };
        if !is_taken {
            self.is_held.store(true, Ordering::Relaxed);
        }
        is_taken
    }

    /// A byte for the guest.
    pub(crate) fn receive(&self) -> Option<u8> {
        match &self.wire {
            Wire::None => None,
            Wire::Own { port, .. } => port.receive(),
            Wire::Shared(line) => line.input.pop(),
        }
    }

    /// Whether it refused a byte since it was asked last.
    pub(crate) fn take_held(&self) -> bool {
        self.is_held.load(Ordering::Relaxed) && self.is_held.swap(false, Ordering::Relaxed)
    }

    /// Whether something came for the guest.
    pub(crate) fn has_input(&self) -> bool {
        match &self.wire {
            Wire::None => false,
            Wire::Own { port, .. } => port.has_received(),
            Wire::Shared(line) => !line.input.is_empty(),
        }
    }

    /// Forgets keys that a guest has not read. What it has said is still shown.
    pub(crate) fn forget(&self) {
        self.is_held.store(false, Ordering::Relaxed);
        match &self.wire {
            Wire::None => {}
            Wire::Own { port, .. } => (0..FIFO_BYTES).map_while(|_| port.receive()).for_each(|_key| {}),
            Wire::Shared(line) => line.input.wipe(),
        }
    }
}

/// A port of one guest's own: only its board, which is locked, comes here.
fn send_own(port: &Serial, room: &AtomicUsize, byte: u8) -> bool {
    let mut left = room.load(Ordering::Relaxed);
    if left == 0 && port.is_empty() {
        left = FIFO_BYTES;
    }
    let is_taken = left > 0;
    if is_taken {
        port.put(byte);
        left = left.wrapping_sub(1);
    }
    room.store(left, Ordering::Relaxed);
    is_taken
}
