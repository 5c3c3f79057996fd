//! The mailbox of one vCPU: what others have sent it and it has not taken in yet.
//!
//! Everything a message consists of is either one bit of one word or in the flag word, so no sender and no
//! collector can ever see half of one. A vector's bit is set before the flag that announces its word, and the
//! flag is taken before the word: a bit that a collector misses is announced by a flag that it will see.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Words of 64 vectors each.
const WORDS: usize = 4;

/// Flags 0 to 3: word n has edge-triggered vectors; 4 to 7: level-triggered ones.
const LEVEL_SHIFT: usize = WORDS;
const NMI: u32 = 1 << 8;
const INIT: u32 = 1 << 9;
const START_UP: u32 = 1 << 10;
const START_UP_VECTOR_SHIFT: u32 = 16;

/// What one vCPU has been sent, and how it can be addressed.
///
/// Aligned to a cache line: neighbours' mail does not slow each other down.
#[derive(Debug)]
#[repr(align(64))]
pub struct Mailbox {
    flags: AtomicU32,
    addressing: AtomicU32,
    edge: [AtomicU64; WORDS],
    level: [AtomicU64; WORDS],
}

/// What a vCPU takes out of its mailbox at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Posted {
    /// Edge-triggered vectors.
    pub edge: [u64; WORDS],
    /// Level-triggered vectors.
    pub level: [u64; WORDS],
    /// A non-maskable interrupt.
    pub nmi: bool,
    /// INIT, which came before `start_up`.
    pub init: bool,
    /// Start-up with this vector.
    pub start_up: Option<u8>,
}

impl Mailbox {
    /// An empty mailbox of a vCPU whose local APIC is as after power-on.
    pub(super) const fn new() -> Self {
        Self {
            flags: AtomicU32::new(0),
            addressing: AtomicU32::new(Addressing::RESET.0),
            edge: [const { AtomicU64::new(0) }; WORDS],
            level: [const { AtomicU64::new(0) }; WORDS],
        }
    }

    /// Posts a vector; whether the mailbox was empty.
    pub(super) fn post_vector(&self, vector: u8, level_triggered: bool) -> bool {
        let word = usize::from(vector >> 6);
        let (words, shift) = if level_triggered { (&self.level, LEVEL_SHIFT) } else { (&self.edge, 0) };
        let Some(slot) = words.get(word) else { return false };
        // Relaxed: the release of the flag below carries it.
        slot.fetch_or(1 << (vector & 63), Ordering::Relaxed);
        self.announce(1 << word.wrapping_add(shift))
    }

    /// Posts a non-maskable interrupt; whether the mailbox was empty.
    pub(super) fn post_nmi(&self) -> bool {
        self.announce(NMI)
    }

    /// Posts INIT; whether the mailbox was empty. A start-up that waits is void: the vCPU would have taken it
    /// before this INIT, which takes all its effect away.
    pub(super) fn post_init(&self) -> bool {
        self.change(|flags| (flags & 0xff) | INIT)
    }

    /// Posts a start-up; whether the mailbox was empty. The first of several counts.
    pub(super) fn post_start_up(&self, vector: u8) -> bool {
        let posted = START_UP | u32::from(vector) << START_UP_VECTOR_SHIFT;
        self.change(|flags| if flags & START_UP == 0 { flags | posted } else { flags })
    }

    /// Whether there is mail. For a glance: mail may come right after.
    #[inline]
    pub fn is_empty(&self) -> bool {
        // Relaxed: whoever acts on it goes on to `take`, or to the scheduler's lock, which orders.
        self.flags.load(Ordering::Relaxed) == 0
    }

