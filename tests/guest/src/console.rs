//! The guest's console: a polled 16550.

use core::fmt::{Result, Write};

use crate::cpu;

/// First port of the console.
pub(crate) const PORT: u16 = 0x3f8;
/// The scratch register, which keeps whatever is written.
pub(crate) const SCRATCH: u16 = PORT + 7;
const LINE_STATUS: u16 = PORT + 5;
const TRANSMITTER_EMPTY: u8 = 0x20;
const DATA_READY: u8 = 1;

/// A byte that was sent to the console, if there is one.
pub(crate) fn read() -> Option<u8> {
    (cpu::read_port8(LINE_STATUS) & DATA_READY != 0).then(|| cpu::read_port8(PORT))
}

/// Writes to the console.
pub(crate) struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> Result {
        for byte in text.bytes() {
            while cpu::read_port8(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {}
            cpu::write_port8(PORT, byte);
        }
        Ok(())
    }
}

/// Prints one line on the console.
#[macro_export]
macro_rules! say {
    ($($what:tt)*) => {{
        use core::fmt::Write as _;
        // The console cannot fail.
        writeln!($crate::console::Console, $($what)*).unwrap_or(())
    }};
}
