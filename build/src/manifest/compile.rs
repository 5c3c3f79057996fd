//! From fields to canonical configurations, with every check that the core would make later.

use std::ops::Range;
use std::path::Path;

use dolmen_abi::CallGroup;
use dolmen_memory::Gpa;
use dolmen_vm::image::{self, Boot, File};
use dolmen_vm::layout::{ACPI_TABLES, RamLayout};
use dolmen_vm::manifest::{
    Answer, ComponentConfig, Console, GuestConfig, MAX_CMDLINE, MAX_COMPONENTS, MAX_CPUS,
    MAX_GUEST_COMPONENTS, MAX_GUESTS, MAX_MEMORY, MAX_NAME, MAX_RESTARTS, MAX_TEXT, MAX_TOTAL_VCPUS,
    MAX_UARTS, MAX_VCPUS, MAX_WEIGHT, SealingRoot,
};
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use zerocopy::FromZeros;

use super::complaint::Complaint;
use super::field::{self, USUAL_REGION_MIB, USUAL_RESTARTS, USUAL_WEIGHT};
use super::read::{Reader, Spot};
use super::{BUILT, CompiledGuest, Component, root};
use crate::place;

/// Guests get whole large pages.
const LARGE_PAGE_MIB: u64 = 2;
/// What a file packed by gzip begins with.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// One MiB.
const MIB: u64 = 1 << 20;

/// What becomes of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Images {
    /// Each goes through the core's own loader.
    Checked,
    /// They are not looked at.
    Taken,
}

/// What complaints and paths need.
#[derive(Clone, Copy, Debug)]
pub(super) struct Compiler<'a> {
    pub(super) text: &'a str,
    pub(super) folder: &'a Path,
    pub(super) images: Images,
}

/// What is known of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Host {
    pub(super) memory_mib: Option<u64>,
    pub(super) cpus: Option<u64>,
    pub(super) region_mib: Option<u64>,
}

/// A whole file.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) host: Host,
    pub(super) sealing_root: Option<SealingRoot>,
    pub(super) guests: Vec<CompiledGuest>,
}

/// A guest, and where what must be compared with other guests stands.
struct Draft<'a> {
    reader: Reader<'a>,
    guest: CompiledGuest,
    places: Places,
}

struct Places {
    name: Range<usize>,
    memory: Range<usize>,
    vcpus: Range<usize>,
    start: Range<usize>,
    consoles: Range<usize>,
}

impl<'a> Compiler<'a> {
    /// Compiles a whole file.
    pub(super) fn file(&self, table: &'a Spanned<DeTable<'a>>) -> Result<Whole, Complaint> {
        let top = Reader::new(self.text, "the manifest".to_owned(), table.get_ref(), 0..0, field::top())?;
        let host = match top.table("host", field::host())? {
            Some(table) => host(&table)?,
            None => Host::default(),
        };
        let sealing_root = top.table("sealing_root", field::sealing_root())?;
        let sealing_root = sealing_root.as_ref().map(root::sealing_root).transpose()?;
        let list = top.list("guest")?;
        if !(1..=MAX_GUESTS).contains(&list.len()) {
            let at = list.get(MAX_GUESTS).map_or(0..0, |value| value.span());
            let message = format!("{} tables [[guest]]; expected 1 to {MAX_GUESTS}", list.len());
            return Err(top.clash(&at, &message));
        }
        let mut drafts: Vec<Draft<'a>> = Vec::new();
        for value in list {
            let draft = self.guest(&top, value, host)?;
            for other in &drafts {
                pair(&draft, other)?;
            }
            drafts.push(draft);
        }
        totals(&drafts, host)?;
        let guests = drafts.into_iter().map(|draft| draft.guest).collect();
        Ok(Whole { host, sealing_root, guests })
    }

