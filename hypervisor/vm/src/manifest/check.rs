//! What a guest's configuration must be, field by field.

use core::fmt;

use dolmen_abi::CallGroup;

use super::{
    ComponentConfig, GuestConfig, MAX_CMDLINE, MAX_GUEST_COMPONENTS, MAX_MEMORY, MAX_NAME, MAX_VCPUS,
    MEMORY_STEP,
};

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
    /// Not a serial port.
    Console(u32),
    /// Another guest has the serial port.
    ConsoleTaken(u32),
    /// A bit that is no group of hypercalls.
    Hypercalls(u32),
    /// Not a way to answer a reboot.
    OnReboot(u32),
    /// None, or more than [`MAX_GUEST_COMPONENTS`].
    ComponentCount(u32),
    /// This component (from 0) is of no known kind, out of place or one too many.
    Component(usize),
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
            Self::Vcpus(count) => write!(f, "{count} virtual processors, this version runs 1 to {MAX_VCPUS}"),
            Self::Console(port) => write!(f, "console {port} is not a serial port: 0 (none), 1 or 2"),
            Self::ConsoleTaken(port) => write!(f, "another guest has console {port}"),
            Self::Hypercalls(bits) => write!(f, "hypercall groups {bits:#x} have an unknown bit"),
            Self::OnReboot(value) => write!(f, "answer {value} to a reboot is unknown"),
            Self::ComponentCount(count) => {
                write!(f, "{count} components, 1 to {MAX_GUEST_COMPONENTS} are possible")
            }
            Self::Component(n) => {
                write!(
                    f,
                    "component {n} is of an unknown kind, out of place (the kernel is first) or one too many"
                )
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
    let formats = [GuestConfig::FORMAT_LINUX, GuestConfig::FORMAT_PVH, GuestConfig::FORMAT_MULTIBOOT];
    if !formats.contains(&guest.format) {
        return Err(Problem::Format(guest.format));
    }
    if guest.vcpus == 0 || guest.vcpus > MAX_VCPUS {
        return Err(Problem::Vcpus(guest.vcpus));
    }
    if guest.console > 2 {
        return Err(Problem::Console(guest.console));
    }
    if CallGroup::from_bits(guest.hypercalls).is_none() {
        return Err(Problem::Hypercalls(guest.hypercalls));
    }
    if ![GuestConfig::ON_REBOOT_RESET, GuestConfig::ON_REBOOT_STOP].contains(&guest.on_reboot) {
        return Err(Problem::OnReboot(guest.on_reboot));
    }
    if guest.reserved != 0 {
        return Err(Problem::NotZero);
    }
    components(guest)?;
    cmdline(guest)
}

/// Checks what two guests may not have in common.
pub(super) fn pair(guest: &GuestConfig, other: &GuestConfig) -> Result<(), Problem> {
    if guest.name == other.name {
        return Err(Problem::NameTaken);
    }
    if guest.console != 0 && guest.console == other.console {
        return Err(Problem::ConsoleTaken(guest.console));
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

fn components(guest: &GuestConfig) -> Result<(), Problem> {
    let wrong_count = Problem::ComponentCount(guest.component_count);
    let count = usize::try_from(guest.component_count).map_err(|_| wrong_count)?;
    let (used, unused) = guest.components.split_at_checked(count).ok_or(wrong_count)?;
    if used.is_empty() {
        return Err(wrong_count);
    }
    let mut has_initrd = false;
    for (index, component) in used.iter().enumerate() {
        let fits = match component.kind {
            ComponentConfig::KERNEL => index == 0,
            ComponentConfig::INITRD => index != 0 && !core::mem::replace(&mut has_initrd, true),
            ComponentConfig::MODULE | ComponentConfig::DATA => index != 0,
            _ => false,
        };
        if !fits {
            return Err(Problem::Component(index));
        }
    }
    let is_zero = used.iter().all(|component| component.reserved == 0)
        && unused.iter().all(|component| *component == ComponentConfig::default());
    if is_zero { Ok(()) } else { Err(Problem::NotZero) }
}

fn cmdline(guest: &GuestConfig) -> Result<(), Problem> {
    let wrong_length = Problem::CmdlineLength(guest.cmdline_length);
    let length = usize::try_from(guest.cmdline_length).map_err(|_| wrong_length)?;
    let (text, padding) = guest.cmdline.split_at_checked(length).ok_or(wrong_length)?;
    if let Some(at) = text.iter().position(|byte| !matches!(byte, b' '..=b'~')) {
        return Err(Problem::Cmdline(at));
    }
    if padding.iter().any(|byte| *byte != 0) {
        return Err(Problem::NotZero);
    }
    Ok(())
}
