//! Sets of entities.

use super::{Entity, MAX_ENTITIES};

/// Some of the entities: what is asked at every turn is asked of few, however many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct EntitySet(u64);

const _: () = assert!(MAX_ENTITIES == 64, "a set has one bit for each");

impl EntitySet {
    /// None.
    pub(super) const EMPTY: Self = Self(0);

    /// Those in either.
    pub(super) const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Adds one, or takes it out.
    pub(super) const fn set(&mut self, entity: Entity, wanted: bool) {
        let bit = 1 << (entity.0 & 63);
        self.0 = if wanted { self.0 | bit } else { self.0 & !bit };
    }
}

impl IntoIterator for EntitySet {
    type Item = Entity;
    type IntoIter = Members;

    fn into_iter(self) -> Members {
        Members(self)
    }
}

/// Goes through an [`EntitySet`], lowest number first.
#[derive(Clone, Debug)]
pub(super) struct Members(EntitySet);

impl Iterator for Members {
    type Item = Entity;

    fn next(&mut self) -> Option<Entity> {
        let bits = self.0.0;
        let entity = Entity(u8::try_from(bits.trailing_zeros()).ok().filter(|_| bits != 0)?);
        self.0.set(entity, false);
        Some(entity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_lists_what_is_in_it_in_order() {
        let mut set = EntitySet::EMPTY;
        for number in [63, 0, 17, 5] {
            set.set(Entity(number), true);
        }
        set.set(Entity(5), false);
        assert_eq!(set.into_iter().map(Entity::index).collect::<Vec<_>>(), [0, 17, 63]);
        assert_eq!(EntitySet::EMPTY.into_iter().next(), None);
    }
}
