//! What a guest's configuration must be, field by field, and which fields go together.

use core::fmt;

use dolmen_abi::CallGroup;

use super::{
    Answer, ComponentConfig, Console, GuestConfig, MAX_CMDLINE, MAX_CPUS, MAX_GUEST_COMPONENTS, MAX_MEMORY,
    MAX_NAME, MAX_RESTARTS, MAX_TEXT, MAX_VCPUS, MAX_WEIGHT, MEMORY_STEP,
};
use crate::image::Format;

/// What is wrong with a guest's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The name is empty, has another character than `[a-z0-9-]`, or is not padded with zeroes.
    Name,
    /// Another guest has the name.
    NameTaken,
    /// No RAM, too much, or not a multiple of [`MEMORY_STEP`].
    Memory(u64),
    /// Not an image format.
    Format(u32),
    /// None, or more than [`MAX_VCPUS`].
    Vcpus(u32),
    /// A processor beyond [`MAX_CPUS`].
    Affinity(u64),
    /// None, or more than [`MAX_WEIGHT`].
    Weight(u32),
    /// Not a way to start.
    Start(u32),
    /// It waits to be started, and no guest that starts with the machine may start others.
    NobodyStartsIt,
    /// Not an answer to a reboot.
    OnReboot(u32),
    /// Not an answer to a crash.
    OnCrash(u32),
    /// Not an answer to a power-off.
    OnPowerOff(u32),
    /// Restarts are limited where nothing restarts, or not limited where a crash does, or beyond [`MAX_RESTARTS`].
    RestartLimit(u32),
    /// Not a console.
    Console(u32),
    /// Another serial port, of this guest or another, has the console.
    ConsoleTaken(Console),
    /// COM1 is one guest's own and carries the multiplexed console too.
    ConsoleMixed,
    /// A bit that is no group of hypercalls.
    Hypercalls(u32),
    /// None, or more than [`MAX_GUEST_COMPONENTS`].
    ComponentCount(u32),
    /// This component (from 0) is of no known kind, out of place or one too many.
    Component(usize),
    /// Multiboot has no initial RAM disk: it is a module.
    InitrdForMultiboot,
    /// Linux would take unmeasured data for files of its initial RAM disk.
    DataForLinux,
    /// This component (from 0) is data with nothing measured between it and the kernel, where guests look for what is.
    DataFirst(usize),
    /// This component (from 0) is measured and follows data, so its place would depend on their length.
    MeasuredAfterData(usize),
    /// This component (from 0) has a text, and the image format has no place for it.
    TextWithoutPlace(usize),
    /// The text of this component (from 0) is longer than [`MAX_TEXT`] or not printable ASCII.
    Text(usize),
    /// Longer than [`MAX_CMDLINE`].
    CmdlineLength(u32),
    /// The command line has a byte that is not printable ASCII, at this place.
    Cmdline(usize),
    /// A reserved field or unused space is not zero.
    NotZero,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => {
                write!(f, "its name is not 1 to {MAX_NAME} of a-z, 0-9 and '-', padded with zeroes")
            }
            Self::NameTaken => f.write_str("another guest has its name"),
            Self::Memory(bytes) => write!(f, "{bytes} bytes of RAM are not a multiple of 2 MiB up to 1 TiB"),
            Self::Format(format) => write!(f, "image format {format} is unknown"),
            Self::Vcpus(count) => write!(f, "{count} virtual processors, 1 to {MAX_VCPUS} are possible"),
            Self::Affinity(cpus) => write!(f, "affinity {cpus:#x} names a processor beyond {MAX_CPUS}"),
            Self::Weight(weight) => write!(f, "weight {weight}, 1 to {MAX_WEIGHT} are possible"),
            Self::Start(value) => write!(f, "start {value} is unknown"),
            Self::NobodyStartsIt => {
                f.write_str("starts on demand, but no guest that starts at boot may use the group manage")
            }
            Self::OnReboot(value) => write!(f, "answer {value} to a reboot is unknown"),
            Self::OnCrash(value) => write!(f, "answer {value} to a crash is unknown"),
            Self::OnPowerOff(value) => write!(f, "answer {value} to a power-off is unknown"),
            Self::RestartLimit(limit) => write!(
                f,
                "restart limit {limit}: 1 to {MAX_RESTARTS} where a crash restarts the guest, else 0"
            ),
            Self::Console(number) => write!(f, "console {number} is unknown"),
            Self::ConsoleTaken(console) => write!(f, "another serial port has console {console:?}"),
            Self::ConsoleMixed => {
                f.write_str("COM1 cannot be one guest's own and carry the multiplexed console too")
            }
            Self::Hypercalls(bits) => write!(f, "hypercall groups {bits:#x} have an unknown bit"),
            Self::ComponentCount(count) => {
                write!(f, "{count} components, 1 to {MAX_GUEST_COMPONENTS} are possible")
            }
            Self::Component(n) => write!(
                f,
                "component {n} is of an unknown kind, out of place (kernel, initrd, others) or one too many"
            ),
            Self::InitrdForMultiboot => f.write_str("Multiboot has no initrd: make it a module"),
            Self::DataForLinux => f.write_str("Linux would unpack unmeasured data into its initial RAM disk"),
            Self::DataFirst(n) => write!(
                f,
                "component {n} is data where kernels expect a measured file: put an initrd or a module before it"
            ),
            Self::MeasuredAfterData(n) => {
                write!(f, "component {n} is measured and follows data: data comes last")
            }
            Self::TextWithoutPlace(n) => {
                write!(f, "component {n} has a text, for which its image format has no place")
            }
            Self::Text(n) => {
                write!(f, "the text of component {n} is not at most {MAX_TEXT} bytes of printable ASCII")
            }
            Self::CmdlineLength(length) => {
                write!(f, "a command line of {length} bytes, {MAX_CMDLINE} are possible")
            }
            Self::Cmdline(at) => write!(f, "byte {at} of the command line is not printable ASCII"),
            Self::NotZero => f.write_str("a reserved field or unused space is not zero"),
        }
    }
}