    fn guest(
        &self,
        top: &Reader<'a>,
        value: &'a Spanned<DeValue<'a>>,
        host: Host,
    ) -> Result<Draft<'a>, Complaint> {
        let said = value
            .get_ref()
            .as_table()
            .and_then(|table| table.iter().find(|(key, _)| key.get_ref() == "name"));
        let title = said.and_then(|(_, name)| name.get_ref().as_str()).unwrap_or("without a name");
        let reader = top.inner("guest", format!("guest {title}"), value, field::guest())?;
        let mut config = GuestConfig::new_zeroed();
        let name = name(&reader, &mut config)?;
        let memory = reader.integer("memory_mib", LARGE_PAGE_MIB..=MAX_MEMORY / MIB, LARGE_PAGE_MIB)?;
        let memory = reader.required("memory_mib", memory)?;
        config.memory = memory.get_ref().saturating_mul(MIB);
        let vcpus = reader.integer("vcpus", 1..=u64::from(MAX_VCPUS), 1)?;
        config.vcpus = reader.small("vcpus", 1..=MAX_VCPUS, 1)?;
        config.affinity = affinity(&reader, host)?;
        config.weight = reader.small("weight", 1..=MAX_WEIGHT, USUAL_WEIGHT)?;
        let start = life(&reader, &mut config)?;
        let consoles = consoles(&reader, &mut config)?;
        config.hypercalls = hypercalls(&reader)?;
        config.format = match reader.choice("format", &field::FORMATS)?.map_or(0, Spanned::into_inner) {
            0 => GuestConfig::FORMAT_LINUX,
            1 => GuestConfig::FORMAT_PVH,
            _ => GuestConfig::FORMAT_MULTIBOOT,
        };
        let files = self.components(&reader, &mut config)?;
        if let Some(text) = reader.ascii("cmdline", MAX_CMDLINE)? {
            fill(&mut config.cmdline, text.get_ref());
            config.cmdline_length = u32::try_from(text.get_ref().len()).unwrap_or(u32::MAX);
        }
        if self.images == Images::Checked {
            check_image(&reader, &config, &files)?;
        }
        let or_all = |place: Option<Range<usize>>| place.unwrap_or(reader.span());
        let places = Places {
            name: name.span(),
            memory: memory.span(),
            vcpus: or_all(vcpus.map(|vcpus| vcpus.span())),
            start: or_all(start),
            consoles: or_all(consoles),
        };
        let files = files.into_iter().map(|file| file.component).collect();
        let guest = CompiledGuest { name: name.into_inner().to_owned(), config, files };
        Ok(Draft { reader, guest, places })
    }

    /// Files in measuring order: kernel, initial RAM disk, modules; unmeasured data last.
    fn components(&self, reader: &Reader<'a>, config: &mut GuestConfig) -> Result<Vec<Placed>, Complaint> {
        let is_linux = config.format == GuestConfig::FORMAT_LINUX;
        let kernel = reader.string("kernel")?;
        let kernel = reader.required("kernel", kernel)?;
        let mut files = vec![self.placed(reader, ComponentConfig::KERNEL, "kernel", &kernel, None)?];
        if let Some(initrd) = reader.string("initrd")? {
            if config.format == GuestConfig::FORMAT_MULTIBOOT {
                return Err(reader
                    .clash(&initrd.span(), "`initrd` with format \"multiboot\"; put it among `modules`"));
            }
            files.push(self.placed(reader, ComponentConfig::INITRD, "initrd", &initrd, None)?);
        }
        for (field, kind) in [("modules", ComponentConfig::MODULE), ("data", ComponentConfig::DATA)] {
            for value in reader.list(field)? {
                if kind == ComponentConfig::DATA && is_linux {
                    let message = "`data` with format \"linux\": the kernel would unpack it over its initial RAM disk; \
                                   measure it as one of `modules`";
                    return Err(reader.clash(&value.span(), message));
                }
                if kind == ComponentConfig::DATA && files.len() == 1 {
                    let message = "`data` behind nothing measured but the kernel: kernels take their first module for \
                                   what they trust, such as their initial RAM disk; put an `initrd` or one of `modules` there";
                    return Err(reader.clash(&value.span(), message));
                }
                let (path, text) = reader.file(field, value, MAX_TEXT)?;
                if let Some(text) = text.as_ref().filter(|_| is_linux) {
                    return Err(
                        reader.clash(&text.span(), "`text` with format \"linux\", which has no place for it")
                    );
                }
                files.push(self.placed(reader, kind, field, &path, text)?);
            }
        }
        if let Some(extra) = files.get(MAX_GUEST_COMPONENTS) {
            let message = format!("{} files; expected at most {MAX_GUEST_COMPONENTS}", files.len());
            return Err(reader.clash(&extra.place, &message));
        }
        config.component_count = u32::try_from(files.len()).unwrap_or(u32::MAX);
        for (slot, file) in config.components.iter_mut().zip(&files) {
            *slot = ComponentConfig::new(file.component.kind);
            fill(&mut slot.text, &file.text);
            slot.text_length = u32::try_from(file.text.len()).unwrap_or(u32::MAX);
        }
        Ok(files)
    }

    fn placed(
        &self,
        reader: &Reader<'_>,
        kind: u32,
        field: &str,
        path: &Spot<&str>,
        text: Option<Spot<&str>>,
    ) -> Result<Placed, Complaint> {
        let text = text.map_or_else(String::new, |text| text.into_inner().to_owned());
        let file = match path.get_ref().strip_prefix(BUILT) {
            Some(name) => place::output().join(name),
            None => self.folder.join(path.get_ref()),
        };
        let expected = match file.metadata() {
            Ok(data) if data.is_file() && data.len() > 0 => {
                let component = Component { kind, path: file };
                return Ok(Placed { component, bytes: data.len(), text, place: path.span() });
            }
            Ok(_) => "a file that is not empty".to_owned(),
            Err(error) => format!("the path of a file ({}: {error})", file.display()),
        };
        Err(reader.wrong(&path.span(), field, &expected))
    }
}

