//! `cargo xtask lint`: what the compiler's lints cannot say, and the ledger of unsafe code.

mod named;
mod vendor;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{place, ui};

/// Crates of the hypervisor and of its guests.
const FOLDERS: [&str; 4] = ["hypervisor", "guest-tools", "build", "tests"];
/// Crates without a line of unsafe code; their root module says so.
const PURE: [&str; 7] = ["abi", "arch", "memory", "platform", "drtm", "tpm", "vm"];
/// Crates that may open unsafe code, module by module.
const OPEN: [&str; 7] = [
    "hypervisor/machine",
    "hypervisor/loader",
    "hypervisor/core/src",
    "hypervisor/launch/src",
    "hypervisor/unmeasured/src",
    "guest-tools/client",
    "tests/guest",
];
/// Longest file that can be read in one go.
const LINES: usize = 500;
/// The ledger.
const LEDGER: &str = "docs/unsafe-ledger.md";

/// One Rust file.
#[derive(Clone, Debug)]
struct Source {
    path: PathBuf,
    text: String,
}

/// Checks the tree and writes the ledger anew.
pub(crate) fn run() -> Result<()> {
    let sources = check()?;
    place::write(&place::root().join(LEDGER), ledger(&sources)?.as_bytes())?;
    ui::good(&format!("{LEDGER} is up to date"));
    Ok(())
}

/// Checks the tree; the ledger must be up to date already.
pub(crate) fn verify() -> Result<usize> {
    let sources = check()?;
    let kept = std::fs::read_to_string(place::root().join(LEDGER)).unwrap_or_default();
    if kept != ledger(&sources)? {
        bail!("{LEDGER} is out of date; `cargo xtask lint` writes it");
    }
    Ok(sources.len())
}

fn check() -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for folder in FOLDERS {
        collect(&place::root(), Path::new(folder), &mut sources)?;
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    let mut complaints = Vec::new();
    for source in &sources {
        complaints.extend(complaints_about(source));
    }
    let documents = documents()?;
    complaints.extend(vendor::complaints(&sources, &documents));
    complaints.extend(named::complaints(&sources, &documents));
    for name in PURE {
        let root = PathBuf::from("hypervisor").join(name).join("src/lib.rs");
        let declared = sources.iter().any(|s| s.path == root && s.text.contains("#![forbid(unsafe_code)]"));
        if !declared {
            complaints.push(format!("{}: a pure crate says `#![forbid(unsafe_code)]`", root.display()));
        }
    }
    if complaints.is_empty() {
        return Ok(sources);
    }
    bail!("{}", complaints.join("\n"))
}

/// The documents, those of decisions included.
fn documents() -> Result<Vec<Source>> {
    let mut documents = Vec::new();
    for folder in ["docs", "docs/adr"] {
        let full = place::root().join(folder);
        for entry in full.read_dir().with_context(|| format!("cannot list {folder}"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let text = place::read(&path)?;
                documents.push(Source { path, text: String::from_utf8_lossy(&text).into_owned() });
            }
        }
    }
    Ok(documents)
}

fn collect(root: &Path, folder: &Path, sources: &mut Vec<Source>) -> Result<()> {
    let full = root.join(folder);
    if !full.exists() {
        return Ok(());
    }
    for entry in full.read_dir().with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            if entry.file_name() != "target" {
                collect(root, &path, sources)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(root.join(&path))
                .with_context(|| format!("cannot read {}", path.display()))?;
            sources.push(Source { path, text });
        }
    }
    Ok(())
}

fn complaints_about(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    let path = source.path.display();
    let lines = source.text.lines().count();
    if lines > LINES {
        complaints.push(format!("{path}: {lines} lines; split files of more than {LINES}"));
    }
    let open = OPEN.iter().any(|open| source.path.starts_with(open));
    if !open && unsafe_count(&source.text) > 0 {
        complaints
            .push(format!("{path}: unsafe code belongs into `machine`, the loader or the guest client"));
    }
    // The micro-guest opens it for the whole program, in its root.
    let whole = source.path.starts_with("tests/guest");
    if open && !whole && unsafe_count(&source.text) > 0 && reason(&source.text).is_none() {
        complaints.push(format!("{path}: opens unsafe code without `#![expect(unsafe_code, reason = …)]`"));
    }
    for (number, line) in source.text.lines().enumerate() {
        let comment = line.split_once("//").map_or("", |(_, comment)| comment);
        if ["TODO", "FIXME", "XXX"].iter().any(|mark| comment.contains(mark)) && !line.contains('"') {
            complaints
                .push(format!("{path}:{}: unfinished work belongs into an issue", number.saturating_add(1)));
        }
    }
    complaints
}

