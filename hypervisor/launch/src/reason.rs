//! Why a launch ends, in words: what was wrong, and what to do.

use dolmen_drtm::bank::BankError;
use dolmen_drtm::check::{CheckError, Part};
use dolmen_drtm::map::MapError;
use dolmen_machine::pci::NodeError;
use dolmen_platform::acpi::AcpiError;
use dolmen_platform::amdvi::{FindError, ShieldError, Step};
use dolmen_platform::sldev::SlDevError;
use dolmen_tpm::{TpmError, TransportError};

use crate::console::Line;
use crate::stop::stop;

/// Why a launch ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reason {
    /// Not an AMD processor, or one without MTRRs.
    Processor,
    /// SYSCFG.MtrrVarDramEn cannot be set, so that nothing says where RAM ends.
    NoTopOfMemory,
    /// The hand-off does not hold.
    Handoff(CheckError),
    /// The IOMMUs cannot be found or used.
    Iommu(FindError),
    /// An IOMMU's registers cannot be where it says.
    IommuPlace(u64, MapError),
    /// Firmware names an IOMMU that is not there.
    IommuHidden(u64),
    /// Firmware's tables cannot be read.
    Acpi(AcpiError),
    /// Too many device pages.
    Windows,
    /// DMA could not be closed.
    Shield(ShieldError),
    /// The nodes' configuration space cannot be reached.
    Node(NodeError),
    /// SL_DEV cannot be released.
    SlDev(SlDevError),
    /// The TPM's registers cannot be where they must be.
    TpmPlace(MapError),
    /// The TPM does not do what it must.
    Tpm(TpmError),
    /// The TPM's banks cannot be used.
    Banks(BankError),
    /// This PCR does not hold what it must in the bank of this algorithm.
    Pcr(u8, u16),
    /// The core's file is not one, or does not fit the region.
    Core,
    /// The region is too small for what must be in it.
    Region,
    /// A defect of the launch image.
    Defect,
}

impl Reason {
    /// The `stop:` line.
    #[inline(never)]
    pub(crate) fn print(&self) {
        let line = Line::new("stop: ");
        match *self {
            Self::Processor => line.text("not an AMD processor with MTRRs; use one"),
            Self::NoTopOfMemory => line.text("no TOP_MEM; use a processor, or an emulator, that has it"),
            Self::Handoff(error) => handoff(line, error).text("; fix the loader"),
            Self::Iommu(error) => find(line, error),
            Self::IommuPlace(base, error) => {
                map(line.text("IOMMU registers at ").hex(base).text(": "), error).text("; update firmware")
            }
            Self::IommuHidden(base) => line
                .text("firmware names an IOMMU at ")
                .hex(base)
                .text(" that PCI does not show; enable all in setup"),
            Self::Acpi(error) => acpi(line, error).text("; update firmware"),
            Self::Windows => line.text("too many IOMMUs; use a smaller machine"),
            Self::Shield(error) => shield(line, error).text("; DMA is open, nothing was measured"),
            Self::Node(error) => node(line, error),
            Self::SlDev(error) => sl_dev(line, error),
            Self::TpmPlace(error) => {
                map(line.text("TPM registers: "), error).text("; enable a TPM 2.0 with FIFO")
            }
            Self::Tpm(error) => tpm(line.text("TPM: "), error),
            Self::Banks(error) => banks(line.text("TPM: "), error),
            Self::Pcr(pcr, bank) => line
                .text("PCR ")
                .number(pcr.into())
                .text(" of bank ")
                .hex(bank.into())
                .text(" does not match; launch by SKINIT, other processors parked"),
            Self::Core => line.text("damaged core; install it anew"),
            Self::Region => line.text("region too small; raise region_mib"),
            Self::Defect => line.text("defect; please report it"),
        }
        .end();
    }
}

