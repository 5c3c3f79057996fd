//! Lines on the first serial port.

use core::fmt::{self, Write};

use dolmen_machine::serial::Serial;

struct Com1(Serial);

impl Write for Com1 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.send_text(text);
        Ok(())
    }
}

/// Prints a line, if the machine has the port.
pub(crate) fn line(what: fmt::Arguments<'_>) {
    if let Some(port) = Serial::open(Serial::COM1) {
        // The port reports no errors, so there is none to pass on.
        writeln!(Com1(port), "{what}").unwrap_or_default();
    }
}
