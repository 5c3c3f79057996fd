//! Finds the units in PCI configuration space.

use super::Unit;
use crate::pci::{self, Bdf, CapabilityLoop, ConfigSpace};

/// Capability id of a secure device, and its type of an IOMMU (3.1, 3.2).
const CAPABILITY_SECURE: u8 = 0x0f;
const TYPE_IOMMU: u32 = 3;
/// Of the low base register: the enable bit, and the address bits (3.3).
const ENABLE: u32 = 1;
const ADDRESS: u32 = 0xffff_c000;

/// Why the units cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindError {
    /// There is none.
    None,
    /// There are more than can be handed over.
    TooMany,
    /// The registers of the unit at this function are not mapped: firmware left it off.
    Disabled(Bdf),
    /// The unit at this function claims registers that another one has.
    SameRegisters(Bdf),
    /// A capability list does not end.
    Loop(Bdf),
}

impl From<CapabilityLoop> for FindError {
    fn from(error: CapabilityLoop) -> Self {
        Self::Loop(error.0)
    }
}

/// The units of a machine, up to `N`.
#[derive(Clone, Copy, Debug)]
pub struct Units<const N: usize> {
    list: [Unit; N],
    count: usize,
}

impl<const N: usize> Units<N> {
    /// The units, in the order of their functions.
    #[must_use]
    pub fn list(&self) -> &[Unit] {
        self.list.get(..self.count).unwrap_or(&[])
    }

    fn push(&mut self, bdf: Bdf, header: u32, low: u32, high: u32) -> Result<(), FindError> {
        if low & ENABLE == 0 {
            return Err(FindError::Disabled(bdf));
        }
        let registers = u64::from(high) << 32 | u64::from(low & ADDRESS);
        if self.list().iter().any(|unit| unit.registers == registers) {
            return Err(FindError::SameRegisters(bdf));
        }
        let slot = self.list.get_mut(self.count).ok_or(FindError::TooMany)?;
        *slot = Unit { function: Some(bdf), registers, header };
        self.count = self.count.saturating_add(1);
        Ok(())
    }
}

/// Finds every unit of segment 0.
///
/// # Errors
/// [`FindError`] if there is none, or one that cannot be used: leaving one out would leave a way in.
pub fn find_units<const N: usize>(config: &mut impl ConfigSpace) -> Result<Units<N>, FindError> {
    let mut units = Units { list: [Unit::default(); N], count: 0 };
    pci::walk(config, |config, found| {
        pci::capabilities(config, found.bdf, |config, at, header| {
            let [id, ..] = header.to_le_bytes();
            if id != CAPABILITY_SECURE || (header >> 16) & 7 != TYPE_IOMMU {
                return Ok(());
            }
            let low = config.read32(found.bdf, at.wrapping_add(4));
            let high = config.read32(found.bdf, at.wrapping_add(8));
            units.push(found.bdf, header, low, high)
        })
    })?;
    if units.count == 0 { Err(FindError::None) } else { Ok(units) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::fake::FakeConfig;

    const IOMMU: u32 = 0x190b_000f & !0xff00 | 3 << 16;

    fn capability(low: u32, high: u32) -> [u32; 5] {
        [IOMMU, low, high, 0, 0]
    }

    fn with(units: &[(u16, u32, u32)]) -> FakeConfig {
        let mut config = FakeConfig::default();
        config.add(0, 0x1480_1022, &[]);
        for (bdf, low, high) in units {
            config.add(*bdf, 0x1481_1022, &[&[5, 0], &capability(*low, *high)]);
        }
        config
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes too long in the interpreter")]
    fn units_are_found_on_any_bus() {
        let mut config = with(&[(2, 0xfd00_0001, 0), (0x4002, 0x0000_0001, 0x10)]);
        let units = find_units::<4>(&mut config).unwrap();
        let bases: Vec<_> = units.list().iter().map(|unit| unit.registers).collect();
        assert_eq!(bases, [0xfd00_0000, 0x10_0000_0000]);
        assert_eq!(units.list()[1].function, Some(Bdf::new(0x4002)));
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes too long in the interpreter")]
    fn a_machine_that_cannot_be_closed_is_refused() {
        let find = |units: &[(u16, u32, u32)]| find_units::<2>(&mut with(units)).map(|_| ()).err();
        assert_eq!(find(&[]), Some(FindError::None));
        assert_eq!(find(&[(2, 0xfd00_0000, 0)]), Some(FindError::Disabled(Bdf::new(2))));
        let twice = [(2, 0xfd00_0001, 0), (0x102, 0xfd00_0001, 0)];
        assert_eq!(find(&twice), Some(FindError::SameRegisters(Bdf::new(0x102))));
        let three = [(2, 0xfd00_0001, 0), (0x102, 0xfd10_0001, 0), (0x202, 0xfd20_0001, 0)];
        assert_eq!(find(&three), Some(FindError::TooMany));
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes too long in the interpreter")]
    fn another_secure_device_is_not_an_iommu() {
        let mut config = FakeConfig::default();
        config.add(0xc3, 0x1103_1022, &[&[0x0000_000f, 1, 0]]);
        assert_eq!(find_units::<2>(&mut config).err(), Some(FindError::None));
    }
}
