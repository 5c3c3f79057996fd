//! What a processor holds stays this guest's while another guest takes turns on it.
//!
//! Run as one of two guests of different seeds: each fills every register that it has with values of its own, spins
//! through several turns of the other, and looks again.

use core::arch::{asm, global_asm};

use dolmen_arch::msr;

use crate::{Verdict, check, cpu};

/// Ticks of one round: several slices of the other guest.
const ROUND: u64 = 120_000_000;
const ROUNDS: u64 = 40;
/// Rounds where the counter is so slow that each lasts for seconds.
const BRIEF: u64 = 3;

/// Vector registers, general-purpose registers, x87.
#[repr(C, align(64))]
struct Values {
    vectors: [u64; 64],
    general: [u64; 9],
    x87: [f64; 2],
}

global_asm!(
    r#"
.text
# RDI: values to load; RSI: where they go; RDX: until when; RCX: whether there is AVX.
.global __guest_keep
__guest_keep:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov r8, rdx
    fninit
    fld qword ptr [rdi + 584]
    fld qword ptr [rdi + 592]
    test rcx, rcx
    jz 2f
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovdqu ymm\n, [rdi + 32 * \n]
    .endr
    jmp 3f
2:
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movdqu xmm\n, [rdi + 32 * \n]
    .endr
3:
    mov rbx, [rdi + 512]
    mov rbp, [rdi + 520]
    mov r9, [rdi + 528]
    mov r10, [rdi + 536]
    mov r11, [rdi + 544]
    mov r12, [rdi + 552]
    mov r13, [rdi + 560]
    mov r14, [rdi + 568]
    mov r15, [rdi + 576]
4:
    rdtsc
    shl rdx, 32
    or rax, rdx
    cmp rax, r8
    jb 4b
    mov [rsi + 512], rbx
    mov [rsi + 520], rbp
    mov [rsi + 528], r9
    mov [rsi + 536], r10
    mov [rsi + 544], r11
    mov [rsi + 552], r12
    mov [rsi + 560], r13
    mov [rsi + 568], r14
    mov [rsi + 576], r15
    test rcx, rcx
    jz 5f
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovdqu [rsi + 32 * \n], ymm\n
    .endr
    jmp 6f
5:
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movdqu [rsi + 32 * \n], xmm\n
    .endr
6:
    fstp qword ptr [rsi + 592]
    fstp qword ptr [rsi + 584]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
"#
);

unsafe extern "C" {
    fn __guest_keep(from: *const Values, to: *mut Values, until: u64, wide: u64);
}

/// Registers that RDMSR shows.
const MSRS: [u32; 10] = [
    msr::FS_BASE,
    msr::GS_BASE,
    msr::KERNEL_GS_BASE,
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::SFMASK,
    msr::SYSENTER_EIP,
    msr::SYSENTER_ESP,
    msr::TSC_AUX,
];

/// As much of a value as the register has on every maker's processors: of some the upper half is reserved.
const fn fitting(register: u32, value: u64) -> u64 {
    if matches!(register, msr::TSC_AUX | msr::SFMASK) { value & 0xffff_ffff } else { value }
}

/// Fills and checks, round after round; `seed` tells this guest from the other.
pub(crate) fn run(seed: u8, is_brief: bool) -> Verdict {
    first_values()?;
    let wide = enable_avx(seed);
    for round in 0..if is_brief { BRIEF } else { ROUNDS } {
        let value = |n: u64| (u64::from(seed) << 40 | round << 24 | n << 8 | 0x5a).wrapping_mul(0x0101_0001);
        let low = |n: u64| value(n) & 0x0000_3fff_ffff_f000;
        for (n, register) in (0..).zip(MSRS) {
            let fits = fitting(register, low(n));
            cpu::write_msr(register, fits).map_err(|_| "an MSR cannot be written")?;
        }
        set_debug([low(20), low(21), low(22), low(23)]);
        let mxcsr = 0x1f80 | u32::from(seed & 3) << 13;
        // SAFETY: masks every exception; the rounding mode is of no use to anybody here.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const mxcsr) };
        // SAFETY: CR2 is a register for page faults, which do not happen; CR8 masks what does not come.
        unsafe { asm!("mov cr2, {}", "mov cr8, {}", in(reg) low(30), in(reg) u64::from(seed & 7)) };

        spin(&value, wide)?;

        let (cr2, cr8): (u64, u64);
        // SAFETY: reads only.
        unsafe { asm!("mov {}, cr2", "mov {}, cr8", out(reg) cr2, out(reg) cr8) };
        check((cr2, cr8) == (low(30), u64::from(seed & 7)), "CR2 or CR8 is another guest's")?;
        let mut now = 0u32;
        // SAFETY: writes four bytes.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut now) };
        check(now & 0xffc0 == mxcsr & 0xffc0, "MXCSR is another guest's")?;
        check(debug() == [low(20), low(21), low(22), low(23)], "DR0 to DR3 are another guest's")?;
        for (n, register) in (0..).zip(MSRS) {
            let fits = fitting(register, low(n));
            check(cpu::read_msr(register) == Ok(fits), "an MSR is another guest's")?;
        }
        let aux: u32;
        // SAFETY: reads only.
        unsafe { asm!("rdtscp", out("eax") _, out("edx") _, out("ecx") aux) };
        check(u64::from(aux) == low(9) & 0xffff_ffff, "RDTSCP tells another guest's number")?;
        check(!wide || xcr0() == 7, "XCR0 is another guest's")?;
    }
    Ok(())
}

