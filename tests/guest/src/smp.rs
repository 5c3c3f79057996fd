//! Several processors of this guest: how they start, and how they reach each other.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::{Test, Verdict, apic, check, cpu, fault, share};

pub(crate) const TESTS: &[Test] = &[
    ("others_start_by_init_and_start_up", start_all),
    ("each_has_its_own_number", numbers),
    ("an_interrupt_reaches_whom_it_is_sent_to", one_by_one),
    ("all_others_are_reached_at_once", broadcast),
    ("an_nmi_reaches_another", nmi),
    ("a_timer_belongs_to_its_processor", timers),
    ("a_processor_can_be_stopped_and_started_again", restart),
    ("a_second_start_up_changes_nothing", second_start_up),
    ("init_and_start_up_twice_are_one_start", doubled),
];

/// Vector that is counted by whom it reaches.
pub(crate) const CALL: u64 = 0x68;
/// Vector that asks a processor to start its timer.
pub(crate) const TIME: u64 = 0x69;

const MOST: usize = 8;
const INIT: u32 = 5 << 8 | 1 << 14;
const START_UP: u32 = 6 << 8 | 1 << 14;
const NMI: u32 = 4 << 8 | 1 << 14;
const OTHERS: u32 = 3 << 18;
/// Where the others begin, in real mode.
const PAGE: u64 = 0x7000;
/// Longest wait, in ticks.
const PATIENCE: u64 = 20_000_000_000;

/// When the last interrupt of this module's was taken, whoever took it.
static WOKEN: AtomicU64 = AtomicU64::new(0);
static STARTS: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];
static NUMBERS: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];
static CALLS: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];
static TIMES: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];

global_asm!(
    r#"
.section .text.start, "ax"
.code16
.global __guest_start_page
__guest_start_page:
    .byte 0xeb, 0x0a            # jumps over the table's address
    .word 0
    .word 55
    .long __guest_gdt
    .word 0
    cli
    mov ebp, edx                # the processor's model, as INIT leaves it
    xor ax, ax
    mov ds, ax
    lgdtd [0x7004]
    mov eax, 0x620              # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset __guest_root
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x901               # SCE, LME, NXE
    wrmsr
    mov eax, 0x80010011         # PG, WP, ET, PE: straight into long mode
    mov cr0, eax
    .byte 0x66, 0xea            # far jump with a 32-bit offset
    .long __guest_start_long
    .word 8
.global __guest_start_end
__guest_start_end:
.code64
__guest_start_long:
    mov eax, 0x10
    mov ss, eax
    mov ds, eax
    mov es, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov eax, 1
    cpuid
    shr ebx, 24
    mov edi, ebx
    mov esi, ebp
    shl ebx, 14
    lea rsp, [rip + __guest_start_stacks]
    lea rsp, [rsp + rbx + 0x4000]
    call {other}
    ud2
.section .bss
.balign 16
__guest_start_stacks: .skip 0x4000 * 8
"#,
    other = sym other_main,
);

/// The first Rust of another processor.
extern "C" fn other_main(number: u64, model: u64) -> ! {
    fault::load();
    apic::enable();
    let index = number as usize % MOST;
    let own = u64::from(cpu::cpuid(0xb, 0).edx);
    let is_right = model == u64::from(cpu::cpuid(1, 0).eax) && own == number;
    NUMBERS[index].store(if is_right { number } else { u64::MAX }, Ordering::Relaxed);
    STARTS[index].fetch_add(1, Ordering::Release);
    if share::is_on() {
        share::work_on();
    }
    loop {
        cpu::wait_for_interrupt();
        if TIMES[index].load(Ordering::Relaxed) == 1 {
            TIMES[index].store(2, Ordering::Relaxed);
            apic::start_timer(100_000);
        }
    }
}

/// An interrupt of this module's reached this processor.
pub(crate) fn called(vector: u64) {
    WOKEN.store(cpu::read_tsc(), Ordering::Release);
    let index = cpu::cpuid(1, 0).ebx as usize >> 24;
    match vector {
        CALL => CALLS[index % MOST].fetch_add(1, Ordering::Release),
        _ => TIMES[index % MOST].fetch_add(1, Ordering::Release),
    };
}

/// When the last interrupt of this module's was taken.
pub(crate) fn woken() -> u64 {
    WOKEN.load(Ordering::Acquire)
}

/// The timer of this processor fired.
pub(crate) fn timer_fired() {
    if STARTS[1].load(Ordering::Relaxed) == 0 {
        return;
    }
    let index = cpu::cpuid(1, 0).ebx as usize >> 24;
    if TIMES[index % MOST].load(Ordering::Relaxed) == 2 {
        TIMES[index % MOST].store(3, Ordering::Release);
    }
}

