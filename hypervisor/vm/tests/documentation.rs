//! Holds `docs/guest-machine.md` to the code: its tables are what is asked of the code here.
//!
//! `DOLMEN_BLESS=1 cargo test -p dolmen-vm --test documentation` writes them anew.
#![cfg(not(miri))] // it reads and writes the document
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may fail loudly")]

#[path = "../../abi/tests/generated/mod.rs"]
mod generated;

use core::fmt::Write;
use core::ops::RangeInclusive;

use dolmen_arch::cpuid::{CpuidSource, Leaf};
use dolmen_arch::msr;
use dolmen_memory::Gpa;
use dolmen_vm::board::{PortDevice, SerialPort};
use dolmen_vm::cpuid::{CpuidConfig, CpuidState, GuestCpuid};
use dolmen_vm::exit::{ControlRegister, Direction, Event, FaultAccess, PortAccess, Vector, VmExit, Width};
use dolmen_vm::layout;
use dolmen_vm::policy::{Action, DIRECT_MSRS, MsrRule, StopReason, decide, msr_rule};

/// A table for each mark in the document.
fn tables() -> Vec<(&'static str, String)> {
    vec![("exits", exits()), ("msrs", msrs()), ("ports", ports()), ("cpuid", cpuid()), ("memory", memory())]
}

/// Rows of consecutive numbers that have the same text; numbers without a text are left out.
fn rows(
    numbers: impl Iterator<Item = u32>,
    text: impl Fn(u32) -> Option<String>,
) -> Vec<(RangeInclusive<u32>, String)> {
    let mut rows: Vec<(RangeInclusive<u32>, String)> = Vec::new();
    for number in numbers {
        let Some(text) = text(number) else { continue };
        match rows.last_mut() {
            Some((range, last)) if *last == text && range.end().checked_add(1) == Some(number) => {
                *range = *range.start()..=number;
            }
            Some(_) | None => rows.push((number..=number, text)),
        }
    }
    rows
}

fn listed(title: &str, rows: &[(RangeInclusive<u32>, String)], width: usize) -> String {
    let mut table = title.to_owned();
    for (range, text) in rows {
        let (first, last) = (range.start(), range.end());
        if first == last {
            writeln!(table, "| `{first:0width$x}` | {text} |").unwrap();
        } else {
            writeln!(table, "| `{first:0width$x}`–`{last:0width$x}` | {text} |").unwrap();
        }
    }
    table
}

fn exits() -> String {
    let gpa = Gpa::new(0xfec0_0000);
    let fault = |access| VmExit::NestedFault { gpa, access };
    let port = PortAccess { port: 0, width: Width::Byte, direction: Direction::In, string: false };
    let exception = |vector| VmExit::Exception { vector, error_code: 0, address: 0 };
    let mut table = "| what the guest did, or what came | answer |\n|---|---|\n".to_owned();
    for (what, exit) in [
        ("physical interrupt, NMI, SMI or INIT", VmExit::HostInterrupt),
        ("the moment to deliver an interrupt", VmExit::InterruptWindow),
        ("PAUSE", VmExit::Pause),
        ("CPUID", VmExit::Cpuid { leaf: 0, subleaf: 0 }),
        ("RDMSR", VmExit::ReadMsr { msr: 0 }),
        ("WRMSR", VmExit::WriteMsr { msr: 0, value: 0 }),
        ("IN, OUT, INS, OUTS", VmExit::Port(port)),
        ("HLT", VmExit::Halt),
        ("MOV to CR0, CR4 or CR8, LMSW", VmExit::WriteControl(ControlRegister::Cr0)),
        ("MOV from CR8", VmExit::ReadControl(ControlRegister::Cr8)),
        ("XSETBV", VmExit::WriteXcr { index: 0, value: 0 }),
        ("VMMCALL", VmExit::Hypercall),
        ("another instruction of the virtualisation extension, SKINIT", VmExit::Virtualisation),
        ("MONITOR, MWAIT, RSM, RDPRU and the like", VmExit::HiddenFeature),
        ("INVD, WBINVD", VmExit::CacheFlush),
        ("RDPMC", VmExit::ReadCounter),
        ("#DB, #AC", exception(Vector::DB)),
        ("#MC", exception(Vector::MC)),
        ("read or write of an address without RAM", fault(FaultAccess::Read)),
        ("execution of an address without RAM", fault(FaultAccess::Fetch)),
        ("page tables at an address without RAM", fault(FaultAccess::TableWalk)),
        ("triple fault", VmExit::Shutdown),
        ("hardware task switch, on Intel's processors", VmExit::TaskSwitch),
        ("a state that the processor refuses", VmExit::InvalidState),
        ("anything else", VmExit::Unknown { code: 0 }),
    ] {
        writeln!(table, "| {what} | {} |", answer(decide(exit))).unwrap();
    }
    table
}

