//! Numbers that look random and follow from a seed.

/// The generator, xorshift64*; the seed; and the part of all tries that is wanted: one in so many.
pub(super) struct Random(u64, u64, u64);

impl Random {
    pub(super) const fn new(seed: u64, part: u64) -> Self {
        // Zero is the one state that the generator never leaves.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, seed, part)
    }

    /// What it follows from.
    pub(super) const fn seed(&self) -> u64 {
        self.1
    }

    /// How many of so many tries are wanted.
    pub(super) fn times(&self, tries: u64) -> u64 {
        (tries / self.2).max(1)
    }

    /// The distance of what is tried, where everything has its turn.
    pub(super) const fn stride(&self) -> usize {
        self.2 as usize
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub(super) const fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }

    pub(super) const fn byte(&mut self) -> u8 {
        (self.next() >> 40) as u8
    }

    pub(super) const fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A value of the kind that finds mistakes: few bits, all but few, small, or anything.
    pub(super) fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => !(1 << self.below(64)),
            4 => self.below(0x1000),
            _ => self.next(),
        }
    }
}
