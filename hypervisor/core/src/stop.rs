//! The way out.

use core::panic::PanicInfo;

use dolmen_machine::cpu;

/// Why.
#[derive(Debug)]
pub(crate) enum Reason {
    /// Panic.
    Panic,
}

pub(crate) fn stop(reason: Reason) -> ! {
    crate::console::print(format_args!("stop: {reason:?}\n"));
    cpu::halt_for_ever()
}

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    crate::console::print(format_args!("stop: {info}\n"));
    cpu::halt_for_ever()
}
