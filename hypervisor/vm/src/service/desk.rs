//! Where the quote requests of all guests meet: one TPM quote answers all that wait.
//!
//! Each guest has one slot, so it can neither crowd out others nor be crowded out: whoever waits when the TPM
//! becomes free for a quote by that key is in it. Keys take turns, and so do quotes and errands
//! ([`super::ErrandDesk`]). So a request is answered by the third quote that ends after it was made, at the latest (one that
//! was under way, one by the other key, its own), with at most one errand before each of them, whatever others do.

use dolmen_abi::{AkId, Binding, LEAF_PREFIX, MAX_PATH, MAX_WAITING, NODE_PREFIX, QUOTE_TAG};
use sha2::{Digest, Sha256};
use zerocopy::IntoBytes;

use super::errand::ErrandDesk;
use super::platform::{QuotePoll, SignedQuote, TpmService};

/// Moves on all that guests wait for at the TPM, without waiting. A quote leaves an errand its turn, and there is one place
/// for errands: so neither kind keeps the other waiting.
pub fn serve_waiting<T: TpmService>(tpm: &mut T) {
    QuoteDesk::pump(tpm);
    ErrandDesk::pump(tpm);
}

/// A guest's place at the desk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestSlot(usize);

impl GuestSlot {
    /// The place of guest number `index`, counted from 0 in manifest order.
    pub const fn new(index: usize) -> Option<Self> {
        if index < MAX_WAITING { Some(Self(index)) } else { None }
    }

    /// The guest's number.
    pub const fn index(self) -> usize {
        self.0
    }
}

/// How far a guest's request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Free,
    Waiting,
    InFlight,
    Done,
    Failed(u32),
}

/// A request, and the quote that answers it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) progress: Progress,
    key: AkId,
    leaf: [u8; 32],
    pub(super) index: u32,
    pub(super) count: u32,
    path: [[u8; 32]; MAX_PATH],
    path_length: usize,
    pub(super) quote: SignedQuote,
}

impl Slot {
    const FREE: Self = Self {
        progress: Progress::Free,
        key: AkId::GUEST_ECDSA,
        leaf: [0; 32],
        index: 0,
        count: 0,
        path: [[0; 32]; MAX_PATH],
        path_length: 0,
        quote: SignedQuote::EMPTY,
    };

    /// Siblings from the leaf to the root.
    pub(super) fn path(&self) -> &[[u8; 32]] {
        self.path.get(..self.path_length).unwrap_or_default()
    }

    fn add_sibling(&mut self, sibling: [u8; 32]) {
        if let Some(place) = self.path.get_mut(self.path_length) {
            *place = sibling;
            self.path_length = self.path_length.saturating_add(1);
        }
    }
}

/// The requests of all guests. Large: belongs into a static or the boot-time heap.
#[derive(Clone, Debug)]
pub struct QuoteDesk {
    slots: [Slot; MAX_WAITING],
    is_quoting: bool,
    /// The key of the last quote: the others' turn comes after it.
    last_key: AkId,
    /// What the TPM was last used for: the other's turn comes after it.
    last_work: Work,
}

/// What the TPM is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Quotes that bind guests.
    Quotes,
    /// Everything else.
    Errands,
}

impl Default for QuoteDesk {
    fn default() -> Self {
        Self::new()
    }
}

impl QuoteDesk {
    /// Nobody waits.
    pub const fn new() -> Self {
        Self {
            slots: [Slot::FREE; MAX_WAITING],
            is_quoting: false,
            last_key: AkId::GUEST_RSA,
            last_work: Work::Errands,
        }
    }

    /// Whether a quote is in flight or someone waits for one: whoever is idle may then [`serve_waiting`].
    pub fn is_busy(&self) -> bool {
        self.is_quoting || self.is_waiting()
    }

    fn is_waiting(&self) -> bool {
        self.slots.iter().any(|slot| slot.progress == Progress::Waiting)
    }

    /// An errand has begun.
    pub(super) const fn errand_departs(&mut self) {
        self.last_work = Work::Errands;
    }

