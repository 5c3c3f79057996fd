//! A bare guest that looks at the hypervisor from the inside.
//!
//! Each test prints `ok <name>` or `FAIL <name> <why>` on the console, the last line is
//! `micro: N passed, M failed`, then the guest switches itself off. With `ends=<name>` on its command line
//! it instead does the one thing of that name, which ends it; the verdict is then the hypervisor's log. With
//! `bench` or `bench-exits` it measures what things cost, with `answer`, `rest` or `spin` it keeps others company, with `share` or
//! `nap` it counts, with `errands` it asks of the TPM what it is told to;
//! with `handover` it tells what its loader handed over; with `noise=<name>` it misbehaves on purpose.
#![no_std]
#![no_main]
#![expect(clippy::macro_metavars_in_unsafe, reason = "`attempt!` is for assembly")]
#![expect(unsafe_code, reason = "a bare guest that provokes its machine is all machine access")]
#![expect(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    reason = "a test guest may fail loudly"
)]

mod apic;
mod bench;
mod call;
mod company;
mod console;
mod cpu;
mod device;
mod ending;
mod entry;
mod errands;
mod fault;
mod handover;
mod hidden;
mod instruction;
mod interrupt;
mod keep;
mod noise;
mod register;
mod resident;
mod share;
mod smp;
mod start;
mod user;

/// What a test finds: nothing wrong, or what.
type Verdict = Result<(), &'static str>;

/// One test.
type Test = (&'static str, fn() -> Verdict);

/// Holds the condition, or says what is wrong.
const fn check(condition: bool, why: &'static str) -> Verdict {
    if condition { Ok(()) } else { Err(why) }
}

/// The first Rust of the guest; `start` is the loader's information.
#[unsafe(no_mangle)]
extern "C" fn guest_main(start: u64) -> ! {
    fault::install();
    apic::enable();
    call::prepare();
    let mut command_line = [0; 64];
    let command_line = start::command_line(start, &mut command_line);
    if let Some(name) = command_line.strip_prefix(b"ends=") {
        ending::end(name);
    }
    if command_line.ends_with(b"handover") {
        handover::tell(start);
        cpu::power_off()
    }
    if command_line == b"errands" {
        errands::live()
    }
    noise::run(command_line);
    company::run(command_line);
    match command_line {
        b"share" => share::run(),
        b"nap" => share::nap(),
        _ => {}
    }
    if let Some(role) = command_line.strip_prefix(b"role=") {
        resident::live(role == b"quiet");
    }
    bench::run(command_line);
    if let Some([seed, rest @ ..]) = command_line.strip_prefix(b"keep=") {
        let outcome = keep::run(*seed, rest == b" brief");
        sum([("registers_stay_this_guests", outcome)].into_iter());
    }
    if command_line == b"smp" {
        sum(smp::TESTS.iter().map(|(name, test)| (*name, test())));
    }
    let groups =
        [instruction::TESTS, register::TESTS, hidden::TESTS, device::TESTS, interrupt::TESTS, user::TESTS];
    sum(groups.into_iter().flatten().map(|(name, test)| (*name, test())))
}

/// Says how each test went, and the sum.
fn sum(outcomes: impl Iterator<Item = (&'static str, Verdict)>) -> ! {
    let (mut passed, mut failed) = (0u32, 0u32);
    for (name, outcome) in outcomes {
        match outcome {
            Ok(()) => {
                passed += 1;
                say!("ok {name}");
            }
            Err(why) => {
                failed += 1;
                say!("FAIL {name} {why}");
            }
        }
    }
    say!("micro: {passed} passed, {failed} failed");
    cpu::power_off()
}

#[panic_handler]
fn on_panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("FAIL {info}");
    cpu::reset()
}
