//! The emulated computer: QEMU with a TPM, two serial ports, and a clear end.

pub(crate) mod bochs;
pub(crate) mod bus;
pub(crate) mod child;
pub(crate) mod debugger;
pub(crate) mod fault;
pub(crate) mod profile;
pub(crate) mod relay;
pub(crate) mod shell;
pub(crate) mod stream;
pub(crate) mod swtpm;
pub(crate) mod terminal;
pub(crate) mod traffic;

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dolmen_vm::manifest::Console;
use tempfile::TempDir;

use crate::manifest::CompiledGuest;
use crate::place;
use bus::TpmBus;
use fault::Plan;
use profile::{Firmware, Profile};
use stream::{Port, Stream};
use swtpm::{Record, Swtpm};

/// Longest wait for the emulator to open its serial ports.
const OPENING: Duration = Duration::from_secs(20);
/// Longest wait for an emulator to end that has closed its ports: it may have to write down its memory.
const DYING: Duration = Duration::from_secs(10);
/// Transcript of the emulator itself.
pub(crate) const EMULATOR: &str = "qemu";
/// Transcript of the first serial port, the hypervisor's log.
pub(crate) const LOG: &str = "com1";
/// UEFI firmware and its variables, as Debian's `ovmf` installs them.
const OVMF: [&str; 2] = ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"];

/// What the machine starts from.
#[derive(Clone, Debug)]
pub(crate) enum Medium {
    /// A disk image.
    Disk(PathBuf),
    /// A CD image.
    Disc(PathBuf),
    /// A Multiboot kernel with its modules, loaded by the emulator.
    Multiboot {
        /// The kernel's file.
        kernel: PathBuf,
        /// Modules in order.
        modules: Vec<PathBuf>,
        /// Command line of the kernel; may be empty.
        arguments: String,
    },
}

/// Where the guest's console goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConsoleTo {
    /// To us.
    Harness,
    /// To the terminal: Ctrl-A X ends the machine.
    Terminal,
}

/// One power cycle, in full.
#[derive(Clone, Debug)]
pub(crate) struct Setting<'a> {
    /// The emulator.
    pub(crate) qemu: &'a Path,
    /// The machine.
    pub(crate) profile: &'a Profile,
    /// What it starts.
    pub(crate) medium: &'a Medium,
    /// Folder of the machine: TPM state lasts here; transcripts are written here.
    pub(crate) folder: &'a Path,
    /// Name of this power cycle, for the transcripts' names.
    pub(crate) cycle: &'a str,
    /// More arguments for QEMU.
    pub(crate) more: &'a [String],
    /// Who has the console.
    pub(crate) console: ConsoleTo,
    /// What the TPM's log holds.
    pub(crate) record: Record,
    /// Whether somebody sits on the TPM's bus, and what that one does from the start.
    pub(crate) bus: Option<&'a [Plan]>,
}

/// A machine that is switched on. Dropping it switches it off.
#[derive(Debug)]
pub(crate) struct Machine {
    qemu: Child,
    tpm: Option<Swtpm>,
    bus: Option<TpmBus>,
    /// What the emulator said, and how it ended if it did by itself.
    obituary: PathBuf,
    /// The first serial port: the hypervisor's log.
    pub(crate) log: Stream,
    /// The second serial port: the guest's console, if it is ours.
    pub(crate) console: Option<Stream>,
    // Removed, with the sockets in it, when the machine is gone.
    _sockets: Arc<TempDir>,
}

impl Machine {
    /// Switches a machine on.
    pub(crate) fn start(setting: &Setting<'_>) -> Result<Self> {
        place::make(setting.folder)?;
        let sockets = sockets()?;
        let tpm = match setting.profile.tpm {
            Some(_) => Some(power_tpm(setting, &sockets)?),
            None => None,
        };
        let bus = match (&tpm, setting.bus) {
            (Some(tpm), Some(plans)) => Some(TpmBus::before(tpm.control(), plans)?),
            (Some(_) | None, _) => None,
        };
        let control = bus.as_ref().map(TpmBus::control).or(tpm.as_ref().map(Swtpm::control));
        let log = Port::open(&sockets.path().join("com1"))?;
        let console = match setting.console {
            ConsoleTo::Harness => Some(Port::open(&sockets.path().join("com2"))?),
            ConsoleTo::Terminal => None,
        };
        let mut command = command(setting, control, &log, console.as_ref())?;
        let mut qemu = command
            .spawn()
            .with_context(|| format!("cannot start the emulator {}", setting.qemu.display()))?;
        let ports = connect(setting, log, console);
        let (log, console) = match ports {
            Ok(ports) => ports,
            Err(error) => {
                child::end(&mut qemu);
                let said = std::fs::read_to_string(transcript(setting, EMULATOR)).unwrap_or_default();
                return Err(error.context(format!("the emulator did not start: {}", said.trim())));
            }
        };
        let obituary = transcript(setting, EMULATOR);
        Ok(Self { qemu, tpm, bus, obituary, log, console, _sockets: sockets })
    }

