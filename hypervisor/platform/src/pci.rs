//! PCI configuration space: a walk over every function that may exist.
//!
//! Nothing decides which buses are looked at, neither ACPI nor bridges nor the multi-function bit: software
//! that ran before may have rewritten all of these. Specification: PCI Local Bus 3.0, chapter 6.

/// Bus, device and function, as requester ids have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bdf(u16);

impl Bdf {
    /// From a requester id.
    #[must_use]
    pub const fn new(raw: u16) -> Self {
        Self(raw)
    }
    /// Device `device` (0 to 31), function 0, of bus 0.
    #[must_use]
    pub const fn on_bus_0(device: u8) -> Self {
        Self(u16::from_le_bytes([device << 3, 0]))
    }
    /// The requester id.
    #[must_use]
    pub const fn raw(self) -> u16 {
        self.0
    }
}

/// Access to the first 256 bytes of each function's configuration space, in segment 0.
pub trait ConfigSpace {
    /// Reads 32 bits at `offset`, a multiple of 4.
    fn read32(&mut self, function: Bdf, offset: u8) -> u32;
}

/// Offset of vendor and device id.
pub const ID: u8 = 0;
/// What a function that does not exist answers to [`ID`].
const NOBODY: u16 = 0xffff;
/// AMD's vendor id.
pub const VENDOR_AMD: u16 = 0x1022;

const STATUS: u8 = 0x04;
const STATUS_CAPABILITIES: u32 = 1 << 20;
const CAPABILITIES: u8 = 0x34;
/// Capabilities lie above the header, each at least 4 bytes: a longer list is a loop.
const MAX_CAPABILITIES: usize = 48;

/// A function that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where.
    pub bdf: Bdf,
    /// Who made it.
    pub vendor: u16,
    /// What it is.
    pub device: u16,
}

/// A function's capability list does not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapabilityLoop(pub Bdf);

/// The function at `bdf`, if one answers.
pub fn function(config: &mut impl ConfigSpace, bdf: Bdf) -> Option<Function> {
    let [v0, v1, d0, d1] = config.read32(bdf, ID).to_le_bytes();
    let (vendor, device) = (u16::from_le_bytes([v0, v1]), u16::from_le_bytes([d0, d1]));
    (vendor != NOBODY).then_some(Function { bdf, vendor, device })
}

/// Shows every function that answers to `visit`, all 65,536 addresses long, until it has an error.
///
/// # Errors
/// What `visit` answers.
pub fn walk<C: ConfigSpace, E>(
    config: &mut C,
    mut visit: impl FnMut(&mut C, Function) -> Result<(), E>,
) -> Result<(), E> {
    for raw in 0..=u16::MAX {
        if let Some(found) = function(config, Bdf(raw)) {
            visit(config, found)?;
        }
    }
    Ok(())
}

/// Shows the offset and first 32 bits of each capability of `bdf` to `visit`, until it has an error.
///
/// # Errors
/// [`CapabilityLoop`], or what `visit` answers.
pub fn capabilities<C: ConfigSpace, E: From<CapabilityLoop>>(
    config: &mut C,
    bdf: Bdf,
    mut visit: impl FnMut(&mut C, u8, u32) -> Result<(), E>,
) -> Result<(), E> {
    if config.read32(bdf, STATUS) & STATUS_CAPABILITIES == 0 {
        return Ok(());
    }
    let [first, ..] = config.read32(bdf, CAPABILITIES).to_le_bytes();
    let mut at = first & 0xfc;
    for _ in 0..MAX_CAPABILITIES {
        if at < 0x40 {
            return Ok(());
        }
        let head = config.read32(bdf, at);
        visit(config, at, head)?;
        let [_, next, ..] = head.to_le_bytes();
        at = next & 0xfc;
    }
    Err(CapabilityLoop(bdf).into())
}

/// Configuration spaces for tests: functions that nobody listed answer all ones.
#[cfg(test)]
pub(crate) mod fake {
    use std::collections::HashMap;

    use super::{Bdf, ConfigSpace};

    #[derive(Debug, Default)]
    pub(crate) struct FakeConfig {
        pub(crate) functions: HashMap<u16, [u32; 64]>,
        pub(crate) reads: usize,
    }

    impl FakeConfig {
        /// Adds a function with capabilities: pairs of head (without the link) and following words.
        pub(crate) fn add(&mut self, bdf: u16, id: u32, capabilities: &[&[u32]]) {
            let mut space = [0; 64];
            space[0] = id;
            space[1] = u32::from(!capabilities.is_empty()) << 20;
            let mut link = 0x34;
            let mut at = 0x40;
            for words in capabilities {
                space[link / 4] |= if link == 0x34 { at as u32 } else { (at as u32) << 8 };
                space[at / 4..at / 4 + words.len()].copy_from_slice(words);
                link = at;
                at += words.len() * 4;
            }
            self.functions.insert(bdf, space);
        }
    }

    impl ConfigSpace for FakeConfig {
        fn read32(&mut self, function: Bdf, offset: u8) -> u32 {
            self.reads += 1;
            self.functions.get(&function.raw()).map_or(u32::MAX, |space| space[usize::from(offset / 4)])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::FakeConfig;
    use super::*;

    fn offsets(config: &mut FakeConfig, bdf: u16) -> Result<Vec<u8>, CapabilityLoop> {
        let mut seen = Vec::new();
        capabilities(config, Bdf::new(bdf), |_, at, _| {
            seen.push(at);
            Ok::<_, CapabilityLoop>(())
        })?;
        Ok(seen)
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes of it, and the other walks run the same code")]
    fn the_walk_finds_functions_on_every_bus_even_without_function_0() {
        let mut config = FakeConfig::default();
        for bdf in [0x0002, 0x8005, 0xffff] {
            config.add(bdf, 0x1451_1022, &[]);
        }
        let mut seen = Vec::new();
        let done: Result<(), ()> = walk(&mut config, |_, found| {
            seen.push(found.bdf.raw());
            Ok(())
        });
        assert_eq!((done, seen), (Ok(()), vec![0x0002, 0x8005, 0xffff]));
        assert_eq!(config.reads, 65_536);
    }

    #[test]
    fn the_walk_stops_at_an_error() {
        let mut config = FakeConfig::default();
        config.add(3, 0x1022, &[]);
        assert_eq!(walk(&mut config, |_, found| Err(found.bdf)), Err(Bdf(3)));
    }

    #[test]
    fn capabilities_are_followed_to_the_end() {
        let mut config = FakeConfig::default();
        config.add(8, 0x1022, &[&[1], &[0xf, 0, 0], &[5]]);
        config.add(16, 0x1022, &[]);
        assert_eq!(offsets(&mut config, 8), Ok(vec![0x40, 0x44, 0x50]));
        assert_eq!(offsets(&mut config, 16), Ok(vec![]));
    }

    #[test]
    fn a_list_that_loops_ends_in_an_error() {
        let mut config = FakeConfig::default();
        config.add(8, 0x1022, &[&[0x4001]]);
        assert_eq!(offsets(&mut config, 8), Err(CapabilityLoop(Bdf(8))));
    }

    #[test]
    fn a_link_into_the_header_ends_the_list() {
        let mut config = FakeConfig::default();
        config.add(8, 0x1022, &[&[0x0401]]);
        assert_eq!(offsets(&mut config, 8), Ok(vec![0x40]));
    }
}
