//! Who sits on the bus of the emulated machine's TPM: stands between the emulator and `swtpm`, listens, holds commands back
//! for as long as real parts take, and answers some as told.
//!
//! The emulator opens a control channel and hands a socket for commands over on it; we hand over one of our own. The control
//! channel also says from which locality the next commands come.

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dolmen_tpm::constant::cc;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::fault::{Plan, Reply};

/// `TPM_CC` of commands that sign or make keys.
const SIGNING: [u32; 5] = [0x131, 0x148, 0x153, 0x157, 0x158];
/// How long those take, and `TPM2_StartAuthSession`, and all others (TPM parts: 100 to 500 ms).
pub(crate) const LONGEST: Duration = Duration::from_millis(500);
const SESSION: (u32, Duration) = (0x176, Duration::from_millis(200));
const OTHERS: Duration = Duration::from_millis(100);
/// Bytes of a command's head: tag, size, code.
const HEAD: usize = 10;
/// Bytes of a response to TPM2_GetRandom that brings none, at most.
const SEEDLESS: usize = 40;
/// Largest command or response that is passed on.
const MOST: usize = 8192;

/// Control message: the commands that follow come from this locality.
const SET_LOCALITY: u32 = 5;
/// The locality of the launch image and the core: only their commands are answered as told.
pub(crate) const OURS: u8 = 2;

/// A command that crossed the bus, and what came back.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    /// From this locality.
    pub(crate) locality: u8,
    /// The command.
    pub(crate) command: Vec<u8>,
    /// The response, as the machine got it.
    pub(crate) response: Vec<u8>,
}

impl Exchange {
    /// The command's code (TPM_CC); none if it is too short to have one.
    pub(crate) fn code(&self) -> Option<u32> {
        number(&self.command, 6).ok()
    }

    /// Whether the core asked for random bytes, and the TPM gave some.
    fn is_seed(&self) -> bool {
        self.locality == OURS && self.code() == Some(cc::GET_RANDOM) && self.response.len() > SEEDLESS
    }
}

/// A TPM with somebody on its bus.
#[derive(Debug)]
pub(crate) struct TpmBus {
    control: PathBuf,
    conduct: Arc<Conduct>,
}

/// What is done on the bus.
#[derive(Debug, Default)]
struct Conduct {
    is_slow: AtomicBool,
    slowed: AtomicU64,
    locality: AtomicU8,
    plans: Mutex<Vec<Plan>>,
    heard: Mutex<Vec<Exchange>>,
}

impl Conduct {
    fn plans(&self) -> MutexGuard<'_, Vec<Plan>> {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self) -> MutexGuard<'_, Vec<Exchange>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is done with a command of this code: of the plans for it, the first that is not over yet.
    fn reply(&self, code: u32) -> Reply {
        if self.locality.load(Ordering::SeqCst) != OURS {
            return Reply::Honest;
        }
        self.plans().iter_mut().find_map(|plan| plan.next(code)).unwrap_or(Reply::Honest)
    }
}

impl TpmBus {
    /// Stands before the TPM whose control socket this is, and does as planned; the machine's end ends it.
    pub(crate) fn before(tpm: &Path, plans: &[Plan]) -> Result<Self> {
        let control = tpm.with_extension("bus");
        let listener = UnixListener::bind(&control).context("cannot stand before the TPM")?;
        let conduct = Arc::new(Conduct { plans: Mutex::new(plans.to_vec()), ..Conduct::default() });
        let (tpm, shared) = (tpm.to_owned(), Arc::clone(&conduct));
        // What breaks off is the machine's failure to reach its TPM, and the machine says so.
        std::thread::spawn(move || drop(serve(&listener, &tpm, &shared)));
        Ok(Self { control, conduct })
    }

    /// Where the emulator connects.
    pub(crate) fn control(&self) -> &Path {
        &self.control
    }

    /// From now on commands take their time, or no longer do.
    pub(crate) fn set_slow(&self, is_slow: bool) {
        self.conduct.is_slow.store(is_slow, Ordering::SeqCst);
    }

    /// Commands that were held back.
    pub(crate) fn slowed(&self) -> u64 {
        self.conduct.slowed.load(Ordering::SeqCst)
    }

    /// From now on does as planned, and nothing that was planned before.
    pub(crate) fn plan(&self, plans: Vec<Plan>) {
        *self.conduct.plans() = plans;
    }

    /// How often the plans have changed an answer.
    pub(crate) fn changed(&self) -> u32 {
        self.conduct.plans().iter().map(Plan::done).sum()
    }

    /// How often the TPM gave the core random bytes.
    pub(crate) fn seeds(&self) -> usize {
        self.conduct.heard().iter().filter(|one| one.is_seed()).count()
    }

    /// Waits until the TPM has given more random bytes than `before` times.
    pub(crate) fn wait_for_seed(&self, before: usize, limit: Duration) -> Result<()> {
        let begin = Instant::now();
        while self.seeds() == before {
            ensure!(begin.elapsed() < limit, "no reseed after {} s", limit.as_secs());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// All that was heard since the machine was switched on.
    pub(crate) fn heard(&self) -> Vec<Exchange> {
        self.conduct.heard().clone()
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

fn serve(listener: &UnixListener, tpm: &Path, conduct: &Arc<Conduct>) -> Result<()> {
    let (emulator, _) = listener.accept().context("the emulator does not come")?;
    let tpm = UnixStream::connect(tpm).context("cannot reach the TPM")?;
    let (mut back, mut answers) = (emulator.try_clone()?, tpm.try_clone()?);
    std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
    let outcome = pass_control(&emulator, &tpm, conduct);
    tpm.shutdown(std::net::Shutdown::Both).context("cannot leave the TPM")?;
    outcome
}

/// Passes control messages on, with our socket in place of the one that comes along.
fn pass_control(emulator: &UnixStream, tpm: &UnixStream, conduct: &Arc<Conduct>) -> Result<()> {
    let mut bytes = [0; 4096];
    loop {
        let (count, socket) = receive(emulator, &mut bytes)?;
        let message = bytes.get(..count).unwrap_or_default();
        if message.is_empty() {
            return Ok(());
        }
        if let (Ok(SET_LOCALITY), Some(locality)) = (number(message, 0), message.get(4)) {
            conduct.locality.store(*locality, Ordering::SeqCst);
        }
        let Some(socket) = socket else {
            (&mut &*tpm).write_all(message).context("the TPM takes no control message")?;
            continue;
        };
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket")?;
        send(tpm, message, &theirs)?;
        let (commands, conduct) = (UnixStream::from(socket), Arc::clone(conduct));
        std::thread::spawn(move || drop(pass_commands(commands, ours, &conduct)));
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

/// One command after another, each held back if the TPM is slow, then its response, or what is planned instead.
fn pass_commands(mut emulator: UnixStream, mut tpm: UnixStream, conduct: &Conduct) -> Result<()> {
    while let Some(command) = message(&mut emulator)? {
        let code = number(&command, 6)?;
        if conduct.is_slow.load(Ordering::SeqCst) {
            conduct.slowed.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(delay(code));
        }
        let reply = conduct.reply(code);
        let response = match reply.without_tpm() {
            Some(response) => response,
            None => {
                tpm.write_all(&command).context("the TPM takes no command")?;
                reply.of(message(&mut tpm)?.context("the TPM is gone")?)
            }
        };
        let locality = conduct.locality.load(Ordering::SeqCst);
        conduct.heard().push(Exchange { locality, command, response: response.clone() });
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
