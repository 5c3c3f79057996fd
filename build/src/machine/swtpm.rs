//! The emulated machine's TPM: one `swtpm` per power cycle over a state folder that lasts.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tempfile::TempDir;

use crate::machine::child;
use crate::{place, process};

/// Longest wait for the TPM to start or to answer.
const LIMIT: Duration = Duration::from_secs(20);
/// Control command: power on, or reset.
const CMD_INIT: u32 = 2;
/// Control command: use this socket for TPM commands.
const CMD_SET_DATAFD: u32 = 0x10;
/// Control command: commands come from this locality.
const CMD_SET_LOCALITY: u32 = 5;

/// A maker of TPMs, whose certificates say which endorsement keys are those of its TPMs: swtpm's own authority, with
/// keys of its own.
#[derive(Clone, Debug)]
pub(crate) struct Maker {
    folder: PathBuf,
}

impl Maker {
    /// The maker whose keys are, or will be, in `folder`. They come to be with its first TPM.
    pub(crate) fn of(folder: &Path) -> Result<Self> {
        let maker = Self { folder: folder.to_owned() };
        let home = folder.display();
        let authority = format!(
            "statedir = {home}\nsigningkey = {home}/signkey.pem\nissuercert = {home}/issuercert.pem\n\
             certserial = {home}/certserial\n"
        );
        place::write(&maker.authority(), authority.as_bytes())?;
        let setup = format!(
            "create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = {}\n\
             create_certs_tool_options = /etc/swtpm-localca.options\n",
            maker.authority().display()
        );
        place::write(&maker.setup(), setup.as_bytes())?;
        Ok(maker)
    }

    fn authority(&self) -> PathBuf {
        self.folder.join("localca.conf")
    }

    /// What `swtpm_setup` reads.
    fn setup(&self) -> PathBuf {
        self.folder.join("setup.conf")
    }

    /// The root certificate, for relying parties.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.join("swtpm-localca-rootca-cert.pem")
    }

    /// The certificate between the root and those of the TPMs.
    pub(crate) fn intermediate(&self) -> PathBuf {
        self.folder.join("issuercert.pem")
    }
}

/// Makes the state of a new TPM with the given PCR banks active, for example `sha1,sha256`. The certificates of its
/// endorsement keys are in its memory if there is a maker who vouches for them.
pub(crate) fn manufacture(state: &Path, banks: &str, maker: Option<&Maker>) -> Result<()> {
    if state.exists() {
        std::fs::remove_dir_all(state).with_context(|| format!("cannot remove {}", state.display()))?;
    }
    place::make(state)?;
    let mut command = Command::new("swtpm_setup");
    command.arg("--tpm2").arg("--tpmstate").arg(state).args(["--pcr-banks", banks, "--overwrite"]);
    if let Some(maker) = maker {
        command.arg("--create-ek-cert").arg("--config").arg(maker.setup());
    }
    process::output(&mut command).map(drop).context("cannot make a TPM")
}

/// What swtpm writes into its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Record {
    /// Errors.
    #[default]
    Errors,
    /// Every command and response, in full.
    Commands,
}

impl Record {
    /// swtpm's log level.
    const fn level(self) -> u8 {
        match self {
            Self::Errors => 1,
            Self::Commands => 5,
        }
    }
}

/// A running TPM.
#[derive(Debug)]
pub(crate) struct Swtpm {
    child: Child,
    control: PathBuf,
    // Removed when the last user of the sockets in it is gone.
    _sockets: Arc<TempDir>,
}

