//! Makes the emulated machine's TPM as slow as real parts: stands between the emulator and `swtpm`, and holds each
//! command back for as long as its kind takes.
//!
//! The emulator opens a control channel and hands a socket for commands over on it; we hand over one of our own.

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// `TPM_CC` of commands that sign or make keys.
const SIGNING: [u32; 4] = [0x131, 0x153, 0x157, 0x158];
/// How long those take, and `TPM2_StartAuthSession`, and all others (TPM parts: 100 to 500 ms).
pub(crate) const LONGEST: Duration = Duration::from_millis(500);
const SESSION: (u32, Duration) = (0x176, Duration::from_millis(200));
const OTHERS: Duration = Duration::from_millis(100);
/// Bytes of a command's head: tag, size, code.
const HEAD: usize = 10;
/// Largest command or response that is passed on.
const MOST: usize = 8192;

/// A TPM that can be made slow.
#[derive(Debug)]
pub(crate) struct SlowTpm {
    control: PathBuf,
    pace: Arc<Pace>,
}

#[derive(Debug, Default)]
struct Pace {
    is_slow: AtomicBool,
    slowed: AtomicU64,
}

impl SlowTpm {
    /// Stands before the TPM whose control socket this is; the machine's end ends it.
    pub(crate) fn before(tpm: &Path) -> Result<Self> {
        let control = tpm.with_extension("slow");
        let listener = UnixListener::bind(&control).context("cannot stand before the TPM")?;
        let pace = Arc::new(Pace::default());
        let (tpm, shared) = (tpm.to_owned(), Arc::clone(&pace));
        // What breaks off is the machine's failure to reach its TPM, and the machine says so.
        std::thread::spawn(move || drop(serve(&listener, &tpm, &shared)));
        Ok(Self { control, pace })
    }

    /// Where the emulator connects.
    pub(crate) fn control(&self) -> &Path {
        &self.control
    }

    /// From now on commands take their time, or no longer do.
    pub(crate) fn set_slow(&self, is_slow: bool) {
        self.pace.is_slow.store(is_slow, Ordering::Relaxed);
    }

    /// Commands that were held back.
    pub(crate) fn slowed(&self) -> u64 {
        self.pace.slowed.load(Ordering::Relaxed)
    }
}

/// How long a command is held back.
fn delay(code: u32) -> Duration {
    if SIGNING.contains(&code) {
        LONGEST
    } else if code == SESSION.0 {
        SESSION.1
    } else {
        OTHERS
    }
}

fn serve(listener: &UnixListener, tpm: &Path, pace: &Arc<Pace>) -> Result<()> {
    let (emulator, _) = listener.accept().context("the emulator does not come")?;
    let tpm = UnixStream::connect(tpm).context("cannot reach the TPM")?;
    let (mut back, mut answers) = (emulator.try_clone()?, tpm.try_clone()?);
    std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
    let outcome = pass_control(&emulator, &tpm, pace);
    tpm.shutdown(std::net::Shutdown::Both).context("cannot leave the TPM")?;
    outcome
}

/// Passes control messages on, with our socket in place of the one that comes along.
fn pass_control(emulator: &UnixStream, tpm: &UnixStream, pace: &Arc<Pace>) -> Result<()> {
    let mut bytes = [0; 4096];
    loop {
        let (count, socket) = receive(emulator, &mut bytes)?;
        let message = bytes.get(..count).unwrap_or_default();
        if message.is_empty() {
            return Ok(());
        }
        let Some(socket) = socket else {
            (&mut &*tpm).write_all(message).context("the TPM takes no control message")?;
            continue;
        };
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket")?;
        send(tpm, message, &theirs)?;
        let (commands, pace) = (UnixStream::from(socket), Arc::clone(pace));
        std::thread::spawn(move || drop(pass_commands(commands, ours, &pace)));
    }
}

fn receive(from: &UnixStream, into: &mut [u8]) -> Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(from, &mut [IoSliceMut::new(into)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        .context("the control channel broke off")?;
    let mut socket = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            socket = descriptors.next();
        }
    }
    Ok((received.bytes, socket))
}

fn send(to: &UnixStream, message: &[u8], socket: &UnixStream) -> Result<()> {
    use std::os::fd::AsFd;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [socket.as_fd()];
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        bail!("no room to pass a socket to the TPM");
    }
    sendmsg(to, &[IoSlice::new(message)], &mut ancillary, SendFlags::empty())
        .context("cannot pass a socket to the TPM")?;
    Ok(())
}

/// One command after another, each held back, then its response.
fn pass_commands(mut emulator: UnixStream, mut tpm: UnixStream, pace: &Pace) -> Result<()> {
    while let Some(command) = message(&mut emulator)? {
        if pace.is_slow.load(Ordering::Relaxed) {
            pace.slowed.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(delay(number(&command, 6)?));
        }
        tpm.write_all(&command).context("the TPM takes no command")?;
        let response = message(&mut tpm)?.context("the TPM is gone")?;
        emulator.write_all(&response).context("the emulator is gone")?;
    }
    Ok(())
}

/// A command or a response; `None` at the end.
fn message(from: &mut UnixStream) -> Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; HEAD];
    match from.read_exact(&mut bytes) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error).context("the command channel broke off"),
    }
    let size = usize::try_from(number(&bytes, 2)?)?;
    if !(HEAD..=MOST).contains(&size) {
        bail!("a message of {size} bytes");
    }
    bytes.resize(size, 0);
    from.read_exact(bytes.get_mut(HEAD..).unwrap_or_default()).context("a message is cut short")?;
    Ok(Some(bytes))
}

fn number(bytes: &[u8], at: usize) -> Result<u32> {
    let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk()).context("a short message")?;
    Ok(u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_takes_longest_and_every_command_takes_time() {
        assert_eq!(delay(0x158), LONGEST);
        assert_eq!(delay(0x176), Duration::from_millis(200));
        assert_eq!(delay(0x17f), Duration::from_millis(100));
    }

    #[test]
    fn messages_are_taken_by_their_own_size() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        here.write_all(&[0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x58, 7, 7, 0x80]).unwrap();
        let command = message(&mut there).unwrap().unwrap();
        assert_eq!((command.len(), number(&command, 6).unwrap()), (12, 0x158));
        drop(here);
        assert!(message(&mut there).is_err() || message(&mut there).unwrap().is_none());
    }
}
