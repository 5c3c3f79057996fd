//! Ports, and string instructions on them.

use core::arch::asm;

use crate::console::{self, SCRATCH};
use crate::cpu;
use crate::fault::PF;
use crate::{Test, Verdict, attempt, check};

pub(crate) const TESTS: &[Test] = &[
    ("a_port_nobody_claims_reads_ones", nobodys_port),
    ("a_register_keeps_what_is_written", scratch),
    ("wide_accesses_reach_narrow_registers", wide),
    ("a_string_is_read_from_a_port", string_in),
    ("a_string_is_read_downwards", string_down),
    ("a_string_is_written_to_a_port", string_out),
    ("a_string_of_length_zero_does_nothing", string_of_nothing),
    ("a_string_that_meets_a_missing_page_faults_where_it_stands", string_fault),
    ("a_string_crosses_pages", string_crossing),
];

/// A port that no device of the board has.
const NOBODY: u16 = 0x5f0;

fn nobodys_port() -> Verdict {
    check(cpu::read_port8(NOBODY) == 0xff, "a byte of it is not ones")?;
    check(cpu::read_port32(NOBODY) == u32::MAX, "a word of it is not ones")
}

fn scratch() -> Verdict {
    cpu::write_port8(SCRATCH, 0x5a);
    let first = cpu::read_port8(SCRATCH);
    cpu::write_port8(SCRATCH, 0xa5);
    check((first, cpu::read_port8(SCRATCH)) == (0x5a, 0xa5), "reads another value")
}

fn wide() -> Verdict {
    cpu::write_port8(SCRATCH, 0x77);
    let value: u16;
    // SAFETY: IN writes AX only.
    unsafe { asm!("in ax, dx", in("dx") console::PORT + 6, out("ax") value, options(nostack)) };
    check(value >> 8 == 0x77, "the upper byte is another register's")
}

/// REP INSB of `count` bytes to `to`; answers RCX and RDI as they are left.
fn read_string(to: u64, count: u64) -> (u64, u64) {
    let (left, end);
    // SAFETY: the callers give buffers of their own.
    unsafe {
        asm!("rep insb", in("dx") SCRATCH, inout("rcx") count => left, inout("rdi") to => end,
             options(nostack));
    }
    (left, end)
}

fn string_in() -> Verdict {
    let mut buffer = [0u8; 1000];
    cpu::write_port8(SCRATCH, 0x3c);
    let start = (&raw mut buffer).addr() as u64;
    let (left, end) = read_string(start, 999);
    check(left == 0 && end == start + 999, "registers are left wrong")?;
    check(buffer[..999].iter().all(|byte| *byte == 0x3c), "bytes are missing")?;
    check(buffer[999] == 0, "one byte too many")
}

fn string_down() -> Verdict {
    let mut buffer = [0u8; 8];
    cpu::write_port8(SCRATCH, 0x99);
    let start = (&raw mut buffer).addr() as u64;
    let end: u64;
    // SAFETY: writes buffer[3], then [2], then [1]; the direction flag is cleared again.
    unsafe {
        asm!("std", "rep insb", "cld", in("dx") SCRATCH, inout("rcx") 3u64 => _,
             inout("rdi") start + 3 => end, options(nostack));
    }
    check(buffer == [0, 0x99, 0x99, 0x99, 0, 0, 0, 0], "the wrong bytes are written")?;
    check(end == start, "RDI is left wrong")
}

fn string_out() -> Verdict {
    let text = *b"xyz";
    let (left, end): (u64, u64);
    let start = (&raw const text).addr() as u64;
    // SAFETY: reads the three bytes.
    unsafe {
        asm!("rep outsb", in("dx") SCRATCH, inout("rcx") 3u64 => left, inout("rsi") start => end,
             options(nostack));
    }
    check(left == 0 && end == start + 3, "registers are left wrong")?;
    check(cpu::read_port8(SCRATCH) == b'z', "the last byte did not arrive")
}

fn string_of_nothing() -> Verdict {
    let (left, end) = read_string(0x1000, 0);
    check(left == 0 && end == 0x1000, "registers changed")
}

/// First address that the guest's tables do not map.
const UNMAPPED: u64 = 0x1_0000_0000;

fn string_fault() -> Verdict {
    let (left, end): (u64, u64);
    let fault = attempt!("rep insb", in("dx") SCRATCH, inout("rcx") 5u64 => left,
                         inout("rdi") UNMAPPED => end);
    let fault = fault.ok_or("no fault")?;
    check(fault.vector == PF && fault.error == 2, "not the page fault of a write")?;
    check(fault.address == UNMAPPED, "CR2 names another address")?;
    check(left == 5 && end == UNMAPPED, "registers moved past the fault")
}

#[repr(C, align(4096))]
struct TwoPages([u8; 8192]);

fn string_crossing() -> Verdict {
    let mut pages = TwoPages([0; 8192]);
    cpu::write_port8(SCRATCH, 0x42);
    let (left, _) = read_string((&raw mut pages).addr() as u64 + 4090, 12);
    let written = &pages.0[4090..4102];
    check(left == 0 && written.iter().all(|byte| *byte == 0x42), "bytes are missing")?;
    check(pages.0[4089] == 0 && pages.0[4102] == 0, "too many bytes")
}
