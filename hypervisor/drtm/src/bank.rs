//! Which PCR banks are active, and one digest for each of them.
//!
//! A bank that is active and not extended is a free forgery: anybody could extend it later to what a good
//! launch would have left. So every active bank gets a digest with every event: the real one, or for an
//! algorithm that Dolmen lacks a constant ([`cap`]) that no measurement can produce by accident.

use crate::digest::{Algorithm, Digest, MAX_DIGEST};
use crate::handoff::{Bank, MAX_BANKS};

/// PCR of the dynamic launch's code.
pub const PCR_CODE: u8 = 17;
/// PCR of the dynamic launch's configuration.
pub const PCR_CONFIGURATION: u8 = 18;

/// The bit of each PCR that a bank must have.
const NEEDED: u32 = 1 << PCR_CODE | 1 << PCR_CONFIGURATION;

/// What caps a bank: first byte 00h, all others FFh, as many as the bank's digests have. PCRs are capped by
/// extending them with it, in banks that Dolmen cannot compute and, when it stops, in all of them.
#[must_use]
pub const fn cap() -> [u8; MAX_DIGEST] {
    let mut bytes = [0xff; MAX_DIGEST];
    bytes[0] = 0;
    bytes
}

/// Bytes of a digest of `algorithm`, for every hash that the TCG has registered.
const fn size_of_algorithm(algorithm: u16) -> Option<u16> {
    match algorithm {
        0x04 => Some(20),
        0x0b | 0x12 | 0x27 => Some(32), // SHA-256, SM3-256, SHA3-256
        0x0c | 0x28 => Some(48),
        0x0d | 0x29 => Some(64),
        _ => None,
    }
}

/// Why a TPM's banks cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BankError {
    /// The SHA-256 bank is not active, or lacks PCR 17 or 18.
    NoSha256,
    /// This algorithm's bank has only one of PCR 17 and 18.
    Partial(u16),
    /// The size of this algorithm's digests is unknown, so its bank cannot even be capped.
    Unknown(u16),
    /// There are more active banks than a hand-off has room for.
    TooMany,
}

/// The active banks, each with PCR 17 and 18; SHA-256 is among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BankSet {
    banks: [Bank; MAX_BANKS],
    count: usize,
}

impl BankSet {
    /// Chooses from what the TPM shows: pairs of TPM_ALG_ID and PCR bitmap.
    ///
    /// # Errors
    /// [`BankError`] names what must change in the TPM's configuration.
    pub fn select(shown: impl Iterator<Item = (u16, u32)>) -> Result<Self, BankError> {
        let mut set = Self { banks: [Bank::default(); MAX_BANKS], count: 0 };
        for (algorithm, pcrs) in shown {
            match pcrs & NEEDED {
                0 => continue,
                NEEDED => {}
                _ => return Err(BankError::Partial(algorithm)),
            }
            let digest_size = size_of_algorithm(algorithm).ok_or(BankError::Unknown(algorithm))?;
            let measured = u32::from(Algorithm::from_id(algorithm).is_some());
            let slot = set.banks.get_mut(set.count).ok_or(BankError::TooMany)?;
            *slot = Bank { algorithm, digest_size, measured };
            set.count = set.count.saturating_add(1);
        }
        set.require_sha256()
    }

    /// Every bank that can be capped, whatever else is wrong with it: for the way out.
    #[must_use]
    pub fn cappable(shown: impl Iterator<Item = (u16, u32)>) -> Self {
        let mut set = Self { banks: [Bank::default(); MAX_BANKS], count: 0 };
        let known = shown.filter_map(|(algorithm, pcrs)| {
            let digest_size = size_of_algorithm(algorithm).filter(|_| pcrs & NEEDED != 0)?;
            Some(Bank { algorithm, digest_size, measured: 0 })
        });
        for (slot, bank) in set.banks.iter_mut().zip(known) {
            *slot = bank;
            set.count = set.count.saturating_add(1);
        }
        set
    }

    /// The banks that a hand-off lists.
    ///
    /// # Errors
    /// [`BankError`] if the list is not one that [`Self::select`] made.
    pub fn from_list(banks: &[Bank]) -> Result<Self, BankError> {
        let set = Self::select(banks.iter().map(|bank| (bank.algorithm, NEEDED)))?;
        let differs = set.list().iter().zip(banks).find(|(own, told)| own != told);
        differs.map_or(Ok(set), |(own, _)| Err(BankError::Unknown(own.algorithm)))
    }