    /// The console of a guest, wherever the manifest has put it. A port of its own is given away once.
    pub(crate) fn console_of(&mut self, guest: &CompiledGuest) -> Result<Stream> {
        let name = &guest.name;
        match guest.config.consoles.first().and_then(|number| Console::from_wire(*number)) {
            Some(Console::Com2) => self.console.take().with_context(|| format!("{name}'s console is in use")),
            Some(Console::Multiplexed) => self.log.guest(name),
            Some(Console::Com1 | Console::None) | None => bail!("{name} has no console to talk to"),
        }
    }

    /// Waits until the machine switches itself off.
    pub(crate) fn wait_off(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now().checked_add(limit).context("the time limit is too far away")?;
        loop {
            if let Some(status) = self.qemu.try_wait().context("cannot watch the emulator")? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("the machine did not switch itself off within {} s", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether the machine is off.
    pub(crate) fn is_off(&mut self) -> Result<bool> {
        Ok(self.qemu.try_wait().context("cannot watch the emulator")?.is_some())
    }

    /// Waits until the machine is off, or its log says `halted` instead.
    pub(crate) fn wait_off_or(&mut self, limit: Duration, halted: &str) -> Result<()> {
        if self.log.wait_for(halted, limit).is_ok() {
            return Ok(());
        }
        self.wait_off(OPENING).map(drop)
    }

    /// Makes the TPM stand still in the middle of what it does, or go on.
    pub(crate) fn hold_tpm(&self, is_held: bool) -> Result<()> {
        self.tpm.as_ref().context("this machine has no TPM")?.hold(is_held)
    }

    /// Who sits on the TPM's bus, in machines that were set so.
    pub(crate) fn tpm_bus(&self) -> Result<&TpmBus> {
        self.bus.as_ref().context("nobody sits on the bus of this machine's TPM")
    }

    /// Takes the TPM's power away under the running machine.
    pub(crate) fn kill_tpm(&mut self) -> Result<()> {
        self.tpm.take().map(drop).context("this machine has no TPM")
    }

    /// Ends the emulator in good order, so that its devices can write their reports.
    pub(crate) fn switch_off(mut self) -> Result<()> {
        let id = i32::try_from(self.qemu.id()).ok().and_then(rustix::process::Pid::from_raw);
        let id = id.context("the emulator has no process number")?;
        rustix::process::kill_process(id, rustix::process::Signal::TERM)
            .context("cannot end the emulator")?;
        self.wait_off(OPENING).map(drop)
    }

    /// Cuts the machine's power at once; the TPM keeps its own, so that its registers can be read.
    pub(crate) fn cut_power(mut self) -> Result<Swtpm> {
        child::end(&mut self.qemu);
        self.log.wait_closed(OPENING);
        self.tpm.take().context("this machine has no TPM")
    }

    /// How the emulator ended, if it did by itself: one whose port is closed is about to.
    fn own_end(&mut self) -> Option<ExitStatus> {
        if !self.log.wait_closed(Duration::ZERO) {
            return self.qemu.try_wait().ok().flatten();
        }
        self.wait_off(DYING).ok()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        match self.own_end() {
            Some(status) => note_end(&self.obituary, status),
            None => child::end(&mut self.qemu),
        }
    }
}

/// Writes how the emulator ended to its transcript: one that died of a signal says nothing itself. For people who look
/// why a test failed; that it cannot be written is no failure of its own.
fn note_end(transcript: &Path, status: ExitStatus) {
    let what = match status.signal() {
        Some(signal) => format!("the emulator died of signal {signal}"),
        None => format!("the emulator ended by itself: {status}"),
    };
    let file = std::fs::OpenOptions::new().append(true).open(transcript);
    drop(file.and_then(|mut file| writeln!(file, "{what}")));
}

/// A folder for sockets: their names must be short.
pub(crate) fn sockets() -> Result<Arc<TempDir>> {
    place::scratch().map(Arc::new)
}

fn power_tpm(setting: &Setting<'_>, sockets: &Arc<TempDir>) -> Result<Swtpm> {
    let state = setting.folder.join("tpm");
    if !state.exists() {
        let maker = swtpm::Maker::of(&setting.folder.join("tpm-maker"))?;
        swtpm::manufacture(&state, "sha1,sha256,sha384,sha512", Some(&maker))?;
    }
    Swtpm::start(&state, sockets, &transcript(setting, "tpm"), setting.record)
}

/// A file of this power cycle.
fn transcript(setting: &Setting<'_>, what: &str) -> PathBuf {
    setting.folder.join(format!("{}-{what}.log", setting.cycle))
}

fn connect(setting: &Setting<'_>, log: Port, console: Option<Port>) -> Result<(Stream, Option<Stream>)> {
    let log = log.accept("hypervisor log (COM1)", &transcript(setting, LOG), OPENING)?;
    let console = match console {
        Some(port) => Some(port.accept("guest console (COM2)", &transcript(setting, "com2"), OPENING)?),
        None => None,
    };
    Ok((log, console))
}

fn command(setting: &Setting<'_>, tpm: Option<&Path>, log: &Port, console: Option<&Port>) -> Result<Command> {
    let profile = setting.profile;
    let mut command = child::bound_to_us(setting.qemu);
    command
        .args(["-L", "/usr/share/qemu", "-L", "/usr/share/seabios"])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-accel", "tcg", "-machine", &profile.machine, "-cpu", &profile.cpu])
        .args(["-smp", &profile.cpus.to_string(), "-m", &profile.memory_mib.to_string()]);
    if profile.firmware == Firmware::Uefi {
        firmware(setting, &mut command)?;
    }
    for device in &profile.devices {
        command.args(["-device", device]);
    }
    if let (Some(interface), Some(tpm)) = (profile.tpm, tpm) {
        command
            .args(["-chardev", &format!("socket,id=tpm,path={}", tpm.display())])
            .args(["-tpmdev", "emulator,id=tpm0,chardev=tpm"])
            .args(["-device", &format!("{},tpmdev=tpm0", interface.device())]);
    }
    serial(&mut command, log, console);
    medium(setting.medium, &mut command)?;
    command.args(&profile.arguments).args(setting.more);
    let stderr =
        std::fs::File::create(transcript(setting, EMULATOR)).context("cannot write the emulator's log")?;
    command.stdout(if console.is_some() { Stdio::null() } else { Stdio::inherit() });
    command.stdin(if console.is_some() { Stdio::null() } else { Stdio::inherit() });
    command.stderr(stderr);
    Ok(command)
}

fn firmware(setting: &Setting<'_>, command: &mut Command) -> Result<()> {
    let [code, variables] = OVMF;
    let own = setting.folder.join("uefi-variables.fd");
    if !own.exists() {
        place::copy(Path::new(variables), &own)
            .context("no UEFI firmware; `cargo xtask setup` installs it (package ovmf)")?;
    }
    command
        .args(["-drive", &format!("if=pflash,format=raw,readonly=on,file={code}")])
        .args(["-drive", &format!("if=pflash,format=raw,file={}", escaped(&own)?)]);
    Ok(())
}

fn serial(command: &mut Command, log: &Port, console: Option<&Port>) {
    command
        .args(["-chardev", &format!("socket,id=log,path={}", log.path().display())])
        .args(["-serial", "chardev:log"]);
    match console {
        Some(port) => {
            command.args(["-chardev", &format!("socket,id=console,path={}", port.path().display())]).args([
                "-serial",
                "chardev:console",
                "-monitor",
                "none",
            ]);
        }
        None => {
            command.args(["-chardev", "stdio,id=console,mux=on,signal=off"]).args([
                "-serial",
                "chardev:console",
                "-mon",
                "chardev=console,mode=readline",
            ]);
        }
    }
}

fn medium(medium: &Medium, command: &mut Command) -> Result<()> {
    match medium {
        Medium::Disk(image) => {
            command
                .args(["-drive", &format!("if=none,id=disk,format=raw,snapshot=on,file={}", escaped(image)?)])
                .args(["-device", "nvme,drive=disk,serial=dolmen,bootindex=1"]);
        }
        Medium::Disc(image) => {
            let image = escaped(image)?;
            command
                .args(["-drive", &format!("if=none,id=disc,format=raw,media=cdrom,readonly=on,file={image}")])
                .args(["-device", "ide-cd,drive=disc,bootindex=1"]);
        }
        Medium::Multiboot { kernel, modules, arguments } => {
            command.arg("-kernel").arg(kernel);
            if !arguments.is_empty() {
                command.args(["-append", arguments]);
            }
            let mut list = OsString::new();
            for (index, module) in modules.iter().enumerate() {
                if index > 0 {
                    list.push(",");
                }
                list.push(escaped(module)?);
            }
            if !modules.is_empty() {
                command.arg("-initrd").arg(list);
            }
        }
    }
    Ok(())
}

/// QEMU splits its options at commas: a comma in a path is written twice.
fn escaped(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not a path in UTF-8", path.display()))?;
    Ok(text.replace(',', ",,"))
}