impl Swtpm {
    /// Powers the TPM of `state` on; its control socket lies in `sockets`.
    pub(crate) fn start(state: &Path, sockets: &Arc<TempDir>, log: &Path, record: Record) -> Result<Self> {
        let control = sockets.path().join("tpm.ctrl");
        let mut directory = std::ffi::OsString::from("dir=");
        directory.push(state);
        let mut command = child::bound_to_us("swtpm");
        command
            .args(["socket", "--tpm2", "--tpmstate"])
            .arg(directory)
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", control.display()))
            .arg("--log")
            .arg(format!("file={},level={}", log.display(), record.level()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().context("cannot start swtpm; `cargo xtask setup` installs it")?;
        let mut tpm = Self { child, control, _sockets: Arc::clone(sockets) };
        let deadline = Instant::now().checked_add(LIMIT).context("the time limit is too far away")?;
        while !tpm.control.exists() {
            if tpm.child.try_wait().context("cannot watch swtpm")?.is_some() || Instant::now() > deadline {
                bail!("swtpm did not start; its log is {}", log.display());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(tpm)
    }

    /// Makes it stand still in the middle of what it does, or go on.
    pub(crate) fn hold(&self, is_held: bool) -> Result<()> {
        use rustix::process::{Pid, Signal, kill_process};
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let signal = if is_held { Signal::STOP } else { Signal::CONT };
        kill_process(id.context("the TPM has no process number")?, signal).context("cannot hold the TPM")
    }

    /// Where the emulator connects.
    pub(crate) fn control(&self) -> &Path {
        &self.control
    }

    /// Takes the place of the machine, which must be off: the TPM itself still has power.
    pub(crate) fn attach(&self) -> Result<Attached> {
        let mut control =
            UnixStream::connect(&self.control).context("cannot reach the TPM's control socket")?;
        control.set_read_timeout(Some(LIMIT)).context("cannot bound the wait for the TPM")?;
        let (data, theirs) = UnixStream::pair().context("cannot make a socket")?;
        data.set_read_timeout(Some(LIMIT)).context("cannot bound the wait for the TPM")?;
        hand_over(&control, &theirs)?;
        expect_success(&mut control, "SET_DATAFD")?;
        Ok(Attached { control, data })
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        child::end(&mut self.child);
    }
}

fn hand_over(control: &UnixStream, theirs: &UnixStream) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [theirs.as_fd()];
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        bail!("no room to pass a socket to the TPM");
    }
    let command = CMD_SET_DATAFD.to_be_bytes();
    sendmsg(control, &[IoSlice::new(&command)], &mut ancillary, SendFlags::empty())
        .context("cannot pass a socket to the TPM")?;
    Ok(())
}

fn expect_success(control: &mut UnixStream, what: &str) -> Result<()> {
    let mut result = [0; 4];
    control.read_exact(&mut result).with_context(|| format!("the TPM did not answer {what}"))?;
    match u32::from_be_bytes(result) {
        0 => Ok(()),
        code => bail!("the TPM refused {what}: {code:#x}"),
    }
}

/// A connection to a powered TPM whose machine is off.
#[derive(Debug)]
pub(crate) struct Attached {
    control: UnixStream,
    data: UnixStream,
}

impl Attached {
    /// Resets the TPM, as power-on does.
    pub(crate) fn reset(&mut self) -> Result<()> {
        let message = [CMD_INIT.to_be_bytes(), [0; 4]].concat();
        self.control.write_all(&message).context("cannot reach the TPM")?;
        expect_success(&mut self.control, "INIT")
    }

    /// Sets the locality of the commands that follow: what only a CPU, or a chipset, can do on real parts.
    pub(crate) fn set_locality(&mut self, locality: u8) -> Result<()> {
        let mut message = CMD_SET_LOCALITY.to_be_bytes().to_vec();
        message.push(locality);
        self.control.write_all(&message).context("cannot reach the TPM")?;
        expect_success(&mut self.control, "SET_LOCALITY")
    }

    /// Sends one command and takes its response.
    pub(crate) fn transmit(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        self.data.write_all(command).context("the TPM takes no command")?;
        let mut response = vec![0; 10];
        self.data.read_exact(&mut response).context("the TPM does not answer")?;
        let size: [u8; 4] =
            response.get(2..6).and_then(|bytes| bytes.try_into().ok()).context("a short response")?;
        let size = usize::try_from(u32::from_be_bytes(size))?;
        if !(10..=8192).contains(&size) {
            bail!("the TPM answers with a response of {size} bytes");
        }
        response.resize(size, 0);
        let body = response.get_mut(10..).context("a short response")?;
        self.data.read_exact(body).context("the TPM's response is cut short")?;
        Ok(response)
    }
}
