//! The decoder against another one.

use super::super::*;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use proptest::prelude::*;

/// What the reference decoder says, in our words; `None` for what is none of ours.
fn reference(bytes: &[u8], bitness: u32) -> Option<MemoryAccess> {
    let mut decoder = Decoder::new(bitness, bytes, DecoderOptions::AMD);
    let found = decoder.decode();
    let memory_at = (0..found.op_count()).find(|n| found.op_kind(*n) == OpKind::Memory)?;
    if found.is_invalid() || found.op_count() != 2 || is_repeat(&found) {
        return None;
    }
    let bytes = u8::try_from(found.memory_size().size()).ok()?;
    let other = operand(&found, 1 - memory_at);
    let from_memory = memory_at == 1;
    let operation = match (found.mnemonic(), from_memory, other?) {
        (Mnemonic::Mov, true, (Operand::Register(to), size)) => {
            Operation::Load { to, bytes: size, is_signed: false }
        }
        (Mnemonic::Movzx, true, (Operand::Register(to), size)) => {
            Operation::Load { to, bytes: size, is_signed: false }
        }
        (Mnemonic::Movsx | Mnemonic::Movsxd, true, (Operand::Register(to), size)) => {
            Operation::Load { to, bytes: size, is_signed: true }
        }
        (Mnemonic::Mov, false, (from, _)) => Operation::Store(from),
        (Mnemonic::Xchg, _, (Operand::Register(with), _)) => Operation::Exchange(with),
        (Mnemonic::Test, _, (with, _)) => Operation::Test(Arithmetic::And, with),
        (Mnemonic::Cmp, true, (Operand::Register(with), _)) => Operation::TestRegister(with),
        (Mnemonic::Cmp, false, (with, _)) => Operation::Test(Arithmetic::Subtract, with),
        (mnemonic, true, (Operand::Register(to), _)) => Operation::Combine(arithmetic_of(mnemonic)?, to),
        (mnemonic, false, (with, _)) => Operation::Modify(arithmetic_of(mnemonic)?, with),
        (_, true, (Operand::Immediate(_), _)) => return None,
    };
    let length = InstructionLength::new(found.len() as u64)?;
    Some(MemoryAccess { operation, bytes, length })
}

/// Repeat prefixes are refused here although some instructions ignore them.
fn is_repeat(found: &Instruction) -> bool {
    found.has_rep_prefix()
        || found.has_repne_prefix()
        || found.has_xacquire_prefix()
        || found.has_xrelease_prefix()
}

fn arithmetic_of(mnemonic: Mnemonic) -> Option<Arithmetic> {
    [
        (Mnemonic::Add, Arithmetic::Add),
        (Mnemonic::Or, Arithmetic::Or),
        (Mnemonic::Adc, Arithmetic::AddWithCarry),
        (Mnemonic::Sbb, Arithmetic::SubtractWithBorrow),
        (Mnemonic::And, Arithmetic::And),
        (Mnemonic::Sub, Arithmetic::Subtract),
        (Mnemonic::Xor, Arithmetic::Xor),
    ]
    .into_iter()
    .find_map(|(ours, arithmetic)| (ours == mnemonic).then_some(arithmetic))
}

fn operand(found: &Instruction, at: u32) -> Option<(Operand, u8)> {
    if found.op_kind(at) != OpKind::Register {
        return found.try_immediate(at).ok().map(|value| (Operand::Immediate(value), 0));
    }
    let register = found.op_register(at);
    let is_high_byte = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    let full = register.full_register();
    let number = u8::try_from(full.number()).ok().filter(|_| full.is_gpr64())?;
    let part = Part { gpr: Gpr::from_encoding(number), is_high_byte };
    Some((Operand::Register(part), u8::try_from(register.size()).ok()?))
}

/// Immediates compare by the bytes that count.
fn normalised(mut access: MemoryAccess) -> MemoryAccess {
    let bytes = access.bytes;
    let cut = |operand| match operand {
        Operand::Immediate(value) => Operand::Immediate(dolmen_arch::bits::low_bytes(value, bytes)),
        register @ Operand::Register(_) => register,
    };
    access.operation = match access.operation {
        Operation::Store(operand) => Operation::Store(cut(operand)),
        Operation::Modify(arithmetic, operand) => Operation::Modify(arithmetic, cut(operand)),
        Operation::Test(arithmetic, operand) => Operation::Test(arithmetic, cut(operand)),
        // A load that does not extend is the same with and without a sign.
        Operation::Load { to, bytes: to_bytes, .. } if to_bytes == bytes => {
            Operation::Load { to, bytes: to_bytes, is_signed: false }
        }
        other @ (Operation::Load { .. }
        | Operation::Exchange(_)
        | Operation::Combine(..)
        | Operation::TestRegister(_)) => other,
    };
    access
}

/// Prefixes, an opcode (often one of ours), and noise.
fn instructions() -> impl Strategy<Value = Vec<u8>> {
    let prefix = prop::sample::select(vec![
        0x66u8, 0x67, 0xf0, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x40, 0x41, 0x44, 0x48, 0x4c, 0x4f, 0xf2,
        0xf3,
    ]);
    let opcode = prop_oneof![
        8 => prop::sample::select(vec![
            0x00u8, 0x01, 0x02, 0x03, 0x09, 0x0b, 0x11, 0x13, 0x19, 0x1b, 0x20, 0x21, 0x22, 0x23, 0x29, 0x2b, 0x31,
            0x33, 0x38, 0x39, 0x3a, 0x3b, 0x63, 0x80, 0x81, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b,
            0xa0, 0xa1, 0xa2, 0xa3, 0xc6, 0xc7, 0xf6, 0xf7,
        ]).prop_map(|byte| vec![byte]),
        3 => prop::sample::select(vec![0xb6u8, 0xb7, 0xbe, 0xbf]).prop_map(|byte| vec![0x0f, byte]),
        2 => any::<u8>().prop_map(|byte| vec![byte]),
        1 => any::<u8>().prop_map(|byte| vec![0x0f, byte]),
    ];
    (prop::collection::vec(prefix, 0..4), opcode, prop::collection::vec(any::<u8>(), 16)).prop_map(
        |(mut bytes, opcode, rest)| {
            bytes.extend(opcode);
            bytes.extend(rest);
            bytes.truncate(15);
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]
    #[test]
    fn it_agrees_with_the_reference_decoder(
        bytes in instructions(),
        (size, bitness) in prop::sample::select(vec![
            (CodeSize::Bits64, 64), (CodeSize::Bits32, 32), (CodeSize::Bits16, 16)
        ]),
    ) {
        let ours = decode(&bytes, size).ok().map(normalised);
        prop_assert_eq!(ours, reference(&bytes, bitness).map(normalised), "{:x?} in {}-bit code", bytes, bitness);
    }
}
