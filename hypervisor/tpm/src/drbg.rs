//! The random generator: ChaCha20 from a library, seeded by the TPM and the processor.
//!
//! Each request ends by drawing the next key from the stream itself, so that who reads this memory later
//! learns nothing of what was given out before. It asks to be reseeded early and refuses to go on late.
//!
//! Each guest draws from a generator of its own, which the launch's own seeds. So who draws without end spends one request
//! of what all share in thousands, and a TPM that is busy for long leaves the others theirs.

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};

use crate::crypto::sha256;
use crate::secret::Secret;

/// Bytes, and requests, after which a reseed is due.
const SOFT_BYTES: u64 = 1 << 20;
const SOFT_REQUESTS: u64 = 1 << 12;
/// Bytes, and requests, after which there is nothing without one.
const HARD_BYTES: u64 = 1 << 30;
const HARD_REQUESTS: u64 = 1 << 22;

/// Too much was drawn since the last seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

/// A seeded generator; wiped when dropped.
pub struct Drbg {
    rng: ChaCha20Rng,
    bytes: u64,
    requests: u64,
    /// Requests at which a reseed is asked for again after one failed.
    postponed: u64,
    /// A generator that this one seeds has given so much that a reseed is due.
    is_due: bool,
}

impl Drbg {
    /// A generator from `entropy`: all its parts together, each with its length.
    #[must_use]
    pub fn new(entropy: &[&[u8]]) -> Self {
        let seed = condense(b"dolmen-drbg-1", &[0; 32], entropy);
        Self {
            rng: ChaCha20Rng::from_seed(*seed.expose()),
            bytes: 0,
            requests: 0,
            postponed: 0,
            is_due: false,
        }
    }

    /// A generator for somebody, seeded by this one.
    #[must_use]
    pub fn child(&mut self) -> Self {
        Self::new(&[self.renewal().expose()])
    }

    /// Mixes `entropy` in. What was there before is kept: bad entropy does no harm.
    pub fn reseed(&mut self, entropy: &[&[u8]]) {
        let mut old = Secret::new([0; 32]);
        self.rng.fill_bytes(old.expose_mut());
        let seed = condense(b"dolmen-reseed-1", old.expose(), entropy);
        self.rng = ChaCha20Rng::from_seed(*seed.expose());
        self.bytes = 0;
        self.requests = 0;
        self.postponed = 0;
        self.is_due = false;
    }

    /// Asks again only after some more requests: a reseed has just failed.
    pub const fn postpone_reseed(&mut self) {
        self.postponed = self.requests.saturating_add(SOFT_REQUESTS);
        self.is_due = false;
    }

    /// Whether it is time to reseed.
    #[must_use]
    pub const fn wants_reseed(&self) -> bool {
        let has_given_much = self.bytes >= SOFT_BYTES || self.requests >= SOFT_REQUESTS;
        self.is_due || has_given_much && self.requests >= self.postponed
    }

    /// Fills `out` from `child`, and seeds that anew when its time has come: this one wants a reseed then, too.
    ///
    /// # Errors
    /// [`Exhausted`] when this one has had no seed for the child for long; `out` is not touched then.
    pub fn fill_from(&mut self, child: &mut Self, out: &mut [u8]) -> Result<(), Exhausted> {
        let filled = child.fill(out);
        if child.wants_reseed()
            && let Ok(seed) = self.draw().map(Secret::new)
        {
            child.reseed(&[seed.expose()]);
            self.is_due = true;
        }
        filled
    }

    /// Fills `out`.
    ///
    /// # Errors
    /// [`Exhausted`] when a reseed is long overdue; `out` is not touched then.
    pub fn fill(&mut self, out: &mut [u8]) -> Result<(), Exhausted> {
        if self.bytes >= HARD_BYTES || self.requests >= HARD_REQUESTS {
            return Err(Exhausted);
        }
        self.fill_unlimited(out);
        self.bytes = self.bytes.saturating_add(u64::try_from(out.len()).unwrap_or(u64::MAX));
        self.requests = self.requests.saturating_add(1);
        Ok(())
    }

    fn fill_unlimited(&mut self, out: &mut [u8]) {
        self.rng.fill_bytes(out);
        let mut next = Secret::new([0; 32]);
        self.rng.fill_bytes(next.expose_mut());
        self.rng = ChaCha20Rng::from_seed(*next.expose());
    }

    /// 32 bytes that need not be secret, limit or not: for the nonce of the exchange that brings the new seed.
    pub(crate) fn nonce(&mut self) -> [u8; 32] {
        let mut out = [0; 32];
        self.fill_unlimited(&mut out);
        out
    }

    /// 32 secret bytes, limit or not: for the session that brings the new seed. There are few of these.
    pub fn renewal(&mut self) -> Secret<[u8; 32]> {
        Secret::new(self.nonce())
    }

