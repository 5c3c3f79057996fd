//! What the service needs of the machine: the TPM behind its job queue, the random generator, the clock.

use dolmen_abi::{AkId, GuestInfo, MAX_ATTEST, MAX_SIGNATURE, NAME_BYTES, Status};

use super::desk::{GuestSlot, QuoteDesk};
use super::errand::{Errand, ErrandAnswer, ErrandDesk};
use crate::lifecycle::Request;

/// The random generator has no seed it may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoEntropy;

/// The TPM is at another job; the quote was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TpmBusy;

/// How far the quote is that was started last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotePoll {
    /// The TPM still works at it.
    Pending,
    /// It is done; it was written to the buffer.
    Done,
    /// It failed with this TPM response code; 0 if the TPM did not answer, or not as it must.
    Failed(u32),
}

/// All guests, as the calls of the `manage` group see them.
pub trait GuestTable {
    /// Nanoseconds since the launch; never falls.
    fn uptime_ns(&self) -> u64;

    /// Describes guest number `index`, counted from 0 in manifest order; nothing after the last.
    fn describe(&self, index: usize) -> Option<GuestInfo>;

    /// Notes what is wanted of the guest of this padded name.
    ///
    /// # Errors
    /// The status that says why not.
    fn request(&mut self, name: &[u8; NAME_BYTES], request: Request) -> Result<(), Status>;
}

/// What a guest's service reaches beyond its guest. Each method takes what it needs for as long as it needs it:
/// no call keeps what all guests share while it works for one.
pub trait Platform {
    /// The TPM, as whoever holds it sees it.
    type Tpm: TpmService;

    /// Takes the TPM for a moment.
    fn with_tpm<R>(&mut self, work: impl FnOnce(&mut Self::Tpm) -> R) -> R;

    /// The attestation key's public part as `TPM2B_PUBLIC`; empty if there is none.
    fn ak_public(&self) -> &[u8];

    /// The launch's event log, exact length; complete before the first guest runs.
    fn event_log(&self) -> &[u8];

    /// Milliseconds since some moment in the past; never falls.
    fn uptime_ms(&self) -> u64;

    /// All guests.
    fn guests(&mut self) -> &mut impl GuestTable;
}

/// The TPM and the generator that it seeds. One for the machine: whoever calls holds it alone, and briefly.
pub trait TpmService {
    /// Fills `out` from this guest's generator, which the hypervisor's own seeds.
    ///
    /// # Errors
    /// [`NoEntropy`]; `out` is then not to be used.
    fn random(&mut self, guest: GuestSlot, out: &mut [u8]) -> Result<(), NoEntropy>;

    /// Starts a quote over PCR 17 and 18 of the SHA-256 bank with this extra data, by a key that binds guests.
    ///
    /// # Errors
    /// [`TpmBusy`] if the TPM is at another job: the service tries again at the next call.
    fn start_quote(&mut self, key: AkId, extra_data: [u8; 32]) -> Result<(), TpmBusy>;

    /// Moves the started quote on, without waiting; what is done is written to `into`.
    fn poll_quote(&mut self, into: &mut SignedQuote) -> QuotePoll;

    /// Starts an errand.
    ///
    /// # Errors
    /// [`TpmBusy`] if the TPM is at another job.
    fn start_errand(&mut self, errand: &Errand) -> Result<(), TpmBusy>;

    /// Moves the started errand on, without waiting; what it brought is written to `into`.
    fn poll_errand(&mut self, into: &mut ErrandAnswer) -> QuotePoll;

    /// Where guests wait for errands. The implementation only keeps it.
    fn errands(&mut self) -> &mut ErrandDesk;

    /// Where the guests' quote requests meet. The implementation only keeps it.
    fn desk(&mut self) -> &mut QuoteDesk;
}

/// A quote as the TPM gave it.
#[derive(Clone, Copy, Debug)]
pub struct SignedQuote {
    attest: [u8; MAX_ATTEST],
    attest_length: usize,
    signature: [u8; MAX_SIGNATURE],
    signature_length: usize,
}

impl SignedQuote {
    /// No quote yet.
    pub const EMPTY: Self = Self {
        attest: [0; MAX_ATTEST],
        attest_length: 0,
        signature: [0; MAX_SIGNATURE],
        signature_length: 0,
    };

    /// Takes a `TPMS_ATTEST` and a `TPMT_SIGNATURE`; false, and no change, if one is too long.
    #[must_use]
    pub fn set(&mut self, attest: &[u8], signature: &[u8]) -> bool {
        let mut new = Self::EMPTY;
        (new.attest_length, new.signature_length) = (attest.len(), signature.len());
        let (Some(a), Some(s)) =
            (new.attest.get_mut(..attest.len()), new.signature.get_mut(..signature.len()))
        else {
            return false;
        };
        a.copy_from_slice(attest);
        s.copy_from_slice(signature);
        *self = new;
        true
    }

    /// The `TPMS_ATTEST`.
    pub fn attest(&self) -> &[u8] {
        self.attest.get(..self.attest_length).unwrap_or_default()
    }

    /// The `TPMT_SIGNATURE`.
    pub fn signature(&self) -> &[u8] {
        self.signature.get(..self.signature_length).unwrap_or_default()
    }

    /// The buffers with their zero padding, and the lengths used.
    pub(super) const fn parts(&self) -> (&[u8; MAX_ATTEST], usize, &[u8; MAX_SIGNATURE], usize) {
        (&self.attest, self.attest_length, &self.signature, self.signature_length)
    }
}
