//! Costs, in ticks of the time-stamp counter: what `cargo xtask bench` prints.
//!
//! Under `-icount shift=0` one tick is one executed instruction, the loop around the operation included.

mod life;
mod pair;

use dolmen_abi::{
    BlobHeader, Call, Quote, QuoteReply, QuoteRequest, Random, RandomRequest, Seal, SealRequest, Status,
    Unseal, UnsealRequest, Version,
};

use crate::apic::{self, Register};
use crate::{call, cpu, fault, say};

/// Measurements of each operation.
const RUNS: usize = 64;
/// Bytes of the secret that is sealed.
const SECRET: usize = 32;
/// Requests of a quote before the guest gives up.
const PATIENCE: u32 = 50_000_000;
/// Ticks of the timer that are waited for; in the deterministic mode one is one instruction.
const WAIT: u32 = 20_000;
/// An address behind which there is nothing.
const NOBODY: u64 = 0xd000_0000;
/// APIC_BASE.
const MSR_APIC_BASE: u32 = 0x1b;

/// What a seal request with its secret looks like in memory.
#[repr(C)]
struct SealCall {
    head: [u32; 4],
    secret: [u8; SECRET],
}

/// What an unseal request with its blob looks like in memory.
#[repr(C)]
struct UnsealCall {
    head: [u32; 4],
    blob: [u8; BLOB],
}

const BLOB: usize = size_of::<BlobHeader>() + SECRET + 16;

const _: () = assert!(size_of::<SealRequest>() == 16 && size_of::<UnsealRequest>() == 16);

/// Makes one call; status and length of the reply.
#[inline(always)]
fn call(number: u32, request: (u64, u64), reply: (u64, u64)) -> (u64, u64) {
    call::call(number.into(), [request.0, request.1, reply.0, reply.1])
}

/// Where a value is, and its bytes.
fn place<T>(value: &T) -> (u64, u64) {
    ((&raw const *value).addr() as u64, size_of::<T>() as u64)
}

fn place_mut<T>(value: &mut T) -> (u64, u64) {
    ((&raw mut *value).addr() as u64, size_of::<T>() as u64)
}

/// Prints the least and the middle cost of an operation.
fn cost(name: &str, operation: impl FnMut()) {
    cost_beyond(name, 0, operation);
}

/// The same for an operation of which `due` ticks are waited for.
fn cost_beyond(name: &str, due: u64, mut operation: impl FnMut()) {
    let mut ticks = [0u64; RUNS];
    for slot in &mut ticks {
        let start = cpu::read_tsc();
        operation();
        *slot = (cpu::read_tsc() - start).saturating_sub(due);
    }
    tell(name, &mut ticks);
}

/// Prints the least and the middle one of several measurements.
fn tell(name: &str, ticks: &mut [u64]) {
    ticks.sort_unstable();
    say!("cost {name} min={} median={}", ticks[0], ticks[ticks.len() / 2]);
}

/// Measures what the command line asks for, if it is something of this module's.
pub(crate) fn run(command_line: &[u8]) {
    match command_line {
        b"bench" => everything(),
        b"bench-exits" => exits(),
        b"bench-pair" => pair::measure(),
        b"bench-life" => life::measure(),
        _ => return,
    }
    say!("cost done");
    cpu::power_off()
}

fn everything() {
    exits();
    version();
    random();
    seal();
    quote();
}

fn exits() {
    cost("nothing", || ());
    cost("cpuid", || {
        cpu::cpuid(0, 0);
    });
    cost("rdmsr-apic-base", || {
        cpu::read_msr(MSR_APIC_BASE).unwrap_or(0);
    });
    cost("in-0x21", || {
        cpu::read_port8(0x21);
    });
    cost("in-unused-port", || {
        cpu::read_port8(0x2e8);
    });
    cost("out-0x80", || cpu::write_port8(0x80, 0));
    cost("unknown-hypercall", || {
        call(0, (0, 0), (0, 0));
    });
    cost("mmio-nobody", || {
        cpu::read32(NOBODY);
    });
    if apic::has_x2apic() {
        interrupts(["x2apic-read", "x2apic-write-tpr", "x2apic-self-ipi", "x2apic-timer-hlt"]);
    }
    apic::use_memory();
    interrupts(["xapic-read", "xapic-write-tpr", "xapic-self-ipi", "xapic-timer-hlt"]);
    apic::enable();
}

/// What the local APIC costs in the mode it is in.
fn interrupts(names: [&str; 4]) {
    let [read, write, to_self, timer] = names;
    cost(read, || {
        apic::read(Register::VERSION);
    });
    cost(write, || apic::write(Register::TASK_PRIORITY, 0));
    let before = fault::ticks();
    cost(to_self, || {
        apic::send_self(u32::from(fault::TIMER));
        cpu::interrupts_window();
    });
    cost_beyond(timer, u64::from(WAIT), || {
        apic::start_timer(WAIT);
        cpu::wait_for_interrupt();
    });
    if fault::ticks() != before + 2 * RUNS as u64 {
        say!("FAIL {} interrupts came of {}", fault::ticks() - before, 2 * RUNS);
    }
}

fn version() {
    let mut reply = [0u64; 16];
    let at = place_mut(&mut reply);
    cost("hypercall-version", || {
        call(Version::NUMBER, (0, 0), at);
    });
}

fn random() {
    let request = RandomRequest { length: 32, reserved: 0 };
    let mut reply = [0u8; 32];
    let (from, to) = (place(&request), place_mut(&mut reply));
    cost("hypercall-random-32", || {
        call(Random::NUMBER, from, to);
    });
}

fn seal() {
    let request = SealCall { head: [1, 0, SECRET as u32, 0], secret: [7; SECRET] };
    let mut again = UnsealCall { head: [0, BLOB as u32, 0, 0], blob: [0; BLOB] };
    let mut status = 0;
    let (from, to) = (place(&request), place_mut(&mut again.blob));
    cost("seal-32", || status = call(Seal::NUMBER, from, to).0);
    say_status("seal", status);
    let mut secret = [0u8; SECRET];
    let (from, to) = (place(&again), place_mut(&mut secret));
    cost("unseal-32", || status = call(Unseal::NUMBER, from, to).0);
    say_status("unseal", status);
    if secret != [7; SECRET] {
        say!("FAIL unseal gives something else");
    }
}

fn quote() {
    let request = QuoteRequest { flags: 0, reserved: 0, report_data: [9; 64] };
    let mut reply = [0u8; size_of::<QuoteReply>()];
    let (from, to) = (place(&request), place_mut(&mut reply));
    say!("quote begins");
    let (mut requests, start) = (0u32, cpu::read_tsc());
    let status = loop {
        let (status, _) = call(Quote::NUMBER, from, to);
        requests += 1;
        if status != Status::AGAIN.to_rax() || requests == PATIENCE {
            break status;
        }
    };
    let ticks = cpu::read_tsc() - start;
    say!("quote ends");
    say!("cost quote requests={requests} min={ticks} median={ticks}");
    say_status("quote", status);
}

fn say_status(what: &str, status: u64) {
    if status != Status::OK.to_rax() {
        say!("FAIL {what} ended with status {status}");
    }
}
