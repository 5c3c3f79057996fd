//! Decoder of instructions that touch device memory.
//!
//! Where the access went is known from the exit, so the memory operand is only measured, not computed. What is
//! decoded are the moves and the arithmetic that compilers make of loads, stores and read-modify-writes of a
//! volatile variable: MOV, MOVZX, MOVSX, XCHG, TEST and the eight operations of the first opcode rows, in 16-,
//! 32- and 64-bit code. Everything else is an error. Encodings: APM vol. 3, 1.2 to 1.5 and appendix A.

mod compute;
mod perform;

use dolmen_arch::Gpr;
use dolmen_arch::instruction::{CodeSize, DecodeError, InstructionLength, MAX_LENGTH};

pub use compute::{Computed, STATUS_FLAGS, compute};
pub use perform::DeviceWord;

/// A general-purpose register, or a part of it, as an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which register.
    pub gpr: Gpr,
    /// Bits 15:8 of it: AH, CH, DH, BH.
    pub is_high_byte: bool,
}

/// The operand that is not the device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// A register.
    Register(Part),
    /// An immediate value, sign-extended.
    Immediate(u64),
}

/// An operation of two operands that sets flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the mnemonic says it")]
pub enum Arithmetic {
    Add,
    Or,
    AddWithCarry,
    SubtractWithBorrow,
    And,
    Subtract,
    Xor,
}

impl Arithmetic {
    /// The operation of an opcode row or of a ModRM byte's reg field; 7, which is CMP, has none of its own.
    const fn of(number: u8) -> Self {
        match number & 7 {
            0 => Self::Add,
            1 => Self::Or,
            2 => Self::AddWithCarry,
            3 => Self::SubtractWithBorrow,
            4 => Self::And,
            6 => Self::Xor,
            _ => Self::Subtract,
        }
    }
}

/// What an instruction does with device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Register := memory, extended to `bytes`.
    Load {
        /// Where to.
        to: Part,
        /// Bytes of the register that are written.
        bytes: u8,
        /// Copies of the sign bit fill the rest, not zeroes.
        is_signed: bool,
    },
    /// Memory := operand.
    Store(Operand),
    /// Memory and register change places.
    Exchange(Part),
    /// Memory := memory op operand, and flags.
    Modify(Arithmetic, Operand),
    /// Register := register op memory, and flags.
    Combine(Arithmetic, Part),
    /// Flags of memory op operand: CMP, TEST.
    Test(Arithmetic, Operand),
    /// Flags of register - memory: CMP.
    TestRegister(Part),
}

/// One instruction that touches device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryAccess {
    /// What it does.
    pub operation: Operation,
    /// Bytes of memory it reads, writes, or both: 1, 2, 4 or 8.
    pub bytes: u8,
    /// How long the instruction is.
    pub length: InstructionLength,
}

/// Decodes the instruction at the start of `bytes`, at most 15 of which count.
///
/// # Errors
/// [`DecodeError::Truncated`] when more bytes are needed, [`DecodeError::Other`] for everything that is not
/// decoded here.
pub fn decode(bytes: &[u8], size: CodeSize) -> Result<MemoryAccess, DecodeError> {
    let mut reader = Reader { bytes, taken: 0 };
    let (form, opcode) = prefixes(&mut reader, size)?;
    let (operation, bytes) =
        if opcode == 0x0f { extended(&mut reader, &form)? } else { one_byte(&mut reader, &form, opcode)? };
    if form.lock && !matches!(operation, Operation::Modify(..) | Operation::Exchange(_)) {
        return Err(DecodeError::Other); // #UD, so it did not exit
    }
    let length = InstructionLength::new(u64::from(reader.taken)).ok_or(DecodeError::Other)?;
    Ok(MemoryAccess { operation, bytes, length })
}

struct Reader<'a> {
    bytes: &'a [u8],
    taken: u8,
}

