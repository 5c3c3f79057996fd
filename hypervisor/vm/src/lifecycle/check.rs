//! The files of a guest as they were measured, and the proof that they still are.

use sha2::{Digest, Sha384};

/// Most components of one guest.
const MAX_COMPONENTS: usize = crate::manifest::MAX_GUEST_COMPONENTS;

/// One file as it was when it was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Component {
    /// Bytes.
    pub length: u64,
    /// SHA-384 of them; nothing if the manifest says that the file is not measured.
    pub digest: Option<[u8; 48]>,
}

/// The files of one guest, in manifest order.
#[derive(Clone, Copy, Debug)]
pub struct Components {
    list: [Component; MAX_COMPONENTS],
    count: usize,
}

impl Components {
    /// No file.
    pub const NONE: Self = Self { list: [Component { length: 0, digest: None }; MAX_COMPONENTS], count: 0 };

    /// The list; nothing if it is too long.
    pub fn new(list: &[Component]) -> Option<Self> {
        let mut all = [Component::default(); MAX_COMPONENTS];
        all.get_mut(..list.len())?.copy_from_slice(list);
        Some(Self { list: all, count: list.len() })
    }

    /// One of them.
    pub fn get(&self, index: usize) -> Option<&Component> {
        self.list.get(..self.count)?.get(index)
    }

    pub(super) fn length(&self, index: usize) -> u64 {
        self.get(index).map_or(0, |component| component.length)
    }

    /// The first component from `first` on that was measured.
    pub(super) fn measured_from(&self, first: usize) -> Option<usize> {
        (first..self.count).find(|index| self.get(*index).is_some_and(|component| component.digest.is_some()))
    }

    /// Whether `proof` is that of this component, all of whose bytes before `end` were hashed.
    pub(super) fn is_proved(&self, index: usize, end: u64, proof: &Checked) -> bool {
        proof.component == index && end >= self.length(index)
    }
}

/// A file is not what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedFile {
    /// Which one.
    pub component: usize,
}

/// The proof that a component has the bytes that were measured. Only [`Checker::finish`] makes it.
#[derive(Debug)]
pub struct Checked {
    component: usize,
}

/// Hashes one component, part by part.
#[derive(Clone, Debug, Default)]
pub struct Checker {
    component: usize,
    hash: Sha384,
    hashed: u64,
}

impl Checker {
    /// Takes in the part of `component` at `offset`. A part that does not follow the last one begins anew, so
    /// that only a whole component has the recorded digest.
    pub fn update(&mut self, component: usize, offset: u64, bytes: &[u8]) {
        if component != self.component || offset != self.hashed {
            *self = Self { component, ..Self::default() };
        }
        if offset == self.hashed {
            self.hash.update(bytes);
            self.hashed = self.hashed.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        }
    }

    /// Compares, if all of the component was hashed; `None` if parts are left.
    pub fn finish(&mut self, components: &Components) -> Option<Result<Checked, ChangedFile>> {
        let component = self.component;
        let recorded = components.get(component)?;
        if self.hashed < recorded.length {
            return None;
        }
        let digest: [u8; 48] = core::mem::take(self).hash.finalize().into();
        Some(if recorded.digest == Some(digest) {
            Ok(Checked { component })
        } else {
            Err(ChangedFile { component })
        })
    }
}