/// Nothing of whoever ran here before is left to read.
fn first_values() -> Verdict {
    let mut found = [u64::MAX; 32];
    // SAFETY: stores 512 bytes.
    unsafe {
        asm!(
            "movdqu [{0}], xmm0", "movdqu [{0} + 16], xmm1", "movdqu [{0} + 32], xmm7",
            "movdqu [{0} + 48], xmm15", in(reg) found.as_mut_ptr()
        );
    }
    check(found[..8].iter().all(|word| *word == 0), "a vector register holds something from the start")?;
    check(debug() == [0; 4], "DR0 to DR3 hold something from the start")
}

fn spin(value: &impl Fn(u64) -> u64, wide: bool) -> Verdict {
    let from = Values {
        vectors: core::array::from_fn(|n| value(100 + n as u64)),
        general: core::array::from_fn(|n| value(200 + n as u64)),
        x87: [
            f64::from_bits(0x4000_0000_0000_0000 | value(1) >> 16),
            f64::from_bits(0x3ff0_0000_0000_0000 | value(2) >> 16),
        ],
    };
    let mut to = Values { vectors: [0; 64], general: [0; 9], x87: [0.0; 2] };
    // SAFETY: the routine reads and writes the two structures; SSE is on, and AVX if `wide`.
    unsafe { __guest_keep(&raw const from, &raw mut to, cpu::read_tsc() + ROUND, u64::from(wide)) };
    check(to.general == from.general, "a general-purpose register is another guest's")?;
    let bits = |values: &[f64; 2]| [values[0].to_bits(), values[1].to_bits()];
    check(bits(&to.x87) == bits(&from.x87), "an x87 register is another guest's")?;
    for (n, (now, then)) in to.vectors.iter().zip(&from.vectors).enumerate() {
        check(now == then || !wide && n % 4 >= 2, "a vector register is another guest's")?;
    }
    Ok(())
}

/// Only guests of odd seeds use AVX, so that two guests differ in XCR0 too.
fn enable_avx(seed: u8) -> bool {
    const BOTH: u32 = 1 << 26 | 1 << 28;
    if seed & 1 == 0 || cpu::cpuid(1, 0).ecx & BOTH != BOTH {
        return false;
    }
    // SAFETY: CPUID shows XSAVE.
    unsafe { asm!("mov {0}, cr4", "or {0}, 1 << 18", "mov cr4, {0}", out(reg) _) };
    // SAFETY: OSXSAVE is set, and CPUID shows AVX.
    unsafe { asm!("xsetbv", in("ecx") 0, in("eax") 7, in("edx") 0) };
    true
}

fn xcr0() -> u64 {
    let low: u32;
    // SAFETY: only called with OSXSAVE set.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _) };
    u64::from(low)
}

fn set_debug(values: [u64; 4]) {
    let [a, b, c, d] = values;
    // SAFETY: addresses without effect, as DR7 enables none.
    unsafe {
        asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", in(reg) a, in(reg) b, in(reg) c, in(reg) d);
    }
}

fn debug() -> [u64; 4] {
    let (a, b, c, d);
    // SAFETY: reads only.
    unsafe {
        asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3", out(reg) a, out(reg) b, out(reg) c, out(reg) d);
    }
    [a, b, c, d]
}
