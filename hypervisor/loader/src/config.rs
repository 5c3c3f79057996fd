//! The boot configuration of the UEFI loader: which files, and how large the region is.
//!
//! Text, one `key=value` a line; blank lines and lines that start with `#` say nothing.
//!
//! ```text
//! launch=\dolmen\launch.bin
//! core=\dolmen\core.bin
//! manifest=\dolmen\manifest.bin
//! component=\dolmen\vmlinuz
//! component=\dolmen\initrd.img
//! region_mib=32
//! ```
//!
//! `component` is repeated, in the manifest's order; `region_mib` may be left out.
#![forbid(unsafe_code)]

use crate::plan::DEFAULT_REGION_MIB;
use core::fmt;
use dolmen_drtm::handoff::MAX_COMPONENTS;

/// Where the configuration lies, on the volume that the loader was started from.
pub const CONFIG_PATH: &str = "\\dolmen\\boot.cfg";
/// Longest configuration, in bytes.
pub const MAX_CONFIG: usize = 32 * 1024;
/// Longest path, in characters.
pub const MAX_PATH: usize = 255;
/// Sizes of the region that make sense, in MiB.
pub const REGION_MIB: core::ops::RangeInclusive<u64> = 8..=1024;

/// Why a configuration cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError<'a> {
    /// A line that is not what it should be.
    Line {
        /// Number of the line, from 1.
        number: usize,
        /// What was expected there.
        expected: Expected,
        /// The line.
        found: &'a str,
    },
    /// A line that is not UTF-8.
    NotText {
        /// Number of the line, from 1.
        number: usize,
    },
    /// No line gives this key.
    Missing(&'static str),
    /// The file is longer than [`MAX_CONFIG`].
    TooLong,
}

/// What a line should have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// `key=value` with a known key.
    KeyValue,
    /// A path from the root of the volume.
    Path,
    /// A number of MiB.
    RegionMib,
    /// A key that was not given before.
    Once,
    /// No more components.
    FewerComponents,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyValue => f.write_str("launch=, core=, manifest=, component= or region_mib= and a value"),
            Self::Path => {
                write!(f, "an absolute path of at most {MAX_PATH} characters, like \\dolmen\\core.bin")
            }
            Self::RegionMib => {
                let (low, high) = (REGION_MIB.start(), REGION_MIB.end());
                write!(f, "an even number of MiB from {low} to {high}")
            }
            Self::Once => f.write_str("each key once (only component= may be repeated)"),
            Self::FewerComponents => write!(f, "at most {MAX_COMPONENTS} components"),
        }
    }
}

impl fmt::Display for ConfigError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { number, expected, found } => {
                write!(f, "line {number}: expected {expected}, found \"{}\"", found.escape_debug())
            }
            Self::NotText { number } => write!(f, "line {number}: expected UTF-8 text"),
            Self::Missing(key) => write!(f, "expected a line {key}=<path>, found none"),
            Self::TooLong => write!(f, "expected at most {MAX_CONFIG} bytes"),
        }
    }
}

/// A boot configuration; paths are as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config<'a> {
    /// The launch image.
    pub launch: &'a str,
    /// The core.
    pub core: &'a str,
    /// The canonical manifest.
    pub manifest: &'a str,
    /// Size of the region in MiB.
    pub region_mib: u64,
    components: [&'a str; MAX_COMPONENTS],
    component_count: usize,
}

impl<'a> Config<'a> {
    /// The guests' components, in the manifest's order.
    #[must_use]
    pub fn components(&self) -> &[&'a str] {
        self.components.get(..self.component_count).unwrap_or_default()
    }

    /// Reads a configuration.
    ///
    /// # Errors
    /// The first line that is wrong, or what is missing.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ConfigError<'a>> {
        if bytes.len() > MAX_CONFIG {
            return Err(ConfigError::TooLong);
        }
        let mut draft = Draft::EMPTY;
        for (line, number) in bytes.split(|b| *b == b'\n').zip(1..) {
            let line = core::str::from_utf8(line).map_err(|_| ConfigError::NotText { number })?;
            let line = line.trim_start_matches('\u{feff}').trim();
            if !line.is_empty() && !line.starts_with('#') {
                draft.take(line).map_err(|expected| ConfigError::Line { number, expected, found: line })?;
            }
        }
        Ok(Self {
            launch: draft.launch.ok_or(ConfigError::Missing("launch"))?,
            core: draft.core.ok_or(ConfigError::Missing("core"))?,
            manifest: draft.manifest.ok_or(ConfigError::Missing("manifest"))?,
            region_mib: draft.region_mib.unwrap_or(DEFAULT_REGION_MIB),
            components: draft.components,
            component_count: draft.component_count,
        })
    }
}