/// A file that is there.
struct Placed {
    component: Component,
    bytes: u64,
    text: String,
    place: Range<usize>,
}

fn host(reader: &Reader<'_>) -> Result<Host, Complaint> {
    let inner = |number: Option<Spot<u64>>| number.map(Spanned::into_inner);
    Ok(Host {
        memory_mib: inner(reader.integer("memory_mib", 1..=u64::MAX / MIB, 1)?),
        cpus: inner(reader.integer("cpus", 1..=u64::from(MAX_CPUS), 1)?),
        region_mib: inner(reader.integer("region_mib", field::REGION_MIB, 2)?),
    })
}

/// Copies what fits; lengths are checked before.
fn fill(slot: &mut [u8], text: &str) {
    for (to, from) in slot.iter_mut().zip(text.bytes()) {
        *to = from;
    }
}

fn name<'a>(reader: &Reader<'a>, config: &mut GuestConfig) -> Result<Spot<&'a str>, Complaint> {
    let name = reader.string("name")?;
    let name = reader.required("name", name)?;
    let text = name.get_ref();
    let fits = text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    if !fits || !(1..=MAX_NAME).contains(&text.len()) {
        return Err(reader.wrong(
            &name.span(),
            "name",
            &format!("1 to {MAX_NAME} characters of a-z, 0-9 and -"),
        ));
    }
    fill(&mut config.name, text);
    Ok(name)
}

fn affinity(reader: &Reader<'_>, host: Host) -> Result<u64, Complaint> {
    let mut bits = 0_u64;
    for cpu in reader.integers("affinity", 0..=u64::from(MAX_CPUS).saturating_sub(1))? {
        if let Some(cpus) = host.cpus.filter(|cpus| cpu.get_ref() >= cpus) {
            let expected = format!("0 to {}: [host] has {cpus} cpus", cpus.saturating_sub(1));
            return Err(reader.wrong(&cpu.span(), "affinity", &expected));
        }
        bits |= u32::try_from(*cpu.get_ref()).ok().and_then(|cpu| 1_u64.checked_shl(cpu)).unwrap_or(0);
    }
    Ok(bits)
}

