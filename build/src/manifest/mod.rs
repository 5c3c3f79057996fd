//! Compiles `dolmen.toml` into the canonical manifest that PCR 18 measures and the core obeys.
//!
//! The language is described in `docs/manifest.md`. Every complaint names the line, the field, and what
//! was expected there.

mod source;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use dolmen_abi::CallGroup;
use dolmen_vm::manifest::{
    Answer, ComponentConfig, Console, GuestConfig, Header, MAX_CMDLINE, MAX_CPUS, MAX_GUEST_COMPONENTS,
    MAX_GUESTS, MAX_NAME, MAX_UARTS, MAX_VCPUS,
};
use toml::Spanned;
use zerocopy::{FromZeros, IntoBytes};

use crate::place;
use source::{Format, Guest, Source, Start};

/// Guests get whole large pages.
const LARGE_PAGE_MIB: u64 = 2;
/// Restarts after crashes, where the manifest does not say how many.
const USUAL_RESTARTS: u32 = 3;
/// One MiB.
const MIB: u64 = 1 << 20;
/// Prefix of files that `cargo xtask build` makes.
const BUILT: &str = "built:";

/// A manifest that was compiled.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    /// Canonical bytes.
    pub(crate) bytes: Vec<u8>,
    /// Guests in order.
    pub(crate) guests: Vec<CompiledGuest>,
}

/// One guest: its part of the canonical manifest, and the files behind its components.
#[derive(Clone, Debug)]
pub(crate) struct CompiledGuest {
    /// Name.
    pub(crate) name: String,
    /// Canonical configuration.
    pub(crate) config: GuestConfig,
    /// Files in the order of `config.components`.
    pub(crate) files: Vec<Component>,
}

/// A file of a guest.
#[derive(Clone, Debug)]
pub(crate) struct Component {
    /// One of the kinds of [`ComponentConfig`].
    pub(crate) kind: u32,
    /// Where the file is.
    pub(crate) path: PathBuf,
}

impl Manifest {
    /// Files of all guests in the order in which the loader stages them.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.guests.iter().flat_map(|guest| guest.files.iter().map(|file| file.path.clone())).collect()
    }

    /// Compiles the manifest in the file `path`.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the manifest {}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::compile(&text, folder).map_err(|error| anyhow!("{}: {error:#}", path.display()))
    }

    /// Compiles `text`; relative paths start at `folder`.
    pub(crate) fn compile(text: &str, folder: &Path) -> Result<Self> {
        let source: Source =
            toml::from_str(text).map_err(|error| anyhow!("{}", error.to_string().trim_end()))?;
        let compiler = Compiler { text, folder };
        let guests = source.guest.iter().map(|guest| compiler.guest(guest)).collect::<Result<Vec<_>>>()?;
        compiler.check_all(&source, &guests)?;
        let header = Header {
            magic: Header::MAGIC,
            version: Header::VERSION,
            guest_count: u32::try_from(guests.len()).context("too many guests")?,
        };
        let mut bytes = header.as_bytes().to_vec();
        for guest in &guests {
            bytes.extend_from_slice(guest.config.as_bytes());
        }
        dolmen_vm::manifest::Manifest::parse(&bytes)
            .map_err(|error| anyhow!("the hypervisor would refuse this manifest: {error}"))?;
        Ok(Self { bytes, guests })
    }
}

/// What complaints need: the text for line numbers, the folder for paths.
#[derive(Clone, Copy, Debug)]
struct Compiler<'a> {
    text: &'a str,
    folder: &'a Path,
}

