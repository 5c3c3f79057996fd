//! The launch image: what the processor measures, and the root of all that is measured afterwards.
//!
//! It trusts the processor and itself. The loader's hand-off, firmware's tables, devices and the TPM's bus are
//! hostile. Its promise to the core: no device can write memory, what runs and its configuration are in
//! PCR 17 and 18 of every active bank as the event log says, and every extent of [`CoreHandoff`] is RAM of its own.
//! Failure ends in [`stop`]: there is no unmeasured mode.
#![no_std]
#![no_main]

mod console;
mod handover;
mod launch;
mod measure;
mod reason;
mod shield;
mod stop;

use core::convert::Infallible;

use dolmen_machine::launch::{Block, LoaderPage, Probe, on_stack};

use crate::reason::{Reason, Stopped};
use crate::shield::Shielded;

/// Bytes of the stack in shielded memory: hashing and the TPM's messages do not fit the block's own.
const STACK_BYTES: u64 = 0x1_0000;

/// The first Rust of the image.
#[expect(unsafe_code, reason = "the one name that the entry stub in `machine` calls")]
#[unsafe(no_mangle)]
fn launch_main(block: Block, page: LoaderPage, probe: Probe) -> ! {
    match boot(block, &page, probe) {}
}

/// Boots: each stage takes the proof that the one before it is done.
fn boot(block: Block, page: &LoaderPage, probe: Probe) -> Result<Infallible, Stopped> {
    let launched = launch::verify(block, page, probe)?;
    let mut shielded = shield::close_dma(launched)?;
    let stack = shielded.region.take_last(STACK_BYTES).ok_or(Reason::Region)?;
    on_stack(stack, move || match measure_and_leave(shielded) {})
}

/// The rest of the way, on a stack in shielded memory.
fn measure_and_leave(shielded: Shielded) -> Result<Infallible, Stopped> {
    let measured = measure::extend_all(shielded)?;
    handover::enter_core(measured)
}
