//! Guests that keep others company: one answers and sleeps, one rests, one never gives its processor away.

use core::arch::asm;

use crate::apic::{self, Register};
use crate::{console, cpu, fault, say};

/// Timer ticks between two interrupts: 10 ms.
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
        _ => {}
    }
}

fn start_periodic() {
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