fn part(line: Line, part: Part) -> Line {
    match part {
        Part::Slb => line.text("block"),
        Part::Core => line.text("core"),
        Part::Manifest => line.text("manifest"),
        Part::Region => line.text("region"),
        Part::GuestPool => line.text("guest pool"),
        Part::Component(index) => line.text("component ").number(widen(index)),
        Part::Device(index) => line.text("registers of device ").number(widen(index)),
    }
}

fn handoff(line: Line, error: CheckError) -> Line {
    let line = line.text("hand-off: ");
    match error {
        CheckError::Magic => line.text("no magic"),
        CheckError::Version(version) => line.text("version ").number(version.into()),
        CheckError::Reserved(value) => line.text("reserved field is ").hex(value.into()),
        CheckError::Components(count) => line.number(count.into()).text(" components"),
        CheckError::Ranges(count) => line.number(count.into()).text(" memory ranges"),
        CheckError::Cpus(count) => line.number(count.into()).text(" processors"),
        CheckError::NotRam(what, error) => map(part(line, what).text(": "), error),
        CheckError::Unaligned(what) => part(line, what).text(" is not aligned"),
        CheckError::TooShort(what) => part(line, what).text(" is too short"),
        CheckError::TooLong(what) => part(line, what).text(" is too long"),
        CheckError::AboveFourGib(what) => part(line, what).text(" is not below 4 GiB"),
        CheckError::Overlap(one, other) => part(part(line, one).text(" overlaps "), other),
    }
}

fn map(line: Line, error: MapError) -> Line {
    match error {
        MapError::Empty => line.text("empty"),
        MapError::BeyondWidth => line.text("beyond the address width"),
        MapError::LowMemory => line.text("below 1 MiB"),
        MapError::Apic => line.text("on the APIC's page"),
        MapError::Smram => line.text("in SMRAM"),
        MapError::ConfigSpace => line.text("in configuration space"),
        MapError::IoRange => line.text("in an I/O range"),
        MapError::NotDram => line.text("not below the top of memory"),
        MapError::NotDevice => line.text("RAM, not registers"),
        MapError::Type(kind) => line.text("memory type ").number(kind.into()),
        MapError::TypeConflict => line.text("conflicting memory types"),
        MapError::MtrrsOff => line.text("MTRRs are off"),
        MapError::TopOff => line.text("TOP_MEM is off"),
        MapError::Irregular => line.text("irregular range register"),
        MapError::Segments => line.text("more than one PCI segment"),
    }
}

fn find(line: Line, error: FindError) -> Line {
    match error {
        FindError::None => line.text("no IOMMU; enable it in setup"),
        FindError::TooMany => line.text("more than 8 IOMMUs; use a smaller machine"),
        FindError::Disabled(at) => {
            line.text("the IOMMU at ").hex(at.raw().into()).text(" is off; enable it in setup")
        }
        FindError::SameRegisters(at) => line
            .text("the IOMMU at ")
            .hex(at.raw().into())
            .text(" claims another's registers; update firmware"),
        FindError::Loop(at) => {
            line.text("the capabilities of ").hex(at.raw().into()).text(" do not end; remove that device")
        }
    }
}

fn acpi(line: Line, error: AcpiError) -> Line {
    match error {
        AcpiError::Unreadable(at) => line.text("ACPI table outside memory at ").hex(at),
        AcpiError::Signature(at) => line.text("ACPI signature wrong at ").hex(at),
        AcpiError::Checksum(at) => line.text("ACPI checksum wrong at ").hex(at),
        AcpiError::Length(at) => line.text("ACPI length wrong at ").hex(at),
    }
}

fn shield(line: Line, error: ShieldError) -> Line {
    let line = line.text("IOMMU: ");
    match error {
        ShieldError::Timeout(at, seen) => step(line, at).text(" timed out, status ").hex(seen),
        ShieldError::NotTaken(register, seen) => {
            line.text("register ").hex(register.offset()).text(" holds ").hex(seen)
        }
        ShieldError::NotCompleted(at) => step(line, at).text(" was not completed"),
        ShieldError::TableDiffers(at) => line.text("device table was changed at ").hex(at),
        ShieldError::Event(code) => line.text("event ").number(code.0.into()),
    }
}

