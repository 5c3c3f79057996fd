//! Does what a decoded instruction does.

use dolmen_arch::Gprs;
use dolmen_arch::bits::low_bytes;

use super::compute::sign_extended;
use super::{Arithmetic, MemoryAccess, Operand, Operation, Part, compute};

/// The device memory that an instruction touches.
pub trait DeviceWord {
    /// Reads it; bytes beyond the access do not count.
    fn read(&mut self) -> u64;
    /// Writes it.
    fn write(&mut self, value: u64);
}

impl MemoryAccess {
    /// Does the instruction on the general-purpose registers and `device`; answers RFLAGS after it.
    pub fn perform(&self, gprs: &mut Gprs, rflags: u64, device: &mut impl DeviceWord) -> u64 {
        let bytes = self.bytes;
        match self.operation {
            Operation::Load { to, bytes: to_bytes, is_signed } => {
                let value = low_bytes(device.read(), bytes);
                let value = if is_signed { sign_extended(value, bytes) } else { value };
                write_part(gprs, to, to_bytes, value);
                rflags
            }
            Operation::Store(from) => {
                device.write(operand(gprs, from, bytes));
                rflags
            }
            Operation::Exchange(part) => {
                let value = device.read();
                device.write(operand(gprs, Operand::Register(part), bytes));
                write_part(gprs, part, bytes, low_bytes(value, bytes));
                rflags
            }
            Operation::Modify(arithmetic, with) => {
                let with = operand(gprs, with, bytes);
                let computed = compute(arithmetic, device.read(), with, bytes, rflags);
                device.write(computed.value);
                computed.rflags
            }
            Operation::Combine(arithmetic, part) => {
                let first = operand(gprs, Operand::Register(part), bytes);
                let computed = compute(arithmetic, first, device.read(), bytes, rflags);
                write_part(gprs, part, bytes, computed.value);
                computed.rflags
            }
            Operation::Test(arithmetic, with) => {
                let with = operand(gprs, with, bytes);
                compute(arithmetic, device.read(), with, bytes, rflags).rflags
            }
            Operation::TestRegister(part) => {
                let first = operand(gprs, Operand::Register(part), bytes);
                compute(Arithmetic::Subtract, first, device.read(), bytes, rflags).rflags
            }
        }
    }
}

fn operand(gprs: &Gprs, operand: Operand, bytes: u8) -> u64 {
    let value = match operand {
        Operand::Immediate(value) => value,
        Operand::Register(part) => gprs.read(part.gpr) >> if part.is_high_byte { 8 } else { 0 },
    };
    low_bytes(value, bytes)
}

fn write_part(gprs: &mut Gprs, part: Part, bytes: u8, value: u64) {
    if part.is_high_byte {
        let rest = gprs.read(part.gpr) & !0xff00;
        gprs.write(part.gpr, rest | (low_bytes(value, 1) << 8));
    } else {
        gprs.write_part(part.gpr, bytes, value);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{STATUS_FLAGS, decode};
    use super::*;
    use dolmen_arch::instruction::CodeSize;

    struct Word {
        value: u64,
        written: Vec<u64>,
    }

    impl DeviceWord for Word {
        fn read(&mut self) -> u64 {
            self.value
        }

        fn write(&mut self, value: u64) {
            self.written.push(value);
        }
    }

    const RAX: u64 = 0x1111_2222_3333_4444;

    /// Runs one instruction on a device that reads 0x8877_6655_4433_2281; answers RAX, flags and writes.
    fn run(bytes: &[u8]) -> (u64, u64, Vec<u64>) {
        let mut gprs = Gprs { rax: RAX, ..Gprs::default() };
        let mut word = Word { value: 0x8877_6655_4433_2281, written: Vec::new() };
        let access = decode(bytes, CodeSize::Bits64).unwrap();
        let rflags = access.perform(&mut gprs, 2, &mut word);
        (gprs.rax, rflags & STATUS_FLAGS, word.written)
    }

    #[test]
    fn each_operation_moves_what_the_processor_would() {
        for (bytes, rax, flags, written) in [
            (&[0x8b, 0x07][..], 0x4433_2281, 0, vec![]),       // mov eax, [rdi]
            (&[0x8a, 0x07], 0x1111_2222_3333_4481, 0, vec![]), // mov al, [rdi]
            (&[0x8a, 0x27], 0x1111_2222_3333_8144, 0, vec![]), // mov ah, [rdi]
            (&[0x0f, 0xb6, 0x07], 0x81, 0, vec![]),            // movzx eax, byte [rdi]
            (&[0x48, 0x0f, 0xbe, 0x07], 0xffff_ffff_ffff_ff81, 0, vec![]), // movsx rax, byte [rdi]
            (&[0x66, 0x0f, 0xbe, 0x07], 0x1111_2222_3333_ff81, 0, vec![]), // movsx ax, byte [rdi]
            (&[0x89, 0x07], RAX, 0, vec![0x3333_4444]),        // mov [rdi], eax
            (&[0x88, 0x27], RAX, 0, vec![0x44]),               // mov [rdi], ah
            (&[0x48, 0xc7, 0x07, 0xff, 0xff, 0xff, 0xff], RAX, 0, vec![u64::MAX]), // mov qword [rdi], -1
            (&[0x87, 0x07], 0x4433_2281, 0, vec![0x3333_4444]), // xchg [rdi], eax
            (&[0x83, 0x0f, 0x02], RAX, 0, vec![0x4433_2283]),  // or dword [rdi], 2
            (&[0x23, 0x07], 0x0033_0000, 0x4, vec![]),         // and eax, [rdi]
            (&[0xf6, 0x07, 0x80], RAX, 0x80, vec![]),          // test byte [rdi], 0x80
            (&[0x38, 0x07], RAX, 0x810, vec![]),               // cmp [rdi], al
            (&[0x3a, 0x07], RAX, 0x885, vec![]),               // cmp al, [rdi]
        ] {
            let (found_rax, found_flags, found_written) = run(bytes);
            assert_eq!((found_rax, found_written), (rax, written), "{bytes:x?}");
            assert_eq!(found_flags, flags, "{bytes:x?} {found_flags:#x}");
        }
    }
}
