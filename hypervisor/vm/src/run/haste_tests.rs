//! What the loop remembers, and what it leaves out while nothing is due, changes nothing that a guest can see: a guest
//! is run twice, once as it is, and once by a loop that forgets everything before each entry.

use dolmen_arch::register::Efer;
use dolmen_memory::{Gpa, GuestMemory};
use proptest::prelude::*;

use super::fake::{CODE, Scene, World, identity_tables};
use super::{CodePages, KnownAccesses, Running};
use crate::backend::{Backend, Readiness, Register};
use crate::bus::{Delivery, Destination, Message};
use crate::device::local_apic::Request;
use crate::exit::{ControlRegister, FaultAccess, VmExit};

/// The page of [`CODE`] is one of these two, by the tables that are in force.
const PAGES: [u64; 2] = [CODE, 0x2000];
/// Roots of those tables, and of each the levels below.
const ROOTS: [u64; 2] = [0x8000, 0xc000];
/// The entry of the code's page in the tables of [`ROOTS`] is this far behind the root.
const ENTRY: u64 = 0x3008;

/// Instructions that exit, in 64-bit code.
const INSTRUCTIONS: [&[u8]; 9] = [
    &[0x0f, 0xa2],                         // cpuid
    &[0x0f, 0x01, 0xd9],                   // vmmcall
    &[0x0f, 0x32],                         // rdmsr
    &[0x0f, 0x30],                         // wrmsr
    &[0x66, 0x0f, 0xa2],                   // cpuid behind a prefix that means nothing
    &[0x8b, 0x07],                         // mov eax, [rdi]
    &[0x89, 0x47, 0x08],                   // mov [rdi + 8], eax
    &[0xc7, 0x07, 0x55, 0x00, 0x04, 0x00], // mov dword [rdi], 40055h: vector 55h to oneself
    &[0x44, 0x0f, 0x22, 0xc0],             // mov cr8, rax
];

/// What happens to the guest.
#[derive(Clone, Debug)]
enum Happening {
    /// It exits, with this instruction at this offset of its code.
    Exit { exit: VmExit, at: u64, instruction: usize },
    /// Time passes, which ends in an interrupt of the host's.
    Time(u64),
    /// Another processor or a device sends it something.
    Mail { delivery: Delivery, vector: u8 },
    /// It switches to other tables, which map its code to another page.
    Switch(usize),
    /// It becomes ready, or not.
    Ready(bool),
}

fn exit() -> impl Strategy<Value = (VmExit, usize)> {
    let register = prop_oneof![Just(0x1bu32), Just(0x6e0), 0x802..0x840u32];
    // The interrupt command, the end of an interrupt and the task priority more often than the rest.
    let value =
        prop_oneof![0..0x100u64, 0..0x1_0000u64, (0x20..0x100u64).prop_map(|vector| 1 << 18 | vector)];
    let device = prop_oneof![
        Just(0xfee0_0300u64),
        Just(0xfee0_00b0),
        Just(0xfee0_0080),
        (0xfee0_0020..0xfee0_0400u64).prop_map(|gpa| gpa & !0xf),
        Just(0xfec0_0010u64),
        Just(0xfed4_0000)
    ];
    let device = device.prop_map(Gpa::new);
    prop_oneof![
        (0..0x10u32).prop_map(|leaf| (VmExit::Cpuid { leaf, subleaf: 0 }, 0)),
        Just((VmExit::Cpuid { leaf: 0, subleaf: 0 }, 4)),
        Just((VmExit::Hypercall, 1)),
        register.clone().prop_map(|msr| (VmExit::ReadMsr { msr }, 2)),
        (register, value).prop_map(|(msr, value)| (VmExit::WriteMsr { msr, value }, 3)),
        device.clone().prop_map(|gpa| (VmExit::NestedFault { gpa, access: FaultAccess::Read }, 5)),
        (device, 6..8usize)
            .prop_map(|(gpa, code)| (VmExit::NestedFault { gpa, access: FaultAccess::Write }, code)),
        Just((VmExit::WriteControl(ControlRegister::Cr8), 8)),
        Just((VmExit::Pause, 0)),
        Just((VmExit::InterruptWindow, 0)),
    ]
}

