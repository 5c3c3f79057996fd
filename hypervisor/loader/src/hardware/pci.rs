//! PCI configuration space through ports CF8h and CFCh: enough to find AMD-Vi units.

use dolmen_machine::port;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
const HAS_CAPABILITIES: u32 = 1 << 20;
/// Secure device capability, and its type for an IOMMU (AMD I/O Virtualization Technology, 3.2.1).
const CAPABILITY_SECURE_DEVICE: u32 = 0x0f;
const TYPE_IOMMU: u32 = 3;
/// Most capabilities that fit a function's configuration space.
const MAX_CAPABILITIES: u32 = 48;

/// An AMD-Vi unit: its function's address in configuration space, with the offset of its capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Iommu {
    function: u32,
    capability: u32,
}

impl Iommu {
    /// Base of its registers as configuration space says, without the enable bit.
    #[must_use]
    pub fn registers(self) -> u64 {
        let low = read(self.function, self.capability.wrapping_add(4));
        let high = read(self.function, self.capability.wrapping_add(8));
        u64::from(high) << 32 | u64::from(low & !0x3fff)
    }

    /// Whether firmware has enabled the register window. The launch image refuses a unit without.
    #[must_use]
    pub fn is_enabled(self) -> bool {
        read(self.function, self.capability.wrapping_add(4)) & 1 != 0
    }

    /// Writes the low half of the base register.
    #[cfg(feature = "hostile")]
    pub fn write_base(self, low: u32) {
        port::write32(ADDRESS, address(self.function, self.capability.wrapping_add(4)));
        port::write32(DATA, low);
    }
}

/// All AMD-Vi units of the machine, on every bus.
pub fn iommus() -> impl Iterator<Item = Iommu> {
    (0..0x1_0000u32).map(|function| function << 8).filter(is_present).filter_map(|function| {
        let capability = find_iommu_capability(function)?;
        Some(Iommu { function, capability })
    })
}

/// Whether something answers. The functions 1 to 7 of a device count only where function 0 says that it has
/// several: others would answer again.
fn is_present(function: &u32) -> bool {
    let first = function & !0x700;
    let several = || read(first, 0xc) & 1 << 23 != 0;
    is_there(*function) && (*function == first || several())
}

fn is_there(function: u32) -> bool {
    read(function, 0) & 0xffff != 0xffff
}

fn find_iommu_capability(function: u32) -> Option<u32> {
    if read(function, 4) & HAS_CAPABILITIES == 0 {
        return None;
    }
    let mut at = read(function, 0x34) & 0xfc;
    for _ in 0..MAX_CAPABILITIES {
        if at < 0x40 {
            return None;
        }
        let header = read(function, at);
        if header & 0xff == CAPABILITY_SECURE_DEVICE && header >> 16 & 7 == TYPE_IOMMU {
            return Some(at);
        }
        at = header >> 8 & 0xfc;
    }
    None
}

fn read(function: u32, register: u32) -> u32 {
    port::write32(ADDRESS, address(function, register));
    port::read32(DATA)
}

const fn address(function: u32, register: u32) -> u32 {
    ENABLE | function | register & 0xfc
}