impl Compiler<'_> {
    /// A complaint about the value at `spot`.
    fn wrong<T>(&self, spot: &Spanned<T>, field: &str, expected: &str) -> anyhow::Error {
        let before = self.text.get(..spot.span().start).unwrap_or_default();
        let line = before.matches('\n').count().saturating_add(1);
        let found = self.text.get(spot.span()).unwrap_or_default().lines().next().unwrap_or_default();
        anyhow!("line {line}: `{field}` is {found}; expected {expected}")
    }

    fn check_all(&self, source: &Source, guests: &[CompiledGuest]) -> Result<()> {
        if guests.is_empty() || guests.len() > MAX_GUESTS {
            return Err(anyhow!("there are {} [[guest]] tables; expected 1 to {MAX_GUESTS}", guests.len()));
        }
        for (index, guest) in source.guest.iter().enumerate() {
            let earlier = source.guest.iter().take(index);
            if earlier.clone().any(|other| other.name.get_ref() == guest.name.get_ref()) {
                return Err(self.wrong(&guest.name, "name", "a name that no other guest has"));
            }
        }
        Ok(())
    }

    fn guest(&self, guest: &Guest) -> Result<CompiledGuest> {
        let mut config = GuestConfig::new_zeroed();
        config.name = self.name(guest)?;
        config.memory = self.memory(guest)?;
        config.format = match guest.format {
            Format::Linux => GuestConfig::FORMAT_LINUX,
            Format::Pvh => GuestConfig::FORMAT_PVH,
            Format::Multiboot => GuestConfig::FORMAT_MULTIBOOT,
        };
        config.vcpus = *guest.vcpus.get_ref();
        if !(1..=MAX_VCPUS).contains(&config.vcpus) {
            return Err(self.wrong(&guest.vcpus, "vcpus", &format!("1 to {MAX_VCPUS}")));
        }
        config.weight = *guest.weight.get_ref();
        for cpu in &guest.affinity {
            let bit = 1_u64.checked_shl(*cpu.get_ref()).filter(|_| *cpu.get_ref() < MAX_CPUS);
            config.affinity |=
                bit.ok_or_else(|| self.wrong(cpu, "affinity", &format!("0 to {}", MAX_CPUS - 1)))?;
        }
        config.start = match guest.start {
            Start::Boot => GuestConfig::START_BOOT,
            Start::OnDemand => GuestConfig::START_ON_DEMAND,
        };
        config.consoles = self.consoles(guest)?;
        config.hypercalls = self.hypercalls(guest)?;
        config.on_reboot = self.answer(&guest.on_reboot, "on_reboot")?;
        config.on_crash = self.answer(&guest.on_crash, "on_crash")?;
        config.on_power_off = self.answer(&guest.on_power_off, "on_power_off")?;
        config.restart_limit = match &guest.restart_limit {
            Some(limit) => *limit.get_ref(),
            None if config.on_crash == Answer::Restart.to_wire() => USUAL_RESTARTS,
            None => 0,
        };
        self.cmdline(guest, &mut config)?;
        let files = self.components(guest)?;
        config.component_count = u32::try_from(files.len()).context("too many components")?;
        for (slot, file) in config.components.iter_mut().zip(&files) {
            *slot = ComponentConfig::new(file.kind);
        }
        Ok(CompiledGuest { name: guest.name.get_ref().clone(), config, files })
    }

    fn answer(&self, name: &Spanned<String>, field: &str) -> Result<u32> {
        let known = Answer::ALL.iter().find(|entry| entry.2 == name.get_ref());
        let names = Answer::ALL.map(|entry| entry.2).join(", ");
        known.map(|entry| entry.1).ok_or_else(|| self.wrong(name, field, &format!("one of {names}")))
    }

    fn consoles(&self, guest: &Guest) -> Result<[u32; MAX_UARTS]> {
        let mut consoles = [0; MAX_UARTS];
        for (index, name) in guest.consoles.iter().enumerate() {
            let known = Console::ALL.iter().find(|entry| entry.2 == name.get_ref());
            let names = Console::ALL.map(|entry| entry.2).join(", ");
            let expected = format!("one of {names}, at most {MAX_UARTS} of them");
            let slot = consoles.get_mut(index).zip(known);
            let (slot, entry) = slot.ok_or_else(|| self.wrong(name, "consoles", &expected))?;
            *slot = entry.1;
        }
        Ok(consoles)
    }

    fn name(&self, guest: &Guest) -> Result<[u8; MAX_NAME]> {
        let bytes = guest.name.get_ref().as_bytes();
        let fits = bytes.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        let mut name = [0; MAX_NAME];
        match name.get_mut(..bytes.len()) {
            Some(slot) if fits && !bytes.is_empty() => slot.copy_from_slice(bytes),
            _ => {
                let expected = format!("1 to {MAX_NAME} characters of a-z, 0-9 and -");
                return Err(self.wrong(&guest.name, "name", &expected));
            }
        }
        Ok(name)
    }

    fn memory(&self, guest: &Guest) -> Result<u64> {
        let mib = *guest.memory_mib.get_ref();
        match mib.checked_mul(MIB) {
            Some(bytes) if mib > 0 && mib.is_multiple_of(LARGE_PAGE_MIB) => Ok(bytes),
            _ => Err(self.wrong(&guest.memory_mib, "memory_mib", "an even number of MiB, at least 2")),
        }
    }

    fn hypercalls(&self, guest: &Guest) -> Result<u32> {
        let mut allowed = CallGroup::empty();
        for name in &guest.hypercalls {
            let Some(group) = CallGroup::from_manifest_name(name.get_ref()) else {
                let known: Vec<&str> = CallGroup::ALL.iter().map(|(_, name, _)| *name).collect();
                return Err(self.wrong(name, "hypercalls", &format!("one of {}", known.join(", "))));
            };
            allowed |= group;
        }
        Ok(allowed.bits())
    }

    fn cmdline(&self, guest: &Guest, config: &mut GuestConfig) -> Result<()> {
        let bytes = guest.cmdline.get_ref().as_bytes();
        let expected = format!("at most {MAX_CMDLINE} bytes of printable ASCII");
        if !bytes.iter().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(self.wrong(&guest.cmdline, "cmdline", &expected));
        }
        let slot = config.cmdline.get_mut(..bytes.len());
        slot.ok_or_else(|| self.wrong(&guest.cmdline, "cmdline", &expected))?.copy_from_slice(bytes);
        config.cmdline_length = u32::try_from(bytes.len()).context("a long command line")?;
        Ok(())
    }

    /// Files in measuring order: kernel, initial RAM disk, modules; unmeasured data last.
    fn components(&self, guest: &Guest) -> Result<Vec<Component>> {
        let kinds = [
            (ComponentConfig::KERNEL, "kernel", std::slice::from_ref(&guest.kernel)),
            (ComponentConfig::INITRD, "initrd", guest.initrd.as_slice()),
            (ComponentConfig::MODULE, "modules", guest.modules.as_slice()),
            (ComponentConfig::DATA, "data", guest.data.as_slice()),
        ];
        let mut files = Vec::new();
        for (kind, field, paths) in kinds {
            for path in paths {
                files.push(Component { kind, path: self.file(path, field)? });
            }
        }
        if files.len() > MAX_GUEST_COMPONENTS {
            let expected =
                format!("at most {MAX_GUEST_COMPONENTS} files for one guest; there are {}", files.len());
            return Err(self.wrong(&guest.name, "name", &expected));
        }
        Ok(files)
    }

    fn file(&self, spot: &Spanned<String>, field: &str) -> Result<PathBuf> {
        let text = spot.get_ref();
        let path = match text.strip_prefix(BUILT) {
            Some(name) => place::output().join(name),
            None => self.folder.join(text),
        };
        match path.metadata() {
            Ok(data) if data.is_file() && data.len() > 0 => Ok(path),
            Ok(_) => Err(self.wrong(spot, field, "a file that is not empty")),
            Err(error) => {
                let expected = format!("the path of a file ({}: {error})", path.display());
                Err(self.wrong(spot, field, &expected))
            }
        }
    }
}

#[cfg(test)]
mod tests;
