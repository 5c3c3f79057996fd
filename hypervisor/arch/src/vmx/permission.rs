//! Index arithmetic of the MSR bitmaps (SDM vol. 3C, 25.6.9). Ports need no map: all of them exit.

/// Bytes of the bitmaps: one page.
pub const MSR_MAP_BYTES: usize = 0x1000;

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
        0xc000_0000..=0xc000_1fff => (0x400, 0xc000_0000),
        _ => return None,
    };
    let half = match access {
        MsrAccess::Read => 0,
        MsrAccess::Write => 0x800,
    };
    let index = msr.checked_sub(first)?;
    let byte = usize::try_from(base.checked_add(half)?.checked_add(index >> 3)?).ok()?;
    Some(MapBit { byte, mask: 1u8.checked_shl(index & 7)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_lie_where_the_manual_puts_them() {
        for (msr, access, byte, mask) in [
            (0x0000_0000, MsrAccess::Read, 0x000, 0x01),
            (0x0000_0001, MsrAccess::Write, 0x800, 0x02),
            (0x0000_1fff, MsrAccess::Write, 0xbff, 0x80),
            (0xc000_0080, MsrAccess::Read, 0x410, 0x01),
            (0xc000_0103, MsrAccess::Read, 0x420, 0x08),
            (0xc000_1fff, MsrAccess::Write, 0xfff, 0x80),
        ] {
            assert_eq!(msr_bit(msr, access), Some(MapBit { byte, mask }), "{msr:#x}");
        }
    }

    #[test]
    fn registers_outside_the_two_ranges_have_no_bit() {
        for msr in [0x2000, 0x4b56_4d00, 0xbfff_ffff, 0xc000_2000, 0xc001_0117, u32::MAX] {
            assert_eq!(msr_bit(msr, MsrAccess::Read), None, "{msr:#x}");
        }
    }
}
