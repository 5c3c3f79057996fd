//! Stage 5: the guest runs; exits, hypercalls and the TPM's jobs are served until it stops.

use alloc::boxed::Box;
use core::convert::Infallible;

use dolmen_machine::clock::Clock;
use dolmen_machine::interrupt::Window;
use dolmen_machine::serial::Serial;
use dolmen_machine::{apic, cpu};
use dolmen_memory::GuestMemory;
use dolmen_vm::backend::Backend;
use dolmen_vm::board::{SerialPort, Tsc};
use dolmen_vm::bus::VcpuSet;
use dolmen_vm::guest::Guest;
use dolmen_vm::manifest::Answer;
use dolmen_vm::policy::StopReason;
use dolmen_vm::run::Host;
use dolmen_vm::service::{CallArgs, CallResult, Service};
use dolmen_vm::vcpu::Turn;

use crate::console;
use crate::stop::{self, Reason};
use crate::trust::TpmDesk;
use crate::virtualise::Virtualising;

/// Times a second that the physical console is looked at while nothing else happens: a 16-byte FIFO at
/// 115,200 baud fills in 1.4 ms, and senders that wait for room lose nothing.
const POLLS_PER_S: u64 = 500;

/// Runs the guest; ends with the machine's run.
pub(crate) fn for_ever(virtualising: Virtualising) -> Result<Infallible, Reason> {
    let Virtualising { config, mut vcpu, mut ram, guest, mut surroundings } = virtualising;
    log::info!(target: "serve", "guest runs name={} tsc={}", config.name(), cpu::read_tsc());
    let reason = loop {
        match vcpu.run(&guest, &mut ram, &mut surroundings) {
            Turn::Stopped(reason) => break reason,
            Turn::SliceOver => {}
            Turn::Halted { until } => surroundings.idle(&guest, until),
            Turn::AwaitsStartUp => surroundings.idle(&guest, None),
        }
    };
    surroundings.service.scrub();
    if reason == StopReason::PowerOff {
        return Err(Reason::PowerOff);
    }
    if reason == StopReason::Reset && config.on_reboot() == Answer::ResetMachine {
        stop::reset();
    }
    console::raw(|com1| vcpu.backend().dump(com1));
    Err(Reason::GuestStopped(reason))
}

/// The world around the guest.
pub(crate) struct Surroundings {
    window: Window,
    clock: Clock,
    consoles: [Option<Serial>; 2],
    desk: Box<TpmDesk>,
    service: Service<'static>,
    deadline: Option<Tsc>,
}

impl Surroundings {
    pub(crate) const fn new(
        window: Window,
        clock: Clock,
        consoles: [Option<Serial>; 2],
        desk: Box<TpmDesk>,
        service: Service<'static>,
    ) -> Self {
        Self { window, clock, consoles, desk, service, deadline: None }
    }

    /// Starts the timer for the guest's deadline or the next look at the console, whichever is first.
    fn arm(&self) {
        let poll = self.clock.tsc_khz.saturating_mul(1000) / POLLS_PER_S;
        let until = self.deadline.map_or(poll, |at| at.saturating_sub(self.now()).min(poll));
        apic::start_timer(self.clock.apic_ticks(until));
    }

    /// Waits for an interrupt of the host's, at the latest until `until`.
    fn idle(&mut self, guest: &Guest, until: Option<Tsc>) {
        self.set_deadline(until);
        self.window.wait();
        self.desk.work();
        self.take_input(guest);
    }

    /// Gives the guest's console what came for it.
    fn take_input(&mut self, guest: &Guest) {
        let mut wires = guest.bus().wires();
        let mut board = guest.board();
        for port in SerialPort::ALL {
            while board.console_room(port) > 0 {
                let Some(byte) = self.console_in(port) else { break };
                if !board.console_in(port, byte, &mut wires) {
                    break;
                }
            }
        }
        drop(board);
        self.wake(wires.woken());
    }
}

impl Host for Surroundings {
    fn now(&self) -> Tsc {
        cpu::read_tsc()
    }

    fn set_deadline(&mut self, at: Option<Tsc>) {
        self.deadline = at;
        self.arm();
    }

    fn take_interrupts(&mut self) -> bool {
        self.window.take_pending();
        self.arm();
        self.desk.work();
        true
    }

    fn wake(&mut self, _: VcpuSet) {
        // The one virtual processor there is runs here, and looks for mail before it goes on.
    }

    fn console_out(&mut self, port: SerialPort, byte: u8) -> bool {
        if let Some(Some(console)) = self.consoles.get(port.index()) {
            console.send(byte);
        }
        true
    }

    fn console_in(&mut self, port: SerialPort) -> Option<u8> {
        self.consoles.get(port.index())?.as_ref()?.receive()
    }

    fn call(
        &mut self,
        number: u32,
        args: CallArgs,
        privileged: bool,
        memory: &mut impl GuestMemory,
    ) -> CallResult {
        self.service.call(number, args, privileged, memory, &mut *self.desk)
    }
}
