//! Decoder of the few instructions that exit: what it is, how long it is.
//!
//! A processor may tell neither the length nor the operands of the instruction that exited, so they are
//! read from guest memory. The guest may have changed the bytes since: the caller compares what it decodes
//! with why the guest exited, and lets the guest run again when they disagree.
//! Encodings: APM vol. 2, chapter 15; APM vol. 3, 1.2 (prefixes) and appendix A (opcodes).

use crate::gpr::Gpr;
use crate::segment::SegmentName;

/// Longest instruction, in bytes (APM vol. 3, 1.1).
pub const MAX_LENGTH: usize = 15;

/// Bytes of an instruction: 1 to 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstructionLength(u8);

impl InstructionLength {
    /// One byte, as HLT without prefixes has.
    pub const ONE: Self = Self(1);

    /// A length, if an instruction can have it.
    pub fn new(bytes: u64) -> Option<Self> {
        match u8::try_from(bytes) {
            Ok(bytes @ 1..=15) => Some(Self(bytes)),
            Ok(_) | Err(_) => None,
        }
    }

    /// The length in bytes.
    pub fn get(self) -> u64 {
        u64::from(self.0)
    }
}

/// Operand and address size that the code segment implies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeSize {
    /// 16-bit.
    Bits16,
    /// 32-bit.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

/// A string port instruction, past what the exit itself tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringPort {
    /// INS, not OUTS.
    pub input: bool,
    /// A repeat prefix stands before it.
    pub repeat: bool,
    /// Bytes of an address: 2, 4 or 8.
    pub address_bytes: u8,
    /// The memory operand's segment; for INS always ES.
    pub segment: SegmentName,
}

/// An instruction that can exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the mnemonic says it")]
pub enum Instruction {
    Cpuid,
    Rdmsr,
    Wrmsr,
    Hlt,
    Vmmcall,
    Xsetbv,
    Invd,
    Wbinvd,
    Rdpmc,
    Pause,
    Clts,
    /// LMSW with a register operand.
    Lmsw(Gpr),
    /// MOV to a control register.
    MovToControl {
        control: u8,
        from: Gpr,
    },
    /// MOV from a control register.
    MovFromControl {
        control: u8,
        to: Gpr,
    },
    /// INS or OUTS.
    StringPort(StringPort),
}

impl Instruction {
    /// How it is encoded without prefixes, lowest byte first, and how long that is; `None` if it has operands.
    pub const fn plain(self) -> Option<(u64, InstructionLength)> {
        match self {
            Self::Cpuid => Some((0xa2_0f, InstructionLength(2))),
            Self::Rdmsr => Some((0x32_0f, InstructionLength(2))),
            Self::Wrmsr => Some((0x30_0f, InstructionLength(2))),
            Self::Hlt => Some((0xf4, InstructionLength(1))),
            Self::Vmmcall => Some((0xd9_01_0f, InstructionLength(3))),
            Self::Xsetbv
            | Self::Invd
            | Self::Wbinvd
            | Self::Rdpmc
            | Self::Pause
            | Self::Clts
            | Self::Lmsw(_)
            | Self::MovToControl { .. }
            | Self::MovFromControl { .. }
            | Self::StringPort(_) => None,
        }
    }
}

/// Why bytes do not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes end inside the instruction.
    Truncated,
    /// Not an instruction of [`Instruction`].
    Other,
}

#[derive(Clone, Copy)]
struct Prefixes {
    address: bool,
    repeat: bool,
    repeat_ne: bool,
    lock: bool,
    rex: u8,
    segment: Option<SegmentName>,
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
}

/// Decodes the instruction at the start of `bytes`, at most 15 of which count.
///
/// # Errors
/// [`DecodeError::Truncated`] when more bytes are needed, [`DecodeError::Other`] for anything that is not
/// an [`Instruction`].
pub fn decode(bytes: &[u8], size: CodeSize) -> Result<(Instruction, InstructionLength), DecodeError> {
    let mut reader = Reader { bytes, taken: 0 };
    let (prefixes, opcode) = prefixes(&mut reader, size)?;
    if prefixes.lock && opcode != 0x0f {
        return Err(DecodeError::Other); // LOCK makes it #UD, so it did not exit
    }
    let instruction = match opcode {
        0x0f => two_byte(&mut reader, prefixes)?,
        0xf4 => Instruction::Hlt,
        0x90 if prefixes.repeat => Instruction::Pause,
        0x6c..=0x6f => Instruction::StringPort(string_port(opcode < 0x6e, prefixes, size)),
        _ => return Err(DecodeError::Other),
    };
    Ok((instruction, InstructionLength(reader.taken)))
}

