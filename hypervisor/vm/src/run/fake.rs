//! A processor and a host that do what a test says.

use std::collections::VecDeque;

use dolmen_arch::Gprs;
use dolmen_arch::cpuid::{CpuidSource, Leaf};
use dolmen_arch::instruction::InstructionLength;
use dolmen_arch::register::{Cr0, Cr4, Efer};
use dolmen_arch::segment::{Attributes, Segment, SegmentName};
use dolmen_memory::{Gpa, GuestMemory};

use super::Host;
use crate::backend::{Backend, Readiness, Register, StartState};
use crate::board::{BoardConfig, SerialPort, Tsc};
use crate::bus::VcpuSet;
use crate::cpuid::{CpuidConfig, GuestCpuid};
use crate::device::local_apic::Request;
use crate::exit::{Event, VmExit};
use crate::guest::Guest;
use crate::local::MsrAnswer;
use crate::policy::StopReason;
use crate::service::{CallArgs, CallResult};
use crate::testing::Ram;
use crate::vcpu::{Activity, Turn, Vcpu};

/// Where the guest's code is in every test.
pub(super) const CODE: u64 = 0x1000;
/// Bytes of RAM.
pub(super) const RAM: usize = 0x10_0000;

/// One scripted exit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exit {
    pub(super) exit: VmExit,
    pub(super) interrupted: Option<Event>,
}

impl From<VmExit> for Exit {
    fn from(exit: VmExit) -> Self {
        Self { exit, interrupted: None }
    }
}

/// A processor in 64-bit mode at [`CODE`] that exits as scripted, then triple-faults.
pub(super) struct Processor {
    pub(super) script: VecDeque<Exit>,
    pub(super) interrupted: Option<Event>,
    pub(super) gprs: Gprs,
    pub(super) registers: [u64; 10],
    pub(super) segments: [Segment; 6],
    pub(super) cpl: u8,
    pub(super) readiness: Readiness,
    pub(super) length: Option<u64>,
    pub(super) pending: Option<Event>,
    /// Events in the order of the entries that delivered them.
    pub(super) delivered: Vec<Event>,
    pub(super) skipped: Vec<u64>,
    pub(super) windows: usize,
    pub(super) flushes: usize,
    pub(super) entries: usize,
    pub(super) inits: usize,
}

impl Default for Processor {
    fn default() -> Self {
        let mut processor = Self {
            script: VecDeque::new(),
            interrupted: None,
            gprs: Gprs::default(),
            registers: [0; 10],
            segments: [Segment::flat(0x10, Attributes::DATA32); 6],
            cpl: 0,
            readiness: Readiness::Ready,
            length: None,
            pending: None,
            delivered: Vec::new(),
            skipped: Vec::new(),
            windows: 0,
            flushes: 0,
            entries: 0,
            inits: 0,
        };
        processor.segments[1] = Segment::flat(8, Attributes::CODE64);
        processor.write(Register::Rip, CODE);
        processor.write(Register::Rflags, 0x202);
        processor.write(Register::Cr0, (Cr0::PE | Cr0::ET).bits());
        processor.write(Register::Cr4, Cr4::PAE.bits());
        processor.write(Register::Efer, (Efer::LME | Efer::LMA).bits());
        processor.write(Register::Pat, dolmen_arch::msr::PAT_RESET);
        processor.write(Register::Xcr0, 1);
        processor
    }
}

fn index(register: Register) -> usize {
    match register {
        Register::Rip => 0,
        Register::Rflags => 1,
        Register::Cr0 => 2,
        Register::Cr2 => 3,
        Register::Cr3 => 4,
        Register::Cr4 => 5,
        Register::Efer => 6,
        Register::Pat => 7,
        Register::TscAux => 8,
        Register::Xcr0 => 9,
    }
}

