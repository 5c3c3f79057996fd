//! Where Debian's source package comes from: the machine's own package sources, read as sources of source.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{place, process};

/// Entries for source packages, in both of apt's formats.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sources {
    /// Lines, as in a `.list` file.
    list: String,
    /// Stanzas, as in a `.sources` file.
    stanzas: String,
}

impl Sources {
    /// Derives them from this machine's configuration for the release `codename`.
    pub(super) fn of_this_machine(codename: &str) -> Result<Self> {
        let mut found = Self::default();
        for file in configuration_files()? {
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("cannot read the package sources in {}", file.display()))?;
            if file.extension().is_some_and(|extension| extension == "sources") {
                found.add_stanzas(&text, codename);
            } else {
                found.add_list(&text, codename);
            }
        }
        if found == Self::default() {
            bail!(
                "apt has no package source for Debian {codename}, component main; \
                 add one to /etc/apt/sources.list, then run this again"
            );
        }
        Ok(found)
    }

    /// Writes them to `folder`, which apt takes as its only configuration of sources.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        if !self.list.is_empty() {
            place::write(&folder.join("source.list"), self.list.as_bytes())?;
        }
        if !self.stanzas.is_empty() {
            place::write(&folder.join("source.sources"), self.stanzas.as_bytes())?;
        }
        Ok(())
    }

    fn add_list(&mut self, text: &str, codename: &str) {
        for line in text.lines() {
            if let Some(line) = source_line(line, codename) {
                self.list.push_str(&line);
                self.list.push('\n');
            }
        }
    }

    fn add_stanzas(&mut self, text: &str, codename: &str) {
        let mut stanza = Vec::new();
        for line in text.lines().filter(|line| !line.starts_with('#')).chain([""]) {
            if !line.trim().is_empty() {
                stanza.push(line);
                continue;
            }
            if let Some(stanza) = source_stanza(&stanza, codename) {
                self.stanzas.push_str(&stanza);
                self.stanzas.push('\n');
            }
            stanza.clear();
        }
    }
}

/// The files that apt itself reads, with the names it accepts.
fn configuration_files() -> Result<Vec<PathBuf>> {
    let told = process::output(Command::new("apt-config").args([
        "shell",
        "LIST",
        "Dir::Etc::SourceList/f",
        "PARTS",
        "Dir::Etc::SourceParts/d",
    ]))?;
    let value = |key: &str| {
        told.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix("='")?.strip_suffix('\''))
            .map(PathBuf::from)
    };
    let mut files: Vec<PathBuf> = value("LIST").into_iter().filter(|file| file.is_file()).collect();
    if let Some(Ok(entries)) = value("PARTS").map(|parts| parts.read_dir()) {
        let mut parts = Vec::new();
        for entry in entries {
            parts.push(entry.context("cannot list apt's package sources")?.path());
        }
        parts.retain(|file| file.extension().is_some_and(|end| end == "list" || end == "sources"));
        parts.sort();
        files.extend(parts);
    }
    Ok(files)
}

/// Suites of the release itself; backports carry another QEMU, other archives none that we can patch.
fn is_of_release(suite: &str, codename: &str) -> bool {
    match suite.trim_end_matches('/').strip_prefix(codename) {
        Some(rest) => matches!(rest, "" | "-updates" | "-security" | "/updates"),
        None => false,
    }
}

/// `deb [options] uri suite component...` as a line for source packages.
fn source_line(line: &str, codename: &str) -> Option<String> {
    let rest = line.split('#').next().unwrap_or_default().trim();
    let rest = rest.strip_prefix("deb ").or_else(|| rest.strip_prefix("deb\t"))?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (options, rest) = rest.split_once(']')?;
            (format!("[{options}] "), rest)
        }
        None => (String::new(), rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let main = words.any(|component| component == "main");
    (main && is_of_release(suite, codename)).then(|| format!("deb-src {options}{uri} {suite} main"))
}

/// A deb822 stanza as one for source packages of the release.
fn source_stanza(lines: &[&str], codename: &str) -> Option<String> {
    if !field(lines, "Types")?.split_whitespace().any(|kind| kind == "deb")
        || field(lines, "Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"))
        || !field(lines, "Components")?.split_whitespace().any(|component| component == "main")
    {
        return None;
    }
    let suites: Vec<String> = field(lines, "Suites")?
        .split_whitespace()
        .filter(|suite| is_of_release(suite, codename))
        .map(str::to_owned)
        .collect();
    if suites.is_empty() {
        return None;
    }
    let mut stanza = format!("Types: deb-src\nSuites: {}\nComponents: main\n", suites.join(" "));
    let mut keep = false;
    for line in lines {
        if !line.starts_with([' ', '\t']) {
            let name = line.split(':').next().unwrap_or_default();
            keep = !["types", "suites", "components", "architectures"]
                .contains(&name.to_ascii_lowercase().as_str());
        }
        if keep {
            stanza.push_str(line);
            stanza.push('\n');
        }
    }
    Some(stanza)
}

/// A field's value with its continuation lines.
fn field(lines: &[&str], wanted: &str) -> Option<String> {
    let mut value: Option<String> = None;
    for line in lines {
        if line.starts_with([' ', '\t']) {
            if let Some(value) = &mut value {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if value.is_some() {
            break;
        } else if let Some((name, first)) = line.split_once(':')
            && name.eq_ignore_ascii_case(wanted)
        {
            value = Some(first.trim().to_owned());
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_binaries_becomes_one_for_sources() {
        for (line, want) in [
            (
                "deb http://mirror.example/debian bookworm main contrib",
                Some("deb-src http://mirror.example/debian bookworm main"),
            ),
            (
                "deb [ arch=amd64 signed-by=/k.gpg ] http://m.example/s bookworm-security main # security",
                Some("deb-src [ arch=amd64 signed-by=/k.gpg ] http://m.example/s bookworm-security main"),
            ),
            ("deb http://mirror.example/debian bookworm-backports main", None),
            ("deb http://mirror.example/debian trixie main", None),
            ("deb http://other.example bookworm stable", None),
            ("deb-src http://mirror.example/debian bookworm main", None),
            ("# deb http://mirror.example/debian bookworm main", None),
            ("", None),
        ] {
            assert_eq!(source_line(line, "bookworm").as_deref(), want, "{line}");
        }
    }

    #[test]
    fn a_stanza_keeps_its_key_and_the_suites_of_the_release() {
        let mut sources = Sources::default();
        sources.add_stanzas(
            "Types: deb\n# why\nURIs: http://mirror.example/debian\nSuites: bookworm\n bookworm-updates \
             bookworm-backports\nComponents: main contrib\nSigned-By:\n -----BEGIN-----\n abc\n\n\
             Types: deb\nEnabled: no\nURIs: http://x.example\nSuites: bookworm\nComponents: main\n\n\
             Types: deb\nURIs: http://y.example\nSuites: nodistro\nComponents: main\n",
            "bookworm",
        );
        assert_eq!(
            sources.stanzas,
            "Types: deb-src\nSuites: bookworm bookworm-updates\nComponents: main\n\
             URIs: http://mirror.example/debian\nSigned-By:\n -----BEGIN-----\n abc\n\n"
        );
        assert_eq!(sources.list, "");
    }
}
