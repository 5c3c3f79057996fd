//! Writes initial RAM disks: the "newc" archive format, the same bytes for the same content.
//!
//! Format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.

use std::io::Write;

use anyhow::{Context, Result};

/// Directory with rights 755.
const DIRECTORY: u32 = 0o040_755;
/// Character device with rights 600.
const CHARACTER_DEVICE: u32 = 0o020_600;
/// Symbolic link.
const LINK: u32 = 0o120_777;
/// Regular file; rights are added.
const REGULAR: u32 = 0o100_000;

/// An archive being written. Everything belongs to root and dates from the epoch.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory; parents come first.
    pub(crate) fn directory(&mut self, name: &str) -> Result<()> {
        self.entry(name, DIRECTORY, (0, 0), &[])
    }

    /// Adds a regular file with the given rights.
    pub(crate) fn file(&mut self, name: &str, rights: u32, content: &[u8]) -> Result<()> {
        self.entry(name, REGULAR | rights, (0, 0), content)
    }

    /// Adds a symbolic link to `to`.
    pub(crate) fn link(&mut self, name: &str, to: &str) -> Result<()> {
        self.entry(name, LINK, (0, 0), to.as_bytes())
    }

    /// Adds a character device.
    pub(crate) fn character_device(&mut self, name: &str, major: u32, minor: u32) -> Result<()> {
        self.entry(name, CHARACTER_DEVICE, (major, minor), &[])
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        self.entries = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        let size = u32::try_from(content.len()).context("a file of an initial RAM disk is too large")?;
        let name_size = u32::try_from(name.len()).context("a name is too long")?.saturating_add(1);
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.entries = self.entries.saturating_add(1);
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            write!(self.bytes, "{field:08X}").context("cannot write to memory")?;
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_holds_headers_names_and_content_at_multiples_of_four() {
        let mut archive = Archive::default();
        archive.file("init", 0o755, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[14..22], b"000081ED");
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[110..115], b"init\0");
        assert_eq!(&bytes[116..121], b"hello");
        assert_eq!(&bytes[124..130], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        let make = || {
            let mut archive = Archive::default();
            archive.directory("dev").unwrap();
            archive.character_device("dev/console", 5, 1).unwrap();
            archive.link("bin/sh", "busybox").unwrap();
            archive.finish().unwrap()
        };
        assert_eq!(make(), make());
    }
}
