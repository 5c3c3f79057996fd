//! Driver of the TPM's FIFO interface (TIS) as a state machine over registers.
//!
//! The registers are on a bus that others may hold or disturb: every value is checked, every wait has a
//! deadline, and an error says which register did not reach which bits. One machine serves both ways of
//! use: [`Transport::transmit`] turns it until it ends, [`PolledTransport::poll`] turns it one step.
//! Commands that the TPM asks to be sent again are sent again here, a bounded number of times.
//! Specification: TCG PC Client Platform TPM Profile 1.05, 6.5; state table 24.

mod register;

use crate::constant::{ResponseCode, cc};
use crate::transport::{MAX_MESSAGE, PolledTransport, Transport, TransportError};
pub use register::{LOCALITY_STRIDE, Locality, TIS_BASE, TisIo, TisReg};
use register::{access, interface, status, wait};

/// Bytes of a command's or response's header.
const HEADER: usize = 10;
/// Most bytes that one step moves through the FIFO.
const STEP_BYTES: usize = 64;
/// How often a command is sent again when the TPM asks for it.
const MAX_RETRIES: u8 = 20;
/// First and longest pause before a command is sent again, in microseconds; it doubles in between.
const FIRST_PAUSE: u32 = 5_000;
const LONGEST_PAUSE: u32 = 500_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing is in flight.
    Idle,
    /// Waits for commandReady, asked for once or twice.
    Readying { again: bool },
    /// Moves the command; so many bytes are gone.
    Sending(usize),
    /// All bytes are gone: waits for the TPM to expect no more.
    Ending,
    /// Waits for the response.
    Executing,
    /// Moves the response: so many bytes are here, of so many (unknown until the header is complete).
    Receiving { got: usize, size: usize },
    /// All bytes are here: the TPM must have no more.
    Draining(usize),
    /// The TPM asked for the command to be sent again: waits a little.
    Pausing,
}

/// One locality of a TPM behind FIFO registers.
#[derive(Debug)]
pub struct Tis<Io> {
    io: Io,
    locality: Locality,
    state: State,
    retries: u8,
}

impl<Io: TisIo> Tis<Io> {
    /// A driver that speaks at `locality`. Touches no register: see [`Tis::claim`].
    pub const fn new(io: Io, locality: Locality) -> Self {
        Self { io, locality, state: State::Idle, retries: 0 }
    }

    /// The locality it speaks at.
    pub const fn locality(&self) -> Locality {
        self.locality
    }

    /// The register access, for its owner's own use.
    pub const fn io_mut(&mut self) -> &mut Io {
        &mut self.io
    }

    /// Gives the register access back.
    pub fn into_io(self) -> Io {
        self.io
    }

    /// TPM_DID_VID: which chip it is.
    pub fn device_vendor(&mut self) -> u32 {
        self.io.read32(self.locality, TisReg::DeviceVendor)
    }

    /// Makes the locality active, taking it away from a lower one that does not let go.
    ///
    /// # Errors
    /// [`TransportError::Absent`] if there is no TPM here, [`TransportError::Timeout`] if it grants nothing.
    pub fn claim(&mut self) -> Result<(), TransportError> {
        match self.request() {
            Err(TransportError::Timeout { .. }) => self.seize(),
            done => done,
        }
    }

    /// Makes the locality active when nobody else uses the TPM.
    ///
    /// # Errors
    /// As [`Tis::claim`]; a timeout may mean that another locality holds on.
    pub fn request(&mut self) -> Result<(), TransportError> {
        self.check_interface()?;
        let now = self.io.read8(self.locality, TisReg::Access);
        if now != access::NOBODY && now & access::ACTIVE != 0 {
            return Ok(());
        }
        if now & access::BEEN_SEIZED != 0 {
            self.io.write8(self.locality, TisReg::Access, access::BEEN_SEIZED);
        }
        self.io.write8(self.locality, TisReg::Access, access::REQUEST_USE);
        self.wait_access(access::ACTIVE)
    }

