//! Noise: a guest that misbehaves on purpose, and must find itself alive and its machine in order afterwards.
//!
//! `noise=NAME seed=N` on the command line chooses; `without=NAME` leaves a kind out of `all`, and `part=N` makes but one
//! in N of all tries, for emulators that are slow. Every kind ends in `noise NAME: N tries`, or in a stop of
//! this guest that the hypervisor names; what is wrong is said, and the guest resets itself. All that is random
//! follows from the seed, which is printed.

mod apic;
mod bridge;
mod call;
mod code;
mod control;
mod device;
mod doom;
mod legacy;
mod mode;
mod model;
mod neighbour;
mod oracle;
mod port;
mod random;
mod sandbox;
mod segment;
mod start;
mod step;
mod storm;
mod table;
mod task;

use core::sync::atomic::{AtomicBool, Ordering};

use random::Random;

use crate::{apic as timer, cpu, fault, say};

/// A kind of noise: what it tries, and how often it did.
type Kind = (&'static str, fn(&mut Random) -> u64);

/// Kinds after which the guest goes on.
const LASTING: &[Kind] = &[
    ("msr", model::registers),
    ("port", port::every),
    ("string", port::strings),
    ("control", control::registers),
    ("code-user", code::user),
    ("descriptor", segment::descriptors),
    ("entry", segment::entries),
    ("device", oracle::compare),
    ("table", table::leaves),
    ("storm", storm::everything),
    ("apic", apic::registers),
    ("call", call::every),
    ("step", step::everything),
    ("gate", doom::double_faults),
    ("mode", mode::exits),
    ("switch", task::switches),
    ("map", task::ports),
    ("virtual", task::virtual_8086),
    ("start", start::messages),
    ("race", start::races),
    ("remap", start::remaps),
];

/// Kinds that may end in a stop of the guest.
const DEADLY: &[Kind] = &[
    ("code", code::kernel),
    ("access", device::every_form),
    ("walk", table::outside),
    ("tasks", task::garbage),
    ("attributes", code::impossible_segment),
    ("stack", code::no_stack),
    ("doom", doom::end),
];

/// Does what the command line says, if it asks for noise.
pub(crate) fn run(command_line: &[u8]) {
    let mut words = command_line.split(|byte| *byte == b' ');
    let Some(chosen) = words.next().and_then(|word| word.strip_prefix(b"noise=")) else { return };
    let value = |name: &[u8]| words.clone().find_map(|word| word.strip_prefix(name));
    let seed = value(b"seed=").map_or(1, number);
    let part = value(b"part=").map_or(1, number).max(1);
    let without = value(b"without=").unwrap_or_default();
    if chosen == b"neighbour" {
        neighbour::answer();
    }
    sandbox::prepare();
    for (name, kind) in LASTING.iter().chain(DEADLY) {
        let lasts = LASTING.iter().any(|(lasting, _)| lasting == name);
        let is_wanted = chosen == name.as_bytes() || chosen == b"all" && lasts;
        if !is_wanted || without == name.as_bytes() {
            continue;
        }
        say!("noise {name} seed={seed}");
        let tries = kind(&mut Random::new(seed, part));
        match in_order() {
            Ok(()) => say!("noise {name}: {tries} tries"),
            Err(why) => fail(why),
        }
    }
    if HAS_FAILED.load(Ordering::Relaxed) {
        cpu::reset();
    }
    say!("noise: done");
    cpu::power_off()
}

static HAS_FAILED: AtomicBool = AtomicBool::new(false);

/// Says what is wrong; the guest then ends by a reset, for those who cannot hear it.
fn fail(why: &str) {
    say!("FAIL noise: {why}");
    HAS_FAILED.store(true, Ordering::Relaxed);
}

fn number(digits: &[u8]) -> u64 {
    digits
        .iter()
        .take_while(|digit| digit.is_ascii_digit())
        .fold(0, |value: u64, digit| value.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')))
}

/// Whether the machine still does what it did before.
fn in_order() -> Result<(), &'static str> {
    timer::enable();
    crate::check(cpu::cpuid(0x4000_0000, 0).ebx != 0, "CPUID has lost the hypervisor's name")?;
    crate::check(call::version_answers(), "a good hypercall is refused")?;
    let before = fault::ticks();
    timer::send_self(u32::from(fault::TIMER));
    cpu::interrupts_window();
    crate::check(fault::ticks() > before, "no interrupt from itself")?;
    let (before, start) = (fault::ticks(), cpu::read_tsc());
    timer::start_timer(100_000);
    cpu::wait_for_interrupt();
    crate::check(fault::ticks() > before, "no interrupt from the timer")?;
    crate::check(cpu::read_tsc() > start, "time stands still")
}
