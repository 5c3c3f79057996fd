//! The few width changes that `From` cannot express, in one place.

/// The low 32 bits.
#[expect(clippy::as_conversions, reason = "truncation is the purpose")]
pub const fn low32(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// The low 16 bits.
#[expect(clippy::as_conversions, reason = "truncation is the purpose")]
pub const fn low16(value: u64) -> u16 {
    (value & 0xffff) as u16
}

/// The low 8 bits.
#[expect(clippy::as_conversions, reason = "truncation is the purpose")]
pub const fn low8(value: u64) -> u8 {
    (value & 0xff) as u8
}

/// EDX:EAX as one value: the upper halves of both registers do not count.
pub fn edx_eax(rdx: u64, rax: u64) -> u64 {
    (u64::from(low32(rdx)) << 32) | u64::from(low32(rax))
}

/// `value` with its low `bytes` bytes kept, sign and rest dropped. `bytes` of 8 or more keeps all.
pub const fn low_bytes(value: u64, bytes: u8) -> u64 {
    match bytes {
        0 => 0,
        1 => value & 0xff,
        2 => value & 0xffff,
        3 => value & 0xff_ffff,
        4 => value & 0xffff_ffff,
        5 => value & 0xff_ffff_ffff,
        6 => value & 0xffff_ffff_ffff,
        7 => value & 0xff_ffff_ffff_ffff,
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upper_halves_do_not_leak_into_edx_eax() {
        assert_eq!(edx_eax(0xdead_beef_0000_0001, 0xffff_ffff_0000_0002), 0x1_0000_0002);
    }

    #[test]
    fn low_bytes_keeps_exactly_the_bytes_asked_for() {
        let value = 0x8877_6655_4433_2211;
        for bytes in 0..8u8 {
            assert_eq!(low_bytes(value, bytes), value & ((1u64 << (8 * bytes)) - 1), "{bytes}");
        }
        assert_eq!(low_bytes(value, 8), value);
    }
}
