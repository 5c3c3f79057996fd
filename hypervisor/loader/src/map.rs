//! The machine's memory as firmware told it, and what of it is taken.
//!
//! A [`MemoryMap`] is a sorted list of runs that never overlap. Where firmware contradicts itself, the kind
//! that allows least wins; what firmware does not mention is not memory. No allocation: the map is also
//! built after the firmware's allocator is gone.
#![forbid(unsafe_code)]

use crate::plan::LOW_MEMORY;
use core::fmt;
use dolmen_drtm::handoff::{Extent, MAX_RANGES, MemoryRange};

/// Most runs that a map holds while it is built. Firmware maps have tens to a few hundred.
pub const MAX_RUNS: usize = 1024;

/// What may be done with a run of memory; a later kind allows less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// RAM that nobody uses.
    Free,
    /// RAM in use only until the dynamic launch: firmware's boot services, this program, its stack.
    UntilLaunch,
    /// RAM that holds something which the launch needs.
    Held,
    /// Not usable as RAM.
    Reserved,
}

impl Kind {
    /// Whether the run is RAM, in use or not.
    #[must_use]
    pub const fn is_ram(self) -> bool {
        !matches!(self, Self::Reserved)
    }
}

/// A run of memory of one kind: `base..end`, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte.
    pub base: u64,
    /// First byte after it.
    pub end: u64,
    /// What it is.
    pub kind: Kind,
}

impl Run {
    const NONE: Self = Self { base: 0, end: 0, kind: Kind::Reserved };

    /// Length in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.end.saturating_sub(self.base)
    }
}

/// Why a memory map cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// More than [`MAX_RUNS`] runs.
    TooManyRuns,
    /// Something that must stay RAM lies outside the RAM that firmware told of.
    NotRam(Extent),
    /// More separate runs of needed RAM than a hand-off can tell of.
    TooScattered,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyRuns => write!(
                f,
                "the firmware's memory map falls into more than {MAX_RUNS} pieces; update the firmware"
            ),
            Self::NotRam(extent) => write!(
                f,
                "{:#x}+{:#x} holds a boot file, but the firmware's memory map has no RAM there; update the boot \
                 loader or the firmware",
                extent.base, extent.length
            ),
            Self::TooScattered => write!(
                f,
                "the boot files lie in more than {MAX_RANGES} separate pieces of RAM; use fewer components"
            ),
        }
    }
}

/// Sorted runs of memory, disjoint, no two alike side by side.
#[derive(Clone)]
pub struct MemoryMap {
    runs: [Run; MAX_RUNS],
    count: usize,
}

impl fmt::Debug for MemoryMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.runs()).finish()
    }
}

impl Default for MemoryMap {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryMap {
    /// A machine without memory.
    #[must_use]
    pub const fn new() -> Self {
        Self { runs: [Run::NONE; MAX_RUNS], count: 0 }
    }

    /// The runs, in ascending order.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        self.runs.get(..self.count).unwrap_or_default()
    }

    /// Adds what firmware says of `length` bytes at `base`. Bytes past the end of the address space are
    /// dropped; a run of no bytes says nothing.
    ///
    /// # Errors
    /// The map has no room for another run.
    pub fn add(&mut self, base: u64, length: u64, kind: Kind) -> Result<(), MapError> {
        let end = base.saturating_add(length);
        self.split(base)?;
        self.split(end)?;
        let mut at = base;
        let mut index = self.first_ending_after(base);
        while at < end {
            match self.run(index) {
                Some(run) if run.base == at => {
                    self.set_kind(index, run.kind.max(kind));
                    at = run.end;
                }
                next => {
                    let stop = next.map_or(end, |run| run.base.min(end));
                    self.insert(index, Run { base: at, end: stop, kind })?;
                    at = stop;
                }
            }
            index = index.saturating_add(1);
        }
        self.merge();
        Ok(())
    }

    /// Marks the RAM inside `extent` as used: `kind` is [`Kind::UntilLaunch`] or [`Kind::Held`]. What is not
    /// RAM stays so.
    ///
    /// # Errors
    /// The map has no room for another run.
    pub fn occupy(&mut self, extent: Extent, kind: Kind) -> Result<(), MapError> {
        let end = extent.base.saturating_add(extent.length);
        self.split(extent.base)?;
        self.split(end)?;
        for run in self.runs.iter_mut().take(self.count) {
            if run.base >= extent.base && run.end <= end && run.kind.is_ram() {
                run.kind = run.kind.max(kind);
            }
        }
        self.merge();
        Ok(())
    }