    /// Takes everything out; `None` if there is nothing.
    pub fn take(&self) -> Option<Posted> {
        if self.is_empty() {
            return None;
        }
        // Acquire pairs with the release in `announce` and `change`: each word that a flag announces shows
        // at least the bits that were set before the flag was.
        let flags = self.flags.swap(0, Ordering::Acquire);
        let mut posted = Posted {
            nmi: flags & NMI != 0,
            init: flags & INIT != 0,
            start_up: (flags & START_UP != 0).then_some(flags.to_le_bytes()[2]),
            ..Posted::default()
        };
        Self::take_words(&self.edge, flags, &mut posted.edge);
        Self::take_words(&self.level, flags >> LEVEL_SHIFT, &mut posted.level);
        Some(posted)
    }

    /// How the vCPU can be addressed now.
    pub fn addressing(&self) -> Addressing {
        // Relaxed, here and in `publish`: one word, which stands for itself. A guest orders its own change of
        // addressing before another vCPU's send by memory of its own, whose order the processors keep: the
        // change was published before the changing vCPU was entered again.
        Addressing(self.addressing.load(Ordering::Relaxed))
    }

    /// The owner says how it can be addressed from now on.
    pub fn publish(&self, addressing: Addressing) {
        self.addressing.store(addressing.0, Ordering::Relaxed);
    }

    /// Empties the mailbox; the caller sees to it that nobody posts meanwhile.
    pub(super) fn reset(&self) {
        self.flags.store(0, Ordering::Relaxed);
        for word in self.edge.iter().chain(&self.level) {
            word.store(0, Ordering::Relaxed);
        }
        self.publish(Addressing::RESET);
    }

    fn announce(&self, flag: u32) -> bool {
        // Release: see `take`.
        self.flags.fetch_or(flag, Ordering::Release) == 0
    }

    fn change(&self, to: impl Fn(u32) -> u32) -> bool {
        let before = self.flags.fetch_update(Ordering::Release, Ordering::Relaxed, |flags| Some(to(flags)));
        before == Ok(0)
    }

    fn take_words(words: &[AtomicU64; WORDS], flags: u32, into: &mut [u64; WORDS]) {
        for (index, (word, taken)) in words.iter().zip(into).enumerate() {
            if flags & (1 << index) != 0 {
                // Relaxed: ordered after the flag by its acquire; the swap itself loses no bit.
                *taken = word.swap(0, Ordering::Relaxed);
            }
        }
    }
}

/// The logical destination of eight bits that means all.
const BROADCAST: u8 = 0xff;

/// How a vCPU's local APIC can be addressed, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addressing(u32);

impl Addressing {
    const ON: u32 = 1 << 0;
    const X2APIC: u32 = 1 << 1;
    const SOFTWARE_ENABLED: u32 = 1 << 2;
    const CLUSTERS: u32 = 1 << 3;
    const LOGICAL_SHIFT: u32 = 8;
    const PRIORITY_SHIFT: u32 = 16;

    /// After power-on: in xAPIC mode, software-disabled, flat model, in no logical set.
    pub const RESET: Self = Self(Self::ON);
    /// Switched off.
    pub const OFF: Self = Self(0);

    /// In xAPIC mode, with bits 31:24 of the logical destination register and the model that the destination
    /// format register selects.
    pub const fn xapic(logical: u8, clusters: bool) -> Self {
        let model = if clusters { Self::CLUSTERS } else { 0 };
        Self(Self::ON | model | Self::byte(logical) << Self::LOGICAL_SHIFT)
    }

    /// In x2APIC mode, whose logical ID follows from the APIC ID.
    pub const fn x2apic() -> Self {
        Self(Self::ON | Self::X2APIC)
    }

    /// The same of an APIC that software has enabled.
    #[must_use]
    pub const fn enabled(self) -> Self {
        Self(self.0 | Self::SOFTWARE_ENABLED)
    }

    /// The same with this task priority.
    #[must_use]
    pub const fn with_priority(self, task_priority: u8) -> Self {
        Self(self.0 & !(0xff << Self::PRIORITY_SHIFT) | Self::byte(task_priority) << Self::PRIORITY_SHIFT)
    }