fn step(line: Line, step: Step) -> Line {
    match step {
        Step::Stop => line.text("stopping"),
        Step::Arm => line.text("enabling"),
        Step::Invalidate => line.text("invalidating"),
        Step::Switch => line.text("switching tables"),
        Step::RestartEvents => line.text("restarting the event log"),
    }
}

fn node(line: Line, error: NodeError) -> Line {
    match error {
        NodeError::Off => line.text("no memory-mapped configuration space; enable it in setup"),
        NodeError::Place(error) => map(line.text("configuration space: "), error).text("; update firmware"),
        NodeError::Differs => line.text("configuration space differs; update firmware"),
        NodeError::Windows => line.text("configuration space is small; update firmware"),
    }
}

fn sl_dev(line: Line, error: SlDevError) -> Line {
    match error {
        SlDevError::Family(family) => {
            line.text("family ").hex(family.into()).text(" is older than 0x17; use a newer one")
        }
        SlDevError::NoNode => line.text("no AMD node at 00:18.0; use a machine that has one"),
        SlDevError::Stuck(number) => {
            line.text("node ").number(number.into()).text(" keeps SL_DEV; update firmware")
        }
    }
}

fn tpm(line: Line, error: TpmError) -> Line {
    match error {
        TpmError::Transport(TransportError::Absent(_)) => {
            line.text("none, or locality 2 is closed; enable TPM 2.0, disable the vendor's DRTM")
        }
        TpmError::Transport(TransportError::Timeout { register, seen, .. }) => line
            .text("register ")
            .hex(register.offset().into())
            .text(" timed out at ")
            .hex(seen.into())
            .text("; restart"),
        TpmError::Transport(_) => line.text("the bus was disturbed; restart"),
        TpmError::Refused(code) => {
            line.text("refused with ").hex(code.0.into()).text("; clear or replace it")
        }
        TpmError::Encode(_) | TpmError::Decode(_) | TpmError::Forged => {
            line.text("no valid answer; replace it")
        }
    }
}

fn banks(line: Line, error: BankError) -> Line {
    match error {
        BankError::NoSha256 => line.text("the SHA-256 bank is off; switch it on (tpm2_pcrallocate)"),
        BankError::Partial(bank) => {
            line.text("bank ").hex(bank.into()).text(" lacks PCR 17 or 18; allocate it whole")
        }
        BankError::Unknown(bank) => line.text("bank ").hex(bank.into()).text(" is unknown; switch it off"),
        BankError::TooMany => line.text("more than 8 banks; switch some off"),
    }
}

fn widen(index: usize) -> u64 {
    u64::try_from(index).unwrap_or(u64::MAX)
}

/// What a stage answers instead of an error: nothing, since [`stop`] has been called and does not return. A type
/// without values, so `?` costs no code but the call.
///
/// [`stop`]: crate::stop::stop
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stopped {}

impl From<Reason> for Stopped {
    #[inline(never)]
    fn from(reason: Reason) -> Self {
        stop(&reason)
    }
}

macro_rules! from {
    ($($error:ty => $variant:ident),* $(,)?) => {$(
        impl From<$error> for Stopped {
            #[cold]
            fn from(error: $error) -> Self {
                Reason::$variant(error).into()
            }
        }
    )*};
}

from! {
    CheckError => Handoff,
    FindError => Iommu,
    AcpiError => Acpi,
    ShieldError => Shield,
    NodeError => Node,
    SlDevError => SlDev,
    TpmError => Tpm,
    BankError => Banks,
}

impl From<TransportError> for Stopped {
    #[cold]
    fn from(error: TransportError) -> Self {
        Reason::Tpm(TpmError::Transport(error)).into()
    }
}
