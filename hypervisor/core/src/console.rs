//! The hypervisor's log: lines `stage: fact key=value` on COM1.

use core::fmt::{self, Write};

use dolmen_machine::serial::Serial;
use log::{LevelFilter, Log, Metadata, Record};

struct SerialLog;

static LOG: SerialLog = SerialLog;

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

/// Writes to COM1 without the log: for the way out.
pub(crate) fn print(text: fmt::Arguments<'_>) {
    // A line that cannot be written has nobody to be reported to.
    if Com1.write_fmt(text).is_err() {}
}

struct Com1;

impl Write for Com1 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        Serial::at(Serial::COM1).send_text(text);
        Ok(())
    }
}

/// Sends the log to COM1 from here on.
pub(crate) fn open() {
    if log::set_logger(&LOG).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// COM1 for whoever writes more than a line on the fatal path.
pub(crate) fn raw(writer: impl FnOnce(&mut dyn Write) -> fmt::Result) {
    if writer(&mut Com1).is_err() {}
}
