//! Names of physical processors, and sets of them.

use core::fmt;

/// Most physical processors that are used.
pub const MAX_CPUS: usize = 32;

/// A physical processor, numbered from 0 in the order in which they were found; not its APIC ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuId(u8);

impl CpuId {
    /// The processor that was launched.
    pub const FIRST: Self = Self(0);

    /// Processor `index`, if there can be one.
    #[expect(clippy::as_conversions, reason = "below 32")]
    pub const fn new(index: usize) -> Option<Self> {
        if index < MAX_CPUS { Some(Self(index as u8)) } else { None }
    }

    /// Its number.
    #[expect(clippy::as_conversions, reason = "widening")]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    #[expect(clippy::as_conversions, reason = "below 32")]
    const fn from_low(bit: u32) -> Self {
        Self((bit & 31) as u8)
    }
}

impl fmt::Display for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A set of physical processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CpuSet(u32);

impl CpuSet {
    /// None.
    pub const EMPTY: Self = Self(0);
    /// All that can be.
    pub const ALL: Self = Self(u32::MAX);

    /// Bit n stands for processor n.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Bit n stands for processor n.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// One processor.
    pub const fn only(cpu: CpuId) -> Self {
        Self(1 << cpu.0)
    }

    /// The first `count` processors.
    pub const fn first(count: usize) -> Self {
        match CpuId::new(count) {
            Some(end) => Self(!(u32::MAX << end.0)),
            None => Self::ALL,
        }
    }

    /// Whether `cpu` is in it.
    pub const fn contains(self, cpu: CpuId) -> bool {
        self.0 & (1 << cpu.0) != 0
    }

    /// Whether there is none in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many there are.
    #[expect(clippy::as_conversions, reason = "at most 32")]
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Adds one.
    pub const fn insert(&mut self, cpu: CpuId) {
        self.0 |= 1 << cpu.0;
    }

    /// Takes one out.
    pub const fn remove(&mut self, cpu: CpuId) {
        self.0 &= !(1 << cpu.0);
    }

    /// Those in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those that are not in `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The one with the lowest number.
    pub const fn lowest(self) -> Option<CpuId> {
        if self.0 == 0 { None } else { Some(CpuId::from_low(self.0.trailing_zeros())) }
    }
}

impl IntoIterator for CpuSet {
    type Item = CpuId;
    type IntoIter = Members;

    fn into_iter(self) -> Members {
        Members(self)
    }
}

impl FromIterator<CpuId> for CpuSet {
    fn from_iter<I: IntoIterator<Item = CpuId>>(cpus: I) -> Self {
        cpus.into_iter().fold(Self::EMPTY, |set, cpu| set.union(Self::only(cpu)))
    }
}

/// Goes through a [`CpuSet`], lowest number first.
#[derive(Clone, Debug)]
pub struct Members(CpuSet);

impl Iterator for Members {
    type Item = CpuId;

    fn next(&mut self) -> Option<CpuId> {
        let cpu = self.0.lowest()?;
        self.0.remove(cpu);
        Some(cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in_and_lists_it_in_order() {
        let cpus = [31, 0, 7].map(|index| CpuId::new(index).unwrap());
        let mut set: CpuSet = cpus.into_iter().collect();
        assert_eq!(set.bits(), 0x8000_0081);
        assert_eq!(set.into_iter().map(CpuId::index).collect::<Vec<_>>(), [0, 7, 31]);
        set.remove(cpus[1]);
        assert!(!set.contains(CpuId::FIRST) && set.contains(cpus[0]) && set.len() == 2);
    }

    #[test]
    fn the_first_processors_are_as_many_as_asked_for() {
        for count in 0..40 {
            assert_eq!(CpuSet::first(count).len(), count.min(MAX_CPUS), "{count}");
        }
        assert_eq!(CpuId::new(MAX_CPUS), None);
    }
}
