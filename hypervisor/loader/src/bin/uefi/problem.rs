//! What can go wrong while the firmware still listens.

use core::fmt;
use dolmen_loader::config::{CONFIG_PATH, ConfigError};
use dolmen_loader::launch::LaunchError;
use dolmen_tpm::TpmError;
use uefi::Status;

/// Why the loader goes back to the firmware.
#[derive(Debug)]
pub(crate) enum Problem {
    /// The machine lacks something; it has been said what.
    Incomplete,
    /// The loader does not know the volume that it was started from.
    NoVolume(Status),
    /// A file cannot be opened.
    Open(&'static str, Status),
    /// A file cannot be read.
    Read(&'static str, Status),
    /// No memory for this many bytes.
    NoMemory(u64),
    /// The boot configuration is wrong.
    Config(ConfigError<'static>),
    /// Firmware gives no memory map.
    MemoryMap(Status),
    /// The TPM does not start.
    Tpm(TpmError),
    /// The launch cannot work.
    Launch(LaunchError),
}

impl Problem {
    /// The status for the firmware.
    pub(crate) const fn status(&self) -> Status {
        match self {
            Self::Incomplete => Status::UNSUPPORTED,
            Self::NoVolume(status) | Self::MemoryMap(status) => *status,
            Self::Open(_, status) | Self::Read(_, status) => *status,
            Self::NoMemory(_) => Status::OUT_OF_RESOURCES,
            Self::Config(_) => Status::INVALID_PARAMETER,
            Self::Tpm(_) => Status::DEVICE_ERROR,
            Self::Launch(_) => Status::LOAD_ERROR,
        }
    }
}

impl<E: Into<LaunchError>> From<E> for Problem {
    fn from(error: E) -> Self {
        Self::Launch(error.into())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Incomplete => {
                f.write_str("this machine lacks what is named above; enable it and start again")
            }
            Self::NoVolume(status) => write!(
                f,
                "the volume that the loader was started from cannot be read ({status}); start it from a FAT volume, \
                 such as the EFI system partition"
            ),
            Self::Open(path, status) => {
                write!(f, "{path} cannot be opened ({status}); copy it there, or correct {CONFIG_PATH}")
            }
            Self::Read(path, status) => write!(f, "{path} cannot be read ({status}); copy the file again"),
            Self::NoMemory(bytes) => {
                write!(f, "no memory for {bytes} bytes; add memory, or use smaller boot files")
            }
            Self::Config(error) => write!(f, "{CONFIG_PATH}: {error}; correct the file"),
            Self::MemoryMap(status) => {
                write!(f, "firmware gives no memory map ({status}); update the firmware")
            }
            Self::Tpm(error) => {
                write!(f, "the TPM does not start ({error:?}); switch the machine off and on again")
            }
            Self::Launch(error) => error.fmt(f),
        }
    }
}
