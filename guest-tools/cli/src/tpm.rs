//! A TPM in an ordinary Linux system: the device of the kernel's resource manager, or a software TPM's socket.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use dolmen_tpm::constant::ResponseCode;
use dolmen_tpm::{Transport, TransportError};

use crate::failure::Failure;

/// The device of the resource manager: it gives each user sessions and objects of their own.
pub(crate) const DEVICE: &str = "/dev/tpmrm0";
/// Bytes of tag, length and response code.
const HEADER: usize = 10;
/// Longest wait for the answer of a socket; the kernel's driver knows itself how long a TPM may take.
const LIMIT: Duration = Duration::from_secs(120);
/// How often a command is sent again because the TPM asks for it.
const MAX_RETRIES: u32 = 20;
/// Pauses before: the first, doubled each time up to the last.
const PAUSE_MS: (u64, u64) = (5, 500);

/// A connection to a TPM.
pub(crate) struct Tpm {
    stream: Box<dyn Stream>,
    trouble: Option<io::Error>,
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

impl Tpm {
    /// Opens a device, or connects to a socket that takes commands as they are.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            let hint = if error.kind() == io::ErrorKind::NotFound {
                ". Hint: this system shows no TPM; look into the firmware's setup, and for the kernel's driver"
            } else if error.kind() == io::ErrorKind::PermissionDenied {
                ". Hint: run it as root"
            } else {
                ""
            };
            Failure::file("open", path, &error).because(hint)
        };
        let kind = path.metadata().map_err(failed)?.file_type();
        let stream: Box<dyn Stream> = if kind.is_char_device() {
            Box::new(File::options().read(true).write(true).open(path).map_err(failed)?)
        } else if kind.is_socket() {
            let socket = UnixStream::connect(path).map_err(failed)?;
            socket.set_read_timeout(Some(LIMIT)).map_err(failed)?;
            Box::new(socket)
        } else {
            return Err(Failure::plain(&format!(
                "{} is no TPM: expected a device such as {DEVICE}",
                path.display()
            )));
        };
        Ok(Self { stream, trouble: None })
    }

    /// What the system said of the last command, if it did not reach the TPM.
    pub(crate) const fn trouble(&self) -> Option<&io::Error> {
        self.trouble.as_ref()
    }

    fn exchange(&mut self, command: &[u8], response: &mut [u8]) -> io::Result<Result<usize, TransportError>> {
        // A device takes a whole command at once, and gives a whole answer.
        self.stream.write_all(command)?;
        self.stream.flush()?;
        let mut filled = 0_usize;
        loop {
            let room = response.get_mut(filled..).unwrap_or_default();
            match self.stream.read(room) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => filled = filled.saturating_add(length),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let Some(size) = field(response, filled, 2) else { continue };
            let length = usize::try_from(size).unwrap_or(usize::MAX);
            if !(HEADER..=response.len()).contains(&length) {
                return Ok(Err(TransportError::ResponseLength(size)));
            }
            if filled > length {
                return Ok(Err(TransportError::TrailingData));
            }
            if filled == length {
                return Ok(Ok(length));
            }
        }
    }
}

/// Four bytes of a header that has come whole.
fn field(response: &[u8], filled: usize, at: usize) -> Option<u32> {
    let header = response.get(..filled)?.first_chunk::<HEADER>()?;
    header.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

impl Transport for Tpm {
    fn transmit(&mut self, command: &[u8], response: &mut [u8]) -> Result<usize, TransportError> {
        let (mut pause, longest) = PAUSE_MS;
        for retries in 0_u32.. {
            let length = match self.exchange(command, response) {
                Ok(outcome) => outcome?,
                Err(error) => {
                    self.trouble = Some(error);
                    return Err(TransportError::Disconnected);
                }
            };
            let is_retry = field(response, length, 6).is_some_and(|code| ResponseCode(code).is_retry());
            if !is_retry || retries >= MAX_RETRIES {
                return Ok(length);
            }
            std::thread::sleep(Duration::from_millis(pause));
            pause = pause.saturating_mul(2).min(longest);
        }
        Err(TransportError::Disconnected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: [u8; 10] = [0x80, 1, 0, 0, 0, 10, 0, 0, 0x09, 0x22];
    const OK: [u8; 10] = [0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0];

    /// Answers that come byte by byte; commands are counted.
    struct Answers(Vec<u8>, usize);

    impl Read for Answers {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() || buffer.is_empty() {
                return Ok(0);
            }
            buffer[0] = self.0.remove(0);
            Ok(1)
        }
    }

    impl Write for Answers {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            assert!(self.1 <= 21, "for ever");
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn transmit(answers: &[u8]) -> (Result<usize, TransportError>, [u8; 16]) {
        let mut tpm = Tpm { stream: Box::new(Answers(answers.to_vec(), 0)), trouble: None };
        let mut response = [0; 16];
        (tpm.transmit(&[0; 12], &mut response), response)
    }

    #[test]
    fn an_answer_is_read_to_its_end_however_it_comes() {
        let (length, response) = transmit(&OK);
        assert_eq!((length, &response[..10]), (Ok(10), &OK[..]));
        assert_eq!(transmit(&OK[..9]).0, Err(TransportError::Disconnected));
    }

    #[test]
    fn a_length_that_cannot_be_is_refused() {
        for length in [9, 17, 255] {
            let mut bytes = OK;
            bytes[5] = length;
            assert_eq!(transmit(&bytes).0, Err(TransportError::ResponseLength(length.into())));
        }
    }

    #[test]
    fn a_command_is_sent_again_as_long_as_the_tpm_asks_and_not_for_ever() {
        let (length, response) = transmit(&[RETRY, RETRY, OK].concat());
        assert_eq!((length, &response[..10]), (Ok(10), &OK[..]));
    }

    #[test]
    fn what_is_no_tpm_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "mine").unwrap();
        let text = |path: &Path| Tpm::open(path).err().unwrap().to_string();
        assert!(text(&file).contains("is no TPM: expected a device such as /dev/tpmrm0"));
        assert_eq!(std::fs::read(&file).unwrap(), b"mine");
        assert!(text(&folder.path().join("none")).contains("Hint: this system shows no TPM"));
    }
}
