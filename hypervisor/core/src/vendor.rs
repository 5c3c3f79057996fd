//! The one place where the vendor counts: what guests run through is built for the vendor of this machine's processors.

use core::convert::Infallible;

use dolmen_arch::cpuid::Vendor;
use dolmen_machine::cpu::ThisCpu;
use dolmen_machine::extension::Extension;
use dolmen_machine::svm::SvmHost;
use dolmen_machine::vmx::VmxHost;

use crate::fleet::Fleet;
use crate::lock::Mutex;
use crate::measure::Measured;
use crate::stop::Reason;
use crate::{serve, virtualise};

/// An extension that the core has a place for all guests for.
pub(crate) trait Home: Extension {
    /// All guests, once there is work for every processor.
    fn fleet() -> &'static Mutex<Option<&'static Fleet<Self>>>;
}

static SVM_FLEET: Mutex<Option<&'static Fleet<SvmHost>>> = Mutex::new(None);
static VMX_FLEET: Mutex<Option<&'static Fleet<VmxHost>>> = Mutex::new(None);

impl Home for SvmHost {
    fn fleet() -> &'static Mutex<Option<&'static Fleet<Self>>> {
        &SVM_FLEET
    }
}

impl Home for VmxHost {
    fn fleet() -> &'static Mutex<Option<&'static Fleet<Self>>> {
        &VMX_FLEET
    }
}

/// Stages 4 and 5, for whoever made the processor.
pub(crate) fn run(measured: Measured) -> Result<Infallible, Reason> {
    match Vendor::detect(&ThisCpu).ok_or(Reason::Vendor)? {
        Vendor::Amd => run_on::<SvmHost>(measured),
        Vendor::Intel => run_on::<VmxHost>(measured),
    }
}

/// A function of its own: each of the two wants much of the stack, and only one of them runs.
#[inline(never)]
fn run_on<E: Home>(measured: Measured) -> Result<Infallible, Reason> {
    let guests = virtualise::build::<E>(measured)?;
    serve::for_ever(guests)
}
