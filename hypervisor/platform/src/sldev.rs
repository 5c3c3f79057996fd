//! Releases the processor's own DMA protection of the secure loader block.
//!
//! `SKINIT` denies devices the 64 KiB of the block until software says otherwise. Family 17h and later have a
//! register for it at D18F0x384 of every node (bit 0: enabled); older families use the DEV capability, which
//! Dolmen does not drive. Specification: APM vol. 2, 15.27.3; PPR of the family, D18F0x384 MEMPROT_CR.

use crate::pci::VENDOR_AMD;

/// First family with the register.
pub const FIRST_FAMILY: u32 = 0x17;
/// Node 0 is device 18h of bus 0; there are at most 8.
pub const FIRST_NODE: u8 = 0x18;
/// Most nodes.
pub const MAX_NODES: u8 = 8;
/// Offset of the register in extended configuration space.
pub const MEMORY_PROTECTION: u16 = 0x384;
const ENABLED: u32 = 1;

/// Access to function 0 of the nodes, all 4 KiB of configuration space.
pub trait NodeConfig {
    /// Reads 32 bits.
    fn read32(&mut self, node: u8, offset: u16) -> u32;
    /// Writes 32 bits.
    fn write32(&mut self, node: u8, offset: u16, value: u32);
}

/// Why the protection could not be released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlDevError {
    /// The processor is of an older family.
    Family(u32),
    /// There is no node 0 of AMD's.
    NoNode,
    /// This node still shows the protection as enabled.
    Stuck(u8),
}

/// The family of a processor, from CPUID Fn0000_0001 EAX.
#[must_use]
pub const fn family(signature: u32) -> u32 {
    let base = (signature >> 8) & 0xf;
    let extended = (signature >> 20) & 0xff;
    if base == 0xf { base.wrapping_add(extended) } else { base }
}

/// Releases the protection at every node; gives the number of nodes.
///
/// # Errors
/// [`SlDevError`]; the block is then still protected at one node at least.
pub fn release(config: &mut impl NodeConfig, signature: u32) -> Result<u8, SlDevError> {
    let family = family(signature);
    if family < FIRST_FAMILY {
        return Err(SlDevError::Family(family));
    }
    let mut nodes = 0u8;
    for node in 0..MAX_NODES {
        let [v0, v1, ..] = config.read32(node, 0).to_le_bytes();
        if u16::from_le_bytes([v0, v1]) != VENDOR_AMD {
            continue;
        }
        let old = config.read32(node, MEMORY_PROTECTION);
        config.write32(node, MEMORY_PROTECTION, old & !ENABLED);
        if config.read32(node, MEMORY_PROTECTION) & ENABLED != 0 {
            return Err(SlDevError::Stuck(node));
        }
        nodes = nodes.saturating_add(1);
    }
    if nodes == 0 { Err(SlDevError::NoNode) } else { Ok(nodes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZEN: u32 = 0x0080_0f12;

    #[derive(Default)]
    struct Nodes {
        present: [bool; 8],
        register: [u32; 8],
        is_stuck: bool,
    }

    impl NodeConfig for Nodes {
        fn read32(&mut self, node: u8, offset: u16) -> u32 {
            let node = usize::from(node);
            match (self.present[node], offset) {
                (false, _) => u32::MAX,
                (true, 0) => 0x1460_1022,
                (true, _) => self.register[node],
            }
        }
        fn write32(&mut self, node: u8, offset: u16, value: u32) {
            assert_eq!(offset, 0x384);
            if !self.is_stuck {
                self.register[usize::from(node)] = value;
            }
        }
    }

    #[test]
    fn every_node_is_released_and_other_bits_are_kept() {
        let mut nodes = Nodes { register: [0xf1; 8], ..Nodes::default() };
        nodes.present[0] = true;
        nodes.present[3] = true;
        assert_eq!(release(&mut nodes, ZEN), Ok(2));
        assert_eq!(nodes.register[..4], [0xf0, 0xf1, 0xf1, 0xf0]);
    }

    #[test]
    fn machines_without_the_register_are_refused() {
        let mut nodes = Nodes { present: [true; 8], register: [1; 8], is_stuck: true };
        assert_eq!(release(&mut nodes, 0x0010_0f42), Err(SlDevError::Family(0x10)));
        assert_eq!(release(&mut nodes, ZEN), Err(SlDevError::Stuck(0)));
        nodes.present = [false; 8];
        assert_eq!(release(&mut nodes, ZEN), Err(SlDevError::NoNode));
    }
}
