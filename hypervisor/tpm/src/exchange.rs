//! One command and its response, in buffers of their own: blocking or polled.

use zeroize::Zeroize;

use crate::codec::{DecodeError, EncodeError};
use crate::response::TpmError;
use crate::session::{Call, HmacSession, NONCE, Opened};
use crate::transport::{PolledTransport, Transport, TransportError};

/// Room for each command and response of keys and quotes.
const BUFFER: usize = 1024;

/// Buffers of one exchange at a time; wiped when dropped, since decrypted responses stand in them.
pub struct Exchange {
    command: [u8; BUFFER],
    command_len: usize,
    response: [u8; BUFFER],
    response_len: usize,
    sent: bool,
}

impl Exchange {
    /// Nothing in flight.
    #[must_use]
    pub const fn new() -> Self {
        Self { command: [0; BUFFER], command_len: 0, response: [0; BUFFER], response_len: 0, sent: false }
    }

    /// Sends what `encode` writes, and waits for the response.
    ///
    /// # Errors
    /// [`TpmError`], but not yet what the response says.
    pub fn run(
        &mut self,
        tpm: &mut impl Transport,
        encode: impl FnOnce(&mut [u8]) -> Result<&[u8], EncodeError>,
    ) -> Result<&mut [u8], TpmError> {
        self.prepare(encode)?;
        let command = self.command.get(..self.command_len).ok_or(EncodeError::Full)?;
        let size = tpm.transmit(command, &mut self.response)?;
        Ok(self.response.get_mut(..size).ok_or(DecodeError::Truncated)?)
    }

    /// Sends `call` through `session`, waits for the response, checks and decrypts it.
    ///
    /// # Errors
    /// As [`HmacSession::open`].
    pub fn run_sealed(
        &mut self,
        tpm: &mut impl Transport,
        session: &mut HmacSession,
        call: &Call<'_>,
        nonce: [u8; NONCE],
    ) -> Result<Opened<'_>, TpmError> {
        match self.run(tpm, |buf| session.seal(buf, call, nonce)) {
            Ok(bytes) => session.open(bytes, call),
            Err(error) => {
                session.give_up();
                Err(error)
            }
        }
    }

    /// Writes the next command, for [`Exchange::poll`].
    ///
    /// # Errors
    /// [`EncodeError`] if it does not fit.
    pub fn prepare(
        &mut self,
        encode: impl FnOnce(&mut [u8]) -> Result<&[u8], EncodeError>,
    ) -> Result<(), EncodeError> {
        self.sent = false;
        self.command_len = 0;
        self.command_len = encode(&mut self.command)?.len();
        Ok(())
    }

    /// One step of the prepared command: the response when it is there. Waits its turn while another command is
    /// in flight.
    ///
    /// # Errors
    /// [`TransportError`]; nothing of it is in flight then.
    pub fn poll(&mut self, tpm: &mut impl PolledTransport) -> Result<Option<&mut [u8]>, TransportError> {
        let command = self.command.get(..self.command_len).ok_or(TransportError::BadCommand)?;
        if !self.sent {
            match tpm.start(command) {
                Err(TransportError::Busy) => return Ok(None),
                other => other?,
            }
            self.sent = true;
        }
        match tpm.poll(command, &mut self.response) {
            Ok(None) => Ok(None),
            Ok(Some(size)) => {
                (self.sent, self.response_len) = (false, size);
                self.response.get_mut(..size).ok_or(TransportError::BadCommand).map(Some)
            }
            Err(error) => {
                self.sent = false;
                Err(error)
            }
        }
    }

    /// The response that [`Exchange::poll`] gave last.
    #[must_use]
    pub fn received(&self) -> &[u8] {
        self.response.get(..self.response_len).unwrap_or(&[])
    }

    /// The same, to be decrypted in place.
    pub fn received_mut(&mut self) -> &mut [u8] {
        self.response.get_mut(..self.response_len).unwrap_or(&mut [])
    }

    /// Whether a command is on its way.
    #[must_use]
    pub const fn is_in_flight(&self) -> bool {
        self.sent
    }

    /// Gives up what is in flight.
    pub fn abort(&mut self, tpm: &mut impl PolledTransport) {
        if self.sent {
            tpm.abort();
        }
        self.sent = false;
    }
}

impl Default for Exchange {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.command.zeroize();
        self.response.zeroize();
    }
}

impl core::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Exchange").field("sent", &self.sent).finish_non_exhaustive()
    }
}