/// Number of unsafe blocks, functions, implementations and attributes in a file.
fn unsafe_count(text: &str) -> usize {
    text.lines()
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code))
        .map(|line| line.split_once('"').map_or(line, |(code, _)| code))
        .map(|code| {
            ["unsafe {", "unsafe fn", "unsafe extern", "unsafe impl", "#[unsafe("]
                .iter()
                .map(|mark| code.matches(mark).count())
                .sum::<usize>()
        })
        .sum()
}

/// Why a file opens unsafe code, in its own words.
fn reason(text: &str) -> Option<&str> {
    let after = text.split_once("expect(")?.1;
    let (list, _) = after.split_once(")]")?;
    list.contains("unsafe_code").then_some(())?;
    list.split_once("reason = \"")?.1.split_once('"').map(|(reason, _)| reason)
}

/// Lines that are neither empty nor comments, before the tests.
pub(crate) fn code_lines(text: &str) -> usize {
    let code = text.split_once("#[cfg(test)]\nmod tests").map_or(text, |(code, _)| code);
    code.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count()
}

fn ledger(sources: &[Source]) -> Result<String> {
    let mut text = String::from(
        "# Ledger of unsafe code\n\n\
         Written by `cargo xtask lint`; a test fails while it is out of date. One line for each file that opens\n\
         `unsafe`: how often (blocks, functions, implementations, attributes), among how many lines of code, and why.\n\n\
         | file | unsafe | lines | why |\n|---|---:|---:|---|\n",
    );
    let (mut blocks, mut lines) = (0_usize, 0_usize);
    for source in sources {
        let (count, code) = (unsafe_count(&source.text), code_lines(&source.text));
        if count > 0 && !source.path.starts_with("tests") {
            blocks = blocks.saturating_add(count);
            lines = lines.saturating_add(code);
            let why = reason(&source.text).unwrap_or_default();
            writeln!(text, "| `{}` | {count} | {code} | {why} |", source.path.display())
                .context("no memory")?;
        }
    }
    writeln!(text, "| all | {blocks} | {lines} | |").context("no memory")?;
    Ok(text)
}

/// Lines of what is measured.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MeasuredLines {
    /// All of them.
    pub(crate) all: usize,
    /// Those of files that open unsafe code.
    pub(crate) unsafe_files: usize,
    /// Unsafe blocks, functions, implementations and attributes.
    pub(crate) unsafe_uses: usize,
}

/// Counts the lines of launch image and core, and of the crates that they are made of.
pub(crate) fn measured_lines() -> Result<MeasuredLines> {
    let mut sources = Vec::new();
    collect(&place::root(), Path::new("hypervisor"), &mut sources)?;
    let is_measured = |source: &&Source| {
        let path = source.path.to_string_lossy();
        let is_program = path.contains("/src/") && !path.contains("test") && !path.contains("fake");
        is_program && !source.path.starts_with("hypervisor/loader")
    };
    let mut lines = MeasuredLines::default();
    for source in sources.iter().filter(is_measured) {
        let (uses, code) = (unsafe_count(&source.text), code_lines(&source.text));
        lines.all = lines.all.saturating_add(code);
        lines.unsafe_uses = lines.unsafe_uses.saturating_add(uses);
        if uses > 0 {
            lines.unsafe_files = lines.unsafe_files.saturating_add(code);
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_is_counted_in_code_and_not_in_comments() {
        assert_eq!(unsafe_count("// unsafe { }\nunsafe { a() }\npub unsafe fn f() {}\n"), 2);
    }

    #[test]
    fn the_reason_is_the_files_own() {
        let text = "#![expect(\n    unsafe_code,\n    reason = \"reads a register\"\n)]\n";
        assert_eq!(reason(text), Some("reads a register"));
        assert_eq!(reason("#![expect(dead_code, reason = \"x\")]"), None);
    }
}