fn answer(action: Action) -> &'static str {
    match action {
        Action::Resume => "goes on",
        Action::ServeHost => "the host takes it; the guest goes on in its turn",
        Action::AnswerCpuid { .. } => "the table of CPUID leaves",
        Action::ReadMsr(..) | Action::WriteMsr(..) => "the table of registers",
        Action::AccessPort(_) => "the table of ports",
        Action::Wait => "the processor is given away until an interrupt",
        Action::WriteControl(_) => "checked as the manual says, then done",
        Action::ReadControl(_) => "the task priority of the local APIC",
        Action::WriteXcr { .. } => "x87, SSE and AVX, where the host has them; else #GP",
        Action::ServeCall => "a hypercall: see abi.md",
        Action::StepOver => "nothing: no device of a guest reads memory past its caches",
        Action::Inject(event) if event == Event::INVALID_OPCODE => "#UD",
        Action::Inject(event) if event == Event::GENERAL_PROTECTION => "#GP",
        Action::Inject(_) => panic!("no such answer"),
        Action::Reflect { .. } => {
            "delivered to the guest; it exits so that an endless one can be interrupted"
        }
        Action::EmulateDevice(_) => "the table of addresses; ones where nothing is",
        Action::ExplainInvalidState => "#GP if a MOV to a control register did it; else the guest stops",
        Action::Stop(StopReason::TripleFault) => "the guest has crashed",
        Action::Stop(StopReason::MachineCheck) => "the machine stops",
        Action::Stop(_) => "the guest stops",
    }
}

/// Every register that RDMSR and WRMSR can reach in the ranges where processors have any, and the
/// paravirtual ones.
fn msrs() -> String {
    const NAMES: [(u32, &str); 24] = [
        (msr::TSC, "TSC"),
        (msr::APIC_BASE, "APIC_BASE"),
        (msr::PATCH_LEVEL, "PATCH_LEVEL"),
        (msr::MISC_ENABLE, "MISC_ENABLE"),
        (msr::SYSENTER_CS, "SYSENTER"),
        (msr::SYSENTER_ESP, "SYSENTER"),
        (msr::SYSENTER_EIP, "SYSENTER"),
        (msr::MCG_CAP, "MCG_CAP, MCG_STATUS"),
        (msr::MCG_STATUS, "MCG_CAP, MCG_STATUS"),
        (msr::PAT, "PAT"),
        (msr::TSC_DEADLINE, "TSC_DEADLINE"),
        (0x4b56_4d00, "KVM's clock: wall clock"),
        (0x4b56_4d01, "KVM's clock: system time"),
        (msr::EFER, "EFER"),
        (msr::STAR, "system calls: STAR, LSTAR, CSTAR, SFMASK"),
        (msr::LSTAR, "system calls: STAR, LSTAR, CSTAR, SFMASK"),
        (msr::CSTAR, "system calls: STAR, LSTAR, CSTAR, SFMASK"),
        (msr::SFMASK, "system calls: STAR, LSTAR, CSTAR, SFMASK"),
        (msr::FS_BASE, "FS_BASE, GS_BASE, KERNEL_GS_BASE"),
        (msr::GS_BASE, "FS_BASE, GS_BASE, KERNEL_GS_BASE"),
        (msr::KERNEL_GS_BASE, "FS_BASE, GS_BASE, KERNEL_GS_BASE"),
        (msr::TSC_AUX, "TSC_AUX"),
        (msr::SYSCFG, "SYSCFG"),
        (msr::HWCR, "HWCR"),
    ];
    let name = |index: u32| match NAMES.iter().find(|(known, _)| *known == index) {
        Some((_, name)) => *name,
        None if (msr::X2APIC_FIRST..=msr::X2APIC_LAST).contains(&index) => "x2APIC",
        None if index == msr::NB_CFG => "NB_CFG",
        None if index == msr::MTRR_CAP => "MTRR_CAP",
        None if index == msr::MTRR_DEF_TYPE => "MTRR_DEF_TYPE",
        None if (msr::PERF_LEGACY_FIRST..=msr::PERF_LEGACY_LAST).contains(&index) => "performance counters",
        None => panic!("{index:#x} has no name"),
    };
    let rule = |index: u32| {
        let rule = match msr_rule(index) {
            MsrRule::Absent if DIRECT_MSRS.contains(&index) => "the guest's own, without an exit".to_owned(),
            MsrRule::Absent => return None,
            MsrRule::Efer => "the guest's own; SVME is not there, LME changes only without paging".to_owned(),
            MsrRule::Pat => "the guest's own; memory types that exist".to_owned(),
            MsrRule::TscAux => "the guest's own, 32 bits".to_owned(),
            MsrRule::Device if index == msr::TSC => "the time; a write is dropped".to_owned(),
            MsrRule::Device => "local APIC or clock of the virtual processor".to_owned(),
            MsrRule::Constant(value) => format!("reads `{value:x}` and takes nothing else"),
            MsrRule::Fixed(value) => format!("reads `{value:x}`; a write is dropped"),
        };
        Some(format!("{} | {rule}", name(index)))
    };
    let ranges =
        [0..=0x1fff, 0x4b56_0000..=0x4b56_ffff, 0xc000_0000..=0xc000_1fff, 0xc001_0000..=0xc001_1fff];
    let rows = rows(ranges.into_iter().flatten(), rule);
    listed("| MSR | name | what it is to a guest |\n|---|---|---|\n", &rows, 8)
}

