//! All processors: they start when everything is measured, and wait until there is work.

use alloc::boxed::Box;

use dolmen_machine::cpus::{self, StartedCpu};
use dolmen_machine::interrupt::Window;
use dolmen_machine::svm::{SvmCpu, SvmHost};

use crate::host::Host;
use crate::stop::Reason;

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
    loop {
        cpu.window.wait();
    }
}
