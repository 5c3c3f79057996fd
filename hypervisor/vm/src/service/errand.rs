//! Where guests wait for what takes the TPM's time besides quotes that bind them: quotes about the host, keys and
//! what they attest of themselves, certificates, credentials.
//!
//! There is one place: these are rare, and one of them may take a TPM seconds. Whoever has it keeps it until its answer is
//! fetched, but not for ever: an answer that lies about is dropped when somebody else asks. How often a guest may take
//! the place is limited, so that others find it free.

use core::fmt;

use dolmen_abi::{
    AkId, CertifyReply, EkId, HostQuoteReply, MAX_CERTIFICATE, MAX_CREDENTIAL, MAX_ENCRYPTED_SECRET,
    MAX_HOST_NONCE,
};
use zerocopy::{FromZeros, IntoBytes};
use zeroize::Zeroize;

use super::desk::GuestSlot;
use super::platform::{QuotePoll, TpmService};

/// How long an answer lies about while others wait.
const PATIENCE_MS: u64 = 2_000;

/// Some bytes, at most `N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Bytes<N> {
    /// A copy of `bytes`, if they fit.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut copy = Self { bytes: [0; N], length: bytes.len() };
        copy.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(copy)
    }

    /// The bytes.
    pub fn get(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// What the TPM is asked for.
#[expect(clippy::large_enum_variant, reason = "no heap in a call, and one errand at a time")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// A quote about the host; the answer is a `HostQuoteReply`.
    HostQuote {
        /// Which key signs.
        key: AkId,
        /// Registers of the SHA-256 bank.
        pcrs: u32,
        /// Extra data, as it is.
        nonce: Bytes<MAX_HOST_NONCE>,
    },
    /// A key's attestation of itself; the answer is a `CertifyReply`.
    Certify {
        /// Which key.
        key: AkId,
        /// Extra data, as it is.
        nonce: Bytes<MAX_HOST_NONCE>,
    },
    /// An attestation key's `TPM2B_PUBLIC`.
    KeyPublic(AkId),
    /// An endorsement key's `TPM2B_PUBLIC`.
    EndorsementKey(EkId),
    /// Its certificate; no bytes if there is none.
    Certificate(EkId),
    /// A part of the chain behind the certificates; no bytes if there is none.
    Chain(u8),
    /// What a credential holds.
    Activate {
        /// The key that it is for.
        key: AkId,
        /// The key that it was encrypted to.
        ek: EkId,
        /// `TPM2B_ID_OBJECT` without its size.
        credential: Bytes<MAX_CREDENTIAL>,
        /// `TPM2B_ENCRYPTED_SECRET` without its size.
        secret: Bytes<MAX_ENCRYPTED_SECRET>,
    },
}

/// What an errand brought. Wiped when it is forgotten.
#[derive(Clone)]
pub struct ErrandAnswer {
    bytes: [u8; MAX_CERTIFICATE],
    length: usize,
}

impl ErrandAnswer {
    /// Nothing.
    pub const EMPTY: Self = Self { bytes: [0; MAX_CERTIFICATE], length: 0 };

    /// Takes the concatenation of `parts`; false, and nothing, if that is too long.
    #[must_use]
    pub fn set(&mut self, parts: &[&[u8]]) -> bool {
        self.wipe();
        let mut rest = self.bytes.as_mut_slice();
        for part in parts {
            let Some((head, tail)) = rest.split_at_mut_checked(part.len()) else {
                self.wipe();
                return false;
            };
            head.copy_from_slice(part);
            rest = tail;
            self.length = self.length.saturating_add(part.len());
        }
        true
    }

    /// Takes a quote about the host and the 24 registers' values; false, and nothing, if something is too long.
    #[must_use]
    pub fn set_host_quote(&mut self, attest: &[u8], signature: &[u8], values: &[u8]) -> bool {
        let mut reply = HostQuoteReply::new_zeroed();
        let (Some(attest_length), Some(signature_length), Some(_)) = (
            put(&mut reply.attest, attest),
            put(&mut reply.signature, signature),
            put(reply.values.as_flattened_mut(), values),
        ) else {
            return false;
        };
        (reply.attest_length, reply.signature_length) = (attest_length, signature_length);
        self.set(&[reply.as_bytes()])
    }

    /// Takes a key's attestation of itself; false, and nothing, if something is too long.
    #[must_use]
    pub fn set_certified(&mut self, attest: &[u8], signature: &[u8]) -> bool {
        let mut reply = CertifyReply::new_zeroed();
        let (Some(attest_length), Some(signature_length)) =
            (put(&mut reply.attest, attest), put(&mut reply.signature, signature))
        else {
            return false;
        };
        (reply.attest_length, reply.signature_length) = (attest_length, signature_length);
        self.set(&[reply.as_bytes()])
    }