    /// Makes the locality active even if a lower one is in the middle of a command.
    ///
    /// # Errors
    /// As [`Tis::claim`].
    pub fn seize(&mut self) -> Result<(), TransportError> {
        self.check_interface()?;
        self.io.write8(self.locality, TisReg::Access, access::SEIZE);
        self.wait_access(access::ACTIVE)
    }

    /// Lets go of the locality; a command in flight is given up first.
    ///
    /// # Errors
    /// [`TransportError::Timeout`] if the TPM still shows the locality as active.
    pub fn relinquish(&mut self) -> Result<(), TransportError> {
        self.abort();
        // The bit is written to clear it: ACTIVE is "write one to give up".
        self.io.write8(self.locality, TisReg::Access, access::ACTIVE);
        self.io.restart_deadline(wait::LOCALITY);
        loop {
            let seen = self.io.read8(self.locality, TisReg::Access);
            if seen == access::NOBODY || seen & access::ACTIVE == 0 {
                return Ok(());
            }
            if self.io.expired() {
                return Err(self.access_timeout(access::ACTIVE, 0, seen));
            }
        }
    }

    /// Whether this is a FIFO at all: the registers of CRB lie at the same addresses, and one of them looks
    /// like TPM_ACCESS.
    fn check_interface(&mut self) -> Result<(), TransportError> {
        self.wait_access(0)?;
        let seen = self.io.read32(self.locality, TisReg::InterfaceId);
        if seen & interface::TYPE == interface::CRB { Err(TransportError::NotFifo(seen)) } else { Ok(()) }
    }

    /// Waits until TPM_ACCESS is valid and has `bits`. A closed page reads FFh, which has every bit: that
    /// is compared first.
    fn wait_access(&mut self, bits: u8) -> Result<(), TransportError> {
        let want = access::VALID | bits;
        self.io.restart_deadline(wait::LOCALITY);
        loop {
            let seen = self.io.read8(self.locality, TisReg::Access);
            if seen != access::NOBODY && seen & want == want {
                return Ok(());
            }
            if self.io.expired() {
                return Err(if seen == access::NOBODY {
                    TransportError::Absent(self.locality)
                } else {
                    self.access_timeout(want, want, seen)
                });
            }
        }
    }

    fn access_timeout(&self, mask: u8, want: u8, seen: u8) -> TransportError {
        TransportError::Timeout {
            locality: self.locality,
            register: TisReg::Access,
            mask: u32::from(mask),
            want: u32::from(want),
            seen: u32::from(seen),
        }
    }

    /// Why the locality is not ours, if it is not.
    fn check_locality(&mut self) -> Result<(), TransportError> {
        match self.io.read8(self.locality, TisReg::Access) {
            access::NOBODY => Err(TransportError::Absent(self.locality)),
            seen if seen & access::ACTIVE == 0 => Err(TransportError::LocalityLost(self.locality)),
            _ => Ok(()),
        }
    }

    /// TPM_STS, if it is ours to read.
    fn read_status(&mut self) -> Result<u32, TransportError> {
        let seen = self.io.read32(self.locality, TisReg::Status);
        if seen & status::NOBODY == status::NOBODY {
            self.check_locality()?;
            // The locality is ours and the status is still all ones: nobody drives the bus.
            return Err(TransportError::Absent(self.locality));
        }
        Ok(seen)
    }

    fn write_status(&mut self, value: u8) {
        self.io.write8(self.locality, TisReg::Status, value);
    }

    /// Goes on waiting for `want` under `mask`, or says that the time is over.
    fn still_waiting(&mut self, mask: u32, want: u32, seen: u32) -> Result<(), TransportError> {
        if self.io.expired() {
            // It may have been another locality's doing.
            self.check_locality()?;
            let (locality, register) = (self.locality, TisReg::Status);
            return Err(TransportError::Timeout { locality, register, mask, want, seen });
        }
        Ok(())
    }

    fn enter(&mut self, state: State, microseconds: u32) {
        self.state = state;
        self.io.restart_deadline(microseconds);
    }

