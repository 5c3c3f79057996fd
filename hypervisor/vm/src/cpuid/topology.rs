//! How the guest's processors are arranged and which caches they share.

use dolmen_arch::cpuid::{CpuidSource, Leaf};

use super::CpuidConfig;

/// Deterministic cache parameters (SDM vol. 2A, CPUID).
pub(super) const CACHES_INTEL: u32 = 4;
/// Cache topology (APM vol. 3, appendix E.4.15).
pub(super) const CACHES_AMD: u32 = 0x8000_001d;
/// Processor topology (APM vol. 3, appendix E.4.16).
pub(super) const TOPOLOGY_AMD: u32 = 0x8000_001e;

/// Most caches that are told of.
const MOST: usize = 4;
/// EAX: type of the cache, 0 for none.
const TYPE: u32 = 0x1f;
/// EAX: what is not about sharing: type, level, self-initialising, fully associative.
const PROPERTIES: u32 = 0x3ff;
const LEVEL_SHIFT: u32 = 5;
const LEVEL_MASK: u32 = 7;
/// The level that all processors share.
const SHARED_LEVEL: u32 = 3;
const SHARING_SHIFT: u32 = 14;
const CORES_SHIFT: u32 = 26;

/// The caches, by the leaf that tells of them.
#[derive(Clone, Debug)]
pub(super) struct Caches {
    leaf: u32,
    answers: [Leaf; MOST],
}

impl Caches {
    /// No word of them.
    pub(super) const fn none() -> Self {
        const NOTHING: Leaf = Leaf { eax: 0, ebx: 0, ecx: 0, edx: 0 };
        Self { leaf: CACHES_INTEL, answers: [NOTHING; MOST] }
    }

    /// Whether the host tells of its caches by `leaf`.
    pub(super) fn are_told(host: &impl CpuidSource, leaf: u32) -> bool {
        host.leaf(leaf, 0).eax & TYPE != 0
    }

    /// The host's caches, shared as the guest's processors would share them.
    pub(super) fn new(host: &impl CpuidSource, leaf: u32, vcpus: u32) -> Self {
        let mut caches = Self { leaf, ..Self::none() };
        for (subleaf, answer) in (0..).zip(&mut caches.answers) {
            let cache = host.leaf(leaf, subleaf);
            if cache.eax & TYPE == 0 {
                break;
            }
            let others = vcpus.saturating_sub(1);
            let is_shared = cache.eax >> LEVEL_SHIFT & LEVEL_MASK >= SHARED_LEVEL;
            // Intel counts the IDs that are set aside, a power of two less one; AMD the processors there are.
            let (sharing, cores) = match (leaf, is_shared) {
                (CACHES_INTEL, true) => (id_mask(vcpus), id_mask(vcpus)),
                (CACHES_INTEL, false) => (0, id_mask(vcpus)),
                (_, true) => (others, 0),
                (_, false) => (0, 0),
            };
            let eax = cache.eax & PROPERTIES | sharing << SHARING_SHIFT | cores << CORES_SHIFT;
            *answer = Leaf { eax, ..cache };
        }
        caches
    }

    /// Answers `leaf` if it is the one of these caches.
    pub(super) fn answer(&self, leaf: u32, subleaf: u32) -> Leaf {
        let cache = usize::try_from(subleaf).ok().and_then(|subleaf| self.answers.get(subleaf));
        cache.filter(|_| leaf == self.leaf).copied().unwrap_or_default()
    }
}

/// Leaf 0Bh: levels of the topology by bits of the APIC ID.
pub(super) fn levels(config: &CpuidConfig, subleaf: u32) -> Leaf {
    const LEVEL_THREAD: u32 = 1;
    const LEVEL_CORE: u32 = 2;
    let (eax, ebx, level) = match subleaf {
        0 => (0, 1, LEVEL_THREAD),
        1 => (core_bits(config.vcpus), config.vcpus, LEVEL_CORE),
        _ => (0, 0, 0),
    };
    Leaf { eax, ebx, ecx: (subleaf & 0xff) | (level << 8), edx: config.apic_id }
}

/// Leaf 8000_001Eh: extended APIC ID, core of one thread, the only node of the only package.
pub(super) const fn ids(config: &CpuidConfig) -> Leaf {
    Leaf { eax: config.apic_id, ebx: config.apic_id & 0xff, ecx: 0, edx: 0 }
}

/// Bits of an APIC ID that number the processors.
pub(super) const fn core_bits(vcpus: u32) -> u32 {
    if vcpus <= 1 { 0 } else { u32::BITS.wrapping_sub(vcpus.wrapping_sub(1).leading_zeros()) }
}

const fn id_mask(vcpus: u32) -> u32 {
    1u32.wrapping_shl(core_bits(vcpus)).wrapping_sub(1)
}