/// When it starts, what follows when it ends; answers where it says that it waits.
fn life(reader: &Reader<'_>, config: &mut GuestConfig) -> Result<Option<Range<usize>>, Complaint> {
    let start = reader.choice("start", &field::STARTS)?;
    config.start = match start.as_ref().map_or(0, |start| *start.get_ref()) {
        0 => GuestConfig::START_BOOT,
        _ => GuestConfig::START_ON_DEMAND,
    };
    let names = Answer::ALL.map(|entry| entry.2);
    let answer = |field: &str, usual: Answer| -> Result<u32, Complaint> {
        let chosen = reader.choice(field, &names)?;
        Ok(chosen.and_then(|at| Answer::ALL.get(*at.get_ref())).map_or(usual.to_wire(), |entry| entry.1))
    };
    config.on_reboot = answer("on_reboot", Answer::Restart)?;
    config.on_crash = answer("on_crash", Answer::Stop)?;
    config.on_power_off = answer("on_power_off", Answer::Stop)?;
    let limit = reader.integer("restart_limit", 1..=u64::from(MAX_RESTARTS), 1)?;
    match (limit, config.on_crash == Answer::Restart.to_wire()) {
        (Some(limit), false) => {
            Err(reader
                .clash(&limit.span(), "`restart_limit` without `on_crash = \"restart\"` limits nothing"))
        }
        (None, false) => Ok(start.map(|start| start.span())),
        (_, true) => {
            config.restart_limit = reader.small("restart_limit", 1..=MAX_RESTARTS, USUAL_RESTARTS)?;
            Ok(start.map(|start| start.span()))
        }
    }
}

fn consoles(reader: &Reader<'_>, config: &mut GuestConfig) -> Result<Option<Range<usize>>, Complaint> {
    let names = Console::ALL.map(|entry| entry.2);
    let Some(chosen) = reader.choices("consoles", &names)? else {
        config.consoles = [Console::Multiplexed.to_wire(), Console::None.to_wire()];
        return Ok(None);
    };
    if let Some(extra) = chosen.get(MAX_UARTS) {
        return Err(reader.wrong(&extra.span(), "consoles", &format!("at most {MAX_UARTS} of them")));
    }
    let Some(first) = chosen.first() else {
        return Err(
            reader.clash(&reader.span(), "`consoles` is empty; expected [\"none\"] for a guest without one")
        );
    };
    for (slot, at) in config.consoles.iter_mut().zip(&chosen) {
        *slot = Console::ALL.get(*at.get_ref()).map_or(0, |entry| entry.1);
    }
    let last = chosen.last().unwrap_or(first);
    match config.consoles() {
        [Console::Com1, Console::Multiplexed] | [Console::Multiplexed, Console::Com1] => {
            Err(reader.wrong(&last.span(), "consoles", MIXED))
        }
        [first, second] if first == second && first != Console::None => {
            Err(reader.wrong(&last.span(), "consoles", "another console than the first"))
        }
        _ => Ok(Some(first.span().start..last.span().end)),
    }
}

const MIXED: &str = "no \"com1\" beside \"multiplexed\", which is on COM1 too";

fn hypercalls(reader: &Reader<'_>) -> Result<u32, Complaint> {
    let names: Vec<&str> = CallGroup::ALL.iter().map(|entry| entry.1).collect();
    let chosen = reader.choices("hypercalls", &names)?.unwrap_or_default();
    let groups = chosen.iter().filter_map(|at| CallGroup::ALL.get(*at.get_ref())).map(|entry| entry.0);
    Ok(groups.fold(CallGroup::empty(), CallGroup::union).bits())
}

/// Runs the core's own loader over the kernel, without a guest.
fn check_image(reader: &Reader<'_>, config: &GuestConfig, files: &[Placed]) -> Result<(), Complaint> {
    let Some(((kernel, rest), format)) = files.split_first().zip(config.format()) else { return Ok(()) };
    let unreadable = |error: std::io::Error| {
        reader.wrong(&kernel.place, "kernel", &format!("a file that can be read ({error})"))
    };
    let bytes = std::fs::read(&kernel.component.path).map_err(unreadable)?;
    let modules: Vec<File<'_>> = (1..)
        .zip(rest)
        .map(|(component, file)| File { component, length: file.bytes, text: file.text.as_bytes() })
        .collect();
    let boot = Boot {
        ram: RamLayout::new(config.memory),
        kernel: 0,
        files: &modules,
        cmdline: config.cmdline(),
        rsdp: Gpa::new(ACPI_TABLES.start),
    };
    // Boot loaders unpack such a file; here what is measured is what is run.
    let hint = if bytes.starts_with(&GZIP) { " (it is packed: unpack it with gunzip first)" } else { "" };
    let refused = |error| reader.clash(&kernel.place, &format!("the kernel cannot be loaded: {error}{hint}"));
    image::check(format, bytes.as_slice(), &boot).map(drop).map_err(refused)
}