    /// Asks the TPM to take a command, after it has forgotten any that somebody left half done.
    fn make_ready(&mut self) -> Result<(), TransportError> {
        self.check_locality()?;
        let seen = self.read_status()?;
        if seen & (status::DATA_AVAILABLE | status::EXPECT) != 0 {
            self.write_status(status::WRITE_READY);
        }
        if seen & status::COMMAND_READY == 0 {
            self.write_status(status::WRITE_READY);
        }
        self.enter(State::Readying { again: false }, wait::FLUSH);
        Ok(())
    }

    fn step(&mut self, command: &[u8], response: &mut [u8]) -> Result<Option<usize>, TransportError> {
        match self.state {
            State::Idle => return Err(TransportError::BadCommand),
            State::Readying { again } => self.step_readying(again)?,
            State::Sending(sent) => self.step_sending(command, sent)?,
            State::Ending => self.step_ending(command)?,
            State::Executing => self.step_executing()?,
            State::Receiving { got, size } => self.step_receiving(response, got, size)?,
            State::Draining(size) => return self.step_draining(response, size),
            State::Pausing => {
                if self.io.expired() {
                    self.make_ready()?;
                }
            }
        }
        Ok(None)
    }

    fn step_readying(&mut self, again: bool) -> Result<(), TransportError> {
        let seen = self.read_status()?;
        if seen & status::COMMAND_READY == 0 {
            if !again && self.io.expired() {
                // The first request may have ended a command that somebody left executing: idle, but not ready.
                self.write_status(status::WRITE_READY);
                self.enter(State::Readying { again: true }, wait::READY);
                return Ok(());
            }
            if !again {
                return Ok(());
            }
            return self.still_waiting(status::COMMAND_READY, status::COMMAND_READY, seen);
        }
        self.enter(State::Sending(0), wait::FIFO);
        Ok(())
    }

    fn step_sending(&mut self, command: &[u8], sent: usize) -> Result<(), TransportError> {
        let seen = self.read_status()?;
        let expects = status::VALID | status::EXPECT;
        if sent > 0 && seen & expects == status::VALID {
            return Err(TransportError::EndedEarly);
        }
        let room = burst(seen);
        if room == 0 || (sent > 0 && seen & expects != expects) {
            return self.still_waiting(expects | status::BURST, expects, seen);
        }
        let left = command.get(sent..).filter(|left| !left.is_empty()).ok_or(TransportError::BadCommand)?;
        // The last byte goes alone: before it the TPM must still expect more, after it no more.
        let before_last = left.len().saturating_sub(1).max(1);
        let count = room.min(STEP_BYTES).min(before_last);
        for byte in left.iter().take(count) {
            self.io.write8(self.locality, TisReg::DataFifo, *byte);
        }
        let sent = sent.saturating_add(count);
        self.enter(if sent == command.len() { State::Ending } else { State::Sending(sent) }, wait::FIFO);
        Ok(())
    }

    fn step_ending(&mut self, command: &[u8]) -> Result<(), TransportError> {
        let seen = self.read_status()?;
        if seen & status::VALID == 0 {
            return self.still_waiting(status::VALID | status::EXPECT, status::VALID, seen);
        }
        if seen & status::EXPECT != 0 {
            return Err(TransportError::ExpectsMore);
        }
        self.write_status(status::WRITE_GO);
        self.enter(State::Executing, duration(command));
        Ok(())
    }

    fn step_executing(&mut self) -> Result<(), TransportError> {
        let available = status::VALID | status::DATA_AVAILABLE;
        let seen = self.read_status()?;
        if seen & available != available {
            return self.still_waiting(available, available, seen);
        }
        self.enter(State::Receiving { got: 0, size: HEADER }, wait::FIFO);
        Ok(())
    }