    /// Makes the map fit a hand-off: while it has more than [`MAX_RANGES`] ranges, the smallest run of RAM
    /// that holds nothing of `keep` becomes reserved. Reserved memory never becomes RAM. RAM of the first MiB goes
    /// last: processors start there.
    ///
    /// # Errors
    /// Something of `keep` is not in RAM, or lies too scattered.
    pub fn limit_ranges(&mut self, keep: &[Extent]) -> Result<(), MapError> {
        for extent in keep.iter().filter(|e| e.length > 0) {
            if !self.ranges().any(|r| r.kind == MemoryRange::RAM && covers(&r, extent)) {
                return Err(MapError::NotRam(*extent));
            }
        }
        while self.ranges().count() > MAX_RANGES {
            let smallest = self
                .ranges()
                .filter(|r| r.kind == MemoryRange::RAM && !keep.iter().any(|e| e.length > 0 && covers(r, e)))
                .min_by_key(|r| (r.base < LOW_MEMORY, r.length))
                .ok_or(MapError::TooScattered)?;
            self.add(smallest.base, smallest.length, Kind::Reserved)?;
        }
        Ok(())
    }

    /// The map as a hand-off tells it: RAM or not. Reserved ranges with nothing between them count as one.
    pub fn ranges(&self) -> impl Iterator<Item = MemoryRange> + '_ {
        let mut rest = self.runs();
        core::iter::from_fn(move || {
            let (first, mut tail) = rest.split_first()?;
            let ram = first.kind.is_ram();
            let mut end = first.end;
            while let Some((next, after)) = tail.split_first() {
                let joined = next.kind.is_ram() == ram && (next.base == end || !ram);
                if !joined {
                    break;
                }
                end = next.end;
                tail = after;
            }
            rest = tail;
            let kind = if ram { MemoryRange::RAM } else { MemoryRange::RESERVED };
            Some(MemoryRange { base: first.base, length: end.saturating_sub(first.base), kind })
        })
    }

    /// Runs of neighbouring memory whose kinds all satisfy `accept`, as `(base, end)`.
    pub fn stretches(&self, accept: impl Fn(Kind) -> bool) -> impl Iterator<Item = (u64, u64)> {
        let mut rest = self.runs();
        core::iter::from_fn(move || {
            while let Some((run, tail)) = rest.split_first() {
                rest = tail;
                if !accept(run.kind) {
                    continue;
                }
                let mut end = run.end;
                while let Some((next, after)) =
                    rest.split_first().filter(|(n, _)| n.base == end && accept(n.kind))
                {
                    end = next.end;
                    rest = after;
                }
                return Some((run.base, end));
            }
            None
        })
    }

    fn run(&self, index: usize) -> Option<Run> {
        self.runs().get(index).copied()
    }

    fn set_kind(&mut self, index: usize, kind: Kind) {
        if let Some(run) = self.runs.get_mut(index) {
            run.kind = kind;
        }
    }

    fn first_ending_after(&self, address: u64) -> usize {
        self.runs().partition_point(|run| run.end <= address)
    }

    /// Makes `address` a border: a run that it lies inside becomes two.
    fn split(&mut self, address: u64) -> Result<(), MapError> {
        let index = self.first_ending_after(address);
        let Some(run) = self.run(index).filter(|run| run.base < address) else { return Ok(()) };
        self.insert(index, Run { end: address, ..run })?;
        if let Some(upper) = self.runs.get_mut(index.saturating_add(1)) {
            upper.base = address;
        }
        Ok(())
    }

    fn insert(&mut self, index: usize, run: Run) -> Result<(), MapError> {
        let count = self.count.saturating_add(1);
        let tail = self.runs.get_mut(index..count).ok_or(MapError::TooManyRuns)?;
        tail.rotate_right(1);
        if let Some(place) = tail.first_mut() {
            *place = run;
        }
        self.count = count;
        Ok(())
    }

    /// Joins neighbours of one kind.
    fn merge(&mut self) {
        let mut kept = 0usize;
        for index in 0..self.count {
            let Some(run) = self.run(index) else { break };
            let last = kept.checked_sub(1).and_then(|i| self.runs.get_mut(i));
            match last {
                Some(last) if last.end == run.base && last.kind == run.kind => last.end = run.end,
                Some(_) | None => {
                    if let Some(place) = self.runs.get_mut(kept) {
                        *place = run;
                    }
                    kept = kept.saturating_add(1);
                }
            }
        }
        self.count = kept;
    }
}

/// Whether `range` holds the whole of `extent`.
fn covers(range: &MemoryRange, extent: &Extent) -> bool {
    extent.base >= range.base
        && extent
            .base
            .checked_add(extent.length)
            .is_some_and(|end| end <= range.base.saturating_add(range.length))
}

#[cfg(test)]
#[path = "map_tests.rs"]
mod tests;
