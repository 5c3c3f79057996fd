//! A listener or forger on the bus between us and a real TPM.

use dolmen_tpm::{PolledTransport, Transport, TransportError};

use crate::swtpm::Swtpm;

type Forge = Box<dyn FnMut(u32, &mut Vec<u8>) -> Result<(), TransportError>>;

/// Passes commands on, shows each with its response, and lets the test change the response.
pub(crate) struct Tap {
    pub(crate) tpm: Swtpm,
    pub(crate) heard: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) forge: Forge,
    /// Changes a command on its way to the TPM.
    pub(crate) alter: fn(u32, &mut Vec<u8>),
}

impl Tap {
    pub(crate) fn new(tpm: Swtpm) -> Self {
        Self { tpm, heard: Vec::new(), forge: Box::new(|_, _| Ok(())), alter: |_, _| {} }
    }

    /// A tap that lets `forge` change the responses to command `code`.
    pub(crate) fn on(tpm: Swtpm, code: u32, mut forge: impl FnMut(&mut Vec<u8>) + 'static) -> Self {
        let mut tap = Self::new(tpm);
        tap.forge = Box::new(move |seen, response| {
            if seen == code {
                forge(response);
            }
            Ok(())
        });
        tap
    }

    /// Everything that crossed the bus, both ways.
    pub(crate) fn all_bytes(&self) -> Vec<u8> {
        self.heard
            .iter()
            .flat_map(|(command, response)| [command.clone(), response.clone()].concat())
            .collect()
    }
}

pub(crate) fn code_of(command: &[u8]) -> u32 {
    u32::from_be_bytes(command[6..10].try_into().unwrap())
}

/// A refusal with `code`.
pub(crate) fn refusal(code: u32) -> Vec<u8> {
    [&[0x80, 1, 0, 0, 0, 10][..], &code.to_be_bytes()].concat()
}

impl Transport for Tap {
    fn transmit(&mut self, command: &[u8], response: &mut [u8]) -> Result<usize, TransportError> {
        let mut altered = command.to_vec();
        (self.alter)(code_of(command), &mut altered);
        let size = self.tpm.transmit(&altered, response)?;
        let mut bytes = response[..size].to_vec();
        (self.forge)(code_of(command), &mut bytes)?;
        self.heard.push((command.to_vec(), bytes.clone()));
        response.get_mut(..bytes.len()).ok_or(TransportError::TrailingData)?.copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}

impl PolledTransport for Tap {
    fn start(&mut self, _: &[u8]) -> Result<(), TransportError> {
        Ok(())
    }

    fn poll(&mut self, command: &[u8], response: &mut [u8]) -> Result<Option<usize>, TransportError> {
        self.transmit(command, response).map(Some)
    }

    fn abort(&mut self) {}
}
