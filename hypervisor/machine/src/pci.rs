//! PCI configuration space: by ports for all buses, by memory for the nodes' extended part.

use dolmen_drtm::handoff::Extent;
use dolmen_drtm::map::{Device, Map, MapError};
use dolmen_platform::pci::{Bdf, ConfigSpace};
use dolmen_platform::sldev::{FIRST_NODE, MAX_NODES, NodeConfig};

use crate::launch::Block;
use crate::mmio::Mmio;
use crate::port;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;

/// Access by the ports CF8h and CFCh: the first 256 bytes of every function.
#[derive(Debug)]
pub struct Ports;

impl ConfigSpace for Ports {
    #[inline(never)]
    fn read32(&mut self, function: Bdf, offset: u8) -> u32 {
        port::write32(ADDRESS, ENABLE | u32::from(function.raw()) << 8 | u32::from(offset & 0xfc));
        port::read32(DATA)
    }
}

/// Why the nodes' extended configuration space cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeError {
    /// Memory-mapped configuration space is off.
    Off,
    /// Where it claims to be, it cannot be.
    Place(MapError),
    /// Node 0 reads differently by memory and by ports.
    Differs,
    /// No room for its pages.
    Windows,
}

/// Function 0 of the nodes, all 4 KiB each, one page after the other.
#[derive(Debug)]
pub struct Nodes(Mmio);

impl Nodes {
    /// Maps them; gives where configuration space is, too. Memory-mapped configuration space is where MSR C001_0058 says; where that is off and the host
    /// bridge is a q35, as in emulators, where its PCIEXBAR says. Both ways of access must agree. The window is
    /// answered too: no memory of the hand-off may lie in it.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn open(block: &mut Block, map: &Map) -> Result<(Self, Extent), NodeError> {
        /// Bytes of one device, eight functions of 4 KiB.
        const DEVICE_BYTES: u64 = 0x8000;
        let space = match map.config_space().map_err(NodeError::Place)? {
            Some(space) => space,
            None => q35_space(map)?,
        };
        let first = u64::from(FIRST_NODE).wrapping_mul(DEVICE_BYTES);
        let pages = block.map_strided(&space, first, DEVICE_BYTES, u64::from(MAX_NODES));
        let mut nodes = Self(pages.ok_or(NodeError::Windows)?);
        if nodes.read32(0, 0) == Ports.read32(Bdf::on_bus_0(FIRST_NODE), 0) {
            Ok((nodes, space.extent()))
        } else {
            Err(NodeError::Differs)
        }
    }

    fn at(node: u8, offset: u16) -> u64 {
        u64::from(node) << 12 | u64::from(offset & 0xfff)
    }
}

impl NodeConfig for Nodes {
    fn read32(&mut self, node: u8, offset: u16) -> u32 {
        self.0.read32(Self::at(node, offset))
    }

    fn write32(&mut self, node: u8, offset: u16, value: u32) {
        self.0.write32(Self::at(node, offset), value);
    }
}

/// PCIEXBAR of Intel's q35 host bridge (register 60h): bit 0 enables, bits 2:1 give the size.
fn q35_space(map: &Map) -> Result<Device, NodeError> {
    const Q35: u32 = 0x29c0_8086;
    const HOST_BRIDGE: Bdf = Bdf::on_bus_0(0);
    if Ports.read32(HOST_BRIDGE, 0) != Q35 {
        return Err(NodeError::Off);
    }
    let (low, high) = (Ports.read32(HOST_BRIDGE, 0x60), Ports.read32(HOST_BRIDGE, 0x64));
    if low & 1 == 0 {
        return Err(NodeError::Off);
    }
    let length = 0x1000_0000u64 >> ((low >> 1) & 3);
    let base = u64::from(high) << 32 | u64::from(low & 0xfc00_0000);
    map.bridge_window(Extent { base, length }).map_err(NodeError::Place)
}
