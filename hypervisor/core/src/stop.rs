//! The way out: every end of the run, wanted or not, goes through [`leave`].
//!
//! Promise: all other processors stand still first; guest RAM is wiped, PCR 17 and 18 are extended with the cap so that nothing can be unsealed or quoted
//! any more, then heap, data and stacks of the core are wiped. A step that fails does not keep the
//! others from being done, and is said on the console.

use core::fmt;
use core::panic::PanicInfo;

use dolmen_machine::cpu;
use dolmen_machine::cpus::{self, WayOut};
use dolmen_machine::interrupt::{Frame, SECURITY_EXCEPTION};
use dolmen_machine::own::{GuestWiper, Machine, Private};
use dolmen_machine::scrub::{self, End};

use crate::console::print;
use crate::lock::Mutex;
pub(crate) use crate::reason::Reason;
use crate::record::Cap;

/// What the way out needs, put aside while the core boots.
static KIT: Mutex<Kit> = Mutex::new(Kit { guests: None, cap: None });
/// The core's own memory: locked only to look, so that a fault on the way out finds it.
static OWN: Mutex<Option<Private>> = Mutex::new(None);

struct Kit {
    guests: Option<GuestWiper>,
    cap: Option<Cap>,
}

/// Puts aside what is to be wiped.
pub(crate) fn remember_memory(machine: &Machine, own: Private) {
    KIT.lock().guests = Some(machine.guest_wiper());
    *OWN.lock() = Some(own);
}

/// Puts aside what the PCRs are capped with.
pub(crate) fn remember_cap(cap: Cap) {
    KIT.lock().cap = Some(cap);
}

/// Ends the run for `reason`: the processor halts and the console stays readable.
pub(crate) fn stop(reason: &Reason) -> ! {
    leave(End::Halt, format_args!("{reason}"))
}

/// Ends the run with a reset of the machine.
pub(crate) fn reset() -> ! {
    leave(End::Reset, format_args!("the guest resets the machine"))
}

fn leave(how: End, why: fmt::Arguments<'_>) -> ! {
    // A second way in on the same processor is a fault on the way out: what is left is to wipe and to halt.
    let is_first = match cpus::claim_way_out() {
        WayOut::Ours => true,
        WayOut::OursAgain => false,
        WayOut::Another => cpus::park(),
    };
    let moving = if is_first { cpus::park_others() } else { cpus::CpuSet::EMPTY };
    print(format_args!("stop: {why}\n"));
    for cpu in moving {
        print(format_args!("stop: the processor with APIC ID {} does not stand still\n", cpus::apic_id(cpu)));
    }
    // Locked already if the fault is one of the way out itself.
    if is_first && let Some(mut kit) = KIT.try_lock() {
        if let Some(guests) = &kit.guests {
            guests.wipe();
        }
        match &mut kit.cap {
            Some(cap) => cap.put_on(),
            None => print(format_args!("stop: nothing to cap yet\n")),
        }
    }
    let own = OWN.try_lock().and_then(|own| *own);
    match own {
        // SAFETY: heap and stacks are mapped for good and hold no page tables.
        #[expect(unsafe_code, reason = "the last thing this core does")]
        Some(own) => unsafe { scrub::end(how, own.start, own.bytes) },
        None => cpu::halt_for_ever(),
    }
}

/// An exception in the hypervisor: a defect of ours, a failing machine, or a redirected INIT.
pub(crate) fn on_exception(frame: &Frame) -> ! {
    if frame.vector == u64::from(SECURITY_EXCEPTION) {
        stop(&Reason::Init);
    }
    let cr2 = cpu::read_cr2();
    leave(
        End::Halt,
        format_args!(
            "exception vector={} error={:#x} rip={:#x} rsp={:#x} cr2={cr2:#x}; please report it",
            frame.vector, frame.error, frame.rip, frame.rsp
        ),
    )
}

#[panic_handler]
fn on_panic(info: &PanicInfo<'_>) -> ! {
    leave(End::Halt, format_args!("{info}; please report it"))
}
