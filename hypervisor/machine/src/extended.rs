//! Processor state that no control block switches: x87 to AVX, XCR0, DR0–DR3, TSC_AUX.
//!
//! The hypervisor is built without x87 and SIMD code, so a guest's values stay in the processor while its
//! virtual processor is there; they change hands only when another one takes the processor. The first
//! hand-over gives every register its reset value, so that nothing of whoever ran before is left to read.
//!
//! What guests are never offered needs no switching: components of XCR0 beyond AVX cannot be selected, XSS
//! stays zero, and CR4.PKE cannot be set, without which PKRU has no effect and no instruction reaches it.
#![expect(unsafe_code, reason = "state is loaded by instructions that need features which CPUID reports")]
// UNSAFETY: each instruction is used only where CPUID reports it.

use core::arch::asm;

use dolmen_arch::bits::low32;
use dolmen_arch::cpuid::CpuidSource;
use dolmen_arch::msr;
use dolmen_arch::register::{Cr0, Cr4};
use dolmen_vm::cpuid::GUEST_XCR0;

use crate::cpu::{self, ThisCpu};
use crate::register as msr_access;

const FEATURES: u32 = 1;
const ECX_XSAVE: u32 = 1 << 26;
const EXTENDED_FEATURES: u32 = 0x8000_0001;
const EDX_RDTSCP: u32 = 1 << 27;
const XSAVE_LEAF: u32 = 0xd;
const EAX_XSAVES: u32 = 1 << 3;
const X87: u64 = 1;

/// Bytes of an XSAVE image of x87, SSE and AVX: legacy area, header, upper halves (APM vol. 2, 11.5.2).
const IMAGE_BYTES: usize = 512 + 64 + 256;

#[repr(C, align(64))]
struct Image([u8; IMAGE_BYTES]);

impl Image {
    /// Reset values (APM vol. 2, table 14-1): a header of zeroes says that every component has its initial
    /// value; FXRSTOR takes FCW from the image, and both take MXCSR, of which zero would unmask exceptions.
    fn initial() -> Self {
        let mut image = Self([0; IMAGE_BYTES]);
        image.0[..2].copy_from_slice(&0x37fu16.to_le_bytes());
        image.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        image
    }
}

/// What processors have of it; all of a machine have the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// XCR0 bits that guests may set; 0 without XSAVE.
    xcr0_mask: u64,
    has_xsaves: bool,
    has_tsc_aux: bool,
}

impl Features {
    /// Reads what this processor has.
    pub(crate) fn detect() -> Self {
        let has_xsave = ThisCpu.leaf(FEATURES, 0).ecx & ECX_XSAVE != 0;
        let exists = u64::from(ThisCpu.leaf(XSAVE_LEAF, 0).eax);
        Self {
            xcr0_mask: if has_xsave { exists & GUEST_XCR0 | X87 } else { 0 },
            has_xsaves: has_xsave && ThisCpu.leaf(XSAVE_LEAF, 1).eax & EAX_XSAVES != 0,
            has_tsc_aux: ThisCpu.leaf(EXTENDED_FEATURES, 0).edx & EDX_RDTSCP != 0,
        }
    }

    /// Lets this processor switch the state.
    pub(crate) fn prepare(self) {
        let cr0 = Cr0::from_bits_retain(cpu::read_cr0()).difference(Cr0::TS.union(Cr0::EM)).union(Cr0::MP);
        // SAFETY: TS and EM only make x87 instructions fault; paging and protection are untouched.
        unsafe { cpu::write_cr0(cr0.bits()) };
        let save = if self.xcr0_mask == 0 { Cr4::empty() } else { Cr4::OSXSAVE };
        let cr4 = Cr4::from_bits_retain(cpu::read_cr4()) | Cr4::OSFXSR | Cr4::OSXMMEXCPT | save;
        // SAFETY: x86-64 has FXSAVE and SSE; OSXSAVE is set only where CPUID reports XSAVE.
        unsafe { cpu::write_cr4(cr4.bits()) };
        if self.has_xsaves {
            // SAFETY: CPUID reports XSAVES, and with it this MSR; 0 selects nothing.
            unsafe { msr_access::write(msr::XSS, 0) };
        }
    }

    /// XCR0, which the guest may have changed without an exit; 0 without XSAVE.
    fn read_xcr0(self) -> u64 {
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
    fn write_xcr0(self, value: u64) {
        let value = value & self.xcr0_mask | X87;
        if self.xcr0_mask == 0 {
            return;
        }
        // SAFETY: OSXSAVE is set; the value selects x87 and existing components only. The callers keep AVX
        // out without SSE: the exit policy checks, and the whole mask has both or neither.
        unsafe {
            asm!("xsetbv", in("ecx") 0, in("eax") low32(value), in("edx") low32(value >> 32),
                 options(nostack, nomem, preserves_flags));
        }
    }
}

/// The state of one virtual processor. While it is loaded, the registers hold it and this is out of date.
pub(crate) struct Extended {
    features: Features,
    image: Image,
    xcr0: u64,
    addresses: [u64; 4],
    tsc_aux: u64,
    is_loaded: bool,
}

impl Extended {
    /// Reset values.
    pub(crate) fn new(features: Features) -> Self {
        Self { features, image: Image::initial(), xcr0: X87, addresses: [0; 4], tsc_aux: 0, is_loaded: false }
    }

