//! Reads and extends PCRs in every active bank: what launch and core measure with.
//!
//! Promise: an extend that is reported as done was answered by the TPM with success for exactly the digests
//! given; [`Uncovered`] finds an active bank that would be left out, before anything is extended.

use crate::codec::DecodeError;
use crate::command::{BUFFER, Digest, PcrIndex, get_capability, pcr_extend, pcr_read};
use crate::constant::capability;
use crate::response::{Banks, PcrValue, Response, TpmError, decode_banks, decode_pcr_read, received};
use crate::transport::Transport;

/// The active bank that no digest was given for: its algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uncovered(pub u16);

/// The TPM's PCR banks.
///
/// # Errors
/// [`TpmError`]; the same holds for all the others.
pub fn read_banks(tpm: &mut impl Transport) -> Result<Banks, TpmError> {
    let (mut command, mut response) = ([0; 32], [0; BUFFER]);
    let size = tpm.transmit(get_capability(&mut command, capability::PCRS, 0, 1)?, &mut response)?;
    decode_banks(received(&response, size)?)
}

/// Checks that `digests` has one digest for each active bank that holds `pcr`.
///
/// # Errors
/// [`Uncovered`] names the first bank that has none: to be capped or to stop at.
pub fn check_covered(banks: &Banks, pcr: PcrIndex, digests: &[Digest<'_>]) -> Result<(), Uncovered> {
    let left_out = |algorithm| !digests.iter().any(|digest| digest.algorithm() == algorithm);
    match banks.active().find(|bank| bank.contains(pcr) && left_out(bank.algorithm)) {
        Some(bank) => Err(Uncovered(bank.algorithm)),
        None => Ok(()),
    }
}

/// Extends `pcr` with one digest for each bank, in one command.
///
/// # Errors
/// As [`read_banks`].
pub fn extend_all(tpm: &mut impl Transport, pcr: PcrIndex, digests: &[Digest<'_>]) -> Result<(), TpmError> {
    extend_each(tpm, pcr, digests.iter().copied())
}

/// As [`extend_all`], with the digests as they come.
///
/// # Errors
/// As [`read_banks`].
pub fn extend_each<'d>(
    tpm: &mut impl Transport,
    pcr: PcrIndex,
    digests: impl Iterator<Item = Digest<'d>>,
) -> Result<(), TpmError> {
    let (mut command, mut response) = ([0; BUFFER], [0; 64]);
    let size = tpm.transmit(pcr_extend(&mut command, pcr, digests)?, &mut response)?;
    Response::password_only(received(&response, size)?)
}

/// The value of `pcr` in the bank of `algorithm`: `None` if it is not there.
///
/// # Errors
/// As [`read_banks`].
pub fn read_pcr(
    tpm: &mut impl Transport,
    algorithm: u16,
    pcr: PcrIndex,
) -> Result<Option<PcrValue>, TpmError> {
    let (mut command, mut response) = ([0; 32], [0; 128]);
    let size = tpm.transmit(pcr_read(&mut command, algorithm, pcr)?, &mut response)?;
    decode_pcr_read(received(&response, size)?, algorithm, pcr)
}

/// Whether `pcr` is `want` in the bank of `algorithm`: as [`read_pcr`], but compares the answer as it comes, which
/// is a fraction of the code. A bank that is not there answers otherwise, so it is no.
///
/// # Errors
/// As [`read_banks`].
pub fn is_pcr(
    tpm: &mut impl Transport,
    algorithm: u16,
    pcr: PcrIndex,
    want: &[u8],
) -> Result<bool, TpmError> {
    /// Bytes of a command's header: what follows is the selection, which the answer repeats.
    const HEADER: usize = 10;
    let (mut buffer, mut response) = ([0; 32], [0; 128]);
    let command = pcr_read(&mut buffer, algorithm, pcr)?;
    let size = tpm.transmit(command, &mut response)?;
    let mut r = Response::plain(received(&response, size)?)?;
    r.u32()?; // the update counter
    let selection = command.get(HEADER..).unwrap_or(&[]);
    let is_asked = r.take(selection.len())? == selection;
    // The list of one digest: count and size, then the digest.
    let is_one = r.u32()? == 1;
    Ok(is_asked && is_one && r.tpm2b()? == want && r.finish().is_ok())
}

/// Reads `pcr` in every active bank that holds it and gives each value to `each`.
///
/// # Errors
/// As [`read_banks`]; a bank that the TPM shows as active but does not read is an error.
pub fn read_all(
    tpm: &mut impl Transport,
    banks: &Banks,
    pcr: PcrIndex,
    mut each: impl FnMut(u16, &PcrValue),
) -> Result<(), TpmError> {
    for bank in banks.active().filter(|bank| bank.contains(pcr)) {
        let value = read_pcr(tpm, bank.algorithm, pcr)?;
        let missing = DecodeError::Value(u32::from(bank.algorithm));
        each(bank.algorithm, &value.ok_or(missing)?);
    }
    Ok(())
}