fn ports() -> String {
    let text = |port: u32| {
        let text = match PortDevice::at(u16::try_from(port).unwrap())? {
            PortDevice::Serial(SerialPort::Com1) => "16550A, interrupt 4: the console",
            PortDevice::Serial(SerialPort::Com2) => {
                "16550A, interrupt 3, where the manifest has a second console"
            }
            PortDevice::CmosIndex => "CMOS index",
            PortDevice::CmosData => "CMOS memory and clock",
            PortDevice::PciAddress => "PCI configuration address, double words only",
            PortDevice::PciData => "PCI configuration data: a host bridge and nothing else",
            PortDevice::Timer => match port {
                0x40..=0x42 => "counts of the interval timer (8254); the first channel is interrupt 0",
                0x43 => "modes of the interval timer",
                _ => "gate and output of the timer's third channel; memory refresh toggle; no NMI source",
            },
            PortDevice::System => match port {
                0x64 => "reset by the keyboard controller's command FEh; reads ones",
                0x92 => "A20 is open; reset by bit 0",
                0xcf9 => "reset control, which is the ACPI reset register",
                0x600 => "ACPI sleep control: soft-off",
                0x601 => "ACPI sleep status",
                _ => panic!("{port:#x} has no text"),
            },
        };
        Some(text.to_owned())
    };
    let rows = rows(0..=0xffff, text);
    listed("| port | what is there |\n|---|---|\n", &rows, 3)
}

/// A host that has every bit of every leaf.
struct Everything;
impl CpuidSource for Everything {
    fn leaf(&self, _: u32, _: u32) -> Leaf {
        Leaf { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX }
    }
}

fn cpuid() -> String {
    let config = CpuidConfig { vcpus: 4, apic_id: 3, call_groups: 1, launch_facts: 1 };
    let guest = GuestCpuid::new(&Everything, config);
    let state = CpuidState { cr4: 0, xcr0: 7 };
    let text = |leaf: u32| {
        let answers = (0..4).map(|subleaf| guest.answer(leaf, subleaf, state));
        if answers.fold(0, |sum, leaf| sum | leaf.eax | leaf.ebx | leaf.ecx | leaf.edx) == 0 {
            return None;
        }
        let text = match leaf {
            0 | 0x8000_0000 => "highest leaf; the host's vendor",
            1 => "features that the masks let through; x2APIC, TSC deadline and the hypervisor bit always",
            6 => "the APIC timer does not stop",
            7 => "features that the masks let through",
            0xb => "one thread to a core, all cores in one package",
            0xd => "XSAVE area for x87, SSE, AVX",
            0x4000_0000 => "`DolmenDolmen`",
            0x4000_0001 => "hypercall groups and launch facts: see abi.md",
            0x4000_0100 => "`KVMKVMKVM`",
            0x4000_0101 => "KVM's second clock interface, stable",
            0x8000_0001 => "features that the masks let through; topology extensions if the host has them",
            0x8000_0002..=0x8000_0004 => "the host's name of the processor",
            0x8000_0005..=0x8000_0006 => "the host's caches and TLBs",
            0x8000_0007 => "invariant TSC, if the host's is",
            0x8000_0008 => "address widths; number of cores and bits of APIC ID",
            0x8000_001d => "the host's caches; the last level is shared by all (on the other vendor: leaf 4)",
            0x8000_001e => "one thread to a core, one node",
            _ => panic!("{leaf:#x} has no text"),
        };
        Some(text.to_owned())
    };
    let leaves = [0..=0x3f, 0x4000_0000..=0x4000_01ff, 0x8000_0000..=0x8000_003f].into_iter().flatten();
    listed("| leaf | answer |\n|---|---|\n", &rows(leaves, text), 8)
}

fn memory() -> String {
    let mut table = "| address | what is there |\n|---|---|\n".to_owned();
    for (at, what) in [
        ("0".to_owned(), "RAM, up to 3 GiB"),
        (format!("{:x}", layout::ACPI_TABLES.start), "ACPI tables, in RAM that the memory map keeps back"),
        (
            format!("{:x}", layout::FIRMWARE_CALLS),
            "16-bit code for calls of a BIOS that is not there (Multiboot)",
        ),
        (format!("{:x}", layout::RESET_VECTOR), "16-bit code that resets the machine"),
        (format!("{:x}", layout::IO_APIC_BASE), "I/O APIC with 24 pins, one page"),
        (
            format!("{:x}", layout::LOCAL_APIC_BASE),
            "local APIC of the processor that asks, one page, in xAPIC mode",
        ),
        (format!("{:x}", layout::HIGH_RAM_START), "the rest of the RAM"),
    ] {
        writeln!(table, "| `{at}` | {what} |").unwrap();
    }
    table
}

#[test]
fn the_tables_of_the_guests_machine_are_those_of_the_code() {
    generated::assert_tables("guest-machine.md", &tables());
}
