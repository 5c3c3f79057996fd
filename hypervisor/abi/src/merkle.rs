//! The shape of the tree that a quote's extra data is the root of; hashing is the caller's.

use crate::binding::MAX_WAITING;

/// What stands beside a node on its way up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sibling {
    Left,
    Right,
    None,
}

/// The levels between leaf `index` of `count` and the root: nothing if there is no such leaf.
fn levels(index: u32, count: u32) -> Option<impl Iterator<Item = Sibling>> {
    let is_leaf = index < count && usize::try_from(count).is_ok_and(|count| count <= MAX_WAITING);
    is_leaf.then(|| {
        let mut place = (index, count);
        core::iter::from_fn(move || {
            let (index, count) = place;
            if count <= 1 {
                return None;
            }
            place = (index >> 1, count.div_ceil(2));
            Some(match (index & 1, index.checked_add(1)) {
                (1, _) => Sibling::Left,
                (_, Some(next)) if next < count => Sibling::Right,
                (_, _) => Sibling::None,
            })
        })
    })
}

/// Siblings in the path of leaf `index` of `count`: nothing if there is no such leaf.
pub fn path_length(index: u32, count: u32) -> Option<usize> {
    Some(levels(index, count)?.filter(|sibling| *sibling != Sibling::None).count())
}

/// The root that `leaf` at `index` of `count` leads to along `path`; `node` hashes a left and a right child.
///
/// Nothing if there is no such leaf, or if the path is too long or too short for it.
pub fn root(
    leaf: [u8; 32],
    index: u32,
    count: u32,
    path: &[[u8; 32]],
    mut node: impl FnMut(&[u8; 32], &[u8; 32]) -> [u8; 32],
) -> Option<[u8; 32]> {
    let mut siblings = path.iter();
    let mut value = leaf;
    for sibling in levels(index, count)? {
        value = match sibling {
            Sibling::Left => node(siblings.next()?, &value),
            Sibling::Right => node(&value, siblings.next()?),
            Sibling::None => value,
        };
    }
    siblings.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not a hash: writes down who was left and who was right.
    fn node(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
        let mut mixed = [0; 32];
        for i in 0..32 {
            mixed[i] =
                left[i].wrapping_mul(3).wrapping_add(right[(i + 1) % 32].wrapping_mul(5)).wrapping_add(1);
        }
        mixed
    }

    /// The tree as the words define it, level by level.
    fn naive(leaves: &[[u8; 32]]) -> [u8; 32] {
        let mut level = leaves.to_vec();
        while level.len() > 1 {
            level = level
                .chunks(2)
                .map(|pair| if pair.len() == 2 { node(&pair[0], &pair[1]) } else { pair[0] })
                .collect();
        }
        level[0]
    }

    fn naive_path(leaves: &[[u8; 32]], mut index: usize) -> Vec<[u8; 32]> {
        let mut level = leaves.to_vec();
        let mut path = Vec::new();
        while level.len() > 1 {
            path.extend(level.get(index ^ 1).copied());
            level = level
                .chunks(2)
                .map(|pair| if pair.len() == 2 { node(&pair[0], &pair[1]) } else { pair[0] })
                .collect();
            index /= 2;
        }
        path
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes too long in the interpreter")]
    fn every_leaf_of_every_tree_leads_to_the_root() {
        for count in 1..=MAX_WAITING {
            let leaves: Vec<[u8; 32]> = (0..count).map(|i| [i as u8; 32]).collect();
            for (index, leaf) in leaves.iter().enumerate() {
                let path = naive_path(&leaves, index);
                let (i, n) = (index as u32, count as u32);
                assert_eq!(path_length(i, n), Some(path.len()), "{index} of {count}");
                assert_eq!(root(*leaf, i, n, &path, node), Some(naive(&leaves)), "{index} of {count}");
            }
        }
    }

    #[test]
    fn one_leaf_is_its_own_root() {
        assert_eq!(root([7; 32], 0, 1, &[], node), Some([7; 32]));
    }

    #[test]
    fn a_path_of_another_length_leads_nowhere() {
        assert_eq!(root([7; 32], 0, 1, &[[1; 32]], node), None);
        assert_eq!(root([7; 32], 0, 2, &[], node), None);
        assert_eq!(root([7; 32], 2, 3, &[[1; 32], [2; 32]], node), None);
    }

    #[test]
    fn a_leaf_outside_of_the_tree_has_no_path() {
        for (index, count) in [(0, 0), (1, 1), (32, 32), (0, 33), (u32::MAX, u32::MAX), (0, u32::MAX)] {
            assert_eq!(path_length(index, count), None, "{index} of {count}");
            assert_eq!(root([0; 32], index, count, &[], node), None, "{index} of {count}");
        }
    }
}
