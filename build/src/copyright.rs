//! Who has the rights to what a package's program is made of, in Debian's form (DEP-5).
//!
//! The program is linked statically, so it holds parts of every crate under it. Those that may be had under the Apache
//! licence are listed: Debian has its text. Of all others the licences stand in the file, as the crates bring them.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::artifact::Program;
use crate::linked::{self, Edges, Package};
use crate::place;

/// The licence that is taken where there is a choice, since nothing of it has to be repeated.
const PREFERRED: &str = "Apache-2.0";
/// How names of files with licences begin, whatever their case.
const LICENCES: [&str; 5] = ["license", "licence", "copying", "copyright", "unlicense"];
/// What the Apache licence too wants repeated.
const NOTICE: &str = "notice";

/// `head`, which speaks of our own, and what the crates under `program` add.
pub(crate) fn of(head: &str, root: &Path, program: &Program) -> Result<String> {
    let mut edges = Edges::new();
    linked::links(root, program, "normal,no-proc-macro", &mut edges)?;
    let packages = linked::packages(root)?;
    let (mut listed, mut notices, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    for id in edges.keys() {
        let package =
            packages.get(id).with_context(|| format!("cargo knows nothing of {} {}", id.0, id.1))?;
        if !package.is_foreign() {
            continue;
        }
        let is_preferred = alternatives(package)?.contains(&PREFERRED);
        let texts = texts(package.folder()?, if is_preferred { &[NOTICE] } else { &LICENCES })?;
        if is_preferred && texts.is_empty() {
            listed.push(files(package));
            notices.extend(holders(package, &self::texts(package.folder()?, &LICENCES)?));
        } else {
            whole.push(stanza(package, &texts)?);
        }
    }
    notices.sort();
    notices.dedup();
    let mut text = head.trim_end().to_owned();
    text.push_str(&format!(
        "\n\nFiles:\n {}\nCopyright:\n {}\nLicense: {PREFERRED}\n",
        listed.join("\n "),
        notices.join("\n ")
    ));
    whole.iter().for_each(|stanza| text.push_str(stanza));
    Ok(text)
}

/// The licences that one may choose from; older packages write a slash for OR.
fn alternatives(package: &Package) -> Result<Vec<&str>> {
    let Some(expression) = &package.license else { bail!("{} names no licence", package.name) };
    Ok(expression.split(" OR ").flat_map(|part| part.split('/')).collect())
}

/// Where the crate would be among the sources, if they were in one folder.
fn files(package: &Package) -> String {
    format!("vendor/{}-{}/*", package.name, package.version)
}

/// All texts in the crate whose files' names begin so, in the order of their paths.
fn texts(folder: &Path, names: &[&str]) -> Result<Vec<String>> {
    let mut entries = Vec::new();
    for entry in folder.read_dir().with_context(|| format!("cannot list {}", folder.display()))? {
        entries.push(entry?.path());
    }
    entries.sort();
    let mut found = Vec::new();
    for path in entries {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_ascii_lowercase();
        if path.is_dir() {
            found.extend(texts(&path, names)?);
        } else if names.iter().any(|known| name.starts_with(known)) && !name.ends_with(".rs") {
            let text = String::from_utf8(place::read(&path)?);
            found.push(text.with_context(|| format!("{} is no text", path.display()))?);
        }
    }
    Ok(found)
}

/// Lines that say who has the rights; if there are none, it is who made the crate.
fn holders(package: &Package, texts: &[String]) -> Vec<String> {
    let is_notice = |line: &&str| {
        let rest = line.strip_prefix("Copyright").unwrap_or_default().trim_start();
        rest.to_ascii_lowercase().starts_with("(c)") || rest.starts_with(['©', '1', '2'])
    };
    let lines = texts.iter().flat_map(|text| text.lines()).map(|line| line.trim().trim_start_matches("// "));
    let mut found: Vec<String> = lines.filter(is_notice).map(str::to_owned).collect();
    if found.is_empty() {
        found.push(format!("The authors of {}", package.name));
    }
    found.sort();
    found.dedup();
    found
}

/// The part about a crate whose licence has to be repeated.
fn stanza(package: &Package, texts: &[String]) -> Result<String> {
    ensure!(!texts.is_empty(), "{} does not bring the text of its licence", package.name);
    let licence =
        package.license.as_deref().unwrap_or_default().replace(" AND ", " and ").replace(" OR ", " or ");
    let holders = holders(package, texts).join("\n ");
    let mut stanza = format!("\nFiles: {}\nCopyright:\n {holders}\nLicense: {licence}\n", files(package));
    for line in texts.join("\n\n").trim_end().lines().map(str::trim_end) {
        stanza.push_str(&if line.is_empty() { " .\n".to_owned() } else { format!(" {line}\n") });
    }
    Ok(stanza)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::{COMMAND, KEYLIME_AGENT};

    /// The part about a crate.
    fn about<'a>(text: &'a str, name: &str) -> &'a str {
        let named = format!("vendor/{name}-");
        text.split("\n\n")
            .find(|stanza| stanza.contains(&named))
            .unwrap_or_else(|| panic!("nothing of {name}"))
    }

    #[test]
    fn terms_that_must_be_repeated_are_there_and_the_rest_is_listed() {
        let text = of("Format: x\n", &place::root(), &KEYLIME_AGENT).unwrap();
        assert!(text.starts_with("Format: x\n\nFiles:\n vendor/"), "{text}");
        for (name, terms) in [
            ("ring", "License: Apache-2.0 and ISC\n"),
            ("ring", " Copyright 2015-2025 Brian Smith.\n"),
            ("ring", "Permission to use, copy, modify, and/or distribute this software for any"),
            ("rustls-webpki", "License: ISC\n"),
            ("untrusted", "Permission to use, copy, modify, and/or distribute this software for any"),
            ("subtle", "Redistributions in binary form must reproduce the above copyright"),
            ("webpki-roots", "License: CDLA-Permissive-2.0\n"),
            ("ureq", "License: Apache-2.0"),
            ("rustls", "License: Apache-2.0"),
        ] {
            assert!(about(&text, name).contains(terms), "{name}: {terms}\n{}", about(&text, name));
        }
        // What only builds it, or is in the other program, is not in it.
        for name in ["syn", "unicode-ident", "minicbor", "dolmen-abi"] {
            assert!(!text.contains(&format!("vendor/{name}-")), "{name}");
        }
        let other = of("Format: x\n", &place::root(), &COMMAND).unwrap();
        assert!(
            about(&other, "minicbor").contains("License: BlueOak-1.0.0") && !other.contains("vendor/ring")
        );
    }

    #[test]
    fn it_is_the_same_each_time_and_names_no_folder_of_this_machine() {
        let text = of("Format: x\n", &place::root(), &KEYLIME_AGENT).unwrap();
        assert_eq!(text, of("Format: x\n", &place::root(), &KEYLIME_AGENT).unwrap());
        assert!(!text.contains("registry/src") && !text.contains(place::root().to_str().unwrap()));
        // Paragraphs are apart, and all of a text is within its own.
        let is_field =
            |line: &str| ["Format:", "Files:", "Copyright:", "License:"].iter().any(|f| line.starts_with(f));
        for line in text.lines() {
            assert!(
                line.is_empty() || line.starts_with(' ') && line.trim() != "" || is_field(line),
                "{line:?}"
            );
        }
    }
}
