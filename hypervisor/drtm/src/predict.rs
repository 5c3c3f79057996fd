//! Predicts PCR 17 and 18 from files, without a TPM: reference values that anybody can recompute.

use crate::digest::{Algorithm, Digest};
use crate::handoff::SLB_SIZE;
use crate::pcr::{extend, launched};

/// Why a file is not a launch image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// Shorter than its own header.
    Truncated,
    /// Longer than a secure loader block.
    TooLong,
    /// The measured length is zero or beyond the end of the file.
    MeasuredLength(u16),
    /// The entry point is not within the measured part.
    Entry(u16),
}

/// The part of a launch image that the processor measures: its first bytes, as many as its header says
/// (APM vol. 2, 15.27.2).
///
/// # Errors
/// [`ImageError`] if the file cannot be a launch image.
pub fn measured_part(image: &[u8]) -> Result<&[u8], ImageError> {
    let [e0, e1, l0, l1, ..] = image else { return Err(ImageError::Truncated) };
    let (entry, length) = (u16::from_le_bytes([*e0, *e1]), u16::from_le_bytes([*l0, *l1]));
    if u64::try_from(image.len()).is_ok_and(|n| n > SLB_SIZE) {
        return Err(ImageError::TooLong);
    }
    let measured = image.get(..usize::from(length)).filter(|part| part.len() >= 4);
    let measured = measured.ok_or(ImageError::MeasuredLength(length))?;
    if entry >= length { Err(ImageError::Entry(entry)) } else { Ok(measured) }
}

/// PCR 17 after launch and measurement of the core.
///
/// # Errors
/// [`ImageError`] if `image` is not a launch image.
pub fn pcr17(algorithm: Algorithm, image: &[u8], core: &[u8]) -> Result<Digest, ImageError> {
    let after_launch = launched(algorithm, measured_part(image)?);
    Ok(extend(&after_launch, &algorithm.hash(&[core])))
}

/// PCR 18 after the events with these bytes, in order: the manifest, then each component and command line of
/// each guest.
#[must_use]
pub fn pcr18<'a>(algorithm: Algorithm, events: impl IntoIterator<Item = &'a [u8]>) -> Digest {
    let zero = Digest::zero(algorithm);
    events.into_iter().fold(zero, |pcr, bytes| extend(&pcr, &algorithm.hash(&[bytes])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bank::{BankSet, DigestSet};
    use crate::pcr::Expected;

    #[test]
    fn a_prediction_equals_what_the_launch_image_expects_of_the_tpm() {
        let image = [4, 0, 6, 0, 0x90, 0x90, 0xcc, 0xcc];
        let banks = BankSet::select(Algorithm::ALL.map(|a| (a.id(), 0xff_ffff)).into_iter()).unwrap();
        let expected = Expected::launched(&banks, &DigestSet::of(&banks, &image[..6]));
        let code = expected.code.extended(&DigestSet::of(&banks, b"core"));
        let configuration = expected.configuration.extended(&DigestSet::of(&banks, b"manifest"));
        for algorithm in Algorithm::ALL {
            let predicted = pcr17(algorithm, &image, b"core").unwrap();
            assert_eq!(code.get(algorithm), Some(predicted.bytes()));
            let predicted = pcr18(algorithm, [b"manifest".as_slice()]);
            assert_eq!(configuration.get(algorithm), Some(predicted.bytes()));
        }
    }

    #[test]
    fn files_that_are_no_launch_image_are_named() {
        let mut long = vec![4, 0, 6, 0];
        long.resize(0x1_0001, 0);
        for (image, want) in [
            (vec![4, 0, 6], ImageError::Truncated),
            (vec![4, 0, 9, 0, 1, 2, 3, 4], ImageError::MeasuredLength(9)),
            (vec![4, 0, 0, 0, 1, 2, 3, 4], ImageError::MeasuredLength(0)),
            (vec![6, 0, 6, 0, 1, 2, 3, 4], ImageError::Entry(6)),
            (long, ImageError::TooLong),
        ] {
            assert_eq!(measured_part(&image), Err(want));
        }
    }
}
