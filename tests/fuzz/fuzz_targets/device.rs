//! Whatever a guest does to its board, and instructions on device memory.
#![no_main]

use dolmen_arch::instruction::CodeSize;
use dolmen_memory::{Gpa, GuestMemory, OutsideRam};
use dolmen_vm::board::{Board, BoardConfig};
use dolmen_vm::decode::decode;

struct NoRam;

impl GuestMemory for NoRam {
    fn read(&self, _: Gpa, _: &mut [u8]) -> Result<(), OutsideRam> {
        Err(OutsideRam)
    }

    fn write(&mut self, _: Gpa, _: &[u8]) -> Result<(), OutsideRam> {
        Ok(())
    }
}

libfuzzer_sys::fuzz_target!(|input: (Vec<(u8, u32, u8, u64)>, &[u8])| {
    let (steps, instruction) = input;
    for size in [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64] {
        if let Ok(access) = decode(instruction, size) {
            assert!(access.length.get() <= instruction.len() as u64);
            assert!(matches!(access.bytes, 1 | 2 | 4 | 8));
        }
    }
    let config =
        BoardConfig { tsc_khz: 2_000_000, ram_bytes: 0x800_0000, wall_clock_ns: u64::MAX / 2, created_at: 7 };
    let mut board = Board::new(config);
    let mut now = 7u64;
    for (what, at, size, value) in steps {
        now = now.saturating_add(value >> 32);
        let size = 1 << (size & 3);
        let page = if at & 1 == 0 { 0xfec0_0000 } else { 0xfee0_0000 };
        let gpa = Gpa::new(page + u64::from(at & 0x1fff));
        match what & 7 {
            0 => drop(board.port_read(at as u16, size, now)),
            1 => drop(board.port_write(at as u16, size, value as u32, now)),
            2 => drop(board.mmio_read(gpa, size, now)),
            3 => drop(board.mmio_write(gpa, size, value, now)),
            4 => drop(board.msr_read(0x800 + (at & 0xff), now)),
            5 => drop(board.msr_write(0x800 + (at & 0xff), value & 0xf_ffff, now, &mut NoRam)),
            6 => drop(board.msr_write(at, value, now, &mut NoRam)),
            _ => board.advance(now),
        }
        let room = board.console_room();
        assert_eq!(board.console_in(at as u8), room > 0);
        if let Some(vector) = board.pending_vector() {
            assert!(vector >= 16);
            board.acknowledge(vector);
        }
    }
});