impl Backend for Processor {
    fn start(&mut self, state: &StartState) {
        self.gprs = state.gprs;
    }
    fn reset(&mut self) {
        *self = Self { script: core::mem::take(&mut self.script), ..Self::default() };
    }
    fn init(&mut self) {
        self.inits += 1;
        self.gprs = Gprs::default();
        self.pending = None;
    }
    fn start_up(&mut self, vector: u8) {
        self.registers[0] = u64::from(vector) << 12;
    }
    fn run(&mut self) -> VmExit {
        self.entries += 1;
        self.delivered.extend(self.pending.take());
        let next = self.script.pop_front().unwrap_or(VmExit::Shutdown.into());
        self.interrupted = next.interrupted;
        next.exit
    }
    fn gprs(&mut self) -> &mut Gprs {
        &mut self.gprs
    }
    fn read(&self, register: Register) -> u64 {
        self.registers[index(register)]
    }
    fn write(&mut self, register: Register, value: u64) {
        self.registers[index(register)] = value;
    }
    fn segment(&self, name: SegmentName) -> Segment {
        match name {
            SegmentName::Es => self.segments[0],
            SegmentName::Cs => self.segments[1],
            SegmentName::Ss => self.segments[2],
            SegmentName::Ds => self.segments[3],
            SegmentName::Fs => self.segments[4],
            SegmentName::Gs => self.segments[5],
        }
    }
    fn privilege(&self) -> u8 {
        self.cpl
    }
    fn instruction_length(&self) -> Option<InstructionLength> {
        self.length.and_then(InstructionLength::new)
    }
    fn skip_instruction(&mut self, length: InstructionLength) {
        self.skipped.push(length.get());
        self.registers[0] = self.registers[0].wrapping_add(length.get());
    }
    fn interrupted_event(&self) -> Option<Event> {
        self.interrupted
    }
    fn readiness(&self) -> Readiness {
        if self.pending.is_some() { Readiness::Busy } else { self.readiness }
    }
    fn accepts_nmi(&self) -> bool {
        self.pending.is_none() && self.readiness != Readiness::Shadowed
    }
    fn inject(&mut self, event: Event) {
        self.pending = Some(event);
    }
    fn request_interrupt_window(&mut self) {
        self.windows += 1;
    }
    fn flush(&mut self) {
        self.flushes += 1;
    }
    fn dump(&self, log: &mut dyn core::fmt::Write) -> core::fmt::Result {
        write!(log, "fake")
    }
}

/// A host whose clock moves only while the guest waits.
#[derive(Default)]
pub(super) struct World {
    pub(super) now: Tsc,
    pub(super) deadlines: Vec<Option<Tsc>>,
    pub(super) interrupts: usize,
    /// The host wants its processor back at the next interrupt.
    pub(super) wants_back: bool,
    pub(super) waits: usize,
    pub(super) woken: VcpuSet,
    pub(super) console: Vec<u8>,
    pub(super) console_is_full: bool,
    pub(super) input: VecDeque<u8>,
    pub(super) calls: Vec<(u32, CallArgs, bool)>,
}

/// How far the clock moves in one wait.
pub(super) const WAIT: Tsc = 1_000_000;

impl Host for World {
    fn now(&self) -> Tsc {
        self.now
    }
    fn set_deadline(&mut self, at: Option<Tsc>) {
        self.deadlines.push(at);
    }
    fn take_interrupts(&mut self) -> bool {
        self.interrupts += 1;
        !self.wants_back
    }
    fn wake(&mut self, whom: VcpuSet) {
        self.woken = self.woken.union(whom);
    }
    fn console_out(&mut self, port: SerialPort, byte: u8) -> bool {
        let taken = port == SerialPort::Com1 && !self.console_is_full;
        self.console.extend(taken.then_some(byte));
        taken
    }
    fn call(
        &mut self,
        number: u32,
        args: CallArgs,
        privileged: bool,
        _: &mut impl GuestMemory,
    ) -> CallResult {
        self.calls.push((number, args, privileged));
        CallResult { status: 0x1234, reply_len: 0x5678 }
    }
}

/// A host processor that has everything, and that the guest is told what the allow-list lets through.
struct Everything;

