//! All processors: they start when everything is measured, and wait until there is work.

use alloc::boxed::Box;

use dolmen_machine::cpus::{self, StartedCpu};
use dolmen_machine::interrupt::Window;
use dolmen_machine::svm::{SvmCpu, SvmHost};

use crate::fleet::Fleet;
use crate::host::Host;
use crate::lock::Mutex;
use crate::serve::Processor;
use crate::stop::{self, Reason};

/// Enables SVM here and starts the other processors.
pub(crate) fn start(host: &mut Host) -> Result<(&'static SvmHost, SvmCpu, Window), Reason> {
    let (svm, cpu, window) = host.machine.enable_svm().map_err(Reason::Svm)?;
    let svm: &'static SvmHost = Box::leak(Box::new(svm));
    host.machine.start_cpus(svm, host.clock).map_err(Reason::Cpu)?;
    log::info!(target: "virtualise", "cpus={} left_out={}", cpus::count(), host.machine.handoff().cpus_left_out);
    Ok((svm, cpu, window))
}

/// A processor that was started: called once by `machine` on each.
#[expect(unsafe_code, reason = "the one name that a started processor calls")]
#[unsafe(no_mangle)]
fn core_cpu_main(cpu: StartedCpu) -> ! {
    let fleet = loop {
        if let Some(fleet) = *FLEET.lock() {
            break fleet;
        }
        cpu.window.wait();
    };
    match Processor::new(cpus::this(), cpu.svm, cpu.window, fleet).serve() {
        Ok(never) => match never {},
        Err(reason) => stop::stop(&reason),
    }
}

/// What there is to do, once there is.
static FLEET: Mutex<Option<&'static Fleet>> = Mutex::new(None);

/// Sets the other processors to work.
pub(crate) fn begin(fleet: &'static Fleet) {
    *FLEET.lock() = Some(fleet);
    cpus::all().into_iter().for_each(cpus::kick);
}
