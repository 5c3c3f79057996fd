//! The manifest as people write it.

use serde::Deserialize;
use toml::Spanned;

/// A whole `dolmen.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Source {
    /// Guests in the order in which they are measured and started.
    #[serde(default)]
    pub(crate) guest: Vec<Guest>,
}

/// One `[[guest]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Guest {
    /// Unique name.
    pub(crate) name: Spanned<String>,
    /// RAM.
    pub(crate) memory_mib: Spanned<u64>,
    /// Virtual processors.
    #[serde(default = "one")]
    pub(crate) vcpus: Spanned<u32>,
    /// Image format of the kernel.
    #[serde(default)]
    pub(crate) format: Format,
    /// Physical port behind the guest's serial port.
    #[serde(default)]
    pub(crate) console: Console,
    /// Groups of hypercalls it may use.
    #[serde(default)]
    pub(crate) hypercalls: Vec<Spanned<String>>,
    /// What happens when it reboots.
    #[serde(default)]
    pub(crate) on_reboot: OnReboot,
    /// Kernel file.
    pub(crate) kernel: Spanned<String>,
    /// Initial RAM disk; at most one.
    #[serde(default, deserialize_with = "at_most_one")]
    pub(crate) initrd: Vec<Spanned<String>>,
    /// Boot modules.
    #[serde(default)]
    pub(crate) modules: Vec<Spanned<String>>,
    /// Unmeasured files.
    #[serde(default)]
    pub(crate) data: Vec<Spanned<String>>,
    /// Kernel command line.
    #[serde(default = "empty")]
    pub(crate) cmdline: Spanned<String>,
}

/// Image formats.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// Linux bzImage.
    #[default]
    Linux,
    /// ELF with a PVH note.
    Pvh,
    /// Multiboot 1.
    Multiboot,
}

/// Physical serial ports.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Console {
    /// Shared with the hypervisor's log.
    Com1,
    /// The guest's own.
    #[default]
    Com2,
}

/// What a reboot of the guest does.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnReboot {
    /// Resets the machine, secrets scrubbed first.
    #[default]
    Reset,
    /// Stops the machine.
    Stop,
}

fn one() -> Spanned<u32> {
    Spanned::new(0..0, 1)
}

fn empty() -> Spanned<String> {
    Spanned::new(0..0, String::new())
}

fn at_most_one<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<Spanned<String>>, D::Error> {
    Spanned::<String>::deserialize(from).map(|path| vec![path])
}
