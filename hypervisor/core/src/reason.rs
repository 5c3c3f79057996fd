//! Why a run ends, and what to do about it.

use core::fmt;

use dolmen_abi::{NAME_BYTES, StopCause};
use dolmen_machine::cpus::StartError;
use dolmen_machine::extension::ExtensionError;
use dolmen_machine::own::MachineError;
#[cfg(not(feature = "unmeasured"))]
use dolmen_tpm::{KeyError, TpmError, TransportError};
use dolmen_vm::image::ImageError;
use dolmen_vm::manifest::ManifestError;

/// Why the run ends.
#[derive(Debug)]
pub(crate) enum Reason {
    /// The launch image's hand-off does not fit this core.
    Handoff(&'static str),
    /// The machine lacks something, or denied it.
    Machine(MachineError),
    /// The loader's list names the processor with this APIC ID twice.
    CpuTwice(u32),
    /// A processor does not work as the first one does.
    Cpu(StartError),
    /// An IOMMU no longer refuses every device.
    #[cfg(not(feature = "unmeasured"))]
    Iommu(&'static str),
    /// The region is too small.
    OutOfMemory(&'static str),
    /// The TPM answered with an error, or with nonsense.
    #[cfg(not(feature = "unmeasured"))]
    Tpm(TpmError),
    /// The TPM did not give the keys.
    #[cfg(not(feature = "unmeasured"))]
    Keys(KeyError),
    /// A PCR does not hold what was extended into it.
    #[cfg(not(feature = "unmeasured"))]
    Pcr(u8),
    /// An active PCR bank is not covered.
    #[cfg(not(feature = "unmeasured"))]
    Bank(u16),
    /// The manifest is none.
    Manifest(ManifestError),
    /// The manifest asks for what this version does not do.
    Unsupported(&'static str),
    /// The manifest and the staged components do not match.
    Components,
    /// A guest's image cannot be loaded.
    Image(ImageError),
    /// Nobody knows who made the processor.
    Vendor,
    /// The processor lacks what virtualisation needs.
    Extension(ExtensionError),
    /// A guest ended that the machine does not outlive, or the last one.
    GuestEnded {
        /// Its padded name.
        name: [u8; NAME_BYTES],
        /// Why it ended.
        cause: StopCause,
    },
    /// The machine got an INIT.
    Init,
    /// What a test image found about itself.
    #[cfg(feature = "self-check")]
    SelfCheck(&'static str),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handoff(what) => write!(f, "{what}; install launch image and core of one build"),
            Self::Machine(error) => write!(f, "the machine is not usable: {error:?}"),
            Self::CpuTwice(id) => {
                write!(f, "the list of processors names APIC ID {id} twice; update loader and firmware")
            }
            Self::Cpu(error) => cpu(f, *error),
            #[cfg(not(feature = "unmeasured"))]
            Self::Iommu(what) => write!(f, "DMA is no longer refused: {what}; report it"),
            Self::OutOfMemory(what) => write!(f, "no memory for {what}; give the loader a larger region_mib"),
            #[cfg(not(feature = "unmeasured"))]
            Self::Tpm(error) => write!(f, "the TPM failed: {error:?}; power the machine off and on"),
            #[cfg(not(feature = "unmeasured"))]
            Self::Keys(error) => write!(f, "no keys from the TPM: {error}"),
            #[cfg(not(feature = "unmeasured"))]
            Self::Pcr(pcr) => {
                write!(f, "PCR {pcr} does not hold what was measured; something else extends it")
            }
            #[cfg(not(feature = "unmeasured"))]
            Self::Bank(bank) => write!(f, "the active PCR bank {bank:#x} would not be extended"),
            Self::Manifest(error) => write!(f, "the manifest is not one: {error}; build it with xtask"),
            Self::Unsupported(what) => {
                write!(f, "the manifest asks for {what}, which this version does not do")
            }
            Self::Components => {
                write!(f, "the staged files are not those of the manifest; check the loader's configuration")
            }
            Self::Image(error) => write!(f, "the guest's image cannot be loaded: {error}"),
            Self::Extension(error) => write!(f, "the processor cannot run guests: {error}"),
            Self::Vendor => {
                f.write_str("the processor is of a maker that Dolmen does not know; use one of AMD's")
            }
            Self::GuestEnded { name, cause } => {
                let name = core::str::from_utf8(name).unwrap_or_default().trim_end_matches('\0');
                match *cause {
                    StopCause::POWER_OFF => write!(f, "the guest switched its machine off: {name}"),
                    cause => write!(f, "the guest stopped: {name}: {cause}"),
                }
            }
            Self::Init => write!(f, "the machine was sent an INIT"),
            #[cfg(feature = "self-check")]
            Self::SelfCheck(what) => write!(f, "the self-check found that {what}; please report it"),
        }
    }
}

fn cpu(f: &mut fmt::Formatter<'_>, error: StartError) -> fmt::Result {
    match error {
        StartError::NoStartPage => {
            write!(f, "no RAM below 640 KiB to start processors in; update the firmware")
        }
        StartError::OutOfFrames => {
            write!(f, "no memory for the processors; give the loader a larger region_mib")
        }
        StartError::NoRegisters => write!(f, "the processor's memory-type registers cannot be read"),
        StartError::Unreachable(id) => {
            write!(
                f,
                "the processor with APIC ID {id} needs x2APIC mode; switch it on in the firmware's set-up"
            )
        }
        StartError::Silent(id) => {
            write!(f, "the processor with APIC ID {id} did not come up; update loader and firmware")
        }
        StartError::Unlike(id) => {
            write!(
                f,
                "the processor with APIC ID {id} routes memory in another way than the first; update the firmware"
            )
        }
        StartError::Extension(id) => {
            write!(
                f,
                "the processor with APIC ID {id} cannot run guests as the first one can; update the firmware"
            )
        }
        StartError::Time(id, ticks) => {
            write!(
                f,
                "the time of the processor with APIC ID {id} is off by {ticks} ticks; power the machine off and on"
            )
        }
    }
}

impl From<MachineError> for Reason {
    fn from(error: MachineError) -> Self {
        Self::Machine(error)
    }
}

#[cfg(not(feature = "unmeasured"))]
impl From<TpmError> for Reason {
    fn from(error: TpmError) -> Self {
        Self::Tpm(error)
    }
}

#[cfg(not(feature = "unmeasured"))]
impl From<TransportError> for Reason {
    fn from(error: TransportError) -> Self {
        Self::Tpm(TpmError::Transport(error))
    }
}

#[cfg(not(feature = "unmeasured"))]
impl From<KeyError> for Reason {
    fn from(error: KeyError) -> Self {
        Self::Keys(error)
    }
}