impl CpuidSource for Everything {
    fn leaf(&self, leaf: u32, _: u32) -> Leaf {
        match leaf {
            0 => Leaf { eax: 0x10, ebx: 0x6874_7541, ecx: 0x444d_4163, edx: 0x6974_6e65 },
            0x8000_0000 => Leaf { eax: 0x8000_0020, ..Leaf::default() },
            0xd => Leaf { eax: 7, ebx: 0x340, ecx: 0x340, edx: 0 },
            _ => Leaf { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX },
        }
    }
}

pub(super) fn cpuid() -> GuestCpuid {
    GuestCpuid::new(&Everything, CpuidConfig { vcpus: 1, apic_id: 0, call_groups: 0, launch_facts: 0 })
}

/// Everything a guest consists of.
pub(super) struct Scene {
    pub(super) vcpu: Vcpu<Processor>,
    pub(super) ram: Ram,
    pub(super) guest: Guest,
    pub(super) world: World,
}

impl Scene {
    /// A guest whose next instruction is `code`.
    pub(super) fn new(code: &[u8]) -> Self {
        let config = BoardConfig {
            tsc_khz: 1_000_000,
            ram_bytes: RAM as u64,
            wall_clock_ns: 0,
            created_at: 0,
            second_uart: true,
        };
        let mut scene = Self {
            vcpu: Vcpu::new(0, Processor::default(), cpuid(), &config),
            ram: Ram::new(RAM),
            guest: Guest::new(config, 1),
            world: World::default(),
        };
        scene.vcpu.activity = Activity::Running;
        scene.ram.write(Gpa::new(CODE), code).unwrap();
        scene
    }

    /// Enters the guest, which exits so, then triple-faults; answers why it stopped.
    pub(super) fn exits(&mut self, exits: &[VmExit]) -> StopReason {
        self.vcpu.backend.script.extend(exits.iter().map(|exit| Exit::from(*exit)));
        self.run()
    }

    /// Runs the guest to its end; time passes while it waits, and input comes.
    pub(super) fn run(&mut self) -> StopReason {
        loop {
            match self.turn() {
                Turn::Stopped(reason) => return reason,
                Turn::SliceOver => {}
                Turn::Halted { .. } | Turn::AwaitsStartUp => self.wait(),
            }
        }
    }

    /// One turn.
    pub(super) fn turn(&mut self) -> Turn {
        self.vcpu.run(&self.guest, &mut self.ram, &mut self.world)
    }

    fn wait(&mut self) {
        self.world.waits += 1;
        self.world.now += WAIT;
        while let Some(byte) = self.world.input.pop_front() {
            let mut wires = self.guest.bus().wires();
            self.guest.board().console_in(SerialPort::Com1, byte, &mut wires);
            assert!(!wires.woken().contains(1));
        }
    }

    /// Switches the local APIC on and lets it ask for `vector`.
    pub(super) fn raise(&mut self, vector: u8) {
        self.enable_apic();
        self.write_register(0x830, 1 << 18 | u64::from(vector));
    }

    pub(super) fn enable_apic(&mut self) {
        self.write_register(0x1b, 0xfee0_0d00);
        self.write_register(0x80f, 0x1ff);
    }

    pub(super) fn write_register(&mut self, msr: u32, value: u64) {
        let answer = self.vcpu.devices.msr_write(msr, value, self.world.now, &mut self.ram);
        assert_eq!(answer, MsrAnswer::Done(Request::None), "{msr:#x}");
    }
}

/// Tables at 8000h that map the first 2 MiB one to one, for user mode too.
pub(super) fn identity_tables(scene: &mut Scene) {
    for (at, entry) in [(0x8000u64, 0x9007u64), (0x9000, 0xa007), (0xa000, 0x87)] {
        scene.ram.write(Gpa::new(at), &entry.to_le_bytes()).unwrap();
    }
    scene.vcpu.backend.write(Register::Cr3, 0x8000);
    scene.vcpu.backend.registers[2] |= Cr0::PG.bits();
}
