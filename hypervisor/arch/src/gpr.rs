//! General-purpose registers of a guest, by name and by encoding.

use crate::bits::low_bytes;

/// One general-purpose register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gpr {
    /// RAX.
    Rax,
    /// RCX.
    Rcx,
    /// RDX.
    Rdx,
    /// RBX.
    Rbx,
    /// RSP.
    Rsp,
    /// RBP.
    Rbp,
    /// RSI.
    Rsi,
    /// RDI.
    Rdi,
    /// R8.
    R8,
    /// R9.
    R9,
    /// R10.
    R10,
    /// R11.
    R11,
    /// R12.
    R12,
    /// R13.
    R13,
    /// R14.
    R14,
    /// R15.
    R15,
}

impl Gpr {
    /// The register with a number as instructions encode it; only the low four bits count.
    pub const fn from_encoding(number: u8) -> Self {
        match number & 0xf {
            0 => Self::Rax,
            1 => Self::Rcx,
            2 => Self::Rdx,
            3 => Self::Rbx,
            4 => Self::Rsp,
            5 => Self::Rbp,
            6 => Self::Rsi,
            7 => Self::Rdi,
            8 => Self::R8,
            9 => Self::R9,
            10 => Self::R10,
            11 => Self::R11,
            12 => Self::R12,
            13 => Self::R13,
            14 => Self::R14,
            _ => Self::R15,
        }
    }
}

/// The sixteen general-purpose registers, in encoding order; world switches use the offsets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "a register's name says it")]
pub struct Gprs {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}

impl Gprs {
    /// The whole register.
    pub const fn read(&self, register: Gpr) -> u64 {
        match register {
            Gpr::Rax => self.rax,
            Gpr::Rcx => self.rcx,
            Gpr::Rdx => self.rdx,
            Gpr::Rbx => self.rbx,
            Gpr::Rsp => self.rsp,
            Gpr::Rbp => self.rbp,
            Gpr::Rsi => self.rsi,
            Gpr::Rdi => self.rdi,
            Gpr::R8 => self.r8,
            Gpr::R9 => self.r9,
            Gpr::R10 => self.r10,
            Gpr::R11 => self.r11,
            Gpr::R12 => self.r12,
            Gpr::R13 => self.r13,
            Gpr::R14 => self.r14,
            Gpr::R15 => self.r15,
        }
    }

    /// Sets the whole register.
    pub const fn write(&mut self, register: Gpr, value: u64) {
        let slot = match register {
            Gpr::Rax => &mut self.rax,
            Gpr::Rcx => &mut self.rcx,
            Gpr::Rdx => &mut self.rdx,
            Gpr::Rbx => &mut self.rbx,
            Gpr::Rsp => &mut self.rsp,
            Gpr::Rbp => &mut self.rbp,
            Gpr::Rsi => &mut self.rsi,
            Gpr::Rdi => &mut self.rdi,
            Gpr::R8 => &mut self.r8,
            Gpr::R9 => &mut self.r9,
            Gpr::R10 => &mut self.r10,
            Gpr::R11 => &mut self.r11,
            Gpr::R12 => &mut self.r12,
            Gpr::R13 => &mut self.r13,
            Gpr::R14 => &mut self.r14,
            Gpr::R15 => &mut self.r15,
        };
        *slot = value;
    }

    /// Sets the low `bytes` bytes as an instruction of that operand size does: 4 bytes clear the upper
    /// half, 1 and 2 keep the rest (APM vol. 1, 3.1.2.3).
    pub const fn write_part(&mut self, register: Gpr, bytes: u8, value: u64) {
        let merged = match bytes {
            1 => (self.read(register) & !0xff) | low_bytes(value, 1),
            2 => (self.read(register) & !0xffff) | low_bytes(value, 2),
            4 => low_bytes(value, 4),
            _ => value,
        };
        self.write(register, merged);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_encoding_reads_back_what_was_written_through_it() {
        let mut gprs = Gprs::default();
        for number in 0..16u8 {
            gprs.write(Gpr::from_encoding(number), u64::from(number) + 100);
        }
        for number in 0..16u8 {
            assert_eq!(gprs.read(Gpr::from_encoding(number)), u64::from(number) + 100);
        }
        assert_eq!((gprs.rax, gprs.rsp, gprs.r15), (100, 104, 115));
    }

    #[test]
    fn partial_writes_merge_as_the_processor_does() {
        for (bytes, want) in [
            (1, 0x1111_2222_3333_44dd),
            (2, 0x1111_2222_3333_ccdd),
            (4, 0xaabb_ccdd),
            (8, 0xff00_0000_aabb_ccdd),
        ] {
            let mut gprs = Gprs { rax: 0x1111_2222_3333_4444, ..Gprs::default() };
            gprs.write_part(Gpr::Rax, bytes, 0xff00_0000_aabb_ccdd);
            assert_eq!(gprs.rax, want, "{bytes}");
        }
    }
}