    fn require_sha256(self) -> Result<Self, BankError> {
        let has = self.list().iter().any(|bank| bank.algorithm == Algorithm::Sha256.id());
        if has { Ok(self) } else { Err(BankError::NoSha256) }
    }

    /// All of them, as hand-offs list them.
    #[must_use]
    pub fn list(&self) -> &[Bank] {
        self.banks.get(..self.count).unwrap_or(&[])
    }

    /// Whether a bank is capped, because Dolmen lacks its algorithm.
    #[must_use]
    pub fn has_capped(&self) -> bool {
        self.list().iter().any(|bank| bank.measured == 0)
    }

    /// Extends a PCR, given by its value in each bank of the list. Banks that cannot be computed stay as they are.
    pub fn extend(&self, values: &mut [[u8; MAX_DIGEST]; MAX_BANKS], event: &DigestSet) {
        for ((slot, bank), new) in values.iter_mut().zip(self.list()).zip(event.iter()) {
            if let Some(algorithm) = Algorithm::from_id(bank.algorithm) {
                let old = slot.get(..algorithm.size()).unwrap_or(&[]);
                let value = algorithm.hash(&[old, new.1]);
                put(slot, &value);
            }
        }
    }

    /// The algorithms that are computed, in the order of the list.
    pub fn algorithms(&self) -> impl Iterator<Item = Algorithm> + '_ {
        self.list().iter().filter_map(|bank| Algorithm::from_id(bank.algorithm))
    }
}

/// One value for each active bank: the digests of an event, or the values of a PCR.
#[derive(Clone, Copy, Debug)]
pub struct DigestSet {
    banks: BankSet,
    values: [[u8; MAX_DIGEST]; MAX_BANKS],
}

impl DigestSet {
    /// All zero: a PCR just after the dynamic launch.
    #[must_use]
    pub const fn zero(banks: &BankSet) -> Self {
        Self { banks: *banks, values: [[0; MAX_DIGEST]; MAX_BANKS] }
    }

    /// The digests of `bytes`; [`cap`] in the banks that cannot be computed.
    #[must_use]
    pub fn of(banks: &BankSet, bytes: &[u8]) -> Self {
        Self::from_fn(banks, |algorithm| algorithm.hash(&[bytes]))
    }

    /// [`cap`] in every bank.
    #[must_use]
    pub const fn capped(banks: &BankSet) -> Self {
        Self { banks: *banks, values: [cap(); MAX_BANKS] }
    }

    /// Values as a hand-off carries them, in the order of the bank list.
    #[must_use]
    pub const fn from_values(banks: &BankSet, values: [[u8; MAX_DIGEST]; MAX_BANKS]) -> Self {
        Self { banks: *banks, values }
    }

    /// The values as a hand-off carries them, in the order of the bank list.
    #[must_use]
    pub const fn values(&self) -> &[[u8; MAX_DIGEST]; MAX_BANKS] {
        &self.values
    }

    /// What `value` gives for each algorithm that is computed, [`cap`] in the other banks.
    pub(crate) fn from_fn(banks: &BankSet, mut value: impl FnMut(Algorithm) -> Digest) -> Self {
        let mut set = Self::capped(banks);
        for (slot, bank) in set.values.iter_mut().zip(banks.list()) {
            if let Some(algorithm) = Algorithm::from_id(bank.algorithm) {
                put(slot, &value(algorithm));
            }
        }
        set
    }

    /// Extends this PCR with `event`. Banks that cannot be computed stay as they are: their value is nobody's
    /// reference.
    pub fn extend(&mut self, event: &Self) {
        self.banks.extend(&mut self.values, event);
    }

    /// This PCR after an extend with `event`.
    #[must_use]
    pub fn extended(&self, event: &Self) -> Self {
        let mut next = *self;
        next.extend(event);
        next
    }

    /// The banks that it has values for.
    #[must_use]
    pub const fn banks(&self) -> &BankSet {
        &self.banks
    }

    /// TPM_ALG_ID and value for each active bank: what TPM2_PCR_Extend takes.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &[u8])> + '_ {
        self.banks
            .list()
            .iter()
            .zip(&self.values)
            .map(|(bank, value)| (bank.algorithm, value.get(..usize::from(bank.digest_size)).unwrap_or(&[])))
    }

    /// As [`Self::iter`], without the banks that cannot be computed: what an event log lists.
    pub fn measured(&self) -> impl Iterator<Item = (Algorithm, &[u8])> + '_ {
        self.iter().filter_map(|(id, value)| Some((Algorithm::from_id(id)?, value)))
    }

    /// The value in one bank.
    #[must_use]
    pub fn get(&self, algorithm: Algorithm) -> Option<&[u8]> {
        self.measured().find(|(own, _)| *own == algorithm).map(|(_, value)| value)
    }
}