    /// Moves the TPM's work on: takes what is done, starts what waits. Never waits itself.
    fn pump<T: TpmService>(tpm: &mut T) {
        if tpm.desk().is_quoting {
            let mut quote = SignedQuote::EMPTY;
            match tpm.poll_quote(&mut quote) {
                QuotePoll::Pending => return,
                QuotePoll::Done if quote.attest().is_empty() || quote.signature().is_empty() => {
                    tpm.desk().finish(Progress::Failed(0), &SignedQuote::EMPTY);
                }
                QuotePoll::Done => tpm.desk().finish(Progress::Done, &quote),
                QuotePoll::Failed(code) => tpm.desk().finish(Progress::Failed(code), &SignedQuote::EMPTY),
            }
        }
        if tpm.errands().is_waiting() && tpm.desk().last_work == Work::Quotes {
            return; // the errand's turn
        }
        if let Some(key) = tpm.desk().next_key()
            && let Some(root) = tpm.desk().gather(key)
        {
            // If the TPM is at another job, all wait on, and the next tree is built anew.
            if tpm.start_quote(key, root).is_ok() {
                tpm.desk().depart(key);
            }
        }
    }

    pub(super) fn slot(&self, guest: GuestSlot) -> &Slot {
        self.slots.get(guest.0).unwrap_or(&Slot::FREE)
    }

    /// Puts a guest's request in line, in place of what its slot held. Not while that is in flight.
    pub(super) fn submit(&mut self, guest: GuestSlot, key: AkId, leaf: [u8; 32]) {
        if let Some(slot) = self.slots.get_mut(guest.0) {
            *slot = Slot { progress: Progress::Waiting, key, leaf, ..Slot::FREE };
        }
    }

    /// Empties a guest's slot.
    pub(super) fn release(&mut self, guest: GuestSlot) {
        if let Some(slot) = self.slots.get_mut(guest.0) {
            *slot = Slot::FREE;
        }
    }

    /// The key that the next quote is by: not the last one's, if somebody waits for another.
    fn next_key(&self) -> Option<AkId> {
        let waiting = |slot: &&Slot| slot.progress == Progress::Waiting;
        let mut keys = self.slots.iter().filter(waiting).map(|slot| slot.key);
        let first = keys.next()?;
        if first == self.last_key {
            Some(keys.find(|key| *key != first).unwrap_or(first))
        } else {
            Some(first)
        }
    }

    /// Builds the tree over all that wait for a quote by `key`, each with its place and path; its root, if anyone does.
    fn gather(&mut self, key: AkId) -> Option<[u8; 32]> {
        let mut nodes = [[0; 32]; MAX_WAITING];
        let mut count: usize = 0;
        for (slot, node) in self.waiting(key).zip(nodes.iter_mut()) {
            (slot.index, slot.path_length) = (u32::try_from(count).ok()?, 0);
            *node = slot.leaf;
            count = count.saturating_add(1);
        }
        let leaves = u32::try_from(count).ok().filter(|leaves| *leaves > 0)?;
        self.waiting(key).for_each(|slot| slot.count = leaves);

        let mut level: u32 = 0;
        while count > 1 {
            let current = nodes.get(..count)?;
            for slot in self.waiting(key) {
                let place = usize::try_from(slot.index >> level).ok()?;
                if let Some(sibling) = current.get(place ^ 1) {
                    slot.add_sibling(*sibling);
                }
            }
            count = raise(&mut nodes, count);
            level = level.saturating_add(1);
        }
        let [root, ..] = nodes;
        Some(root)
    }

    /// The quote over what was gathered has begun.
    fn depart(&mut self, key: AkId) {
        self.waiting(key).for_each(|slot| slot.progress = Progress::InFlight);
        (self.is_quoting, self.last_key, self.last_work) = (true, key, Work::Quotes);
    }

    fn finish(&mut self, progress: Progress, quote: &SignedQuote) {
        for slot in self.slots.iter_mut().filter(|slot| slot.progress == Progress::InFlight) {
            slot.progress = progress;
            slot.quote = *quote;
        }
        self.is_quoting = false;
    }

    fn waiting(&mut self, key: AkId) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut().filter(move |slot| slot.progress == Progress::Waiting && slot.key == key)
    }
}

/// What a request's leaf hashes to.
pub(super) fn leaf(binding: &Binding) -> [u8; 32] {
    let tagged = Sha256::new().chain_update([LEAF_PREFIX]).chain_update(QUOTE_TAG);
    tagged.chain_update(binding.as_bytes()).finalize().into()
}

/// What an inner node hashes to.
pub(super) fn node(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update([NODE_PREFIX]).chain_update(left).chain_update(right).finalize().into()
}

/// Replaces the first `count` nodes by their parents; how many those are.
fn raise(nodes: &mut [[u8; 32]; MAX_WAITING], count: usize) -> usize {
    let children = *nodes;
    let pairs = children.get(..count).unwrap_or_default().chunks(2);
    let parents = pairs.len();
    for (parent, pair) in nodes.iter_mut().zip(pairs) {
        *parent = match pair {
            [left, right] => node(left, right),
            [alone] => *alone,
            _ => *parent,
        };
    }
    parents
}