    /// Whether the APIC is not switched off by its base register.
    pub const fn is_on(self) -> bool {
        self.0 & Self::ON != 0
    }

    /// Whether it takes vectors.
    pub const fn takes_interrupts(self) -> bool {
        self.0 & (Self::ON | Self::SOFTWARE_ENABLED) == Self::ON | Self::SOFTWARE_ENABLED
    }

    /// The class of its task priority.
    pub const fn priority_class(self) -> u8 {
        self.0.to_le_bytes()[2] >> 4
    }

    /// Whether the logical destination `wanted` addresses the vCPU with APIC ID `id` (SDM vol. 3A, 11.6.2.2
    /// and 11.12.10.2).
    pub fn matches(self, id: usize, wanted: u32) -> bool {
        if self.0 & Self::X2APIC != 0 {
            let own = x2apic_logical(u32::try_from(id).unwrap_or(u32::MAX));
            return wanted == u32::MAX || (wanted >> 16 == own >> 16 && wanted & own & 0xffff != 0);
        }
        let (own, wanted) = (self.0.to_le_bytes()[1], wanted.to_le_bytes()[0]);
        let is_in = if self.0 & Self::CLUSTERS == 0 {
            own & wanted != 0
        } else {
            own >> 4 == wanted >> 4 && own & wanted & 0xf != 0
        };
        self.is_on() && (is_in || wanted == BROADCAST)
    }

    #[expect(clippy::as_conversions, reason = "widening, in a const function")]
    const fn byte(value: u8) -> u32 {
        value as u32
    }
}

/// The logical destination register in x2APIC mode: cluster and member, from the APIC ID (SDM vol. 3A,
/// 11.12.10.2).
pub(crate) const fn x2apic_logical(id: u32) -> u32 {
    ((id >> 4) << 16) | (1 << (id & 0xf))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::merges;

    /// A step of a sender or of the collector; each touches one word once.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        SetBit(u8),
        Announce(u8),
        TakeFlags,
        TakeWords,
    }

    /// Two senders post vectors of one word, and one vector twice, while the owner collects twice: in every
    /// order of the steps each is found, and found no more often than posted.
    #[test]
    #[cfg_attr(miri, ignore = "takes minutes")]
    fn in_no_interleaving_is_a_vector_lost_or_doubled() {
        use Step::{Announce, SetBit, TakeFlags, TakeWords};
        let first = [SetBit(0x41), Announce(0x41), SetBit(0x42), Announce(0x42)];
        let second = [SetBit(0x42), Announce(0x42)];
        let collector = [TakeFlags, TakeWords, TakeFlags, TakeWords];
        let orders = merges(&[&first, &second, &collector]);
        assert_eq!(orders.len(), 3150);
        for order in orders {
            let (mailbox, mut flags, mut found) = (Mailbox::new(), 0, [0u32; 2]);
            let mut count = |words: [u64; WORDS]| {
                for (vector, times) in (0x41u32..).zip(&mut found) {
                    *times += u32::from(words[1] >> (vector & 63) & 1 != 0);
                }
            };
            for step in &order {
                match *step {
                    SetBit(vector) => {
                        mailbox.edge[1].fetch_or(1 << (vector & 63), Ordering::Relaxed);
                    }
                    Announce(vector) => {
                        let _was_empty = mailbox.announce(1 << (vector >> 6));
                    }
                    TakeFlags => flags = mailbox.flags.swap(0, Ordering::Acquire),
                    TakeWords => {
                        let mut words = [0; WORDS];
                        Mailbox::take_words(&mailbox.edge, flags, &mut words);
                        count(words);
                    }
                }
            }
            count(mailbox.take().map_or([0; WORDS], |posted| posted.edge));
            assert!(found[0] == 1 && (1..=2).contains(&found[1]), "{found:?} after {order:?}");
        }
    }
}
