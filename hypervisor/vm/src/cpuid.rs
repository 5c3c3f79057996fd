//! What a guest's processor says of itself.
//!
//! One package, one core to each virtual processor, one thread to each core; the last cache level is everybody's.
//!
//! A pure function from the host's answers to the guest's, by allow-list: a leaf that is not named here reads
//! zero, and of the named ones only the bits in the masks below come through. What needs model-specific
//! registers that a guest does not get (MTRRs, performance counters, speculation control,
//! SVM) is hidden; what the board has (x2APIC, the TSC deadline) is shown whatever the host has.
//! Leaves: APM vol. 3, appendix E.

mod topology;

use dolmen_abi::cpuid as own;
use dolmen_arch::bits::low32;
use dolmen_arch::cpuid::{CpuidSource, Leaf};

use topology::{CACHES_AMD, CACHES_INTEL, Caches, TOPOLOGY_AMD, core_bits};

/// XCR0 bits that a guest may use: x87, SSE, AVX.
pub const GUEST_XCR0: u64 = 0b111;

/// Highest standard leaf, and the lowest maximum that still covers the topology leaf.
const STANDARD_LAST: u32 = 0xd;
const STANDARD_LEAST: u32 = 0xb;
const EXTENDED_FIRST: u32 = 0x8000_0000;
const EXTENDED_LAST: u32 = 0x8000_0008;

const ECX1_X2APIC: u32 = 1 << 21;
const ECX1_TSC_DEADLINE: u32 = 1 << 24;
const ECX1_XSAVE: u32 = 1 << 26;
const ECX1_OSXSAVE: u32 = 1 << 27;
const ECX1_HYPERVISOR: u32 = 1 << 31;
const EDX1_HTT: u32 = 1 << 28;
const CR4_OSXSAVE: u64 = 1 << 18;
/// The APIC timer does not stop in any sleep state.
const EAX6_ARAT: u32 = 1 << 2;
/// XSAVEOPT, XSAVEC, XGETBV with ECX = 1. No XSAVES: it would need a register of its own.
const EAX_D1: u32 = 0b0111;
const ECX_81_CMP_LEGACY: u32 = 1 << 1;
const EDX_87_INVARIANT_TSC: u32 = 1 << 8;

/// Leaf 1 ECX: SSE3, PCLMULQDQ, SSSE3, FMA, CMPXCHG16B, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX,
/// F16C, RDRAND.
const ECX1: u32 = bits(&[0, 1, 9, 12, 13, 17, 19, 20, 22, 23, 25, 26, 28, 29, 30]);
/// Leaf 1 EDX: FPU, VME, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, PGE, MCA, CMOV, PAT, PSE36, CLFLUSH, MMX, FXSR, SSE,
/// SSE2.
const EDX1: u32 = bits(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26]);
/// Leaf 7 EBX: FSGSBASE, BMI1, AVX2, SMEP, BMI2, ERMS, INVPCID, RDSEED, ADX, SMAP, CLFLUSHOPT, CLWB, SHA.
const EBX7: u32 = bits(&[0, 3, 5, 7, 8, 9, 10, 18, 19, 20, 23, 24, 29]);
/// Leaf 7 ECX: UMIP, VAES, VPCLMULQDQ, RDPID.
const ECX7: u32 = bits(&[2, 9, 10, 22]);
/// Leaf 7 EDX: fast short REP MOV.
const EDX7: u32 = bits(&[4]);
/// Leaf 8000_0001h ECX: LAHF, alternate CR8, LZCNT, SSE4A, misaligned SSE, PREFETCH.
const ECX81: u32 = bits(&[0, 4, 5, 6, 7, 8]);
/// Leaf 8000_0001h EDX: what [`EDX1`] has of it, SYSCALL, NX, MMX extensions, 1 GiB pages, RDTSCP, long mode.
const EDX81: u32 = bits(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 14, 15, 16, 17, 20, 22, 23, 24, 26, 27, 29]);
/// Leaf 8000_0001h ECX: the topology extensions, leaves 8000_001Dh and 8000_001Eh.
const ECX81_TOPOLOGY: u32 = 1 << 22;
/// Leaf 8000_0008h EAX: physical and linear address bits.
const EAX88: u32 = 0xffff;
/// Leaf 8000_0008h EBX: CLZERO, error pointers always restored, WBNOINVD.
const EBX88: u32 = bits(&[0, 2, 9]);

/// KVM's features: the second clock interface, and that the clock is the same on all processors.
const KVM_FEATURES: u32 = bits(&[3, 24]);

