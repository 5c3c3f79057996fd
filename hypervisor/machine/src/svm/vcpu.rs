//! One virtual processor: its control block and what goes on around an entry.

use dolmen_arch::register::Rflags;
use dolmen_arch::svm::intercept::Intercepts;
use dolmen_arch::svm::{self, Asid, Clean, SvmFeatures, TlbControl, Vmcb};
use dolmen_arch::{Gprs, Vector, VmExit};
use dolmen_memory::Hpa;

use super::frame::VmcbFrame;
use super::switch;
use crate::cpus::{self, CpuId};
use crate::extended::Extended;

/// How the guest is watched for the moment it can take an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    /// Not at all.
    Off,
    /// By a virtual interrupt whose delivery exits.
    Window,
    /// By the trap flag, for one instruction. Some processors lose the interrupt shadow at VMRUN, so the
    /// virtual interrupt would come too early; single-stepping is right on all.
    Step(Step),
}

/// What single-stepping hides from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    had_trap_flag: bool,
    had_step_status: bool,
}

/// DR6.BS: the #DB came from the trap flag.
const STEP_STATUS: u64 = dolmen_arch::register::DR6_SINGLE_STEP;
/// All exceptions but #BP and #OF, whose delivery needs the length of their instruction: a stray trap flag in
/// a frame that the guest pushes would single-step it for ever after.
const STEP_EXCEPTIONS: u32 = !(1 << 3 | 1 << 4);

/// Where the guest stands with non-maskable interrupts. One being handled blocks the next until IRET is done
/// (APM vol. 2, 8.2.3); the processor does not keep that for injected ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NmiState {
    /// It takes one.
    Open,
    /// It handles one; IRET exits.
    Handling,
    /// It is at the IRET of this address.
    Returning(u64),
}

/// The processor that holds a virtual one, by the number in its block: one comparison at each entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holder(u32);

impl Holder {
    const NOBODY: Self = Self(u32::MAX);

    fn of(cpu: CpuId) -> Self {
        u32::try_from(cpu.index()).map_or(Self::NOBODY, Self)
    }

    #[inline(always)]
    fn this() -> Self {
        Self(cpus::own_number())
    }
}

/// A virtual processor on SVM.
#[derive(Debug)]
pub struct Svm {
    pub(super) vmcb: VmcbFrame,
    /// Its identifier where it runs, or ran last.
    asid: Option<Asid>,
    /// The processor that holds it, while one does.
    held_by: Holder,
    /// The own control block of that processor, or of the one before.
    host: Hpa,
    /// It was entered since it was loaded.
    has_entered: bool,
    /// The last [`cpus::flush_generation`] that it has flushed for.
    flushed: u64,
    pub(super) gprs: Gprs,
    pub(super) extended: Extended,
    pub(super) features: SvmFeatures,
    /// What the processor keeps from one exit to the next entry.
    kept: Clean,
    watch: Watch,
    /// Where the guest stood in an interrupt shadow at an exit that changed nothing.
    shadow_at: Option<u64>,
    nmi: NmiState,
}

impl Svm {
    pub(super) fn new(mut vmcb: VmcbFrame, features: SvmFeatures, extended: Extended) -> Self {
        vmcb.get_mut().control.set_intercepts(Intercepts::GUEST);
        vmcb.get_mut().reset_processor();
        Self {
            vmcb,
            asid: None,
            held_by: Holder::NOBODY,
            host: Hpa::new(0),
            has_entered: false,
            flushed: 0,
            gprs: Gprs::default(),
            extended,
            features,
            kept: if features.contains(SvmFeatures::CLEAN_BITS) { Clean::all() } else { Clean::empty() },
            watch: Watch::Off,
            shadow_at: None,
            nmi: NmiState::Open,
        }
    }

    /// What tells it from all others.
    pub(super) const fn identity(&self) -> Hpa {
        self.vmcb.physical()
    }

    /// The host's control block of the processor that it ran on last.
    pub(super) fn ran_on(&self) -> Option<Hpa> {
        self.asid.map(|_| self.host)
    }