    /// The bytes.
    pub fn get(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    fn wipe(&mut self) {
        self.bytes.zeroize();
        self.length = 0;
    }
}

/// Puts `bytes` at the start of `to`; their number, unless they are too many.
fn put(to: &mut [u8], bytes: &[u8]) -> Option<u32> {
    to.get_mut(..bytes.len())?.copy_from_slice(bytes);
    u32::try_from(bytes.len()).ok()
}

impl fmt::Debug for ErrandAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<answer>")
    }
}

/// How far the errand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Free,
    Waiting,
    InFlight,
    Done,
    Failed(u32),
}

/// What somebody who asks finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The place is free for a new errand.
    Free,
    /// Somebody else's errand, or another of one's own.
    Taken,
    /// One's own errand, which is not done.
    Working,
    /// One's own errand, whose answer is there.
    Done,
    /// One's own errand, which failed with this response code.
    Failed(u32),
}

/// The one place. Large: belongs into a static or the boot-time heap.
#[derive(Clone, Debug)]
pub struct ErrandDesk {
    progress: Progress,
    owner: Option<GuestSlot>,
    errand: Option<Errand>,
    /// When it was done.
    done_ms: Option<u64>,
    answer: ErrandAnswer,
}

impl Default for ErrandDesk {
    fn default() -> Self {
        Self::new()
    }
}

impl ErrandDesk {
    /// Nobody waits.
    pub const fn new() -> Self {
        Self {
            progress: Progress::Free,
            owner: None,
            errand: None,
            done_ms: None,
            answer: ErrandAnswer::EMPTY,
        }
    }

    /// Whether the TPM works at an errand, or should.
    pub const fn is_busy(&self) -> bool {
        matches!(self.progress, Progress::Waiting | Progress::InFlight)
    }

    /// Whether an errand waits for the TPM to be free.
    pub(super) const fn is_waiting(&self) -> bool {
        matches!(self.progress, Progress::Waiting)
    }

    /// Moves the TPM's work on, without waiting.
    pub(super) fn pump<T: TpmService>(tpm: &mut T) {
        if tpm.errands().progress == Progress::InFlight {
            let mut answer = ErrandAnswer::EMPTY;
            let progress = match tpm.poll_errand(&mut answer) {
                QuotePoll::Pending => return,
                QuotePoll::Done => Progress::Done,
                QuotePoll::Failed(code) => Progress::Failed(code),
            };
            let desk = tpm.errands();
            desk.progress = progress;
            desk.answer = answer.clone();
            answer.wipe();
            if desk.owner.is_none() {
                desk.clear();
            }
        }
        if let (Progress::Waiting, Some(errand)) = (tpm.errands().progress, tpm.errands().errand)
            && tpm.start_errand(&errand).is_ok()
        {
            tpm.errands().progress = Progress::InFlight;
            tpm.desk().errand_departs();
        }
    }

    /// What `guest` finds when it asks for `errand`.
    pub(super) fn look(&mut self, guest: GuestSlot, errand: &Errand, now_ms: u64) -> Found {
        let is_mine = self.owner == Some(guest);
        let is_same = is_mine && self.errand.as_ref() == Some(errand);
        match self.progress {
            Progress::Free => Found::Free,
            Progress::Waiting | Progress::InFlight if is_same => Found::Working,
            Progress::Waiting | Progress::InFlight => Found::Taken,
            Progress::Done if is_same => Found::Done,
            Progress::Failed(code) if is_same => Found::Failed(code),
            Progress::Done | Progress::Failed(_) => {
                let since = *self.done_ms.get_or_insert(now_ms);
                let is_stale = is_mine || now_ms.saturating_sub(since) >= PATIENCE_MS;
                if is_stale { Found::Free } else { Found::Taken }
            }
        }
    }

    /// Puts an errand in, in place of an answer that was there; false, and nothing, while another one is under way, whose
    /// end nobody would then wait for.
    #[must_use]
    pub(super) fn submit(&mut self, guest: GuestSlot, errand: Errand) -> bool {
        if self.is_busy() {
            return false;
        }
        self.clear();
        (self.progress, self.owner, self.errand) = (Progress::Waiting, Some(guest), Some(errand));
        true
    }

    /// The answer.
    pub(super) fn answer(&self) -> &[u8] {
        self.answer.get()
    }

    /// Forgets a guest's errand: at once, or when the TPM is done with it.
    pub(super) fn release(&mut self, guest: GuestSlot) {
        if self.owner != Some(guest) {
            return;
        }
        if self.progress == Progress::InFlight {
            (self.owner, self.errand) = (None, None);
        } else {
            self.clear();
        }
    }

    fn clear(&mut self) {
        self.answer.wipe();
        (self.progress, self.owner, self.errand, self.done_ms) = (Progress::Free, None, None, None);
    }
}
