//! Stage 5: the guests run; exits, hypercalls and the TPM's jobs are served until nobody is left.
//!
//! Each processor of the host goes round by itself: it asks the scheduler what to run, runs it for a turn,
//! gives it back. Nothing on the way round allocates, and an exit that ends in entering the same guest again
//! takes no lock that guests share.

use core::convert::Infallible;

use dolmen_arch::{CpuId, CpuSet};
use dolmen_machine::extension::{Extension, HostCpu};
use dolmen_machine::interrupt::Window;
use dolmen_machine::{apic, cpu, cpus};
use dolmen_memory::GuestMemory;
use dolmen_vm::board::{SerialPort, Tsc};
use dolmen_vm::bus::VcpuSet;
use dolmen_vm::run::Host;
use dolmen_vm::sched::{Entity, GiveBack, Pick};
use dolmen_vm::service::{CallArgs, CallResult};
use dolmen_vm::vcpu::{Turn, Vcpu};

use crate::console;
use crate::door::Door;
use crate::fleet::{Fleet, Task, Tenant};
use crate::lifecycle;
use crate::lock::MutexGuard;
use crate::stop::Reason;
use crate::vendor::Home;
use crate::virtualise::Virtualising;

/// Times a second that the physical consoles are looked at: a 16-byte FIFO at 115,200 baud fills in 1.4 ms.
const POLLS_PER_S: u64 = 1000;
const NS_PER_MS: u64 = 1_000_000;

/// Runs the guests; ends with the machine's run.
pub(crate) fn for_ever<E: Home>(virtualising: Virtualising<E>) -> Result<Infallible, Reason> {
    let Virtualising { fleet, cpu: own, window } = virtualising;
    for tenant in fleet.tenants.iter().filter(|tenant| !tenant.measured.config.starts_on_demand()) {
        tenant.life.starts_at_boot(fleet.clock);
        let _nobody_to_kick_yet = fleet.start(tenant);
        log::info!(target: "serve", "guest runs name={} tsc={}", tenant.measured.config.name(), cpu::read_tsc());
    }
    crate::cpus::begin(fleet);
    Processor::new(CpuId::FIRST, own, window, fleet).serve()
}

/// One processor of the host.
pub(crate) struct Processor<E: Extension> {
    id: CpuId,
    cpu: E::Cpu,
    window: Window,
    fleet: &'static Fleet<E>,
    /// End of the present stretch: of the turn, or of an idle processor's rest.
    until: Option<Tsc>,
    /// Why the machine's run ends, found out in the middle of a turn.
    over: Option<Reason>,
}

/// A virtual processor that this processor holds.
struct Held<E: Extension> {
    task: &'static Task<E>,
    tenant: &'static Tenant,
    vcpu: MutexGuard<'static, Vcpu<E::Vcpu>>,
}

impl<E: Extension> Processor<E> {
    pub(crate) const fn new(id: CpuId, cpu: E::Cpu, window: Window, fleet: &'static Fleet<E>) -> Self {
        Self { id, cpu, window, fleet, until: None, over: None }
    }

    /// Goes round for ever, or until the machine's run ends.
    pub(crate) fn serve(&mut self) -> Result<Infallible, Reason> {
        let mut held: Option<Held<E>> = None;
        let mut how = GiveBack::Preempted;
        #[cfg(feature = "self-check")]
        let mut watch = crate::self_check::Watch::new(self.id);
        loop {
            #[cfg(feature = "self-check")]
            watch.round()?;
            let pick = self.choose(how);
            if held.as_ref().map(|held| held.task.entity) != pick.run {
                if let Some(held) = held.take() {
                    self.put_down(held);
                }
                held = pick.run.and_then(|entity| self.pick_up(entity));
            }
            self.until = pick.until;
            how = match &mut held {
                Some(held) => self.run(held)?,
                None => {
                    self.idle()?;
                    GiveBack::Preempted
                }
            };
        }
    }

    /// Gives back what ran, and asks what to run next.
    fn choose(&self, how: GiveBack) -> Pick {
        let mut scheduler = self.fleet.scheduler.lock();
        let now = cpu::read_tsc();
        scheduler.give_back(self.id, now, how);
        let pick = scheduler.pick(self.id, now);
        drop(scheduler);
        self.kick(pick.kick);
        pick
    }

    /// Takes a virtual processor. Whoever ran it last may still be putting it down.
    fn pick_up(&mut self, entity: Entity) -> Option<Held<E>> {
        let task = self.fleet.task(entity)?;
        let tenant = self.fleet.tenants.get(task.tenant)?;
        let mut vcpu = task.vcpu.lock();
        self.cpu.load(vcpu.backend_mut());
        Some(Held { task, tenant, vcpu })
    }

    fn put_down(&mut self, mut held: Held<E>) {
        self.cpu.save(held.vcpu.backend_mut());
    }