/// What the guest is told of its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidConfig {
    /// Virtual processors.
    pub vcpus: u32,
    /// APIC ID of this one.
    pub apic_id: u32,
    /// EBX of [`own::LEAF_FEATURES`]: the hypercall groups that are allowed.
    pub call_groups: u32,
    /// ECX of [`own::LEAF_FEATURES`]: the launch facts.
    pub launch_facts: u32,
}

/// The state of the asking processor that shows in its answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidState {
    /// CR4, for OSXSAVE.
    pub cr4: u64,
    /// XCR0, for the size of the XSAVE area.
    pub xcr0: u64,
}

/// The CPUID answers of one virtual processor.
#[derive(Clone, Debug)]
pub struct GuestCpuid {
    standard: [Leaf; 14],
    extended: [Leaf; 9],
    /// Leaf 0Dh, subleaf 1, and the AVX component.
    xsave: [Leaf; 2],
    /// Leaf 4 or 8000_001Dh, whichever the host's vendor has.
    caches: Caches,
    has_topology_extensions: bool,
    config: CpuidConfig,
}

impl GuestCpuid {
    /// Works the guest's answers out of the host's.
    pub fn new(host: &impl CpuidSource, config: CpuidConfig) -> Self {
        let ask = |leaf| host.leaf(leaf, 0);
        let mut guest = Self {
            standard: [Leaf::default(); 14],
            extended: [Leaf::default(); 9],
            xsave: [Leaf::default(); 2],
            caches: Caches::none(),
            has_topology_extensions: false,
            config,
        };
        let (highest, highest_extended) = (ask(0).eax, ask(EXTENDED_FIRST).eax);
        for (leaf, answer) in (0..).zip(&mut guest.standard) {
            if leaf <= highest || leaf == 6 || leaf == STANDARD_LEAST {
                *answer = standard(leaf, if leaf <= highest { ask(leaf) } else { Leaf::default() }, &config);
            }
        }
        for (leaf, answer) in (EXTENDED_FIRST..).zip(&mut guest.extended) {
            if leaf <= highest_extended {
                *answer = extended(leaf, ask(leaf), &config);
            }
        }
        let has_extensions = ask(EXTENDED_FIRST | 1).ecx & ECX81_TOPOLOGY != 0;
        if highest_extended >= TOPOLOGY_AMD && has_extensions && Caches::are_told(host, CACHES_AMD) {
            guest.has_topology_extensions = true;
            guest.extended[0].eax = TOPOLOGY_AMD;
            guest.extended[1].ecx |= ECX81_TOPOLOGY;
            guest.caches = Caches::new(host, CACHES_AMD, config.vcpus);
        } else if highest >= CACHES_INTEL {
            guest.caches = Caches::new(host, CACHES_INTEL, config.vcpus);
        }
        if guest.standard[1].ecx & ECX1_XSAVE == 0 {
            guest.standard[0xd] = Leaf::default();
        } else {
            let (first, avx) = (host.leaf(0xd, 1), host.leaf(0xd, 2));
            guest.xsave[0].eax = first.eax & EAX_D1;
            guest.xsave[1] = Leaf { eax: avx.eax, ebx: avx.ebx, ecx: 0, edx: 0 };
            guest.standard[0xd].ecx = guest.xsave_bytes(u64::from(guest.standard[0xd].eax));
        }
        guest
    }

    /// XCR0 bits that this guest may set; 0 without XSAVE.
    pub fn xcr0_mask(&self) -> u64 {
        u64::from(self.standard[0xd].eax)
    }

    /// Whether the answer to a leaf depends on the processor's state.
    pub const fn depends_on_state(leaf: u32) -> bool {
        matches!(leaf, 1 | 0xd)
    }

    /// Answers CPUID.
    pub fn answer(&self, leaf: u32, subleaf: u32, state: CpuidState) -> Leaf {
        match leaf {
            1 => self.features(state),
            7 if subleaf != 0 => Leaf::default(),
            0xb => topology::levels(&self.config, subleaf),
            CACHES_AMD | CACHES_INTEL => self.caches.answer(leaf, subleaf),
            TOPOLOGY_AMD if self.has_topology_extensions => topology::ids(&self.config),
            0xd => self.xsave(subleaf, state),
            0..=STANDARD_LAST => Self::entry(&self.standard, leaf),
            own::LEAF_SIGNATURE => signature(own::LEAF_LAST, own::SIGNATURE),
            own::LEAF_FEATURES => Leaf {
                eax: dolmen_abi::ABI_VERSION,
                ebx: self.config.call_groups,
                ecx: self.config.launch_facts,
                edx: 0,
            },
            own::KVM_LEAF_SIGNATURE => signature(own::KVM_LEAF_FEATURES, own::KVM_SIGNATURE),
            own::KVM_LEAF_FEATURES => Leaf { eax: KVM_FEATURES, ..Leaf::default() },
            EXTENDED_FIRST..=EXTENDED_LAST => Self::entry(&self.extended, leaf ^ EXTENDED_FIRST),
            _ => Leaf::default(),
        }
    }