    /// 32 fresh bytes.
    ///
    /// # Errors
    /// As [`Drbg::fill`].
    pub fn draw(&mut self) -> Result<[u8; 32], Exhausted> {
        let mut out = [0; 32];
        self.fill(&mut out)?;
        Ok(out)
    }
}

impl core::fmt::Debug for Drbg {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("<secret>")
    }
}

fn condense(tag: &[u8], old: &[u8; 32], entropy: &[&[u8]]) -> Secret<[u8; 32]> {
    let mut seed = Secret::new(sha256(&[tag, old]));
    for part in entropy {
        let length = u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes();
        seed = Secret::new(sha256(&[tag, seed.expose(), &length, part]));
    }
    seed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_entropy_and_its_border_matters() {
        let first = Drbg::new(&[b"ab", b"c"]).draw().unwrap();
        assert_eq!(first, Drbg::new(&[b"ab", b"c"]).draw().unwrap());
        assert_ne!(first, Drbg::new(&[b"a", b"bc"]).draw().unwrap());
        assert_ne!(first, Drbg::new(&[b"ab"]).draw().unwrap());
    }

    #[test]
    fn a_reseed_changes_the_stream_and_keeps_the_old_secret() {
        let (mut one, mut two) = (Drbg::new(&[b"one"]), Drbg::new(&[b"two"]));
        let unseeded = Drbg::new(&[b"one"]).draw().unwrap();
        one.reseed(&[b"known to all"]);
        two.reseed(&[b"known to all"]);
        let (a, b) = (one.draw().unwrap(), two.draw().unwrap());
        assert_ne!(a, b);
        assert_ne!(a, unseeded);
    }

    #[test]
    fn each_request_leaves_a_new_key_drawn_from_the_stream() {
        let seed = condense(b"dolmen-drbg-1", &[0; 32], &[b"x"]);
        let (mut given, mut next) = ([0; 40], [0; 32]);
        let mut stream = ChaCha20Rng::from_seed(*seed.expose());
        stream.fill_bytes(&mut given);
        stream.fill_bytes(&mut next);
        let mut second = [0; 32];
        ChaCha20Rng::from_seed(next).fill_bytes(&mut second);

        let mut drbg = Drbg::new(&[b"x"]);
        let mut first = [0; 40];
        drbg.fill(&mut first).unwrap();

        assert_eq!(first, given);
        assert_eq!(drbg.draw().unwrap(), second);
    }

    #[test]
    fn each_child_has_a_stream_and_a_budget_of_its_own() {
        let mut root = Drbg::new(&[b"x"]);
        let (mut greedy, mut modest) = (root.child(), root.child());
        let mut bytes = [[0; 8]; 2];
        root.fill_from(&mut greedy, &mut bytes[0]).unwrap();
        root.fill_from(&mut modest, &mut bytes[1]).unwrap();
        assert_ne!(bytes[0], bytes[1]);
        for _ in 0..2 {
            greedy.requests = SOFT_REQUESTS - 1;
            root.fill_from(&mut greedy, &mut bytes[0]).unwrap();
        }
        assert!(root.wants_reseed(), "one of them has given much");
        assert_eq!((root.requests, greedy.requests, modest.requests), (2, 0, 1));
        root.postpone_reseed();
        assert!(!root.wants_reseed());
        greedy.bytes = SOFT_BYTES;
        root.fill_from(&mut greedy, &mut bytes[0]).unwrap();
        assert!(root.wants_reseed(), "and much again");
    }

    #[test]
    fn a_child_outlives_what_seeds_it_up_to_its_own_limit_and_comes_back() {
        let mut root = Drbg::new(&[b"x"]);
        let (mut greedy, mut modest) = (root.child(), root.child());
        root.requests = HARD_REQUESTS;
        greedy.requests = HARD_REQUESTS - 1;
        assert!(root.fill_from(&mut greedy, &mut [0; 8]).is_ok());
        assert_eq!(root.fill_from(&mut greedy, &mut [0; 8]), Err(Exhausted));
        assert!(root.fill_from(&mut modest, &mut [0; 8]).is_ok());
        root.reseed(&[b"y"]);
        assert_eq!(root.fill_from(&mut greedy, &mut [0; 8]), Err(Exhausted), "it is seeded on the way");
        assert!(root.fill_from(&mut greedy, &mut [0; 8]).is_ok());
    }

    #[test]
    fn it_asks_for_a_reseed_early_and_stops_late() {
        let mut drbg = Drbg::new(&[b"x"]);
        drbg.requests = SOFT_REQUESTS - 1;
        assert!(!drbg.wants_reseed());
        drbg.draw().unwrap();
        assert!(drbg.wants_reseed());
        drbg.postpone_reseed();
        assert!(!drbg.wants_reseed());
        drbg.bytes = HARD_BYTES;
        assert_eq!(drbg.draw(), Err(Exhausted));
        drbg.reseed(&[b"y"]);
        assert!(drbg.draw().is_ok());
    }
}
