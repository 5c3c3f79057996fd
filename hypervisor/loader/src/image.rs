//! A first look at the boot files, so that a wrong file is named here and not by a silent stop later.
//!
//! The launch image checks again: what is said here is help, not protection.
#![forbid(unsafe_code)]

use core::fmt;
use dolmen_drtm::handoff::{CoreHeader, HANDOFF_OFFSET};
use zerocopy::FromBytes;

/// Bytes at the start of a launch image that say how it is measured.
pub const LAUNCH_HEADER: usize = 4;
/// Bytes at the start of a core's file.
pub const CORE_HEADER: usize = size_of::<CoreHeader>();

/// Why a file is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// The launch image is empty or reaches into the page of the hand-off.
    LaunchSize(u64),
    /// Entry point or measured length lie outside the launch image.
    LaunchHeader {
        /// Entry point as the header says.
        entry: u16,
        /// Measured length as the header says.
        measured: u16,
        /// Bytes of the file.
        file: u64,
    },
    /// The core's file does not begin like one of this version.
    CoreMagic,
    /// The core's file is cut short or has something behind it.
    CoreLength {
        /// Bytes as the header says.
        header: u64,
        /// Bytes of the file.
        file: u64,
    },
    /// The core needs a larger region.
    CoreTooLarge {
        /// Bytes that it needs.
        needs: u64,
        /// Bytes of the region.
        region: u64,
    },
    /// The manifest is empty.
    ManifestEmpty,
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LaunchSize(bytes) => write!(
                f,
                "the launch image has {bytes} bytes, but must have {LAUNCH_HEADER} to {HANDOFF_OFFSET}; give the \
                 launch image of this release, first of all files"
            ),
            Self::LaunchHeader { entry, measured, file } => write!(
                f,
                "the launch image begins at {entry:#x} and measures {measured:#x} bytes, but has {file:#x}; give the \
                 launch image of this release, first of all files"
            ),
            Self::CoreMagic => f.write_str(
                "the core is not a Dolmen core of this version; give core and launch image of one release",
            ),
            Self::CoreLength { header, file } => {
                write!(f, "the core says that it has {header} bytes, but has {file}; copy the file again")
            }
            Self::CoreTooLarge { needs, region } => {
                write!(f, "the core needs {needs} bytes, but the region has {region}; make region_mib larger")
            }
            Self::ManifestEmpty => f.write_str("the manifest is empty; compile it again"),
        }
    }
}

/// What the header of a launch image says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchImage {
    /// Offset of the first instruction.
    pub entry: u16,
    /// Bytes that the processor measures.
    pub measured: u16,
}

/// Reads the header of a launch image of `file` bytes (APM vol. 2, 15.27.2).
///
/// # Errors
/// The file cannot be a launch image.
pub fn check_launch(header: [u8; LAUNCH_HEADER], file: u64) -> Result<LaunchImage, ImageError> {
    let [e0, e1, m0, m1] = header;
    let (entry, measured) = (u16::from_le_bytes([e0, e1]), u16::from_le_bytes([m0, m1]));
    if !(LAUNCH_HEADER.try_into().unwrap_or(u64::MAX)..=HANDOFF_OFFSET).contains(&file) {
        return Err(ImageError::LaunchSize(file));
    }
    if entry >= measured || u64::from(measured) > file {
        return Err(ImageError::LaunchHeader { entry, measured, file });
    }
    Ok(LaunchImage { entry, measured })
}

/// Reads the header of a core of `file` bytes for a region of `region` bytes.
///
/// # Errors
/// The file cannot be a core, or does not fit.
pub fn check_core(header: &[u8; CORE_HEADER], file: u64, region: u64) -> Result<(), ImageError> {
    let header = CoreHeader::read_from_bytes(header).map_err(|_| ImageError::CoreMagic)?;
    if header.magic != CoreHeader::MAGIC || header.version != CoreHeader::VERSION {
        return Err(ImageError::CoreMagic);
    }
    if header.file_length != file {
        return Err(ImageError::CoreLength { header: header.file_length, file });
    }
    if header.memory_length > region {
        return Err(ImageError::CoreTooLarge { needs: header.memory_length, region });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    #[test]
    fn a_launch_image_is_measured_within_itself() {
        assert_eq!(check_launch([4, 0, 0, 1], 0x200), Ok(LaunchImage { entry: 4, measured: 0x100 }));
        for (header, file) in
            [([4, 0, 0, 1], 0xff), ([0, 1, 0, 1], 0x200), ([4, 0, 0, 1], 3), ([4, 0, 0, 1], 0xf001)]
        {
            assert!(check_launch(header, file).is_err(), "{header:?} {file}");
        }
    }

    fn core(file_length: u64, memory_length: u64) -> [u8; CORE_HEADER] {
        let header = CoreHeader {
            magic: CoreHeader::MAGIC,
            version: CoreHeader::VERSION,
            entry: 64,
            file_length,
            memory_length,
        };
        header.as_bytes().try_into().unwrap()
    }

    #[test]
    fn a_core_fits_its_file_and_the_region() {
        assert_eq!(check_core(&core(100, 4096), 100, 8192), Ok(()));
        assert_eq!(
            check_core(&core(101, 4096), 100, 8192),
            Err(ImageError::CoreLength { header: 101, file: 100 })
        );
        assert_eq!(
            check_core(&core(100, 8193), 100, 8192),
            Err(ImageError::CoreTooLarge { needs: 8193, region: 8192 })
        );
        assert_eq!(check_core(&[0x7f; CORE_HEADER], 100, 8192), Err(ImageError::CoreMagic));
    }
}