    fn entry(table: &[Leaf], index: u32) -> Leaf {
        usize::try_from(index).ok().and_then(|index| table.get(index)).copied().unwrap_or_default()
    }

    fn features(&self, state: CpuidState) -> Leaf {
        let mut leaf = self.standard[1];
        if state.cr4 & CR4_OSXSAVE != 0 && leaf.ecx & ECX1_XSAVE != 0 {
            leaf.ecx |= ECX1_OSXSAVE;
        }
        leaf
    }

    fn xsave(&self, subleaf: u32, state: CpuidState) -> Leaf {
        let enabled = state.xcr0 & self.xcr0_mask();
        match subleaf {
            0 if self.xcr0_mask() != 0 => Leaf { ebx: self.xsave_bytes(enabled), ..self.standard[0xd] },
            // The compacted format differs only in where it puts the components; here there is but one.
            1 if self.xcr0_mask() != 0 => Leaf { ebx: self.xsave_bytes(enabled), ..self.xsave[0] },
            2 if self.xcr0_mask() & 0b100 != 0 => self.xsave[1],
            _ => Leaf::default(),
        }
    }

    /// Bytes of an XSAVE area for the components `enabled`: legacy area and header, then AVX.
    fn xsave_bytes(&self, enabled: u64) -> u32 {
        const LEGACY_AND_HEADER: u32 = 576;
        let [_, avx] = self.xsave;
        if enabled & 0b100 != 0 { avx.ebx.saturating_add(avx.eax) } else { LEGACY_AND_HEADER }
    }
}

/// One standard leaf, from the host's answer.
fn standard(leaf: u32, host: Leaf, config: &CpuidConfig) -> Leaf {
    match leaf {
        0 => Leaf { eax: host.eax.clamp(STANDARD_LEAST, STANDARD_LAST), ..host },
        1 => {
            let several = if config.vcpus > 1 { EDX1_HTT } else { 0 };
            Leaf {
                eax: host.eax,
                // CLFLUSH line size from the host; processors of the package; initial APIC ID.
                ebx: (host.ebx & 0xff00) | ((config.vcpus & 0xff) << 16) | ((config.apic_id & 0xff) << 24),
                ecx: (host.ecx & ECX1) | ECX1_X2APIC | ECX1_TSC_DEADLINE | ECX1_HYPERVISOR,
                edx: (host.edx & EDX1) | several,
            }
        }
        6 => Leaf { eax: EAX6_ARAT, ..Leaf::default() },
        7 => Leaf { eax: 0, ebx: host.ebx & EBX7, ecx: host.ecx & ECX7, edx: host.edx & EDX7 },
        0xd => Leaf { eax: host.eax & low32(GUEST_XCR0), ..Leaf::default() },
        _ => Leaf::default(),
    }
}

/// One extended leaf, from the host's answer.
fn extended(leaf: u32, host: Leaf, config: &CpuidConfig) -> Leaf {
    match leaf ^ EXTENDED_FIRST {
        0 => Leaf { eax: host.eax.min(EXTENDED_LAST), ..host },
        1 => {
            let several = if config.vcpus > 1 { ECX_81_CMP_LEGACY } else { 0 };
            Leaf { eax: host.eax, ebx: 0, ecx: (host.ecx & ECX81) | several, edx: host.edx & EDX81 }
        }
        2..=6 => host, // name, caches, TLBs
        7 => Leaf { edx: host.edx & EDX_87_INVARIANT_TSC, ..Leaf::default() },
        8 => Leaf {
            eax: host.eax & EAX88,
            ebx: host.ebx & EBX88,
            ecx: (config.vcpus.saturating_sub(1) & 0xff) | (core_bits(config.vcpus) << 12),
            edx: 0,
        },
        _ => Leaf::default(),
    }
}

const fn signature(last: u32, text: [u8; 12]) -> Leaf {
    let [ebx, ecx, edx] = own::signature_registers(text);
    Leaf { eax: last, ebx, ecx, edx }
}

/// A word with these bits set.
const fn bits(numbers: &[u32]) -> u32 {
    let mut word = 0;
    let mut rest = numbers;
    while let [first, more @ ..] = rest {
        word |= 1u32.wrapping_shl(*first);
        rest = more;
    }
    word
}

#[cfg(test)]
mod tests;