    /// Its identifier there.
    pub(super) const fn asid(&self) -> Option<Asid> {
        self.asid
    }

    /// `cpu` holds it, whose own control block is `host`.
    pub(super) fn settle(&mut self, cpu: CpuId, host: Hpa, asid: Asid) {
        (self.asid, self.host) = (Some(asid), host);
        self.held_by = Holder::of(cpu);
        self.has_entered = false;
    }

    /// Leaves its processor; whether it was entered there.
    pub(super) const fn leave(&mut self) -> bool {
        self.held_by = Holder::NOBODY;
        self.has_entered
    }

    /// Forgets what was under way, and where it ran: it starts anew.
    pub(super) fn forget(&mut self) {
        self.end_watch();
        self.end_shadow();
        self.nmi = NmiState::Open;
        let control = &mut self.vmcb.get_mut().control;
        control.set_return_intercept(false);
        control.clear_injection();
    }

    /// Everything that no control block holds gets its reset value; not while it is loaded.
    pub(super) fn reset_extended(&mut self) {
        assert!(self.held_by == Holder::NOBODY, "a virtual processor is reset where it does not run");
        self.extended.reset();
        self.asid = None;
    }

    /// XCR0 bits that this processor has and the guest may be offered.
    #[must_use]
    pub const fn xcr0_mask(&self) -> u64 {
        self.extended.xcr0_mask()
    }

    pub(super) fn flush_translations(&mut self) {
        let control = &mut self.vmcb.get_mut().control;
        let by_asid = self.features.contains(SvmFeatures::FLUSH_BY_ASID);
        // What the processor owes to all is not made less.
        let own_only = by_asid && !control.flushes_all();
        control.set_tlb_control(if own_only { TlbControl::Guest } else { TlbControl::All });
    }

    /// Enters the guest once.
    #[inline(always)]
    pub(super) fn enter(&mut self) -> VmExit {
        if self.held_by != Holder::this() {
            // A defect of ours; the guest pays for it with its end.
            return VmExit::Unknown { code: u64::MAX };
        }
        let generation = cpus::flush_generation();
        if self.flushed != generation {
            self.flushed = generation;
            self.flush_translations();
        }
        let stepping = matches!(self.watch, Watch::Step(_));
        let vmcb = self.vmcb.get_mut();
        vmcb.sanitise_debug();
        let (rax, rsp) = (self.gprs.rax, self.gprs.rsp);
        let save = vmcb.save_mut(Clean::empty());
        (save.rax, save.rsp) = (rax, rsp);
        if stepping {
            save.rflags |= Rflags::TF.bits();
        }
        self.has_entered = true;
        switch::enter(&mut self.gprs, &mut self.vmcb, self.host);
        self.after_exit()
    }

    #[inline(always)]
    fn after_exit(&mut self) -> VmExit {
        let vmcb = self.vmcb.get_mut();
        vmcb.control.set_tlb_control(TlbControl::Keep);
        vmcb.control.set_clean(self.kept);
        vmcb.control.clear_injection();
        (self.gprs.rax, self.gprs.rsp) = (vmcb.save().rax, vmcb.save().rsp);
        // Decoded last, and in a place of its own where nothing is under way: the caller's choice then follows the
        // exit code without a detour.
        if self.is_quiet() { svm::decode(self.vmcb.get(), &self.gprs) } else { self.take_in_exit() }
    }

    /// Whether no shadow, NMI or watch of ours has to be told of the exit.
    #[inline(always)]
    fn is_quiet(&self) -> bool {
        self.watch == Watch::Off
            && self.nmi == NmiState::Open
            && self.shadow_at.is_none()
            && !Self::is_shadowed(self.vmcb.get())
    }

    /// The exit, after whatever is under way has been told of it.
    #[inline(never)]
    fn take_in_exit(&mut self) -> VmExit {
        let exit = svm::decode(self.vmcb.get(), &self.gprs);
        self.track_shadow(exit);
        self.track_nmi(exit);
        match self.watch {
            Watch::Off => exit,
            Watch::Window => {
                if exit == VmExit::InterruptWindow {
                    self.end_watch();
                }
                exit
            }
            Watch::Step(step) => self.finish_step(step, exit),
        }
    }