struct Draft<'a> {
    launch: Option<&'a str>,
    core: Option<&'a str>,
    manifest: Option<&'a str>,
    region_mib: Option<u64>,
    components: [&'a str; MAX_COMPONENTS],
    component_count: usize,
}

impl<'a> Draft<'a> {
    const EMPTY: Self = Self {
        launch: None,
        core: None,
        manifest: None,
        region_mib: None,
        components: [""; MAX_COMPONENTS],
        component_count: 0,
    };

    fn take(&mut self, line: &'a str) -> Result<(), Expected> {
        let (key, value) = line.split_once('=').ok_or(Expected::KeyValue)?;
        let value = value.trim();
        match key.trim() {
            "launch" => once(&mut self.launch, path(value)?),
            "core" => once(&mut self.core, path(value)?),
            "manifest" => once(&mut self.manifest, path(value)?),
            "region_mib" => once(&mut self.region_mib, parse_region_mib(value).ok_or(Expected::RegionMib)?),
            "component" => {
                let place = self.components.get_mut(self.component_count).ok_or(Expected::FewerComponents)?;
                *place = path(value)?;
                self.component_count = self.component_count.saturating_add(1);
                Ok(())
            }
            _ => Err(Expected::KeyValue),
        }
    }
}

fn once<T>(place: &mut Option<T>, value: T) -> Result<(), Expected> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Expected::Once),
    }
}

fn path(value: &str) -> Result<&str, Expected> {
    let absolute = value.starts_with(['\\', '/']) && value.len() > 1;
    let plain = value.chars().all(|c| !c.is_control() && c <= '\u{ffff}');
    if absolute && plain && value.chars().count() <= MAX_PATH { Ok(value) } else { Err(Expected::Path) }
}

/// A size of the region as people write it: an even number of MiB inside [`REGION_MIB`].
#[must_use]
pub fn parse_region_mib(value: &str) -> Option<u64> {
    value.parse::<u64>().ok().filter(|mib| REGION_MIB.contains(mib) && mib.is_multiple_of(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str =
        "launch=\\d\\l.bin\r\ncore = /d/core.bin\n\n# note\nmanifest=\\m\ncomponent=\\k\ncomponent=\\i\n";

    #[test]
    fn a_configuration_reads_as_written() {
        let config = Config::parse(GOOD.as_bytes()).unwrap();
        assert_eq!((config.launch, config.core, config.manifest), ("\\d\\l.bin", "/d/core.bin", "\\m"));
        assert_eq!(config.components(), ["\\k", "\\i"]);
        assert_eq!(config.region_mib, DEFAULT_REGION_MIB);
    }

    #[test]
    fn an_error_names_the_line_and_what_was_expected() {
        for (text, want) in [
            (
                "launch=\\l\nlunch=\\x",
                "line 2: expected launch=, core=, manifest=, component= or region_mib= and a value, found \"lunch=\\\\x\"",
            ),
            (
                "\n\nhello",
                "line 3: expected launch=, core=, manifest=, component= or region_mib= and a value, found \"hello\"",
            ),
            (
                "core=core.bin",
                "line 1: expected an absolute path of at most 255 characters, like \\dolmen\\core.bin, found \"core=core.bin\"",
            ),
            (
                "region_mib=33",
                "line 1: expected an even number of MiB from 8 to 1024, found \"region_mib=33\"",
            ),
            (
                "core=\\a\ncore=\\b",
                "line 2: expected each key once (only component= may be repeated), found \"core=\\\\b\"",
            ),
            ("core=\\a\nmanifest=\\b", "expected a line launch=<path>, found none"),
            ("launch=\\a\nmanifest=\\b", "expected a line core=<path>, found none"),
            ("launch=\\a\ncore=\\b", "expected a line manifest=<path>, found none"),
        ] {
            assert_eq!(Config::parse(text.as_bytes()).unwrap_err().to_string(), want, "{text}");
        }
    }

    #[test]
    fn bytes_that_are_not_text_are_named_by_line() {
        assert_eq!(Config::parse(b"core=\\a\n\xff\xfe"), Err(ConfigError::NotText { number: 2 }));
    }

    #[test]
    fn one_component_too_many_is_refused() {
        let text = "component=\\k\n".repeat(MAX_COMPONENTS + 1);
        let error = Config::parse(text.as_bytes()).unwrap_err();
        assert!(
            matches!(error, ConfigError::Line { number: 97, expected: Expected::FewerComponents, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_byte_order_mark_is_ignored() {
        let text = std::format!("\u{feff}{GOOD}");
        assert!(Config::parse(text.as_bytes()).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Err(error) = Config::parse(&bytes) {
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }
}
