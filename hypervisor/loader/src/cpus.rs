//! The list of processors for the hand-off, as firmware's tables tell it.
#![forbid(unsafe_code)]

use crate::multiboot::Physical;
use crate::plan::LIMIT_4G;
use dolmen_drtm::handoff::MAX_CPUS;
use dolmen_platform::acpi::{AcpiError, FirmwareMemory, Unreadable};
use dolmen_platform::madt;

/// Local APIC IDs, each once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuList {
    /// The IDs; those that are used come first.
    pub apic_ids: [u32; MAX_CPUS],
    /// How many are used.
    pub count: u32,
    /// How many more there were.
    pub left_out: u32,
}

impl CpuList {
    /// Reads the list that the ACPI root pointer `rsdp` leads to; 0 leads to none.
    ///
    /// # Errors
    /// The tables are broken.
    pub fn read(memory: &impl Physical, rsdp: u64) -> Result<Self, AcpiError> {
        let mut list = Self::default();
        if rsdp != 0 {
            madt::for_each_cpu(&mut Firmware(memory), rsdp, |apic_id| list.push(apic_id))?;
        }
        Ok(list)
    }

    /// The IDs.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        self.apic_ids.get(..usize::try_from(self.count).unwrap_or(usize::MAX)).unwrap_or_default()
    }

    /// Adds an ID. Firmware that describes one processor in two ways names it twice: it is kept once.
    pub fn push(&mut self, apic_id: u32) {
        if self.ids().contains(&apic_id) {
            return;
        }
        let next = usize::try_from(self.count).unwrap_or(usize::MAX);
        match self.apic_ids.get_mut(next) {
            Some(place) => {
                *place = apic_id;
                self.count = self.count.saturating_add(1);
            }
            None => self.left_out = self.left_out.saturating_add(1),
        }
    }
}

/// Physical memory for the reader of tables.
struct Firmware<'a, P>(&'a P);

impl<P: Physical> FirmwareMemory for Firmware<'_, P> {
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        // Not every way to get here maps more; what lies below reads as something, if without meaning.
        let length = u64::try_from(into.len()).map_err(|_| Unreadable)?;
        if at.checked_add(length).is_none_or(|end| end > LIMIT_4G) {
            return Err(Unreadable);
        }
        self.0.read(at, into);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_processor_is_listed_once_and_the_rest_is_counted() {
        let mut list = CpuList::default();
        for id in [5, 0, 5, 0] {
            list.push(id);
        }
        assert_eq!(list.ids(), [5, 0]);
        for id in 100..140 {
            list.push(id);
        }
        assert_eq!((list.ids().len(), list.left_out), (MAX_CPUS, 10));
        assert_eq!(list.ids()[31], 129);
    }

    #[test]
    fn without_a_root_pointer_the_list_is_empty() {
        struct Nothing;
        impl Physical for Nothing {
            fn read(&self, _: u64, bytes: &mut [u8]) {
                bytes.fill(0);
            }
        }
        assert_eq!(CpuList::read(&Nothing, 0), Ok(CpuList::default()));
        assert_eq!(CpuList::read(&Nothing, 0xf_0000), Err(AcpiError::Signature(0xf_0000)));
        assert_eq!(CpuList::read(&Nothing, u64::MAX - 3), Err(AcpiError::Unreadable(u64::MAX - 3)));
    }
}
