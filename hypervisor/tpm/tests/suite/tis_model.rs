//! The FIFO interface's registers in front of a transport, as the profile's state table has them: what stands
//! between the driver under test and a real TPM. Time is counted in register accesses, so a wait that never
//! ends is over at once.

use dolmen_tpm::Transport;
use dolmen_tpm::tis::{Locality, TisIo, TisReg};

/// A fault that the bus or the TPM shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// All in order.
    None,
    /// Everything reads as ones after so many bytes of the response.
    GoneAfter(usize),
    /// commandReady never comes.
    NeverReady,
    /// The burst count stays zero.
    NoBurst,
    /// The TPM never answers.
    NeverDone,
    /// Expect drops after so many bytes.
    EndsEarlyAfter(usize),
    /// Expect stays after the last byte.
    ExpectsMore,
    /// More data than the header says.
    Trailing,
    /// Another locality takes the TPM after GO.
    Seized,
    /// TPM_STS and the FIFO read as a fixed pattern.
    Garbage(u8),
}

/// Changes a response, given its command.
type Tamper = Box<dyn FnMut(&[u8], &mut Vec<u8>)>;

/// Registers, with the TPM behind them.
pub(crate) struct TisModel<T> {
    pub(crate) tpm: T,
    pub(crate) fault: Fault,
    /// Called for each response before the driver sees it.
    pub(crate) tamper: Tamper,
    /// Tells the TPM behind which locality speaks.
    pub(crate) tell_locality: fn(&mut T, u8),
    /// Whether the holder of the locality lets go when asked.
    pub(crate) holder_lets_go: bool,
    pub(crate) active: Option<Locality>,
    pub(crate) burst: u16,
    pub(crate) interface: u32,
    pub(crate) cancelled: usize,
    pub(crate) executed: usize,
    command: Vec<u8>,
    response: Vec<u8>,
    given: usize,
    ready: bool,
    seized: Option<Locality>,
    now: u64,
    deadline: u64,
    garbage: u8,
}

impl<T> TisModel<T> {
    pub(crate) fn new(tpm: T, tell_locality: fn(&mut T, u8)) -> Self {
        Self {
            tpm,
            fault: Fault::None,
            tamper: Box::new(|_, _| {}),
            tell_locality,
            holder_lets_go: true,
            active: None,
            burst: 7,
            interface: 0,
            cancelled: 0,
            executed: 0,
            command: Vec::new(),
            response: Vec::new(),
            given: 0,
            ready: false,
            seized: None,
            now: 0,
            deadline: 0,
            garbage: 0,
        }
    }

    /// Puts a response there that somebody did not fetch.
    pub(crate) fn leave_stale_response(&mut self, bytes: &[u8]) {
        self.response = bytes.to_vec();
        self.given = 0;
        self.ready = false;
    }

    fn gone(&self) -> bool {
        matches!(self.fault, Fault::GoneAfter(bytes) if self.given >= bytes && self.executed > 0)
    }

    fn expected(&self) -> usize {
        self.command.get(2..6).map_or(10, |size| u32::from_be_bytes(size.try_into().unwrap()) as usize)
    }

    fn expects(&self) -> bool {
        match self.fault {
            Fault::EndsEarlyAfter(bytes) if self.command.len() >= bytes => false,
            Fault::ExpectsMore => !self.command.is_empty(),
            _ => !self.command.is_empty() && self.command.len() < self.expected(),
        }
    }

    fn status(&self) -> u32 {
        let mut bits = 0x80 | u32::from(self.burst) << 8;
        bits |= if self.ready && self.command.is_empty() { 0x40 } else { 0 };
        bits |= if self.expects() { 0x08 } else { 0 };
        bits |= if self.given < self.response.len() { 0x10 } else { 0 };
        match self.fault {
            Fault::NoBurst => bits & 0xff,
            Fault::NeverReady => bits & !0x40,
            Fault::Garbage(pattern) => u32::from_le_bytes([pattern; 4]),
            _ => bits,
        }
    }
}

impl<T: Transport> TisModel<T> {
    fn go(&mut self) {
        self.executed += 1;
        if self.fault == Fault::Seized {
            self.active = Some(Locality::Three);
            return;
        }
        if self.fault == Fault::NeverDone {
            return;
        }
        let mut response = vec![0; 4096];
        (self.tell_locality)(&mut self.tpm, self.active.unwrap().number());
        let size = self.tpm.transmit(&self.command, &mut response).expect("the TPM behind answers");
        response.truncate(size);
        (self.tamper)(&self.command, &mut response);
        if self.fault == Fault::Trailing {
            response.extend([0; 5]);
        }
        self.response = response;
        self.given = 0;
    }

    /// commandReady is written: forgets what is going on; becomes ready from idle only (state table).
    fn write_ready(&mut self) {
        let idle = self.command.is_empty() && self.response.is_empty();
        self.command.clear();
        self.response.clear();
        self.given = 0;
        self.ready = idle;
    }

    fn write_access(&mut self, locality: Locality, value: u8) {
        match value {
            0x02 if self.active.is_none() || self.holder_lets_go => self.active = Some(locality),
            0x08 if self.active.is_none_or(|holder| holder < locality) => {
                self.seized = self.active;
                self.active = Some(locality);
            }
            0x20 if self.active == Some(locality) => self.active = None,
            _ => {}
        }
    }
}

impl<T: Transport> TisIo for TisModel<T> {
    fn read8(&mut self, locality: Locality, register: TisReg) -> u8 {
        self.now += 1;
        let ours = self.active == Some(locality);
        if self.gone() || locality == Locality::Four {
            return 0xff;
        }
        match register {
            TisReg::Access => {
                0x80 | if ours { 0x20 } else { 0 } | if self.seized == Some(locality) { 0x10 } else { 0 }
            }
            TisReg::DataFifo if ours => match self.fault {
                Fault::Garbage(pattern) => {
                    self.garbage = self.garbage.wrapping_mul(5).wrapping_add(pattern);
                    self.garbage
                }
                _ => {
                    let byte = self.response.get(self.given).copied().unwrap_or(0xff);
                    self.given += 1;
                    byte
                }
            },
            _ => 0xff,
        }
    }

    fn read32(&mut self, locality: Locality, register: TisReg) -> u32 {
        self.now += 1;
        match register {
            TisReg::Status if self.active == Some(locality) && !self.gone() => self.status(),
            TisReg::InterfaceId => self.interface,
            TisReg::DeviceVendor => 0x0001_1014,
            _ => u32::MAX,
        }
    }

    fn write8(&mut self, locality: Locality, register: TisReg, value: u8) {
        self.now += 1;
        let ours = self.active == Some(locality);
        match register {
            TisReg::Access => self.write_access(locality, value),
            TisReg::Status if ours && value == 0x40 => self.write_ready(),
            TisReg::Status if ours && value == 0x20 => self.go(),
            TisReg::StatusControl if ours && value == 1 => self.cancelled += 1,
            TisReg::DataFifo if ours && (self.ready || !self.command.is_empty()) => {
                self.ready = false;
                self.command.push(value);
            }
            _ => {}
        }
    }

    fn restart_deadline(&mut self, microseconds: u32) {
        self.deadline = self.now + u64::from(microseconds) / 100;
    }

    fn expired(&mut self) -> bool {
        self.now += 1;
        self.now > self.deadline
    }
}