/// Reads prefixes up to and with the first opcode byte. A REX prefix counts only directly before it.
fn prefixes(reader: &mut Reader<'_>, size: CodeSize) -> Result<(Prefixes, u8), DecodeError> {
    let mut found =
        Prefixes { address: false, repeat: false, repeat_ne: false, lock: false, rex: 0, segment: None };
    loop {
        let byte = reader.next()?;
        let rex = size == CodeSize::Bits64 && byte & 0xf0 == 0x40;
        match byte {
            0x66 => {}
            0x67 => found.address = true,
            0xf0 => found.lock = true,
            0xf2 => found.repeat_ne = true,
            0xf3 => found.repeat = true,
            0x26 => found.segment = Some(SegmentName::Es),
            0x2e => found.segment = Some(SegmentName::Cs),
            0x36 => found.segment = Some(SegmentName::Ss),
            0x3e => found.segment = Some(SegmentName::Ds),
            0x64 => found.segment = Some(SegmentName::Fs),
            0x65 => found.segment = Some(SegmentName::Gs),
            _ if rex => {}
            opcode => return Ok((found, opcode)),
        }
        found.rex = if rex { byte } else { 0 };
    }
}

fn two_byte(reader: &mut Reader<'_>, prefixes: Prefixes) -> Result<Instruction, DecodeError> {
    let opcode = reader.next()?;
    if prefixes.lock && !matches!(opcode, 0x20 | 0x22) {
        return Err(DecodeError::Other);
    }
    Ok(match opcode {
        0x01 => return group7(reader.next()?, prefixes.rex),
        0x06 => Instruction::Clts,
        0x08 => Instruction::Invd,
        0x09 => Instruction::Wbinvd,
        0x30 => Instruction::Wrmsr,
        0x32 => Instruction::Rdmsr,
        0x33 => Instruction::Rdpmc,
        0xa2 => Instruction::Cpuid,
        0x20 | 0x22 => {
            let modrm = reader.next()?;
            // Mode bits are ignored: always registers. LOCK adds 8, AMD's way to CR8 outside 64-bit mode.
            let high = if prefixes.lock || prefixes.rex & 4 != 0 { 8 } else { 0 };
            let control = ((modrm >> 3) & 7) | high;
            let register = general(modrm, prefixes.rex);
            if opcode == 0x22 {
                Instruction::MovToControl { control, from: register }
            } else {
                Instruction::MovFromControl { control, to: register }
            }
        }
        _ => return Err(DecodeError::Other),
    })
}

fn group7(modrm: u8, rex: u8) -> Result<Instruction, DecodeError> {
    match modrm {
        0xd1 => Ok(Instruction::Xsetbv),
        0xd9 => Ok(Instruction::Vmmcall),
        0xf0..=0xf7 => Ok(Instruction::Lmsw(general(modrm, rex))),
        _ => Err(DecodeError::Other),
    }
}

/// The general register of a ModRM byte's r/m field.
const fn general(modrm: u8, rex: u8) -> Gpr {
    let high = if rex & 1 != 0 { 8 } else { 0 };
    Gpr::from_encoding((modrm & 7) | high)
}