    /// One turn.
    fn run(&mut self, held: &mut Held<E>) -> Result<GiveBack, Reason> {
        let mut memory = held.tenant.ram.in_sight();
        let mut around = Around { tenant: held.tenant, deadline: None, processor: self };
        let turn = held.vcpu.run(&held.tenant.guest, &mut memory, &mut around);
        if let Some(reason) = self.over.take() {
            return Err(reason);
        }
        Ok(match turn {
            Turn::SliceOver => GiveBack::Preempted,
            Turn::Halted { until } => GiveBack::Blocked { until },
            Turn::AwaitsStartUp => GiveBack::Blocked { until: None },
            Turn::Stopped(reason) => {
                self.kick(lifecycle::ended(self.fleet, held.tenant, &held.vcpu, reason)?);
                GiveBack::Stopped
            }
        })
    }

    /// Does a piece of the work of guests that start or stop, or rests until something happens.
    fn idle(&mut self) -> Result<(), Reason> {
        if self.work()? {
            // However much there is to do, other processors are heard in between.
            self.window.take_pending();
            return Ok(());
        }
        self.arm(self.until);
        self.window.wait();
        self.look_around()
    }

    /// Does what is done besides the guests, where this processor is the one that does it.
    fn look_around(&self) -> Result<(), Reason> {
        if self.id == CpuId::FIRST {
            console::pump(lifecycle::now(self.fleet.clock) / NS_PER_MS);
            self.fleet.tenants.iter().for_each(|tenant| self.serve_ports(tenant));
        }
        // Somebody else is at the TPM: then it is looked after.
        if let Some(mut desk) = self.fleet.desk.try_lock() {
            desk.work();
        }
        Ok(())
    }

    fn work(&self) -> Result<bool, Reason> {
        let (has_worked, kick) = lifecycle::work(self.fleet)?;
        self.kick(kick);
        Ok(has_worked)
    }

    /// Gives a guest's serial ports what came for them, and takes what they hold back.
    fn serve_ports(&self, tenant: &Tenant) {
        let mut wires = tenant.guest.bus().wires();
        for (port, outlet) in SerialPort::ALL.into_iter().zip(&tenant.outlets) {
            if outlet.take_held() {
                tenant.guest.board().send_console(port, |byte| outlet.send(byte), &mut wires);
            }
            if !outlet.has_input() {
                continue;
            }
            let mut board = tenant.guest.board();
            while board.console_room(port) > 0 {
                let Some(byte) = outlet.receive() else { break };
                if !board.console_in(port, byte, &mut wires) {
                    break;
                }
            }
        }
        self.kick(self.fleet.wake(tenant, wires.woken()));
    }

    /// Starts the timer for `until`, or for the next look at the console if that is due here and earlier.
    fn arm(&self, until: Option<Tsc>) {
        let left = until.map_or(u64::MAX, |at| at.saturating_sub(cpu::read_tsc()));
        let poll = self.fleet.clock.tsc_khz.saturating_mul(1000) / POLLS_PER_S;
        let left = if self.id == CpuId::FIRST { left.min(poll) } else { left };
        let ticks = if left == u64::MAX { 0 } else { self.fleet.clock.apic_ticks(left) };
        apic::start_timer(ticks);
    }

    /// Interrupts other processors.
    fn kick(&self, whom: CpuSet) {
        for cpu in whom.difference(CpuSet::only(self.id)) {
            cpus::kick(cpu);
        }
    }
}

/// The world around a guest in its turn.
struct Around<'a, E: Extension> {
    processor: &'a mut Processor<E>,
    tenant: &'static Tenant,
    /// The virtual processor's own.
    deadline: Option<Tsc>,
}

impl<E: Extension> Around<'_, E> {
    fn arm(&self) {
        let until = [self.deadline, self.processor.until].into_iter().flatten().min();
        self.processor.arm(until);
    }
}

impl<E: Extension> Host for Around<'_, E> {
    fn now(&self) -> Tsc {
        cpu::read_tsc()
    }

    fn set_deadline(&mut self, at: Option<Tsc>) {
        self.deadline = at;
        self.arm();
    }

    fn take_interrupts(&mut self) -> bool {
        self.processor.window.take_pending();
        let outcome = self.processor.look_around().and_then(|()| self.processor.work());
        if let Err(reason) = outcome {
            self.processor.over = Some(reason);
            return false;
        }
        let now = cpu::read_tsc();
        let attention = self.processor.fleet.scheduler.lock().attend(self.processor.id, now);
        self.processor.kick(attention.kick);
        self.processor.until = Some(attention.until);
        let goes_on = now < attention.until;
        if goes_on {
            self.arm();
        }
        goes_on
    }

    fn wake(&mut self, whom: VcpuSet) {
        let kick = self.processor.fleet.wake(self.tenant, whom);
        if kick.contains(self.processor.id) {
            // Its own turn may end earlier now: the timer has it look, as a kick has others.
            self.processor.until = Some(cpu::read_tsc());
            self.arm();
        }
        self.processor.kick(kick);
    }

    fn console_out(&mut self, port: SerialPort, byte: u8) -> bool {
        self.tenant.outlets.get(port.index()).is_none_or(|outlet| outlet.send(byte))
    }

    fn call(
        &mut self,
        number: u32,
        args: CallArgs,
        privileged: bool,
        memory: &mut impl GuestMemory,
    ) -> CallResult {
        let mut service = self.tenant.service.lock();
        service.call(number, args, privileged, memory, &mut Door::new(self.processor.fleet))
    }
}