    /// Puts the state into the registers, unless they hold it still.
    pub(crate) fn load(&mut self, still_there: bool) {
        self.is_loaded = true;
        if still_there {
            return;
        }
        self.load_vectors();
        self.load_addresses();
        self.features.write_xcr0(self.xcr0);
        self.write_tsc_aux(self.tsc_aux);
    }

    /// Takes the state out of the registers, which go on holding it.
    pub(crate) fn save(&mut self) {
        if !self.is_loaded {
            return;
        }
        self.xcr0 = self.features.read_xcr0();
        self.save_vectors();
        self.save_addresses();
        self.features.write_xcr0(self.xcr0);
        self.is_loaded = false;
    }

    /// Gives everything its reset value. Whatever the registers hold is no longer the state.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.features);
    }

    /// Puts the image into the registers; XCR0 selects everything afterwards.
    fn load_vectors(&mut self) {
        // SAFETY: FNINIT only resets the x87 registers, which no host code uses. Some processors leave the
        // addresses of the last x87 instruction alone when an image without an exception is loaded.
        unsafe { asm!("fninit", options(nostack, nomem)) };
        if self.features.xcr0_mask == 0 {
            // SAFETY: OSFXSR is set; the image is aligned, of 512 bytes and more, and holds what FXSAVE
            // stored or reset values, so that MXCSR is valid.
            unsafe { asm!("fxrstor64 [{}]", in(reg) &raw const self.image, options(nostack, readonly)) };
            return;
        }
        self.features.write_xcr0(self.features.xcr0_mask);
        // SAFETY: OSXSAVE is set and XCR0 selects x87, SSE and AVX at most, for which the image has room; it
        // is 64-byte aligned and holds what XSAVE stored or reset values, so that header and MXCSR are valid.
        unsafe {
            asm!("xrstor64 [{}]", in(reg) &raw const self.image, in("eax") u32::MAX, in("edx") u32::MAX,
                 options(nostack, readonly));
        }
    }

    /// Takes the registers into the image, whatever the guest's XCR0 selects: values stay in components that
    /// it has switched off. XCR0 selects everything afterwards.
    fn save_vectors(&mut self) {
        let image = &raw mut self.image;
        if self.features.xcr0_mask == 0 {
            // SAFETY: OSFXSR is set; the image is ours, aligned, and has 512 bytes.
            unsafe { asm!("fxsave64 [{}]", in(reg) image, options(nostack)) };
            return;
        }
        self.features.write_xcr0(self.features.xcr0_mask);
        // SAFETY: as in `load_vectors`; the image is ours.
        unsafe {
            asm!("xsave64 [{}]", in(reg) image, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack));
        }
    }

    /// DR0–DR3.
    fn load_addresses(&self) {
        let [a, b, c, d] = self.addresses;
        // SAFETY: DR0–DR3 are addresses without effect while DR7 enables none of them, as in the host.
        unsafe {
            asm!("mov dr0, {0}", "mov dr1, {1}", "mov dr2, {2}", "mov dr3, {3}",
                 in(reg) a, in(reg) b, in(reg) c, in(reg) d, options(nostack, nomem, preserves_flags));
        }
    }

    fn save_addresses(&mut self) {
        let (a, b, c, d);
        // SAFETY: reading DR0–DR3 at CPL 0 has no side effect; DR7.GD is clear in the host.
        unsafe {
            asm!("mov {0}, dr0", "mov {1}, dr1", "mov {2}, dr2", "mov {3}, dr3",
                 out(reg) a, out(reg) b, out(reg) c, out(reg) d, options(nostack, nomem, preserves_flags));
        }
        self.addresses = [a, b, c, d];
    }

    /// DR0–DR3 are zero after INIT (APM vol. 2, table 14-1); what else is here stays.
    pub(crate) fn clear_addresses(&mut self) {
        self.addresses = [0; 4];
        if self.is_loaded {
            self.load_addresses();
        }
    }

    /// XCR0 bits a guest may set.
    pub(crate) const fn xcr0_mask(&self) -> u64 {
        self.features.xcr0_mask
    }

    /// XCR0 as the guest has it.
    pub(crate) fn read_xcr0(&self) -> u64 {
        if self.is_loaded { self.features.read_xcr0() } else { self.xcr0 }
    }

    /// Sets XCR0.
    pub(crate) fn write_xcr0(&mut self, value: u64) {
        self.xcr0 = value & self.features.xcr0_mask | X87;
        if self.is_loaded {
            self.features.write_xcr0(value);
        }
    }

    /// TSC_AUX as the guest set it.
    pub(crate) const fn tsc_aux(&self) -> u64 {
        self.tsc_aux
    }

    /// Sets TSC_AUX, which RDTSCP gives the guest.
    pub(crate) fn write_tsc_aux(&mut self, value: u64) {
        self.tsc_aux = u64::from(low32(value));
        if self.is_loaded && self.features.has_tsc_aux {
            // SAFETY: CPUID reports RDTSCP, and with it this MSR; the upper half is zero, as it must be.
            unsafe { msr_access::write(msr::TSC_AUX, self.tsc_aux) };
        }
    }
}

impl core::fmt::Debug for Extended {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Extended").field("xcr0", &self.xcr0).finish_non_exhaustive()
    }
}