fn string_port(input: bool, prefixes: Prefixes, size: CodeSize) -> StringPort {
    let address_bytes = match (size, prefixes.address) {
        (CodeSize::Bits64, false) => 8,
        (CodeSize::Bits64, true) | (CodeSize::Bits32, false) | (CodeSize::Bits16, true) => 4,
        (CodeSize::Bits32, true) | (CodeSize::Bits16, false) => 2,
    };
    let segment = if input { SegmentName::Es } else { prefixes.segment.unwrap_or(SegmentName::Ds) };
    StringPort { input, repeat: prefixes.repeat || prefixes.repeat_ne, address_bytes, segment }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8]) -> Result<(Instruction, u64), DecodeError> {
        decode(bytes, CodeSize::Bits64).map(|(instruction, length)| (instruction, length.get()))
    }

    #[test]
    fn plain_instructions_have_the_lengths_of_the_manual() {
        for (bytes, instruction, length) in [
            (&[0x0f, 0xa2][..], Instruction::Cpuid, 2),
            (&[0x0f, 0x32], Instruction::Rdmsr, 2),
            (&[0x0f, 0x30], Instruction::Wrmsr, 2),
            (&[0xf4], Instruction::Hlt, 1),
            (&[0x0f, 0x01, 0xd9], Instruction::Vmmcall, 3),
            (&[0x0f, 0x01, 0xd1], Instruction::Xsetbv, 3),
            (&[0x0f, 0x08], Instruction::Invd, 2),
            (&[0x0f, 0x09], Instruction::Wbinvd, 2),
            (&[0xf3, 0x0f, 0x09], Instruction::Wbinvd, 3),
            (&[0xf3, 0x90], Instruction::Pause, 2),
            (&[0x0f, 0x33], Instruction::Rdpmc, 2),
            (&[0x0f, 0x06], Instruction::Clts, 2),
            (&[0x0f, 0x01, 0xf1], Instruction::Lmsw(Gpr::Rcx), 3),
            (&[0x0f, 0x22, 0xe0], Instruction::MovToControl { control: 4, from: Gpr::Rax }, 3),
            (&[0x0f, 0x20, 0xd9], Instruction::MovFromControl { control: 3, to: Gpr::Rcx }, 3),
            (&[0x41, 0x0f, 0x22, 0xe7], Instruction::MovToControl { control: 4, from: Gpr::R15 }, 4),
            (&[0x44, 0x0f, 0x22, 0xc0], Instruction::MovToControl { control: 8, from: Gpr::Rax }, 4),
        ] {
            assert_eq!(decoded(bytes), Ok((instruction, length)), "{bytes:x?}");
        }
    }

    #[test]
    fn prefixes_count_and_a_stale_rex_does_not() {
        assert_eq!(decoded(&[0x66, 0x48, 0x0f, 0xa2]), Ok((Instruction::Cpuid, 4)));
        assert_eq!(
            decoded(&[0x41, 0x66, 0x0f, 0x22, 0xe0]),
            Ok((Instruction::MovToControl { control: 4, from: Gpr::Rax }, 5)),
            "a REX prefix before another prefix is void"
        );
        assert_eq!(
            decode(&[0xf0, 0x0f, 0x22, 0xc3], CodeSize::Bits32).unwrap().0,
            Instruction::MovToControl { control: 8, from: Gpr::Rbx }
        );
    }

    #[test]
    fn outside_64_bit_mode_40h_to_4fh_are_no_prefixes() {
        assert_eq!(decode(&[0x48, 0x0f, 0xa2], CodeSize::Bits32), Err(DecodeError::Other));
    }

    #[test]
    fn fifteen_bytes_are_the_limit() {
        let mut bytes = [0x66u8; 16];
        bytes[13..15].copy_from_slice(&[0x0f, 0xa2]);
        assert_eq!(decoded(&bytes), Ok((Instruction::Cpuid, 15)));
        let mut bytes = [0x66u8; 16];
        bytes[14..16].copy_from_slice(&[0x0f, 0xa2]);
        assert_eq!(decoded(&bytes), Err(DecodeError::Other));
        assert_eq!(decoded(&[0x66; 15]), Err(DecodeError::Other));
    }

    #[test]
    fn every_cut_asks_for_more_and_never_guesses() {
        for bytes in [&[0x0f, 0x01, 0xd9][..], &[0x41, 0x0f, 0x22, 0xe7], &[0xf3, 0x6c]] {
            for cut in 0..bytes.len() {
                assert_eq!(decoded(&bytes[..cut]), Err(DecodeError::Truncated), "{bytes:x?} {cut}");
            }
        }
    }

    #[test]
    fn string_ports_tell_repeat_address_size_and_segment() {
        let port = |input, repeat, address_bytes, segment| {
            Instruction::StringPort(StringPort { input, repeat, address_bytes, segment })
        };
        for (bytes, size, want) in [
            (&[0x6c][..], CodeSize::Bits64, port(true, false, 8, SegmentName::Es)),
            (&[0xf3, 0x6e], CodeSize::Bits64, port(false, true, 8, SegmentName::Ds)),
            (&[0x64, 0xf2, 0x6f], CodeSize::Bits64, port(false, true, 8, SegmentName::Fs)),
            (&[0x64, 0x6d], CodeSize::Bits32, port(true, false, 4, SegmentName::Es)),
            (&[0x67, 0x6d], CodeSize::Bits32, port(true, false, 2, SegmentName::Es)),
            (&[0x67, 0x6d], CodeSize::Bits64, port(true, false, 4, SegmentName::Es)),
            (&[0x6e], CodeSize::Bits16, port(false, false, 2, SegmentName::Ds)),
            (&[0x67, 0x2e, 0x6e], CodeSize::Bits16, port(false, false, 4, SegmentName::Cs)),
        ] {
            assert_eq!(decode(bytes, size).unwrap().0, want, "{bytes:x?}");
        }
    }

    #[test]
    fn other_instructions_are_not_taken_for_one_of_ours() {
        for bytes in
            [&[0x90, 0x90][..], &[0x0f, 0x0b], &[0x0f, 0x01, 0xd8], &[0xf0, 0xf4], &[0xf0, 0x0f, 0xa2]]
        {
            assert_eq!(decoded(bytes), Err(DecodeError::Other), "{bytes:x?}");
        }
    }

    #[test]
    fn lengths_outside_1_to_15_do_not_exist() {
        assert_eq!(InstructionLength::new(0), None);
        assert_eq!(InstructionLength::new(16), None);
        assert_eq!(InstructionLength::new(1 << 32 | 2), None);
        assert_eq!(InstructionLength::new(15).unwrap().get(), 15);
    }
}
