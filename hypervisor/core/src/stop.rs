//! The way out: every end of the run, wanted or not, goes through [`leave`].
//!
//! Promise: guest RAM is wiped, PCR 17 and 18 are extended with the cap so that nothing can be unsealed or quoted
//! any more, then heap, data and stacks of the core are wiped. A step that fails does not keep the
//! others from being done, and is said on the console.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use dolmen_drtm::bank::{PCR_CODE, PCR_CONFIGURATION};
use dolmen_drtm::{BankSet, DigestSet};
use dolmen_machine::cpu;
use dolmen_machine::interrupt::{Frame, SECURITY_EXCEPTION};
use dolmen_machine::own::{GuestWiper, Machine};
use dolmen_machine::scrub::{self, End};
use dolmen_machine::tpm_mmio::TisRegisters;
use dolmen_tpm::TpmError;
use dolmen_tpm::tis::{Locality, Tis};
use spin::Mutex;

use crate::console::print;
use crate::measure;
pub(crate) use crate::reason::Reason;

/// What the way out needs, put aside while the core boots.
static KIT: Mutex<Kit> = Mutex::new(Kit { memory: None, tpm: None });
static IS_LEAVING: AtomicBool = AtomicBool::new(false);

struct Kit {
    memory: Option<Memory>,
    tpm: Option<(Tis<TisRegisters>, BankSet)>,
}

struct Memory {
    guests: GuestWiper,
    heap: u64,
    heap_bytes: u64,
}

/// Puts aside what is to be wiped.
pub(crate) fn remember_memory(machine: &Machine, heap: u64, heap_bytes: u64) {
    KIT.lock().memory = Some(Memory { guests: machine.guest_wiper(), heap, heap_bytes });
}

/// Puts a TPM driver of its own aside: the one in use may be in the middle of a command.
pub(crate) fn remember_tpm(registers: TisRegisters, banks: BankSet) {
    KIT.lock().tpm = Some((Tis::new(registers, Locality::Two), banks));
}

/// Ends the run for `reason`: the processor halts and the console stays readable.
pub(crate) fn stop(reason: &Reason) -> ! {
    print(format_args!("stop: {reason}\n"));
    leave(End::Halt)
}

/// Ends the run with a reset of the machine.
pub(crate) fn reset() -> ! {
    print(format_args!("stop: the guest resets the machine\n"));
    leave(End::Reset)
}

fn leave(how: End) -> ! {
    // A second way in is a fault on the way out: what is left is to wipe and to halt.
    let is_first = !IS_LEAVING.swap(true, Ordering::AcqRel);
    let Some(mut kit) = KIT.try_lock() else { cpu::halt_for_ever() };
    if is_first {
        if let Some(memory) = &kit.memory {
            memory.guests.wipe();
        }
        match &mut kit.tpm {
            Some((tpm, banks)) => report_cap(cap(tpm, banks)),
            None => print(format_args!("stop: nothing to cap yet\n")),
        }
    }
    match &kit.memory {
        // SAFETY: the heap is mapped for good and holds no page tables.
        #[expect(unsafe_code, reason = "the last thing this core does")]
        Some(memory) => unsafe { scrub::end(how, memory.heap, memory.heap_bytes) },
        None => cpu::halt_for_ever(),
    }
}

fn report_cap(result: Result<(), TpmError>) {
    match result {
        Ok(()) => print(format_args!("stop: memory wiped, PCR 17 and 18 capped\n")),
        Err(error) => print(format_args!(
            "stop: memory wiped, but PCR 17 and 18 are NOT capped: {error:?}; switch the machine off\n"
        )),
    }
}

/// Extends PCR 17 and 18 with the cap in every bank.
fn cap(tpm: &mut Tis<TisRegisters>, banks: &BankSet) -> Result<(), TpmError> {
    // Whatever command is in progress is not ours to finish.
    tpm.seize()?;
    tpm.relinquish()?;
    tpm.claim()?;
    let capped = DigestSet::capped(banks);
    measure::extend(tpm, PCR_CODE, &capped)?;
    measure::extend(tpm, PCR_CONFIGURATION, &capped)
}

/// An exception in the hypervisor: a defect of ours, a failing machine, or a redirected INIT.
pub(crate) fn on_exception(frame: &Frame) -> ! {
    if frame.vector == u64::from(SECURITY_EXCEPTION) {
        stop(&Reason::Init);
    }
    print(format_args!(
        "stop: exception vector={} error={:#x} rip={:#x} rsp={:#x} cr2={:#x}; please report it\n",
        frame.vector,
        frame.error,
        frame.rip,
        frame.rsp,
        cpu::read_cr2()
    ));
    leave(End::Halt)
}

#[panic_handler]
fn on_panic(info: &PanicInfo<'_>) -> ! {
    print(format_args!("stop: {info}; please report it\n"));
    leave(End::Halt)
}