impl Reader<'_> {
    fn next(&mut self) -> Result<u8, DecodeError> {
        if usize::from(self.taken) >= MAX_LENGTH {
            return Err(DecodeError::Other);
        }
        let byte = *self.bytes.get(usize::from(self.taken)).ok_or(DecodeError::Truncated)?;
        self.taken = self.taken.saturating_add(1);
        Ok(byte)
    }

    fn skip(&mut self, count: u8) -> Result<(), DecodeError> {
        for _ in 0..count {
            self.next()?;
        }
        Ok(())
    }

    /// A little-endian signed number of 1, 2 or 4 bytes.
    fn signed(&mut self, count: u8) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..count.min(8)).map(|index| u32::from(index) << 3) {
            value |= u64::from(self.next()?).wrapping_shl(shift);
        }
        Ok(compute::sign_extended(value, count))
    }
}

/// What the prefixes and the code segment say.
struct Form {
    size: CodeSize,
    operand_prefix: bool,
    address_prefix: bool,
    lock: bool,
    rex: Option<u8>,
}

impl Form {
    /// Operand bytes of an instruction that is not of bytes.
    fn operand_bytes(&self) -> u8 {
        match (self.size, self.operand_prefix) {
            _ if self.rex.is_some_and(|rex| rex & 8 != 0) => 8,
            (CodeSize::Bits16, false) | (CodeSize::Bits32 | CodeSize::Bits64, true) => 2,
            (CodeSize::Bits16, true) | (CodeSize::Bits32 | CodeSize::Bits64, false) => 4,
        }
    }

    /// Bit 0 of most opcodes: bytes, or the operand size.
    fn bytes_of(&self, opcode: u8) -> u8 {
        if opcode & 1 == 0 { 1 } else { self.operand_bytes() }
    }

    const fn address_bytes(&self) -> u8 {
        match (self.size, self.address_prefix) {
            (CodeSize::Bits64, false) => 8,
            (CodeSize::Bits64 | CodeSize::Bits16, true) | (CodeSize::Bits32, false) => 4,
            (CodeSize::Bits32, true) | (CodeSize::Bits16, false) => 2,
        }
    }

    /// The register of a ModRM byte's reg field. Without REX, byte registers 4 to 7 are high bytes.
    const fn register(&self, modrm: u8, bytes: u8) -> Part {
        let number = (modrm >> 3) & 7;
        match self.rex {
            None if bytes == 1 && number >= 4 => {
                Part { gpr: Gpr::from_encoding(number & 3), is_high_byte: true }
            }
            Some(rex) if rex & 4 != 0 => Part { gpr: Gpr::from_encoding(number | 8), is_high_byte: false },
            _ => Part { gpr: Gpr::from_encoding(number), is_high_byte: false },
        }
    }
}

/// Reads prefixes up to and with the first opcode byte. A REX prefix counts only directly before it. Segment
/// overrides say nothing of interest; repeat prefixes make other instructions.
fn prefixes(reader: &mut Reader<'_>, size: CodeSize) -> Result<(Form, u8), DecodeError> {
    let mut form = Form { size, operand_prefix: false, address_prefix: false, lock: false, rex: None };
    loop {
        let byte = reader.next()?;
        let is_rex = size == CodeSize::Bits64 && byte & 0xf0 == 0x40;
        match byte {
            0x66 => form.operand_prefix = true,
            0x67 => form.address_prefix = true,
            0xf0 => form.lock = true,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => {}
            0xf2 | 0xf3 => return Err(DecodeError::Other),
            _ if is_rex => {}
            opcode => return Ok((form, opcode)),
        }
        form.rex = is_rex.then_some(byte);
    }
}

/// Reads a ModRM byte with SIB and displacement; an operand that is a register is none in memory.
fn memory_operand(reader: &mut Reader<'_>, form: &Form) -> Result<u8, DecodeError> {
    let modrm = reader.next()?;
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let wide = form.address_bytes() > 2;
    let base = if wide && mode != 3 && rm == 4 { reader.next()? & 7 } else { rm };
    let displacement = match (mode, wide, base) {
        (3, ..) => return Err(DecodeError::Other),
        (0, true, 5) | (2, true, _) => 4,
        (0, false, 6) | (2, false, _) => 2,
        (1, ..) => 1,
        _ => 0,
    };
    reader.skip(displacement)?;
    Ok(modrm)
}

