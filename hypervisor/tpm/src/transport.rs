//! How command bytes reach a TPM and response bytes come back.

use crate::tis::{Locality, TisReg};

/// Largest command or response handled, in bytes: what PC client TPMs allow.
pub const MAX_MESSAGE: usize = 4096;

/// Why no valid response came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportError {
    /// A register did not reach the wanted value before the deadline.
    Timeout {
        /// At this locality.
        locality: Locality,
        /// Which register.
        register: TisReg,
        /// These bits of it …
        mask: u32,
        /// … were to be this …
        want: u32,
        /// … and the whole register was last seen as this.
        seen: u32,
    },
    /// Every register reads as ones: no TPM, or this locality is closed to us.
    Absent(Locality),
    /// The TPM speaks another interface (CRB): what TPM_INTERFACE_ID says.
    NotFifo(u32),
    /// Another locality seized the TPM in the middle of a command.
    LocalityLost(Locality),
    /// The TPM stopped accepting bytes before the end of the command.
    EndedEarly,
    /// The TPM expects more bytes than the command's header says.
    ExpectsMore,
    /// The response's header names an impossible length, or one larger than the buffer.
    ResponseLength(u32),
    /// The TPM holds more bytes than the response's header says.
    TrailingData,
    /// The command is empty, longer than [`MAX_MESSAGE`], or no command was started.
    BadCommand,
    /// A command is in progress; one may be in flight at a time.
    Busy,
    /// The other end of a connection is gone (transports that are not a TIS).
    Disconnected,
}

/// Sends a command and waits for its response.
pub trait Transport {
    /// Sends `command`; gives the number of bytes of `response` that were filled.
    ///
    /// # Errors
    /// As [`TransportError`]; the TPM has been told to forget the command.
    fn transmit(&mut self, command: &[u8], response: &mut [u8]) -> Result<usize, TransportError>;
}

/// Sends a command in steps, each of which does a bounded amount of work: the form that CPUs poll.
pub trait PolledTransport {
    /// Begins to send `command`. Nothing may be in flight.
    ///
    /// # Errors
    /// [`TransportError::Busy`], [`TransportError::BadCommand`], or why the TPM could not be had.
    fn start(&mut self, command: &[u8]) -> Result<(), TransportError>;

    /// One step. `command` and `response` are the same buffers each time until it answers `Some`: the number
    /// of bytes of `response` that were filled.
    ///
    /// # Errors
    /// As [`TransportError`]; nothing is in flight then.
    fn poll(&mut self, command: &[u8], response: &mut [u8]) -> Result<Option<usize>, TransportError>;

    /// Gives up the command in flight, if any: the TPM is told to cancel it.
    fn abort(&mut self);
}

impl<T: Transport + ?Sized> Transport for &mut T {
    fn transmit(&mut self, command: &[u8], response: &mut [u8]) -> Result<usize, TransportError> {
        (**self).transmit(command, response)
    }
}

impl<T: PolledTransport + ?Sized> PolledTransport for &mut T {
    fn start(&mut self, command: &[u8]) -> Result<(), TransportError> {
        (**self).start(command)
    }

    fn poll(&mut self, command: &[u8], response: &mut [u8]) -> Result<Option<usize>, TransportError> {
        (**self).poll(command, response)
    }

    fn abort(&mut self) {
        (**self).abort();
    }
}
