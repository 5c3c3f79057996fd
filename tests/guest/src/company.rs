//! Guests that keep others company: one answers and sleeps, one rests, one never gives its processor away, one asks
//! for quotes and sleeps, one measures how well it is served.

use core::arch::asm;

use dolmen_abi::{Call, Quote, QuoteReply, QuoteRequest, Status, Version};

use crate::apic::{self, Register};
use crate::{call, console, cpu, fault, say};

/// Ticks of the time-stamp counter between two interrupts: 10 ms at 1 GHz.
const PERIOD: u32 = 10_000_000;
/// Timer entry of the local vector table, and its periodic mode.
const TIMER_ENTRY: Register = Register(0x320);
const PERIODIC: u32 = 1 << 17;
const INITIAL_COUNT: Register = Register(0x380);

/// Does what the command line says, if it is one of these.
pub(crate) fn run(command_line: &[u8]) {
    match command_line {
        b"answer" => answer(),
        b"rest" => rest(),
        b"spin" => spin(),
        b"ask" => ask(),
        b"meter" => meter(),
        _ => {}
    }
}

/// Has the timer interrupt every so often.
pub(crate) fn start_periodic() {
    apic::write(TIMER_ENTRY, PERIODIC | u32::from(fault::TIMER));
    apic::write(INITIAL_COUNT, PERIOD);
}

/// Says that it is there, then repeats each byte that it is sent, and sleeps in between.
fn answer() -> ! {
    say!("here");
    start_periodic();
    loop {
        cpu::wait_for_interrupt();
        while let Some(byte) = console::read() {
            say!("answer {byte}");
        }
    }
}

/// Says that it is there, then sleeps, waking up now and then as an idle system does.
fn rest() -> ! {
    say!("here");
    loop {
        apic::start_timer(10 * PERIOD);
        cpu::wait_for_interrupt();
    }
}

/// Keeps its processor busy and counts timer ticks; tells about them for each byte that it is sent.
fn spin() -> ! {
    say!("here");
    start_periodic();
    // SAFETY: every vector has a handler.
    unsafe { asm!("sti", options(nostack)) };
    let (first, mut last, mut longest) = (cpu::read_tsc(), cpu::read_tsc(), 0);
    let mut ticks = fault::ticks();
    let before = ticks;
    loop {
        core::hint::spin_loop();
        if fault::ticks() == ticks {
            continue;
        }
        ticks = fault::ticks();
        let now = cpu::read_tsc();
        longest = now.wrapping_sub(last).max(longest);
        last = now;
        if console::read().is_some() {
            say!("spin ticks={} longest={longest} tsc={}", ticks - before, now.wrapping_sub(first));
        }
    }
}

/// Where the requests and replies of calls lie: nothing of the guest's is there.
const REQUEST: u64 = 0x180_0000;
const REPLY: u64 = 0x190_0000;
/// How often the timer wakes who asked before it looks again: 4 s where the counter has 3 GHz, longer where it is slower.
const SLEEPS: u32 = 1200;

fn call(number: u32, request: u64, reply: u64) -> Status {
    let (status, _) = call::call(number.into(), [REQUEST, request, REPLY, reply]);
    Status(status as u32)
}

fn quote() -> Status {
    call(Quote::NUMBER, size_of::<QuoteRequest>() as u64, size_of::<QuoteReply>() as u64)
}

/// For each byte that it is sent: asks once for a quote over that byte, sleeps, and asks once more.
fn ask() -> ! {
    say!("here");
    start_periodic();
    loop {
        cpu::wait_for_interrupt();
        let Some(byte) = console::read() else { continue };
        cpu::write32(REQUEST + 8, u32::from(byte));
        let first = quote();
        for _ in 0..SLEEPS {
            cpu::wait_for_interrupt();
        }
        say!("asked {byte}: {first}, then {}", quote());
    }
}

/// Calls the hypervisor without rest; for each byte that it is sent tells how many calls and timer ticks there were
/// since the last, and the longest time for one call.
fn meter() -> ! {
    say!("here");
    start_periodic();
    // SAFETY: every vector has a handler.
    unsafe { asm!("sti", options(nostack)) };
    loop {
        let (begin, before) = (cpu::read_tsc(), fault::ticks());
        let (mut calls, mut longest, mut last) = (0u64, 0, begin);
        let byte = loop {
            if call(Version::NUMBER, 0, 0x100) == Status::OK {
                calls += 1;
            }
            let now = cpu::read_tsc();
            longest = now.wrapping_sub(last).max(longest);
            last = now;
            // One look at the port for many calls, so that the calls are what is measured.
            if calls % 64 == 0
                && let Some(byte) = console::read()
            {
                break byte;
            }
        };
        let (ticks, span) = (fault::ticks() - before, last.wrapping_sub(begin));
        say!("meter {byte}: calls={calls} ticks={ticks} longest={longest} tsc={span}");
    }
}
