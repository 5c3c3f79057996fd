//! Calls straight from ring 0: for kernels, and for guests that are nothing else.
//!
//! UNSAFETY: one instruction that lets the hypervisor read and write memory by its guest-physical address.
#![expect(unsafe_code, reason = "the hypercall instruction, which writes memory by its physical address")]

use core::arch::asm;
use core::arch::x86_64::__cpuid;
use core::convert::Infallible;

use dolmen_abi::{Status, cpuid};

use crate::Transport;

/// Which instruction the processor has for a hypercall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// `VMMCALL` (AMD).
    Vmmcall,
    /// `VMCALL` (Intel).
    Vmcall,
}

impl Instruction {
    /// The instruction to use here; nothing if the hypervisor is not Dolmen.
    pub fn detect() -> Option<Self> {
        const HYPERVISOR_PRESENT: u32 = 1 << 31;
        let intel = cpuid::signature_registers(*b"GenuntelineI");
        let leaf = __cpuid(cpuid::LEAF_SIGNATURE);
        let is_dolmen = __cpuid(1).ecx & HYPERVISOR_PRESENT != 0
            && leaf.eax >= cpuid::LEAF_LAST
            && [leaf.ebx, leaf.ecx, leaf.edx] == cpuid::signature_registers(cpuid::SIGNATURE);
        let vendor = __cpuid(0);
        is_dolmen.then_some(if [vendor.ebx, vendor.ecx, vendor.edx] == intel {
            Self::Vmcall
        } else {
            Self::Vmmcall
        })
    }
}

/// A buffer whose physical address is known.
#[derive(Debug)]
pub struct Bounce {
    bytes: &'static mut [u8],
    physical: u64,
}

impl Bounce {
    /// # Safety
    /// `bytes` is contiguous in guest-physical memory from `physical` on, which is a multiple of 8, and no one
    /// else reads or writes it.
    pub const unsafe fn new(bytes: &'static mut [u8], physical: u64) -> Self {
        Self { bytes, physical }
    }
}

/// Calls by the processor's own instruction, through two buffers of known address.
#[derive(Debug)]
pub struct Direct {
    instruction: Instruction,
    request: Bounce,
    reply: Bounce,
}

impl Direct {
    /// # Safety
    /// The caller is, whenever it makes a call, in 64-bit mode at CPL 0 under Dolmen, and `instruction` is what
    /// [`Instruction::detect`] found.
    pub const unsafe fn new(instruction: Instruction, request: Bounce, reply: Bounce) -> Self {
        Self { instruction, request, reply }
    }
}

impl Transport for Direct {
    type Error = Infallible;

    fn call(
        &mut self,
        number: u32,
        request: &[&[u8]],
        reply: &mut [u8],
    ) -> Result<(Status, usize), Infallible> {
        let mut length: usize = 0;
        for part in request {
            let end = length.saturating_add(part.len());
            let Some(room) = self.request.bytes.get_mut(length..end) else {
                return Ok((Status::BAD_LENGTH, 0));
            };
            room.copy_from_slice(part);
            length = end;
        }
        let capacity = reply.len().min(self.reply.bytes.len());
        let (length, room) = (u64::try_from(length).unwrap_or(0), u64::try_from(capacity).unwrap_or(0));
        // SAFETY: `Direct::new` was promised that the instruction may be used here; `Bounce::new` was promised
        // that `room` bytes from the reply's physical address, all that the hypervisor writes, are the buffer
        // that is borrowed from `self` here, and no one else's.
        let (rax, rdx) = unsafe {
            hypercall(self.instruction, number, [self.request.physical, length, self.reply.physical, room])
        };
        let filled = usize::try_from(rdx).unwrap_or(usize::MAX).min(capacity);
        if let (Some(to), Some(from)) = (reply.get_mut(..filled), self.reply.bytes.get(..filled)) {
            to.copy_from_slice(from);
        }
        Ok((Status::from_rax(rax), filled))
    }

    fn wait(&mut self, _: Status, _: u32) -> Result<(), Infallible> {
        core::hint::spin_loop();
        Ok(())
    }
}

/// RAX and RDX after the call.
///
/// # Safety
/// CPL 0, 64-bit mode, under Dolmen; the `arguments[3]` bytes from guest-physical address `arguments[2]` on are
/// the caller's to have written.
unsafe fn hypercall(instruction: Instruction, number: u32, arguments: [u64; 4]) -> (u64, u64) {
    let [rdi, rsi, rdx, rcx] = arguments;
    let mut rax = u64::from(number);
    let mut written = rdx;
    match instruction {
        // SAFETY: the caller's promise; the hypervisor changes RAX, RDX and the reply, which is why `nomem`
        // is not said.
        Instruction::Vmmcall => unsafe {
            asm!("vmmcall", inout("rax") rax, in("rdi") rdi, in("rsi") rsi, inout("rdx") written, in("rcx") rcx,
                 options(nostack, preserves_flags));
        },
        // SAFETY: as above.
        Instruction::Vmcall => unsafe {
            asm!("vmcall", inout("rax") rax, in("rdi") rdi, in("rsi") rsi, inout("rdx") written, in("rcx") rcx,
                 options(nostack));
        },
    }
    (rax, written)
}