fn count() -> usize {
    (cpu::cpuid(1, 0).ebx as usize >> 16 & 0xff).min(MOST)
}

fn wait_until(is_so: impl Fn() -> bool) -> bool {
    let start = cpu::read_tsc();
    while !is_so() {
        if cpu::read_tsc() - start > PATIENCE {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

fn pause(ticks: u64) {
    let start = cpu::read_tsc();
    while cpu::read_tsc() - start < ticks {
        core::hint::spin_loop();
    }
}

fn starts(index: usize) -> u64 {
    STARTS[index].load(Ordering::Acquire)
}

pub(crate) fn start_all() -> Verdict {
    check(count() > 1, "there are no others")?;
    start_others()
}

/// Starts the other processors, if there are any.
pub(crate) fn start_others() -> Verdict {
    unsafe extern "C" {
        static __guest_start_page: u8;
        static __guest_start_end: u8;
    }
    let from = &raw const __guest_start_page;
    let bytes = (&raw const __guest_start_end).addr() - from.addr();
    // SAFETY: conventional memory, which nothing of this guest uses.
    unsafe { core::ptr::copy_nonoverlapping(from, PAGE as *mut u8, bytes) };
    for index in 1..count() {
        check(starts(index) == 0, "one started by itself")?;
        apic::send_to(index as u32, INIT);
        pause(1_000_000);
        check(starts(index) == 0, "INIT alone started it")?;
        apic::send_to(index as u32, START_UP | PAGE as u32 >> 12);
        check(wait_until(|| starts(index) == 1), "one did not start")?;
    }
    Ok(())
}

fn numbers() -> Verdict {
    let is_right = |index: usize| NUMBERS[index].load(Ordering::Relaxed) == index as u64;
    check((1..count()).all(is_right), "number or model is another one's")
}

fn calls(index: usize) -> u64 {
    CALLS[index].load(Ordering::Acquire)
}

fn one_by_one() -> Verdict {
    for round in 1..=20 {
        for index in 1..count() {
            apic::send_to(index as u32, CALL as u32);
            check(wait_until(|| calls(index) == round), "lost, or more than one")?;
        }
    }
    check(calls(0) == 0, "it reached the sender")
}

fn broadcast() -> Verdict {
    for _ in 0..20 {
        call_others()?;
    }
    check(calls(0) == 0, "it reached the sender")
}

/// Interrupts all others, and waits until each has taken it.
pub(crate) fn call_others() -> Verdict {
    let before: [u64; MOST] = core::array::from_fn(calls);
    apic::send_to(0, OTHERS | CALL as u32);
    let all = || (1..count()).all(|index| calls(index) == before[index] + 1);
    check(wait_until(all), "not all, or one more than once")
}

fn nmi() -> Verdict {
    let before = fault::nmis();
    apic::send_to(1, NMI);
    check(wait_until(|| fault::nmis() == before + 1), "lost, or more than one")
}

fn timers() -> Verdict {
    for index in 1..count() {
        apic::send_to(index as u32, TIME as u32);
    }
    let fired = |index: usize| TIMES[index].load(Ordering::Acquire) == 3;
    check(wait_until(|| (1..count()).all(fired)), "one did not fire on its own processor")
}

fn restart() -> Verdict {
    let index = count() - 1;
    apic::send_to(index as u32, INIT);
    pause(10_000_000);
    let before = calls(index);
    apic::send_to(index as u32, CALL as u32);
    pause(10_000_000);
    check(calls(index) == before, "a stopped one takes interrupts")?;
    apic::send_to(index as u32, START_UP | PAGE as u32 >> 12);
    check(wait_until(|| starts(index) == 2), "it did not start again")?;
    let before = calls(index);
    apic::send_to(index as u32, CALL as u32);
    check(wait_until(|| calls(index) == before + 1), "it takes no interrupts")
}

/// As the manual has it for processors that may miss a message: INIT twice, then start-up twice, without a pause.
fn doubled() -> Verdict {
    let index = count() - 1;
    for round in 0..8 {
        let before = starts(index);
        for message in [INIT, INIT, START_UP | PAGE as u32 >> 12, START_UP | PAGE as u32 >> 12] {
            apic::send_to(index as u32, message);
        }
        check(wait_until(|| starts(index) > before), "it did not start")?;
        pause(1_000_000 * round);
        check(starts(index) == before + 1, "it started twice")?;
        let called = calls(index);
        apic::send_to(index as u32, CALL as u32);
        check(wait_until(|| calls(index) == called + 1), "it takes no interrupts")?;
    }
    Ok(())
}

fn second_start_up() -> Verdict {
    let before = starts(1);
    apic::send_to(1, START_UP | PAGE as u32 >> 12);
    pause(10_000_000);
    check(starts(1) == before, "it started anew")
}