    fn step_receiving(&mut self, response: &mut [u8], got: usize, size: usize) -> Result<(), TransportError> {
        let available = status::VALID | status::DATA_AVAILABLE;
        let seen = self.read_status()?;
        let ready = burst(seen);
        if seen & available != available || ready == 0 {
            return self.still_waiting(available | status::BURST, available, seen);
        }
        let (locality, room) = (self.locality, response.len());
        let target = response.get_mut(got..size).ok_or(too_long(room))?;
        let count = ready.min(STEP_BYTES).min(target.len());
        for byte in target.iter_mut().take(count) {
            *byte = self.io.read8(locality, TisReg::DataFifo);
        }
        let got = got.saturating_add(count);
        let mut size = size;
        if got == HEADER && size == HEADER {
            size = response_size(response)?;
        }
        self.enter(
            if got == size { State::Draining(size) } else { State::Receiving { got, size } },
            wait::FIFO,
        );
        Ok(())
    }

    fn step_draining(&mut self, response: &[u8], size: usize) -> Result<Option<usize>, TransportError> {
        let seen = self.read_status()?;
        if seen & status::VALID == 0 {
            return self
                .still_waiting(status::VALID | status::DATA_AVAILABLE, status::VALID, seen)
                .map(|()| None);
        }
        if seen & status::DATA_AVAILABLE != 0 {
            return Err(TransportError::TrailingData);
        }
        self.write_status(status::WRITE_READY);
        if response_code(response).is_retry() && self.retries < MAX_RETRIES {
            let pause = FIRST_PAUSE.checked_shl(u32::from(self.retries)).unwrap_or(LONGEST_PAUSE);
            self.retries = self.retries.saturating_add(1);
            self.enter(State::Pausing, pause.min(LONGEST_PAUSE));
            return Ok(None);
        }
        self.state = State::Idle;
        Ok(Some(size))
    }
}

impl<Io: TisIo> PolledTransport for Tis<Io> {
    fn start(&mut self, command: &[u8]) -> Result<(), TransportError> {
        if self.state != State::Idle {
            return Err(TransportError::Busy);
        }
        if command.len() > MAX_MESSAGE || length_field(command) != Some(command.len()) {
            return Err(TransportError::BadCommand);
        }
        self.retries = 0;
        self.make_ready()
    }

    fn poll(&mut self, command: &[u8], response: &mut [u8]) -> Result<Option<usize>, TransportError> {
        let result = self.step(command, response);
        if result.is_err() {
            self.abort();
        }
        result
    }

    fn abort(&mut self) {
        if self.state == State::Executing {
            self.io.write8(self.locality, TisReg::StatusControl, status::WRITE_CANCEL);
        }
        if self.state != State::Idle {
            self.write_status(status::WRITE_READY);
        }
        self.state = State::Idle;
    }
}

impl<Io: TisIo> Transport for Tis<Io> {
    fn transmit(&mut self, command: &[u8], response: &mut [u8]) -> Result<usize, TransportError> {
        self.start(command)?;
        loop {
            if let Some(size) = self.poll(command, response)? {
                return Ok(size);
            }
        }
    }
}

fn burst(seen: u32) -> usize {
    usize::try_from((seen & status::BURST) >> status::BURST_SHIFT).unwrap_or(0)
}

/// How long the TPM may take over `command`.
fn duration(command: &[u8]) -> u32 {
    match command.get(6..10) {
        Some(code) if code == cc::CREATE_PRIMARY.to_be_bytes() => wait::KEY_COMMAND,
        _ => wait::COMMAND,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_be_bytes(*word))
}

fn length_field(bytes: &[u8]) -> Option<usize> {
    word(bytes, 2).and_then(|length| usize::try_from(length).ok()).filter(|length| *length >= HEADER)
}

/// The size a response's header names, if it can be and fits.
fn response_size(response: &[u8]) -> Result<usize, TransportError> {
    length_field(response)
        .filter(|size| *size <= response.len())
        .ok_or(TransportError::ResponseLength(word(response, 2).unwrap_or(0)))
}

fn response_code(response: &[u8]) -> ResponseCode {
    ResponseCode(word(response, 6).unwrap_or(0))
}

fn too_long(room: usize) -> TransportError {
    TransportError::ResponseLength(u32::try_from(room).unwrap_or(u32::MAX))
}