    /// Keeps the shadow over exits in which the guest executed nothing: entering ends it on processors that do
    /// not load it, so the processor's own word at the second exit in a row is worth nothing.
    fn track_shadow(&mut self, exit: VmExit) {
        let vmcb = self.vmcb.get_mut();
        let rip = vmcb.save().rip;
        let is_physical =
            matches!(exit, VmExit::HostInterrupt | VmExit::HostNmi | VmExit::HostSmi | VmExit::HostInit);
        if vmcb.control.is_shadowed() {
            self.shadow_at = Some(rip);
        } else if is_physical && self.shadow_at == Some(rip) {
            vmcb.control.set_shadow();
        } else {
            self.shadow_at = None;
        }
    }

    fn track_nmi(&mut self, exit: VmExit) {
        let vmcb = self.vmcb.get_mut();
        let rip = vmcb.save().rip;
        match self.nmi {
            NmiState::Handling if exit == VmExit::NmiReturn => {
                vmcb.control.set_return_intercept(false);
                self.nmi = NmiState::Returning(rip);
            }
            NmiState::Returning(at) if at != rip => self.nmi = NmiState::Open,
            NmiState::Open | NmiState::Handling | NmiState::Returning(_) => {}
        }
    }

    pub(super) fn begin_nmi(&mut self) {
        self.nmi = NmiState::Handling;
        self.vmcb.get_mut().control.set_return_intercept(true);
    }

    pub(super) fn is_open_for_nmi(&self) -> bool {
        let control = &self.vmcb.get().control;
        self.nmi == NmiState::Open && !control.is_injecting() && !control.is_shadowed()
    }

    /// Whether the guest stands in an interrupt shadow.
    pub(super) const fn is_shadowed(vmcb: &Vmcb) -> bool {
        vmcb.control.is_shadowed()
    }

    pub(super) const fn end_shadow(&mut self) {
        self.shadow_at = None;
        self.vmcb.get_mut().control.clear_shadow();
    }

    /// Watches for the moment the guest can take an interrupt.
    pub(super) fn begin_watch(&mut self) {
        let vmcb = self.vmcb.get_mut();
        let flags = Rflags::from_bits_retain(vmcb.save().rflags);
        if Self::is_shadowed(vmcb) && flags.contains(Rflags::IF) && !vmcb.control.is_injecting() {
            if !matches!(self.watch, Watch::Step(_)) {
                vmcb.control.set_interrupt_window(false);
                vmcb.control.set_exceptions(STEP_EXCEPTIONS);
                self.watch = Watch::Step(Step {
                    had_trap_flag: flags.contains(Rflags::TF),
                    had_step_status: vmcb.save().dr6 & STEP_STATUS != 0,
                });
            }
        } else if self.watch == Watch::Off {
            vmcb.control.set_interrupt_window(true);
            self.watch = Watch::Window;
        }
    }

    /// Ends the watch.
    pub(super) fn end_watch(&mut self) {
        match self.watch {
            Watch::Off => {}
            Watch::Window => self.vmcb.get_mut().control.set_interrupt_window(false),
            Watch::Step(step) => self.hide_step(step),
        }
        self.watch = Watch::Off;
    }

    /// Takes the trap flag back.
    fn hide_step(&mut self, step: Step) {
        let vmcb = self.vmcb.get_mut();
        vmcb.control.set_exceptions(Intercepts::EXCEPTIONS);
        if !step.had_trap_flag {
            vmcb.save_mut(Clean::empty()).rflags &= !Rflags::TF.bits();
        }
    }

    fn finish_step(&mut self, step: Step, exit: VmExit) -> VmExit {
        self.end_watch();
        let is_ours = matches!(exit, VmExit::Exception { vector: Vector::DB, .. }) && !step.had_trap_flag;
        if !is_ours {
            return exit;
        }
        if !step.had_step_status {
            self.vmcb.get_mut().save_mut(Clean::DRX).dr6 &= !STEP_STATUS;
        }
        self.end_shadow();
        VmExit::Stepped
    }
}
