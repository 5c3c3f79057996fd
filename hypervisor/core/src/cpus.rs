//! All processors: they start when everything is measured, and wait until there is work.

use alloc::boxed::Box;

use dolmen_machine::cpus::{self, StartedCpu};
use dolmen_machine::interrupt::Window;

use crate::fleet::Fleet;
use crate::host::Host;
use crate::launch::check_cpus;
use crate::serve::Processor;
use crate::stop::{self, Reason};
use crate::vendor::Home;

/// Enables the extension here and starts the other processors.
pub(crate) fn start<E: Home>(host: &mut Host) -> Result<(&'static E, E::Cpu, Window), Reason> {
    check_cpus(host.machine.handoff())?;
    let (extension, cpu, window) = host.machine.enable::<E>().map_err(Reason::Extension)?;
    let extension: &'static E = Box::leak(Box::new(extension));
    host.machine.start_cpus(extension, host.clock, begin_here).map_err(Reason::Cpu)?;
    log::info!(target: "virtualise", "cpus={} left_out={}", cpus::count(), host.machine.handoff().cpus_left_out);
    Ok((extension, cpu, window))
}

/// A processor that was started: called once on each.
fn begin_here<E: Home>(cpu: StartedCpu<E>) -> ! {
    let fleet = loop {
        if let Some(fleet) = *E::fleet().lock() {
            break fleet;
        }
        cpu.window.wait();
    };
    match Processor::new(cpus::this(), cpu.cpu, cpu.window, fleet).serve() {
        Ok(never) => match never {},
        Err(reason) => stop::stop(&reason),
    }
}

/// Sets the other processors to work.
pub(crate) fn begin<E: Home>(fleet: &'static Fleet<E>) {
    *E::fleet().lock() = Some(fleet);
    cpus::all().into_iter().for_each(cpus::kick);
}
