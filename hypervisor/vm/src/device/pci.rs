//! A PCI bus with nothing on it but its host bridge, by configuration mechanism 1 (PCI 3.0, 3.2.2.3.2).
//!
//! Software that finds no configuration access at all calls the machine broken.

/// Configuration address register; only whole double words reach it.
pub const ADDRESS: u16 = 0xcf8;
/// First of the four ports of the configuration data window.
pub const DATA: u16 = 0xcfc;
/// Last of them.
pub const LAST_DATA: u16 = 0xcff;

const ENABLE: u32 = 1 << 31;
/// Bits of the address register that exist: enable, AMD's upper bits of the register, bus, device, function,
/// register.
const ADDRESS_BITS: u32 = 0x8fff_fffc;
/// Generic host bridge of a virtual machine; its vendor reserves the number for that use.
const HOST_BRIDGE_ID: u32 = 0x0008_1b36;
const HOST_BRIDGE_CLASS: u32 = 0x0600_0000;

/// The bus.
#[derive(Debug, Default)]
pub struct Pci {
    address: u32,
}

impl Pci {
    /// The address register.
    pub const fn address(&self) -> u32 {
        self.address
    }

    /// Writes the address register.
    pub const fn set_address(&mut self, value: u32) {
        self.address = value & ADDRESS_BITS;
    }

    /// Reads byte `offset` (0 to 3) of the data window.
    pub fn read(&self, offset: u16) -> u8 {
        let bytes = self.register().to_le_bytes();
        bytes.get(usize::from(offset)).copied().unwrap_or(u8::MAX)
    }

    /// The configuration register that the address register selects; all ones where no device is.
    const fn register(&self) -> u32 {
        if self.address & ENABLE == 0 || self.address & 0x0fff_ff00 != 0 {
            return u32::MAX;
        }
        match self.address & 0xfc {
            0x00 => HOST_BRIDGE_ID,
            0x08 => HOST_BRIDGE_CLASS,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(address: u32) -> u32 {
        let mut pci = Pci::default();
        pci.set_address(address);
        u32::from_le_bytes([0, 1, 2, 3].map(|n| pci.read(n)))
    }

    #[test]
    fn there_is_one_host_bridge() {
        assert_eq!(read(0x8000_0000), 0x0008_1b36);
        assert_eq!(read(0x8000_0008) >> 16, 0x0600);
        assert_eq!(read(0x8000_000c), 0, "one function");
    }

    #[test]
    fn elsewhere_the_bus_floats() {
        for address in [0x0000_0000, 0x8000_0100, 0x8000_0800, 0x8001_0000, 0x8100_0000] {
            assert_eq!(read(address), u32::MAX, "{address:#x}");
        }
    }

    #[test]
    fn the_address_register_keeps_what_linux_probes_for() {
        let mut pci = Pci::default();
        pci.set_address(0x8000_0000);
        assert_eq!(pci.address(), 0x8000_0000);
    }
}
