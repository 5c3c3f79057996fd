//! Guests that count: with `share` one that never gives a processor away, and tells what it gets done and how often
//! its timer came; if it may, also what each guest of the machine has had. With `nap` one that only sleeps from
//! one tick of its timer to the next.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dolmen_guest::GuestList;

use crate::{apic, cpu, fault, resident, say, smp};

/// Time-stamp ticks between two interrupts of one that works: more than the longest wait for a turn.
const PERIOD: u32 = 80_000_000;
/// The same for one that sleeps, which waits for nobody.
const NAP: u32 = 40_000_000;
/// Rounds of work between two looks at the clock.
const ROUNDS: u64 = 10_000;
/// Time-stamp ticks between two reports.
const PAUSE: u64 = 2_000_000_000;

static IS_ON: AtomicBool = AtomicBool::new(false);
static WORK: AtomicU64 = AtomicU64::new(0);

/// Whether the other processors of this guest are to work, not to sleep.
pub(crate) fn is_on() -> bool {
    IS_ON.load(Ordering::Acquire)
}

/// Works for ever, on a processor without anything else to do.
pub(crate) fn work_on() -> ! {
    loop {
        work();
    }
}

/// Works on every processor, and reports now and then.
pub(crate) fn run() -> ! {
    let mut hypervisor = resident::client();
    IS_ON.store(true, Ordering::Release);
    if let Err(why) = smp::start_others() {
        say!("FAIL {why}");
    }
    say!("share: here");
    apic::start_periodic(PERIOD);
    // SAFETY: every vector has a handler.
    unsafe { asm!("sti", options(nostack)) };
    let mut next = cpu::read_tsc();
    loop {
        work();
        if cpu::read_tsc() < next {
            continue;
        }
        next = cpu::read_tsc() + PAUSE;
        let mut buffer = [0; GuestList::BYTES];
        if let Ok(list) = hypervisor.guests(&mut buffer) {
            say!("share: uptime={}", list.head.uptime_ns);
            list.guests().for_each(|guest| say!("share: {} had={}", guest.name(), guest.cpu_ns));
        }
        tell(PERIOD);
    }
}

/// Sleeps for ever, and reports now and then.
pub(crate) fn nap() -> ! {
    say!("share: here");
    apic::start_periodic(NAP);
    let mut next = cpu::read_tsc();
    loop {
        cpu::wait_for_interrupt();
        if cpu::read_tsc() >= next {
            next = cpu::read_tsc() + PAUSE;
            tell(NAP);
        }
    }
}

fn tell(period: u32) {
    let (tsc, ticks, work) = (cpu::read_tsc(), fault::ticks(), WORK.load(Ordering::Relaxed));
    say!("share: tsc={tsc} ticks={ticks} period={period} work={work}");
}

fn work() {
    for round in 0..ROUNDS {
        core::hint::black_box(round);
    }
    WORK.fetch_add(1, Ordering::Relaxed);
}