fn happening() -> impl Strategy<Value = Happening> {
    let delivery = prop_oneof![Just(Delivery::Fixed), Just(Delivery::Nmi)];
    prop_oneof![
        // Now and then memory holds another instruction than the one that exits.
        8 => (exit(), 0..4u64, prop::option::weighted(0.1, 0..INSTRUCTIONS.len())).prop_map(
            |((exit, instruction), at, other)| Happening::Exit {
                exit,
                at: at << 6,
                instruction: other.unwrap_or(instruction),
            }
        ),
        1 => (0..200_000u64).prop_map(Happening::Time),
        1 => (delivery, 0x20..0x80u8).prop_map(|(delivery, vector)| Happening::Mail { delivery, vector }),
        1 => (0..2usize).prop_map(Happening::Switch),
        1 => any::<bool>().prop_map(Happening::Ready),
    ]
}

/// A guest with tables of four levels for its code, and its local APIC on, in the mode that is asked for.
fn scene(by_memory: bool) -> Scene {
    let mut scene = Scene::new(&[]);
    identity_tables(&mut scene);
    for (root, page) in ROOTS.into_iter().zip(PAGES) {
        for (table, entry) in
            [(0, root + 0x1007), (0x1000, root + 0x2007), (0x2000, root + 0x3007), (ENTRY, page | 7)]
        {
            scene.ram.write(Gpa::new(root + table), &entry.to_le_bytes()).unwrap();
        }
    }
    scene.enable_apic();
    if by_memory {
        scene.write_register(0x1b, 0xfee0_0100);
        scene.write_register(0x1b, 0xfee0_0900);
        let enabled = scene.vcpu.devices.mmio_write(Gpa::new(0xfee0_00f0), 4, 0x1ff, 0);
        assert_eq!(enabled, Some(Request::None));
    }
    scene
}

/// What a guest, or the host, has seen of a run.
type Seen = (Vec<crate::exit::Event>, [u64; 10], dolmen_arch::Gprs, Vec<u64>, Vec<Option<u64>>, usize);

fn run(happenings: &[Happening], by_memory: bool, forgets: bool) -> Seen {
    let mut scene = scene(by_memory);
    let (mut page, mut deadline, mut attends) = (0, None, true);
    for happening in happenings {
        match happening {
            Happening::Exit { exit, at, instruction } => {
                let code = INSTRUCTIONS.get(*instruction).unwrap();
                scene.ram.write(Gpa::new(PAGES[page] + at), code).unwrap();
                scene.vcpu.backend.write(Register::Rip, CODE + at);
                scene.vcpu.backend.script.push_back((*exit).into());
            }
            Happening::Time(_) => scene.vcpu.backend.script.push_back(VmExit::HostInterrupt.into()),
            Happening::Mail { delivery, vector } => {
                let (delivery, vector) = (*delivery, *vector);
                let destination = Destination::All;
                let message = Message { destination, delivery, vector, level_triggered: false };
                assert!(!scene.guest.bus().send(message, None).contains(1));
                continue;
            }
            Happening::Switch(to) => {
                page = *to;
                scene.vcpu.backend.write(Register::Cr3, ROOTS[page]);
                continue;
            }
            Happening::Ready(ready) => {
                let readiness = if *ready { Readiness::Ready } else { Readiness::Masked };
                scene.vcpu.backend.readiness = readiness;
                continue;
            }
        }
        if forgets {
            attends = true;
            (scene.vcpu.code, scene.vcpu.accesses) = (CodePages::EMPTY, KnownAccesses::EMPTY);
        }
        let over = step(&mut scene, &mut deadline, &mut attends);
        if let Happening::Time(ticks) = happening {
            scene.world.now += ticks;
        }
        if over {
            break;
        }
    }
    let World { deadlines, calls, .. } = scene.world;
    let backend = scene.vcpu.backend;
    (backend.delivered, backend.registers, backend.gprs, backend.skipped, deadlines, calls.len())
}