#[inline(never)]
fn put(slot: &mut [u8; MAX_DIGEST], digest: &Digest) {
    for (to, from) in slot.iter_mut().zip(digest.bytes()) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: u32 = 0xff_ffff;
    type Shown = &'static [(u16, u32)];

    #[test]
    fn banks_are_chosen_as_the_table_says() {
        let table: [(Shown, Result<usize, BankError>); 9] = [
            (&[(0xb, BOTH)], Ok(1)),
            (&[(0x4, BOTH), (0xb, BOTH), (0xc, BOTH), (0xd, BOTH)], Ok(4)),
            (&[(0x4, 0), (0xb, BOTH)], Ok(1)),
            (&[(0xb, BOTH), (0x12, BOTH)], Ok(2)),
            (&[(0xb, 0), (0x4, BOTH)], Err(BankError::NoSha256)),
            (&[], Err(BankError::NoSha256)),
            (&[(0xb, 1 << 17)], Err(BankError::Partial(0xb))),
            (&[(0xb, BOTH), (0x4, 1 << 18)], Err(BankError::Partial(0x4))),
            (&[(0xb, BOTH), (0x7777, BOTH)], Err(BankError::Unknown(0x7777))),
        ];
        for (shown, want) in table {
            let got = BankSet::select(shown.iter().copied()).map(|set| set.list().len());
            assert_eq!(got, want, "{shown:x?}");
        }
        let many = [(0xb, BOTH); MAX_BANKS + 1];
        assert_eq!(BankSet::select(many.into_iter()), Err(BankError::TooMany));
    }

    #[test]
    fn a_bank_without_an_algorithm_gets_the_cap_and_the_log_leaves_it_out() {
        let banks = BankSet::select([(0xb, BOTH), (0x12, BOTH)].into_iter()).unwrap();
        let digests = DigestSet::of(&banks, b"core");
        let all: Vec<_> = digests.iter().collect();
        assert_eq!(all[0], (0xb, Algorithm::Sha256.hash(&[b"core"]).bytes()));
        assert_eq!(all[1].0, 0x12);
        assert_eq!(all[1].1.len(), 32);
        assert_eq!(all[1].1[0], 0);
        assert!(all[1].1[1..].iter().all(|byte| *byte == 0xff));
        assert_eq!(digests.measured().count(), 1);
        assert!(banks.has_capped());
    }

    #[test]
    fn an_extend_hashes_the_old_value_before_the_new_in_every_bank() {
        let shown = Algorithm::ALL.map(|algorithm| (algorithm.id(), BOTH));
        let banks = BankSet::select(shown.into_iter()).unwrap();
        let event = DigestSet::of(&banks, b"x");
        let pcr = DigestSet::zero(&banks).extended(&event).extended(&event);
        for algorithm in Algorithm::ALL {
            let digest = algorithm.hash(&[b"x"]);
            let once = algorithm.hash(&[Digest::zero(algorithm).bytes(), digest.bytes()]);
            let twice = algorithm.hash(&[once.bytes(), digest.bytes()]);
            assert_eq!(pcr.get(algorithm), Some(twice.bytes()), "{algorithm:?}");
        }
    }

    #[test]
    fn on_the_way_out_every_bank_of_known_size_is_capped() {
        let shown = [(0x4, 1 << 17), (0x7777, BOTH), (0xc, 0), (0x12, BOTH)];
        let capped = DigestSet::capped(&BankSet::cappable(shown.into_iter()));
        let sizes: Vec<_> = capped.iter().map(|(algorithm, value)| (algorithm, value.len())).collect();
        assert_eq!(sizes, [(0x4, 20), (0x12, 32)]);
        assert!(capped.iter().all(|(_, value)| value[0] == 0 && value[1..].iter().all(|byte| *byte == 0xff)));
    }

    #[test]
    fn a_list_from_a_hand_off_is_checked_again() {
        let banks = BankSet::select([(0xb, BOTH), (0x12, BOTH)].into_iter()).unwrap();
        assert_eq!(BankSet::from_list(banks.list()), Ok(banks));
        let mut lie = *banks.list().first().unwrap();
        lie.measured = 0;
        assert_eq!(BankSet::from_list(&[lie]), Err(BankError::Unknown(0xb)));
    }
}
