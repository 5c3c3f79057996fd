//! Processor state that no control block switches: x87 to AVX, XCR0, DR0–DR3, TSC_AUX.
//!
//! The hypervisor is built without x87 and SIMD code, so the guest's values stay in the processor while its
//! virtual processor is the only one here; they are set to their reset values before it first runs, so that
//! nothing of whatever ran before is left for it to read.
#![expect(unsafe_code, reason = "state is loaded by instructions that need features which CPUID reports")]
// UNSAFETY: each instruction is used only where CPUID reports it.

use core::arch::asm;

use dolmen_arch::bits::low32;
use dolmen_arch::cpuid::CpuidSource;
use dolmen_arch::msr;
use dolmen_arch::register::{Cr0, Cr4};

use super::enable::ThisCpu;
use super::msr as msr_access;
use crate::cpu;

const FEATURES: u32 = 1;
const ECX_XSAVE: u32 = 1 << 26;
const EXTENDED_FEATURES: u32 = 0x8000_0001;
const EDX_RDTSCP: u32 = 1 << 27;
const XSAVE_LEAF: u32 = 0xd;
const X87: u64 = 1;

/// Bytes of an image that is larger than any that XCR0 can select here; checked against CPUID.
const IMAGE_BYTES: usize = 4096;

#[repr(C, align(64))]
struct Image([u8; IMAGE_BYTES]);

/// An image of zeroes: its header says that every component has its initial value.
static INITIAL: Image = Image([0; IMAGE_BYTES]);

/// What this processor has of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extended {
    /// XCR0 bits that exist; 0 without XSAVE.
    xcr0_mask: u64,
    has_tsc_aux: bool,
    tsc_aux: u64,
}

impl Extended {
    /// Gives every register its reset value.
    pub(super) fn initialise() -> Self {
        let has_xsave = ThisCpu.leaf(FEATURES, 0).ecx & ECX_XSAVE != 0;
        let leaf = ThisCpu.leaf(XSAVE_LEAF, 0);
        let xcr0_mask = if has_xsave { u64::from(leaf.edx) << 32 | u64::from(leaf.eax) } else { 0 };
        let mut state = Self {
            xcr0_mask,
            has_tsc_aux: ThisCpu.leaf(EXTENDED_FEATURES, 0).edx & EDX_RDTSCP != 0,
            tsc_aux: 0,
        };
        let cr0 = Cr0::from_bits_retain(cpu::read_cr0()).difference(Cr0::TS.union(Cr0::EM)).union(Cr0::MP);
        // SAFETY: TS and EM only make x87 instructions fault; paging and protection are untouched.
        unsafe { cpu::write_cr0(cr0.bits()) };
        let save = if has_xsave { Cr4::OSXSAVE } else { Cr4::empty() };
        let cr4 = Cr4::from_bits_retain(cpu::read_cr4()) | Cr4::OSFXSR | Cr4::OSXMMEXCPT | save;
        // SAFETY: x86-64 has FXSAVE and SSE; OSXSAVE is set only where CPUID reports XSAVE.
        unsafe { cpu::write_cr4(cr4.bits()) };
        state.clear_vector_state();
        state.clear_debug_addresses();
        state.write_tsc_aux(0);
        state
    }

    fn clear_vector_state(&mut self) {
        if self.xcr0_mask == 0 {
            let mut image = Image([0; IMAGE_BYTES]);
            // FCW and MXCSR after reset (APM vol. 2, table 14-1); zero MXCSR would unmask exceptions.
            image.0[..2].copy_from_slice(&0x37fu16.to_le_bytes());
            image.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
            // SAFETY: OSFXSR is set; the image is 16-byte aligned and 512 bytes are there, MXCSR valid.
            unsafe { asm!("fxrstor64 [{}]", in(reg) &raw const image, options(nostack, readonly)) };
            return;
        }
        let size = ThisCpu.leaf(XSAVE_LEAF, 0).ecx;
        assert!(usize::try_from(size).is_ok_and(|size| size <= IMAGE_BYTES), "XSAVE image fits");
        self.write_xcr0(self.xcr0_mask);
        // SAFETY: OSXSAVE is set and XCR0 selects only components that exist; the image is 64-byte aligned and
        // large enough; an all-zero header restores initial values and reads nothing else but MXCSR, which 0
        // is valid for and which the next instruction sets.
        unsafe {
            asm!("xrstor64 [{}]", in(reg) &raw const INITIAL, in("eax") u32::MAX, in("edx") u32::MAX,
                 options(nostack, readonly));
        }
        let mxcsr = 0x1f80u32;
        // SAFETY: OSFXSR is set; the value is MXCSR's reset value.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const mxcsr, options(nostack, readonly)) };
        // SAFETY: FNINIT only resets the x87 registers, which no host code uses.
        unsafe { asm!("fninit", options(nostack, nomem)) };
        self.write_xcr0(X87);
    }

    fn clear_debug_addresses(self) {
        // SAFETY: DR0–DR3 are addresses without effect while DR7 enables none of them, as in the host.
        unsafe {
            asm!("mov dr0, {0}", "mov dr1, {0}", "mov dr2, {0}", "mov dr3, {0}", in(reg) 0u64,
                 options(nostack, nomem, preserves_flags));
        }
    }

    /// XCR0 bits a guest may set.
    pub(super) const fn xcr0_mask(self) -> u64 {
        self.xcr0_mask
    }

    /// XCR0, which the guest may have changed without an exit; 0 without XSAVE.
    pub(super) fn read_xcr0(self) -> u64 {
        if self.xcr0_mask == 0 {
            return 0;
        }
        let (low, high): (u32, u32);
        // SAFETY: OSXSAVE is set in the host's CR4, and index 0 exists.
        unsafe {
            asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high,
                 options(nostack, nomem, preserves_flags));
        }
        u64::from(high) << 32 | u64::from(low)
    }

    /// Sets XCR0; components that do not exist are left out, and nothing happens without XSAVE.
    pub(super) fn write_xcr0(self, value: u64) {
        let value = value & self.xcr0_mask | X87;
        if self.xcr0_mask == 0 {
            return;
        }
        // SAFETY: OSXSAVE is set; the value selects x87 and existing components only. The callers keep AVX
        // out without SSE: the exit policy checks, and `initialise` sets all.
        unsafe {
            asm!("xsetbv", in("ecx") 0, in("eax") low32(value), in("edx") low32(value >> 32),
                 options(nostack, nomem, preserves_flags));
        }
    }

    /// TSC_AUX as the guest set it.
    pub(super) const fn tsc_aux(self) -> u64 {
        self.tsc_aux
    }

    /// Sets TSC_AUX, which RDTSCP gives the guest.
    pub(super) fn write_tsc_aux(&mut self, value: u64) {
        self.tsc_aux = u64::from(low32(value));
        if self.has_tsc_aux {
            // SAFETY: CPUID reports RDTSCP, and with it this MSR; the upper half is zero, as it must be.
            unsafe { msr_access::write(msr::TSC_AUX, self.tsc_aux) };
        }
    }
}