/// One step of the loop; whether the turn is over.
fn step(scene: &mut Scene, deadline: &mut Option<Option<u64>>, attends: &mut bool) -> bool {
    let mut running = Running {
        mailbox: scene.guest.bus().mailbox(0).unwrap(),
        counters: scene.guest.counters(0).unwrap(),
        vcpu: &mut scene.vcpu,
        guest: &scene.guest,
        memory: &mut scene.ram,
        host: &mut scene.world,
        deadline: *deadline,
        attends: *attends,
    };
    let end = running.step();
    (*deadline, *attends) = (running.deadline, running.attends);
    end.is_err()
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "takes too long in the interpreter")]
    fn haste_changes_nothing_that_a_guest_can_see(
        happenings in prop::collection::vec(happening(), 1..120),
        by_memory: bool,
    ) {
        prop_assert_eq!(run(&happenings, by_memory, false), run(&happenings, by_memory, true));
    }
}

/// A guest that starts anew finds nothing of its last run, the hypervisor's notes about its code included.
#[test]
fn nothing_is_remembered_over_a_reset() {
    let mut scene = scene(true);
    let notes = |scene: &Scene| format!("{:?} {:?}", scene.vcpu.code, scene.vcpu.accesses);
    let none = notes(&scene);
    let read = VmExit::NestedFault { gpa: Gpa::new(0xfed4_0000), access: FaultAccess::Read };
    for (exit, instruction) in [(read, 5), (VmExit::Cpuid { leaf: 0, subleaf: 0 }, 0)] {
        scene.ram.write(Gpa::new(CODE), INSTRUCTIONS[instruction]).unwrap();
        scene.vcpu.backend.write(Register::Rip, CODE);
        scene.vcpu.backend.script.push_back(exit.into());
        assert!(!step(&mut scene, &mut None, &mut true));
    }
    assert_ne!(notes(&scene), none);
    let config = *scene.guest.board().config();
    scene.vcpu.reset(&config);
    assert_eq!(notes(&scene), none);
}

/// What was remembered must not be done where something else stands now, even in tables that nobody reloaded: a
/// kernel may load another driver where one was.
#[test]
fn an_instruction_on_device_memory_is_decoded_anew_wherever_it_changed() {
    let read = VmExit::NestedFault { gpa: Gpa::new(0xfed4_0000), access: FaultAccess::Read };
    let mut scene = scene(true);
    let (mut deadline, mut attends) = (None, true);
    let mut exits = |scene: &mut Scene| {
        scene.vcpu.backend.write(Register::Rip, CODE);
        scene.vcpu.backend.script.push_back(read.into());
        assert!(!step(scene, &mut deadline, &mut attends));
    };
    for (page, instruction) in [(0, 5), (0, 5), (0, 7), (1, 6), (0, 7)] {
        scene.ram.write(Gpa::new(PAGES[page]), INSTRUCTIONS[instruction]).unwrap();
        scene.ram.write(Gpa::new(ROOTS[0] + ENTRY), &(PAGES[page] | 7).to_le_bytes()).unwrap();
        exits(&mut scene);
    }
    assert_eq!(scene.vcpu.backend.skipped, [2, 2, 6, 3, 6]);
    // A page that may no longer be executed is not, whatever was remembered of it.
    scene.vcpu.backend.write(Register::Efer, (Efer::LME | Efer::LMA | Efer::NXE).bits());
    exits(&mut scene);
    scene.ram.write(Gpa::new(ROOTS[0] + ENTRY), &(1 << 63 | PAGES[0] | 7).to_le_bytes()).unwrap();
    exits(&mut scene);
    assert_eq!(scene.vcpu.backend.skipped.len(), 6, "it was done without the right to");
}
