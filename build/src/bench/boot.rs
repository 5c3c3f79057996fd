//! Boot of a Linux guest inside of Dolmen, against the same kernel straight in the same emulator.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{COUNTING, grouped};
use crate::lab::{GUEST, LAUNCH, Lab, Release};
use crate::machine::child;
use crate::machine::profile::Profile;
use crate::machine::stream::{Port, Stream};
use crate::test::Bench;
use crate::{place, ui};

/// Longest wait for the emulator to open its port.
const OPENING: Duration = Duration::from_secs(20);
/// First line of a kernel, and of the first program's shell.
const FIRST: &str = "Linux version";
const LAST: &str = "guest: ready";
const MEMORY_MIB: u32 = 512;
const COMMAND_LINE: &str = "console=ttyS0,115200";

/// One boot.
#[derive(Clone, Copy, Debug, Serialize)]
struct Boot {
    /// Milliseconds of the kernel's own clock until the first program's shell; in the deterministic mode one is a
    /// million instructions, idle time included.
    kernel_ms: u64,
    /// Milliseconds of the host's clock between the kernel's first line and the shell.
    host_ms: u64,
}

/// Both ways, deterministic and as fast as the emulator goes.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Boots {
    counted_inside: Boot,
    counted_straight: Boot,
    plain_inside: Boot,
    plain_straight: Boot,
}

/// Boots four times.
pub(super) fn measure(bench: &Bench) -> Result<Boots> {
    let progress = ui::Progress::start("Booting Debian's kernel inside of Dolmen and without it");
    let counting = COUNTING.map(str::to_owned);
    let boots = Boots {
        counted_inside: inside(bench, &counting)?,
        counted_straight: straight(bench, &counting)?,
        plain_inside: inside(bench, &[])?,
        plain_straight: straight(bench, &[])?,
    };
    progress.done();
    Ok(boots)
}

fn inside(bench: &Bench, options: &[String]) -> Result<Boot> {
    let folder = place::output().join("bench/boot");
    let built = |name: &str| bench.artifacts.file(name).display().to_string();
    let text = format!(
        "[[guest]]\nname = \"debian\"\nmemory_mib = {MEMORY_MIB}\nconsoles = [\"com2\"]\nkernel = \"{}\"\n\
         initrd = \"{}\"\ncmdline = \"{COMMAND_LINE}\"\n",
        built("vmlinuz"),
        built("initramfs.cpio")
    );
    let release = Release::of(&bench.artifacts, &folder, &text)?;
    let lab = Lab::new(&bench.tools, &bench.artifacts, "bios", &folder.join("machine"), "sha256")?;
    let mut machine = lab.boot_with("boot", &release.parts, None, options)?;
    machine.log.wait_for("serve: guest runs", LAUNCH)?;
    watch(&mut machine.console.take().context("no console")?)
}

/// The same kernel, initial RAM disk and processor, without a hypervisor.
fn straight(bench: &Bench, options: &[String]) -> Result<Boot> {
    let folder = place::scratch()?;
    let profile = Profile::load("bios")?;
    let port = Port::open(&folder.path().join("com1"))?;
    let mut command: Command = child::bound_to_us(&bench.tools.qemu);
    command
        .args(["-L", "/usr/share/qemu", "-L", "/usr/share/seabios", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-accel", "tcg", "-machine", &profile.machine, "-cpu", &profile.cpu])
        .args(["-m", &MEMORY_MIB.to_string(), "-append", COMMAND_LINE])
        .arg("-kernel")
        .arg(bench.artifacts.file("vmlinuz"))
        .arg("-initrd")
        .arg(bench.artifacts.file("initramfs.cpio"))
        .args(["-chardev", &format!("socket,id=console,path={}", port.path().display())])
        .args(["-serial", "chardev:console"])
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut qemu = command.spawn().context("cannot start the emulator")?;
    let transcript = place::output().join("bench/straight.log");
    let boot =
        port.accept("console (COM1)", &transcript, OPENING).and_then(|mut console| watch(&mut console));
    child::end(&mut qemu);
    boot
}

fn watch(console: &mut Stream) -> Result<Boot> {
    console.wait_for(FIRST, GUEST)?;
    let start = Instant::now();
    let line = console.wait_for(LAST, GUEST)?;
    let host_ms = u64::try_from(start.elapsed().as_millis())?;
    let seconds = line.split(' ').find_map(|word| word.strip_prefix("uptime="));
    let kernel_ms = seconds.and_then(milliseconds).with_context(|| format!("no uptime in `{line}`"))?;
    Ok(Boot { kernel_ms, host_ms })
}

/// `1.25` seconds, as /proc/uptime has them, in milliseconds.
fn milliseconds(seconds: &str) -> Option<u64> {
    let (whole, hundredths) = seconds.trim().split_once('.')?;
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(1000)?
        .checked_add(hundredths.parse::<u64>().ok()?.checked_mul(10)?)
}

impl Boots {
    /// Prints both ways and their ratios.
    pub(super) fn show(&self) {
        ui::heading("Boot of Debian's kernel to a shell, inside of Dolmen against straight in the emulator");
        let line = |what: &str, inside: u64, straight: u64, unit: &str| {
            let per_cent = inside.saturating_mul(100).checked_div(straight).unwrap_or(0);
            let (whole, rest) =
                (per_cent.checked_div(100).unwrap_or(0), per_cent.checked_rem(100).unwrap_or(0));
            ui::note(&format!(
                "{what:<44}{:>8} : {:>8} {unit}, ratio {whole}.{rest:02}",
                grouped(inside),
                grouped(straight)
            ));
        };
        let (counted, plain) =
            ((self.counted_inside, self.counted_straight), (self.plain_inside, self.plain_straight));
        line(
            "executed, idle time included",
            counted.0.kernel_ms,
            counted.1.kernel_ms,
            "million instructions",
        );
        line("host's clock, as fast as the emulator goes", plain.0.host_ms, plain.1.host_ms, "ms");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime_is_read_in_hundredths() {
        assert_eq!(milliseconds("1.25"), Some(1250));
        assert_eq!(milliseconds("0.03"), Some(30));
        assert_eq!(milliseconds("x"), None);
    }
}
