//! The boot files in memory, and the hand-off that tells of them.
#![forbid(unsafe_code)]

use crate::cpus::CpuList;
use crate::map::{MapError, MemoryMap};
use crate::plan::Plan;
use dolmen_drtm::handoff::{Extent, Handoff, MAX_COMPONENTS, MAX_RANGES, MemoryRange};

/// Files before the components: launch image, core, manifest.
pub const FIXED_FILES: usize = 3;
/// What they are, in this order.
pub const FIXED_NAMES: [&str; FIXED_FILES] = ["launch image", "core", "manifest"];
/// Most boot files.
pub const MAX_FILES: usize = FIXED_FILES + MAX_COMPONENTS;

/// The boot files as they lie in memory: launch image, core, manifest, components in manifest order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staged {
    files: [Extent; MAX_FILES],
    count: usize,
}

impl Default for Staged {
    fn default() -> Self {
        Self { files: [Extent { base: 0, length: 0 }; MAX_FILES], count: 0 }
    }
}

impl Staged {
    /// Appends a file; false if there are [`MAX_FILES`] already.
    #[must_use]
    pub fn push(&mut self, file: Extent) -> bool {
        let Some(place) = self.files.get_mut(self.count) else { return false };
        *place = file;
        self.count = self.count.saturating_add(1);
        true
    }

    /// All files, in order.
    #[must_use]
    pub fn files(&self) -> &[Extent] {
        self.files.get(..self.count).unwrap_or_default()
    }

    /// All files, in order, to move them.
    pub fn files_mut(&mut self) -> &mut [Extent] {
        self.files.get_mut(..self.count).unwrap_or_default()
    }

    /// The launch image.
    #[must_use]
    pub fn launch(&self) -> Extent {
        self.file(0)
    }

    /// The core.
    #[must_use]
    pub fn core(&self) -> Extent {
        self.file(1)
    }

    /// The canonical manifest.
    #[must_use]
    pub fn manifest(&self) -> Extent {
        self.file(2)
    }

    /// The guests' components.
    #[must_use]
    pub fn components(&self) -> &[Extent] {
        self.files().get(FIXED_FILES..).unwrap_or_default()
    }

    /// Takes the last file away again.
    #[cfg(feature = "hostile")]
    pub fn pop(&mut self) -> Option<Extent> {
        let last = self.files().last().copied()?;
        self.count = self.count.saturating_sub(1);
        Some(last)
    }

    fn file(&self, index: usize) -> Extent {
        self.files().get(index).copied().unwrap_or_default()
    }

    /// The hand-off for these files in these places. `map` must fit ([`MemoryMap::limit_ranges`]).
    ///
    /// # Errors
    /// The map has more ranges than a hand-off.
    pub fn handoff(
        &self,
        plan: &Plan,
        map: &MemoryMap,
        rsdp: u64,
        cpus: &CpuList,
    ) -> Result<Handoff, MapError> {
        let mut memory = [MemoryRange::default(); MAX_RANGES];
        let mut memory_count = 0u32;
        let mut places = memory.iter_mut();
        for range in map.ranges() {
            *places.next().ok_or(MapError::TooScattered)? = range;
            memory_count = memory_count.saturating_add(1);
        }
        let mut components = [Extent::default(); MAX_COMPONENTS];
        let mut component_count = 0u32;
        for (place, file) in components.iter_mut().zip(self.components()) {
            *place = *file;
            component_count = component_count.saturating_add(1);
        }
        Ok(Handoff {
            magic: Handoff::MAGIC,
            version: Handoff::VERSION,
            component_count,
            memory_count,
            cpu_count: cpus.count,
            cpus_left_out: cpus.left_out,
            reserved: 0,
            core: self.core(),
            manifest: self.manifest(),
            region: plan.region,
            guest_pool: plan.guest_pool,
            rsdp,
            apic_ids: cpus.apic_ids,
            components,
            memory,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::Kind;

    fn extent(base: u64, length: u64) -> Extent {
        Extent { base, length }
    }

    #[test]
    fn the_hand_off_tells_files_places_and_memory() {
        let mut staged = Staged::default();
        for n in 1..=5 {
            assert!(staged.push(extent(n * 0x1000, n)));
        }
        let mut map = MemoryMap::new();
        map.add(0, 0x1_0000, Kind::Free).unwrap();
        map.add(0x1_0000, 0x1000, Kind::Reserved).unwrap();
        let plan = Plan { slb: extent(1, 2), region: extent(3, 4), guest_pool: extent(5, 6) };
        let mut cpus = CpuList::default();
        cpus.push(7);
        let handoff = staged.handoff(&plan, &map, 0xf_1234, &cpus).unwrap();
        assert_eq!((handoff.core, handoff.manifest), (extent(0x2000, 2), extent(0x3000, 3)));
        assert_eq!(
            (handoff.region, handoff.guest_pool, handoff.rsdp),
            (extent(3, 4), extent(5, 6), 0xf_1234)
        );
        assert_eq!(handoff.component_count, 2);
        assert_eq!(handoff.components[..3], [extent(0x4000, 4), extent(0x5000, 5), extent(0, 0)]);
        assert_eq!((handoff.cpu_count, handoff.apic_ids[0], handoff.cpus_left_out), (1, 7, 0));
        assert_eq!(handoff.memory_count, 2);
        assert_eq!(handoff.memory[0], MemoryRange { base: 0, length: 0x1_0000, kind: MemoryRange::RAM });
    }

    #[test]
    fn one_file_too_many_is_refused() {
        let mut staged = Staged::default();
        for _ in 0..MAX_FILES {
            assert!(staged.push(extent(0x1000, 1)));
        }
        assert!(!staged.push(extent(0x1000, 1)));
    }
}