fn one_byte(reader: &mut Reader<'_>, form: &Form, opcode: u8) -> Result<(Operation, u8), DecodeError> {
    let bytes = form.bytes_of(opcode);
    let accumulator = Part { gpr: Gpr::Rax, is_high_byte: false };
    let operation = match opcode {
        0x00..=0x3f if opcode & 7 < 4 => {
            let register = form.register(memory_operand(reader, form)?, bytes);
            arithmetic(opcode >> 3, opcode & 2 != 0, register)
        }
        0x63 if form.size == CodeSize::Bits64 => {
            let to_bytes = form.operand_bytes();
            let to = form.register(memory_operand(reader, form)?, to_bytes);
            // Without REX.W it is a plain move of the operand size.
            return Ok((Operation::Load { to, bytes: to_bytes, is_signed: true }, to_bytes.min(4)));
        }
        0x80..=0x83 if opcode != 0x82 || form.size != CodeSize::Bits64 => {
            let modrm = memory_operand(reader, form)?;
            let size = if opcode == 0x81 { bytes.min(4) } else { 1 };
            let with = Operand::Immediate(reader.signed(size)?);
            match (modrm >> 3) & 7 {
                7 => Operation::Test(Arithmetic::Subtract, with),
                number => Operation::Modify(Arithmetic::of(number), with),
            }
        }
        0x84..=0x8b => {
            let register = form.register(memory_operand(reader, form)?, bytes);
            match opcode {
                0x84 | 0x85 => Operation::Test(Arithmetic::And, Operand::Register(register)),
                0x86 | 0x87 => Operation::Exchange(register),
                0x88 | 0x89 => Operation::Store(Operand::Register(register)),
                _ => Operation::Load { to: register, bytes, is_signed: false },
            }
        }
        0xa0..=0xa3 => {
            reader.skip(form.address_bytes())?;
            if opcode & 2 == 0 {
                Operation::Load { to: accumulator, bytes, is_signed: false }
            } else {
                Operation::Store(Operand::Register(accumulator))
            }
        }
        0xc6 | 0xc7 | 0xf6 | 0xf7 => {
            let modrm = memory_operand(reader, form)?;
            let is_store = opcode < 0xf0;
            let last = if is_store { 0 } else { 1 }; // TEST has two encodings
            if (modrm >> 3) & 7 > last {
                return Err(DecodeError::Other);
            }
            let with = Operand::Immediate(reader.signed(bytes.min(4))?);
            if is_store { Operation::Store(with) } else { Operation::Test(Arithmetic::And, with) }
        }
        _ => return Err(DecodeError::Other),
    };
    Ok((operation, bytes))
}

/// The operation of one of the first eight opcode rows.
const fn arithmetic(row: u8, to_register: bool, register: Part) -> Operation {
    let operation = Arithmetic::of(row);
    match (row & 7 == 7, to_register) {
        (true, true) => Operation::TestRegister(register),
        (true, false) => Operation::Test(operation, Operand::Register(register)),
        (false, true) => Operation::Combine(operation, register),
        (false, false) => Operation::Modify(operation, Operand::Register(register)),
    }
}

/// MOVZX and MOVSX.
fn extended(reader: &mut Reader<'_>, form: &Form) -> Result<(Operation, u8), DecodeError> {
    let opcode = reader.next()?;
    let (from_bytes, is_signed) = match opcode {
        0xb6 => (1, false),
        0xb7 => (2, false),
        0xbe => (1, true),
        0xbf => (2, true),
        _ => return Err(DecodeError::Other),
    };
    let bytes = form.operand_bytes();
    let to = form.register(memory_operand(reader, form)?, bytes);
    Ok((Operation::Load { to, bytes, is_signed }, from_bytes))
}

#[cfg(test)]
mod tests;
