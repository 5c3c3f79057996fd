//! Values of registers in the form that Keylime wants them in: as tpm2-tools write them to a file.
//!
//! All numbers are little-endian: `u32` selections, sixteen places of `{u16 algorithm, u8 3, u8 bits[3], u16 0}`; `u32`
//! lists, each of `{u32 count, 8 × {u16 size, u8 value[64]}}`.

use dolmen_abi::HOST_PCRS;

/// TPM_ALG_SHA256.
const SHA256: u16 = 0x0b;
/// Places for selections.
const SELECTIONS: usize = 16;
/// Bytes of one.
const SELECTION: usize = 8;
/// Digests in a list.
const DIGESTS: usize = 8;
/// Bytes of the largest digest.
const LARGEST: usize = 64;

/// The values of registers of the SHA-256 bank (bit n of `pcrs` for PCR n).
pub(crate) fn serialized(pcrs: u32, values: &[[u8; 32]; HOST_PCRS]) -> Vec<u8> {
    let [a, b, c, _] = pcrs.to_le_bytes();
    let mut out = 1_u32.to_le_bytes().to_vec();
    out.extend(SHA256.to_le_bytes());
    out.extend([3, a, b, c, 0, 0]);
    out.resize(out.len().saturating_add(SELECTIONS.saturating_sub(1).saturating_mul(SELECTION)), 0);
    let chosen: Vec<&[u8; 32]> = (0_u32..)
        .zip(values)
        .filter(|(pcr, _)| pcrs.wrapping_shr(*pcr) & 1 != 0)
        .map(|(_, value)| value)
        .collect();
    let lists = chosen.chunks(DIGESTS);
    out.extend(u32::try_from(lists.len()).unwrap_or_default().to_le_bytes());
    for list in lists {
        out.extend(u32::try_from(list.len()).unwrap_or_default().to_le_bytes());
        for place in 0..DIGESTS {
            let value: &[u8] = list.get(place).map_or(&[], |value| value.as_slice());
            out.extend(u16::try_from(value.len()).unwrap_or_default().to_le_bytes());
            out.extend(value);
            out.resize(out.len().saturating_add(LARGEST.saturating_sub(value.len())), 0);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_registers_make_one_list_and_many_make_several() {
        let mut values = [[0; 32]; HOST_PCRS];
        values.iter_mut().enumerate().for_each(|(pcr, value)| value.fill(pcr as u8));
        let two = serialized(0x0006_0000, &values);
        assert_eq!(two.len(), 4 + 128 + 4 + 532);
        assert_eq!(two[..12], [1, 0, 0, 0, 0x0b, 0, 3, 0, 0, 6, 0, 0]);
        assert_eq!(two[132..144], [1, 0, 0, 0, 2, 0, 0, 0, 32, 0, 17, 17]);
        assert_eq!(two[140 + 66..140 + 70], [32, 0, 18, 18]);
        let all = serialized(0x00ff_ffff, &values);
        assert_eq!((all.len(), all[132]), (4 + 128 + 4 + 3 * 532, 3));
        assert_eq!(all[136 + 532..136 + 540], [8, 0, 0, 0, 32, 0, 8, 8]);
    }
}
