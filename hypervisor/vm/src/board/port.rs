//! Which port belongs to what.

use super::{SerialPort, UART_PORTS};
use crate::device::{cmos, pci, power, timer};

/// What answers at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortDevice {
    /// A UART, where the guest has it.
    Serial(SerialPort),
    /// Index of the CMOS memory.
    CmosIndex,
    /// Data of the CMOS memory and its clock.
    CmosData,
    /// Address of a PCI configuration register; only double words reach it.
    PciAddress,
    /// The PCI configuration register.
    PciData,
    /// The interval timer.
    Timer,
    /// Reset, power-off and the system ports that software expects.
    System,
}

impl PortDevice {
    /// What answers at `port`; nothing does at most.
    pub const fn at(port: u16) -> Option<Self> {
        Some(match port {
            COM1..=COM1_LAST => Self::Serial(SerialPort::Com1),
            COM2..=COM2_LAST => Self::Serial(SerialPort::Com2),
            cmos::INDEX => Self::CmosIndex,
            cmos::DATA => Self::CmosData,
            pci::ADDRESS => Self::PciAddress,
            pci::DATA..=pci::LAST_DATA => Self::PciData,
            timer::COUNTERS..=timer::COMMAND | timer::SYSTEM_CONTROL_B => Self::Timer,
            power::KEYBOARD_COMMAND
            | power::SYSTEM_CONTROL
            | power::RESET_CONTROL
            | power::SLEEP_CONTROL
            | power::SLEEP_STATUS => Self::System,
            _ => return None,
        })
    }
}

const COM1: u16 = SerialPort::Com1.port();
const COM2: u16 = SerialPort::Com2.port();
const COM1_LAST: u16 = COM1.wrapping_add(UART_PORTS).wrapping_sub(1);
const COM2_LAST: u16 = COM2.wrapping_add(UART_PORTS).wrapping_sub(1);
