//! Lets unmodified tpm2-tools talk to a TPM whose machine is off.
//!
//! The tools start a command of ours for each conversation (their `cmd:` transport); it passes bytes between
//! its standard streams and a socket, behind which we hold the one connection that the TPM allows.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::machine::swtpm::Attached;
use crate::{place, process};

/// How often the relay looks whether it shall end.
const TICK: Duration = Duration::from_millis(20);

/// A TPM that tools can use, at the locality that was set last.
#[derive(Debug)]
pub(crate) struct ToolTpm {
    tpm: Arc<Mutex<Attached>>,
    folder: tempfile::TempDir,
    end: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl ToolTpm {
    /// Serves `tpm` to tools.
    pub(crate) fn serve(tpm: Attached) -> Result<Self> {
        let folder = place::scratch()?;
        let listener = UnixListener::bind(folder.path().join("relay")).context("cannot listen for tools")?;
        listener.set_nonblocking(true).context("cannot listen for tools")?;
        let tpm = Arc::new(Mutex::new(tpm));
        let end = Arc::new(AtomicBool::new(false));
        let (shared, ending) = (Arc::clone(&tpm), Arc::clone(&end));
        let server = std::thread::spawn(move || serve(&listener, &shared, &ending));
        Ok(Self { tpm, folder, end, server: Some(server) })
    }

    /// Sets the locality of the commands that follow.
    pub(crate) fn set_locality(&self, locality: u8) -> Result<()> {
        self.tpm.lock().unwrap_or_else(PoisonError::into_inner).set_locality(locality)
    }

    /// Where it takes commands as they are, from one program at a time.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("relay")
    }

    /// A tool that will talk to this TPM.
    pub(crate) fn tool(&self, name: &str) -> Result<Command> {
        let own = std::env::current_exe().context("cannot find our own program")?;
        let socket = self.socket();
        let mut command = Command::new(name);
        command.env("TPM2TOOLS_TCTI", format!("cmd:{} tpm-relay {}", own.display(), socket.display()));
        Ok(command)
    }

    /// Runs a tool and returns what it prints.
    pub(crate) fn run(&self, name: &str, arguments: &[&str]) -> Result<String> {
        process::output(self.tool(name)?.args(arguments))
    }

    /// Reads one PCR of one bank, as lower-case hexadecimal digits, with `tpm2_pcrread`.
    pub(crate) fn pcr(&self, bank: &str, index: u32) -> Result<String> {
        let printed = self.run("tpm2_pcrread", &[&format!("{bank}:{index}")])?;
        printed
            .lines()
            .find_map(|line| line.split_once(": 0x"))
            .map(|(_, digits)| digits.trim().to_lowercase())
            .ok_or_else(|| anyhow!("tpm2_pcrread shows no PCR {index} in bank {bank}:\n{printed}"))
    }
}

impl Drop for ToolTpm {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            drop(server.join());
        }
    }
}

fn serve(listener: &UnixListener, tpm: &Mutex<Attached>, end: &AtomicBool) {
    while !end.load(Ordering::Relaxed) {
        match listener.accept() {
            // A conversation that breaks off is the tool's failure, and the tool reports it.
            Ok((socket, _)) => drop(converse(socket, tpm)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(TICK),
            Err(_) => return,
        }
    }
}

fn converse(mut socket: UnixStream, tpm: &Mutex<Attached>) -> Result<()> {
    socket.set_nonblocking(false)?;
    loop {
        let mut head = [0; 10];
        if socket.read_exact(&mut head).is_err() {
            return Ok(());
        }
        let size: [u8; 4] =
            head.get(2..6).and_then(|bytes| bytes.try_into().ok()).context("a short command")?;
        let rest =
            usize::try_from(u32::from_be_bytes(size))?.checked_sub(head.len()).context("a short command")?;
        let mut command = head.to_vec();
        command.resize(head.len().saturating_add(rest.min(8192)), 0);
        socket.read_exact(command.get_mut(head.len()..).unwrap_or_default())?;
        let response = tpm.lock().unwrap_or_else(PoisonError::into_inner).transmit(&command)?;
        socket.write_all(&response)?;
    }
}

/// The command that tools start: standard input to the socket, the socket to standard output.
pub(crate) fn pass_bytes(socket: &Path) -> Result<()> {
    let mut relay = UnixStream::connect(socket).context("cannot reach the relay")?;
    let mut back = relay.try_clone().context("cannot reach the relay")?;
    std::thread::spawn(move || copy(&mut back, &mut std::io::stdout()));
    copy(&mut std::io::stdin(), &mut relay);
    relay.shutdown(std::net::Shutdown::Both).context("cannot close the relay")
}

/// Copies without holding anything back: the other side waits for each answer.
fn copy(from: &mut impl Read, to: &mut impl Write) {
    let mut piece = [0; 4096];
    loop {
        let count = from.read(&mut piece).unwrap_or(0);
        let bytes = piece.get(..count).unwrap_or_default();
        if bytes.is_empty() || to.write_all(bytes).and_then(|()| to.flush()).is_err() {
            return;
        }
    }
}
