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
    /// Physical processors that may run it; none means all.
    #[serde(default)]
    pub(crate) affinity: Vec<Spanned<u32>>,
    /// Share of a contended processor.
    #[serde(default = "usual_weight")]
    pub(crate) weight: Spanned<u32>,
    /// When it starts.
    #[serde(default)]
    pub(crate) start: Start,
    /// What is behind its serial ports.
    #[serde(default = "multiplexed")]
    pub(crate) consoles: Vec<Spanned<String>>,
    /// Groups of hypercalls it may use.
    #[serde(default)]
    pub(crate) hypercalls: Vec<Spanned<String>>,
    /// What follows when it reboots.
    #[serde(default = "restart")]
    pub(crate) on_reboot: Spanned<String>,
    /// What follows when it can run no further.
    #[serde(default = "stop")]
    pub(crate) on_crash: Spanned<String>,
    /// What follows when it switches itself off.
    #[serde(default = "stop")]
    pub(crate) on_power_off: Spanned<String>,
    /// Restarts after crashes.
    #[serde(default)]
    pub(crate) restart_limit: Option<Spanned<u32>>,
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

/// When a guest starts.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Start {
    /// With the machine.
    #[default]
    Boot,
    /// When a managing guest says so.
    OnDemand,
}

fn usual_weight() -> Spanned<u32> {
    Spanned::new(0..0, 100)
}

fn multiplexed() -> Vec<Spanned<String>> {
    vec![Spanned::new(0..0, "multiplexed".to_owned())]
}

fn restart() -> Spanned<String> {
    Spanned::new(0..0, "restart".to_owned())
}

fn stop() -> Spanned<String> {
    Spanned::new(0..0, "stop".to_owned())
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
