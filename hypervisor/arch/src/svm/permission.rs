//! Index arithmetic of the MSR and I/O permission maps (APM vol. 2, 15.10.1 and 15.11).

/// Bytes of an MSR permission map: two pages.
pub const MSR_MAP_BYTES: usize = 0x2000;
/// Bytes of an I/O permission map: three pages, of which 8 KiB and 3 bits count.
pub const IO_MAP_BYTES: usize = 0x3000;

/// Which of an MSR's two bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrAccess {
    /// RDMSR.
    Read,
    /// WRMSR.
    Write,
}

/// A bit of a permission map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapBit {
    /// Byte in the map.
    pub byte: usize,
    /// Mask within the byte.
    pub mask: u8,
}

/// The bit for an MSR, or `None` for an MSR outside the map: such accesses always exit.
pub fn msr_bit(msr: u32, access: MsrAccess) -> Option<MapBit> {
    let (base, first): (u32, u32) = match msr {
        0..=0x1fff => (0, 0),
        0xc000_0000..=0xc000_1fff => (0x800, 0xc000_0000),
        0xc001_0000..=0xc001_1fff => (0x1000, 0xc001_0000),
        _ => return None,
    };
    let index = msr.checked_sub(first)?;
    let byte = usize::try_from(base.checked_add(index >> 2)?).ok()?;
    let pair = match index & 3 {
        0 => 0b01,
        1 => 0b0100,
        2 => 0b01_0000,
        _ => 0b0100_0000,
    };
    let mask = match access {
        MsrAccess::Read => pair,
        MsrAccess::Write => pair << 1,
    };
    Some(MapBit { byte, mask })
}

/// Clears both bits of `msr` in `map`: the guest then has the register itself.
/// Returns whether the map covers it.
pub fn allow_msr(map: &mut [u8], msr: u32) -> bool {
    for access in [MsrAccess::Read, MsrAccess::Write] {
        let Some(bit) = msr_bit(msr, access) else { return false };
        let Some(byte) = map.get_mut(bit.byte) else { return false };
        *byte &= !bit.mask;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn bits_lie_where_the_manual_puts_them() {
        for (msr, access, byte, mask) in [
            (0x0000_0000, MsrAccess::Read, 0x0000, 0x01),
            (0x0000_0001, MsrAccess::Write, 0x0000, 0x08),
            (0x0000_1fff, MsrAccess::Write, 0x07ff, 0x80),
            (0xc000_0080, MsrAccess::Read, 0x0820, 0x01),
            (0xc000_0103, MsrAccess::Read, 0x0840, 0x40),
            (0xc001_0117, MsrAccess::Write, 0x1045, 0x80),
        ] {
            assert_eq!(msr_bit(msr, access), Some(MapBit { byte, mask }), "{msr:#x}");
        }
    }

    #[test]
    fn registers_outside_the_three_ranges_have_no_bit() {
        for msr in [0x2000, 0x4b56_4d00, 0xbfff_ffff, 0xc000_2000, 0xc001_2000, u32::MAX] {
            assert_eq!(msr_bit(msr, MsrAccess::Read), None, "{msr:#x}");
        }
    }

    #[test]
    fn allowing_one_register_leaves_its_neighbours_denied() {
        let mut map = vec![0xff; MSR_MAP_BYTES];
        assert!(allow_msr(&mut map, 0xc000_0101));
        let cleared: Vec<_> = map.iter().enumerate().filter(|(_, byte)| **byte != 0xff).collect();
        assert_eq!(cleared, [(0x840, &0b1111_0011)]);
        assert!(!allow_msr(&mut map, 0x4b56_4d00));
    }
}
