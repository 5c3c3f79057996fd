//! The loader as a UEFI application: reads `\dolmen\boot.cfg` (see `dolmen_loader::config`) and the files that
//! it names from the volume that it was started from, and launches. If something is missing it says what, and
//! goes back to the firmware with an error status.
#![cfg_attr(any(target_os = "uefi", target_os = "none"), no_std, no_main)]

#[cfg(target_os = "uefi")]
mod file;
#[cfg(target_os = "uefi")]
mod problem;
#[cfg(target_os = "uefi")]
mod start;

/// Writes for people on the firmware's console. One that fails, as some do while firmware looks at its devices, is no
/// reason not to start: what counts is on the serial port.
#[cfg(target_os = "uefi")]
fn show(text: core::fmt::Arguments<'_>) {
    use core::fmt::Write as _;
    uefi::system::with_stdout(|out| out.write_fmt(text)).unwrap_or(());
}

/// The same, and ends the line.
#[cfg(target_os = "uefi")]
macro_rules! say {
    ($($arg:tt)*) => { crate::show(format_args!("{}\n", format_args!($($arg)*))) };
}
#[cfg(target_os = "uefi")]
use say;

#[cfg(all(any(target_os = "uefi", target_os = "none"), not(test)))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    dolmen_loader::console::stop(format_args!("a fault of the loader itself: {info}; report this"))
}

/// Elsewhere than under UEFI there is nothing to start.
#[cfg(not(any(target_os = "uefi", target_os = "none")))]
fn main() {}