fn pair(draft: &Draft<'_>, other: &Draft<'_>) -> Result<(), Complaint> {
    if draft.guest.name == other.guest.name {
        return Err(draft.reader.wrong(&draft.places.name, "name", "a name that no other guest has"));
    }
    let taken = |what: &str| {
        let expected = format!("{what} (guest {})", other.guest.name);
        Err(draft.reader.wrong(&draft.places.consoles, "consoles", &expected))
    };
    for own in draft.guest.config.consoles() {
        for console in other.guest.config.consoles() {
            match (own, console) {
                (Console::Com1, Console::Multiplexed) | (Console::Multiplexed, Console::Com1) => {
                    return taken(MIXED);
                }
                (Console::Com1, Console::Com1) | (Console::Com2, Console::Com2) => {
                    return taken("a console that no other guest has");
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Checks what all guests want together.
fn totals(drafts: &[Draft<'_>], host: Host) -> Result<(), Complaint> {
    let is_manager = |draft: &&Draft<'_>| {
        let config = &draft.guest.config;
        !config.starts_on_demand() && config.hypercalls().contains(CallGroup::MANAGE)
    };
    let is_managed = drafts.iter().find(is_manager).is_some();
    let region = host.region_mib.unwrap_or(USUAL_REGION_MIB).saturating_mul(MIB);
    let (mut vcpus, mut components, mut bytes) = (0_u32, 0_usize, region);
    for Draft { reader, guest, places } in drafts {
        if guest.config.starts_on_demand() && !is_managed {
            let expected = "\"boot\": no guest that starts at boot may use the group \"manage\", so nobody could start it";
            return Err(reader.wrong(&places.start, "start", expected));
        }
        vcpus = vcpus.saturating_add(guest.config.vcpus);
        if vcpus > MAX_TOTAL_VCPUS {
            let message = format!(
                "{vcpus} virtual processors with this guest; expected at most {MAX_TOTAL_VCPUS} in all"
            );
            return Err(reader.clash(&places.vcpus, &message));
        }
        components = components.saturating_add(guest.files.len());
        if components > MAX_COMPONENTS {
            let message =
                format!("{components} files with this guest; expected at most {MAX_COMPONENTS} in all");
            return Err(reader.clash(&reader.span(), &message));
        }
        let sizes = guest.files.iter().filter_map(|file| file.path.metadata().ok()).map(|data| data.len());
        bytes = sizes.fold(bytes.saturating_add(guest.config.memory), u64::saturating_add);
        if let Some(memory) = host.memory_mib.filter(|mib| bytes > mib.saturating_mul(MIB)) {
            let needed = bytes.div_ceil(MIB);
            let message = format!(
                "guests, their files and the core need {needed} MiB with this guest; [host] has {memory} MiB"
            );
            return Err(reader.clash(&places.memory, &message));
        }
    }
    Ok(())
}

#[cfg(test)]
impl Compiler<'_> {
    /// Fields that the compiler asks a guest's table for.
    pub(super) fn fields_read(text: &str, folder: &Path) -> Vec<String> {
        let table = DeTable::parse(text).unwrap();
        let compiler = Compiler { text, folder, images: Images::Taken };
        let top = Reader::new(text, String::new(), table.get_ref(), 0..0, field::top()).unwrap();
        let value = *top.list("guest").unwrap().first().unwrap();
        compiler.guest(&top, value, Host::default()).unwrap().reader.taken()
    }
}