/// Checks one guest by itself.
pub(super) fn guest(guest: &GuestConfig) -> Result<(), Problem> {
    name(&guest.name)?;
    if guest.memory == 0 || guest.memory > MAX_MEMORY || !guest.memory.is_multiple_of(MEMORY_STEP) {
        return Err(Problem::Memory(guest.memory));
    }
    let format = guest.format().ok_or(Problem::Format(guest.format))?;
    if guest.vcpus == 0 || guest.vcpus > MAX_VCPUS {
        return Err(Problem::Vcpus(guest.vcpus));
    }
    if guest.affinity >> MAX_CPUS != 0 {
        return Err(Problem::Affinity(guest.affinity));
    }
    if guest.weight == 0 || guest.weight > MAX_WEIGHT {
        return Err(Problem::Weight(guest.weight));
    }
    if CallGroup::from_bits(guest.hypercalls).is_none() {
        return Err(Problem::Hypercalls(guest.hypercalls));
    }
    if guest.reserved != 0 {
        return Err(Problem::NotZero);
    }
    life(guest)?;
    consoles(guest)?;
    components(guest, format)?;
    cmdline(guest)
}

/// Checks what two guests may not have in common.
pub(super) fn pair(guest: &GuestConfig, other: &GuestConfig) -> Result<(), Problem> {
    if guest.name == other.name {
        return Err(Problem::NameTaken);
    }
    for own in guest.consoles() {
        for console in other.consoles() {
            match (own, console) {
                (Console::Com1, Console::Multiplexed) | (Console::Multiplexed, Console::Com1) => {
                    return Err(Problem::ConsoleMixed);
                }
                (Console::Com1, Console::Com1) | (Console::Com2, Console::Com2) => {
                    return Err(Problem::ConsoleTaken(own));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn name(name: &[u8; MAX_NAME]) -> Result<(), Problem> {
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(MAX_NAME);
    let (text, padding) = name.split_at_checked(length).ok_or(Problem::Name)?;
    let is_name = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    if text.is_empty() || !text.iter().all(is_name) || padding.iter().any(|byte| *byte != 0) {
        return Err(Problem::Name);
    }
    Ok(())
}

/// Checks when the guest starts, and what follows when it stops.
fn life(guest: &GuestConfig) -> Result<(), Problem> {
    if guest.start > GuestConfig::START_ON_DEMAND {
        return Err(Problem::Start(guest.start));
    }
    Answer::from_wire(guest.on_reboot).ok_or(Problem::OnReboot(guest.on_reboot))?;
    Answer::from_wire(guest.on_power_off).ok_or(Problem::OnPowerOff(guest.on_power_off))?;
    let on_crash = Answer::from_wire(guest.on_crash).ok_or(Problem::OnCrash(guest.on_crash))?;
    let limits = if on_crash == Answer::Restart { 1..=MAX_RESTARTS } else { 0..=0 };
    if limits.contains(&guest.restart_limit) {
        Ok(())
    } else {
        Err(Problem::RestartLimit(guest.restart_limit))
    }
}

fn consoles(guest: &GuestConfig) -> Result<(), Problem> {
    let known = |number| Console::from_wire(number).ok_or(Problem::Console(number));
    let [first, second] = guest.consoles;
    match (known(first)?, known(second)?) {
        (Console::Com1, Console::Multiplexed) | (Console::Multiplexed, Console::Com1) => {
            Err(Problem::ConsoleMixed)
        }
        (first, second) if first == second && first != Console::None => Err(Problem::ConsoleTaken(first)),
        _ => Ok(()),
    }
}

fn components(guest: &GuestConfig, format: Format) -> Result<(), Problem> {
    let wrong_count = Problem::ComponentCount(guest.component_count);
    let count = usize::try_from(guest.component_count).map_err(|_| wrong_count)?;
    let (used, unused) = guest.components.split_at_checked(count).ok_or(wrong_count)?;
    if used.is_empty() {
        return Err(wrong_count);
    }
    let mut has_data = false;
    for (index, component) in used.iter().enumerate() {
        match (component.kind, format) {
            (ComponentConfig::KERNEL, _) if index == 0 => {}
            (_, _) if index == 0 => return Err(Problem::Component(index)),
            (ComponentConfig::INITRD, Format::Multiboot) => return Err(Problem::InitrdForMultiboot),
            (ComponentConfig::INITRD, _) if index == 1 => {}
            (ComponentConfig::MODULE, _) if has_data => return Err(Problem::MeasuredAfterData(index)),
            (ComponentConfig::MODULE, _) => {}
            (ComponentConfig::DATA, Format::Linux) => return Err(Problem::DataForLinux),
            // A PVH kernel such as Linux takes the first module for its initial RAM disk, Xen for its first guest.
            (ComponentConfig::DATA, _) if index == 1 => return Err(Problem::DataFirst(index)),
            (ComponentConfig::DATA, _) => has_data = true,
            _ => return Err(Problem::Component(index)),
        }
        text(index, component, format)?;
    }
    if unused.iter().all(|component| *component == ComponentConfig::NONE) {
        Ok(())
    } else {
        Err(Problem::NotZero)
    }
}

fn text(index: usize, component: &ComponentConfig, format: Format) -> Result<(), Problem> {
    let length = usize::try_from(component.text_length).map_err(|_| Problem::Text(index))?;
    let (text, padding) = component.text.split_at_checked(length).ok_or(Problem::Text(index))?;
    let has_place =
        format != Format::Linux && matches!(component.kind, ComponentConfig::MODULE | ComponentConfig::DATA);
    if !text.is_empty() && !has_place {
        return Err(Problem::TextWithoutPlace(index));
    }
    if !text.iter().all(is_printable) {
        return Err(Problem::Text(index));
    }
    if padding.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(Problem::NotZero) }
}

fn cmdline(guest: &GuestConfig) -> Result<(), Problem> {
    let wrong_length = Problem::CmdlineLength(guest.cmdline_length);
    let length = usize::try_from(guest.cmdline_length).map_err(|_| wrong_length)?;
    let (text, padding) = guest.cmdline.split_at_checked(length).ok_or(wrong_length)?;
    if let Some(at) = text.iter().position(|byte| !is_printable(byte)) {
        return Err(Problem::Cmdline(at));
    }
    if padding.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(Problem::NotZero) }
}

const fn is_printable(byte: &u8) -> bool {
    matches!(*byte, b' '..=b'~')
}
