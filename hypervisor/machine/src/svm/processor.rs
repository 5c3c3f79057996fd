//! One processor of the host, and which virtual processor it holds.

use dolmen_arch::svm::{Asids, Clean, TlbControl};
use dolmen_memory::Hpa;

use super::frame::VmcbFrame;
use super::vcpu::Svm;
use crate::cpus::{self, CpuId};
use crate::extension::HostCpu;

/// A processor with SVM on. It loads a virtual processor before that runs here, and saves it before it may run
/// elsewhere.
#[derive(Debug)]
pub struct SvmCpu {
    id: CpuId,
    host: VmcbFrame,
    asids: Asids,
    /// Whose state the registers hold that no control block switches.
    resident: Option<Hpa>,
    /// A generation of identifiers has begun, and no entry has flushed the old one's translations yet.
    must_flush: bool,
}

impl SvmCpu {
    /// The processor that executes this.
    pub(super) fn new(host: VmcbFrame, asids: Asids) -> Self {
        Self { id: cpus::this(), host, asids, resident: None, must_flush: false }
    }
}

impl HostCpu for SvmCpu {
    type Vcpu = Svm;

    fn load(&mut self, svm: &mut Svm) {
        let (own, whose) = (self.host.physical(), svm.identity());
        let was_here = svm.ran_on() == Some(own);
        svm.extended.load(was_here && self.resident == Some(whose));
        self.resident = Some(whose);
        let held = svm.asid().filter(|asid| was_here && self.asids.is_valid(*asid));
        let asid = held.unwrap_or_else(|| {
            let (asid, flush) = self.asids.assign();
            self.must_flush |= flush;
            let control = &mut svm.vmcb.get_mut().control;
            control.set_clean(Clean::empty());
            control.set_asid(asid.number());
            // A fresh identifier has nothing cached, whatever the guest asked for elsewhere.
            control.set_tlb_control(TlbControl::Keep);
            asid
        });
        if self.must_flush {
            svm.vmcb.get_mut().control.set_tlb_control(TlbControl::All);
        }
        svm.settle(self.id, own, asid);
    }

    fn save(&mut self, svm: &mut Svm) {
        svm.extended.save();
        self.must_flush &= !svm.leave();
    }
}
