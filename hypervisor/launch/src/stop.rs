//! The way out of a launch that failed: cap the dynamic PCRs, say why, stop.
//!
//! Nothing secret exists yet, so there is nothing to wipe. The processor halts with interrupts of every kind
//! held: only a reset leads on, and that resets the PCRs.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use dolmen_drtm::bank::{PCR_CODE, PCR_CONFIGURATION};
use dolmen_drtm::{BankSet, DigestSet};
use dolmen_machine::{cpu, launch};
use dolmen_tpm::measure::read_banks;
use dolmen_tpm::tis::{Locality, Tis};

use crate::console::Line;
use crate::measure::extend;
use crate::reason::Reason;

/// Whether the way out has been taken: a fault on it must not take it again.
static IS_STOPPING: AtomicBool = AtomicBool::new(false);

/// Ends the launch.
pub(crate) fn stop(reason: &Reason) -> ! {
    reason.print();
    launch::on_first_stack(leave)
}

extern "C" fn leave() -> ! {
    if !IS_STOPPING.swap(true, Ordering::AcqRel) {
        match cap_pcrs() {
            Some(()) => Line::new("stop: PCR 17 and 18 are capped"),
            None => Line::new("stop: PCR 17 and 18 could not be capped"),
        }
        .end();
    }
    cpu::halt_without_svm()
}

/// Extends PCR 17 and 18 with the cap, in every bank whose size is known.
fn cap_pcrs() -> Option<()> {
    let mut tpm = Tis::new(launch::tpm_again()?, Locality::Two);
    tpm.claim().ok()?;
    let shown = read_banks(&mut tpm).ok()?;
    let banks = BankSet::cappable(shown.active().map(|bank| (bank.algorithm, bank.pcrs)));
    let capped = DigestSet::capped(&banks);
    extend(&mut tpm, PCR_CODE, &capped).ok()?;
    extend(&mut tpm, PCR_CONFIGURATION, &capped).ok()?;
    tpm.relinquish().ok()
}

/// An exception in the launch image: a defect of ours, or a failing machine.
#[expect(unsafe_code, reason = "the name that the exception stub in `machine` calls")]
#[unsafe(no_mangle)]
fn launch_fault(frame: [u64; 3]) -> ! {
    let [first, second, third] = frame;
    Line::new("stop: exception frame=")
        .hex(first)
        .text(",")
        .hex(second)
        .text(",")
        .hex(third)
        .text(" cr2=")
        .hex(cpu::read_cr2())
        .text("; please report it")
        .end();
    launch::on_first_stack(leave)
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    stop(&Reason::Defect)
}
