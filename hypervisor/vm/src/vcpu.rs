//! One virtual processor: private to the processor of the host that runs it.

use dolmen_arch::register::Cr4;
use dolmen_memory::GuestMemory;

use crate::backend::{Backend, StartState};
use crate::board::{BoardConfig, Tsc};
use crate::cpuid::{CpuidState, GuestCpuid};
use crate::guest::Guest;
use crate::local::LocalDevices;
use crate::policy::StopReason;
use crate::run::{self, CodePages, Host, KnownAccesses};

/// What a virtual processor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It executes instructions.
    Running,
    /// It executed HLT and waits for an interrupt.
    Halted,
    /// It was reset, and waits for another one to start it.
    AwaitsStartUp,
}

/// How a virtual processor's turn on a processor ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The host wants its processor back; the guest could go on.
    SliceOver,
    /// It waits for an interrupt: nothing is to be done before `until`, unless it is woken.
    Halted {
        /// Its next timer.
        until: Option<Tsc>,
    },
    /// It waits to be started.
    AwaitsStartUp,
    /// The guest stops.
    Stopped(StopReason),
}

/// One virtual processor.
#[derive(Debug)]
pub struct Vcpu<B> {
    index: usize,
    pub(crate) backend: B,
    pub(crate) cpuid: GuestCpuid,
    pub(crate) devices: LocalDevices,
    /// CR4 bits that belong to features the guest is told of.
    pub(crate) cr4_mask: Cr4,
    pub(crate) activity: Activity,
    /// Where code that exited was found last: a hint, checked at each use.
    pub(crate) code: CodePages,
    /// Instructions that touched device memory before.
    pub(crate) accesses: KnownAccesses,
}

impl<B: Backend> Vcpu<B> {
    /// Processor `index` of its guest. It awaits to be started.
    pub fn new(index: usize, backend: B, cpuid: GuestCpuid, config: &BoardConfig) -> Self {
        let cr4_mask = run::cr4_mask(&cpuid);
        let devices = LocalDevices::new(index, config);
        Self {
            index,
            backend,
            cpuid,
            devices,
            cr4_mask,
            activity: Activity::AwaitsStartUp,
            code: CodePages::EMPTY,
            accesses: KnownAccesses::EMPTY,
        }
    }

    /// Which one of its guest's it is.
    pub const fn index(&self) -> usize {
        self.index
    }

    /// What it does.
    pub const fn activity(&self) -> Activity {
        self.activity
    }

    /// The processor behind it.
    pub const fn backend(&self) -> &B {
        &self.backend
    }

    /// The processor behind it, for whoever gives it to a processor of the host or takes it away.
    pub const fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }

    /// Puts it into the state of power-on: nothing of the guest is left in it, and it awaits to be started.
    pub fn reset(&mut self, config: &BoardConfig) {
        self.backend.reset();
        self.backend.flush();
        self.devices = LocalDevices::new(self.index, config);
        self.activity = Activity::AwaitsStartUp;
        (self.code, self.accesses) = (CodePages::EMPTY, KnownAccesses::EMPTY);
    }

    /// Back to the state after INIT; its local APIC is there already. RDX tells the processor's model (APM vol. 2,
    /// table 14-1).
    pub(crate) fn init(&mut self) {
        let state = CpuidState { cr4: 0, xcr0: 0 };
        self.backend.init();
        self.backend.gprs().rdx = u64::from(self.cpuid.answer(1, 0, state).eax);
        self.activity = Activity::AwaitsStartUp;
    }

    /// Starts in real mode at page `vector`, as somebody told it to.
    pub(crate) fn start_up(&mut self, vector: u8) {
        self.backend.start_up(vector);
        self.activity = Activity::Running;
    }

    /// Puts the guest's first processor where its image begins.
    pub fn start(&mut self, state: &StartState) {
        self.backend.start(state);
        self.code = CodePages::EMPTY;
        self.accesses = KnownAccesses::EMPTY;
        self.activity = Activity::Running;
    }

    /// Runs until the turn ends.
    pub fn run(&mut self, guest: &Guest, memory: &mut impl GuestMemory, host: &mut impl Host) -> Turn {
        run::turn(self, guest, memory, host)
    }
}
