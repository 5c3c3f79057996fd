//! Lines on COM1: one fact each, `loader: fact key=value`, and the last one before a stop.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};
use dolmen_machine::{cpu, serial::Serial};

/// Whether COM1 was found. Output to a port that is not there would wait for each byte.
static IS_OPEN: AtomicBool = AtomicBool::new(false);

/// Programs COM1, if the machine has one.
pub fn open() {
    IS_OPEN.store(Serial::open(Serial::COM1).is_some(), Ordering::Relaxed);
}

/// Prints `loader: ` and a fact.
pub fn fact(what: fmt::Arguments<'_>) {
    line(format_args!("loader: {what}"));
}

/// Prints why the machine stops, and what to do about it.
pub fn refuse(reason: fmt::Arguments<'_>) {
    line(format_args!("stop: {reason}"));
}

/// Prints why, and stops this processor.
pub fn stop(reason: fmt::Arguments<'_>) -> ! {
    refuse(reason);
    cpu::halt_without_svm()
}

fn line(what: fmt::Arguments<'_>) {
    if IS_OPEN.load(Ordering::Relaxed) {
        // COM1 reports no errors, so there is none to pass on.
        writeln!(Com1(Serial::at(Serial::COM1)), "{what}").unwrap_or_default();
    }
}

struct Com1(Serial);

impl Write for Com1 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.send_text(text);
        Ok(())
    }
}
