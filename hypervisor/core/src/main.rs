//! The hypervisor: what is left of the way after the launch image has measured it.
//!
//! Trusts the launch image, which the processor measured, and nothing that came before.
//! Promises that no guest instruction runs before DMA is refused, every guest is measured and the keys are
//! those of this measurement; and that no way out leaves secrets behind.
#![no_std]
#![no_main]

extern crate alloc;

mod console;
mod cpus;
mod door;
mod fleet;
mod host;
mod launch;
mod lifecycle;
mod load;
mod lock;
mod measure;
mod reason;
#[cfg_attr(feature = "unmeasured", path = "unmeasured/record.rs")]
mod record;
#[cfg(feature = "self-check")]
mod self_check;
mod serve;
#[cfg_attr(feature = "unmeasured", path = "unmeasured/shield.rs")]
mod shield;
mod stop;
#[cfg_attr(feature = "unmeasured", path = "unmeasured/trust.rs")]
mod trust;
mod vendor;
mod virtualise;

use core::convert::Infallible;

use dolmen_machine::interrupt;
use dolmen_machine::own::Entered;

use stop::Reason;

/// The core's beginning: called once by the entry stub of `machine`.
#[expect(unsafe_code, reason = "the one name that the entry stub calls")]
#[unsafe(no_mangle)]
fn core_main(entered: Entered) -> ! {
    console::open();
    interrupt::set_fatal_handler(stop::on_exception);
    match boot(entered) {
        Ok(never) => match never {},
        Err(reason) => stop::stop(&reason),
    }
}

/// Boots: each stage takes the proof that the one before it is done.
fn boot(entered: Entered) -> Result<Infallible, Reason> {
    let launched = launch::verify(entered)?;
    let shielded = shield::take_over(launched)?;
    let measured = measure::guests(shielded)?;
    vendor::run(measured)
}
