//! Twin folders for two makers' processors: their words stay inside, and one can be read beside the other.

use std::path::{Component, Path};

use super::Source;

/// Folders that are twins.
const TWINS: [&str; 2] = ["svm", "vmx"];
/// What the makers call their control blocks; both words are joined here, since this file is no vendor's.
const WORDS: [&str; 2] = [concat!("vm", "cb"), concat!("vm", "cs")];

/// What is wrong with sources and documents.
pub(super) fn complaints(sources: &[Source], documents: &[Source]) -> Vec<String> {
    let words = sources.iter().chain(documents).filter(|source| !is_vendors(&source.path)).flat_map(strange);
    words.chain(sources.iter().filter_map(|source| disorder(source, sources))).collect()
}

fn is_vendors(path: &Path) -> bool {
    path.components().any(|part| TWINS.iter().any(|twin| part == Component::Normal(twin.as_ref())))
}

/// Lines that use a vendor's word outside of its folder.
fn strange(source: &Source) -> Vec<String> {
    let has_word = |line: &str| WORDS.iter().any(|word| line.to_lowercase().contains(word));
    let lines = (1..).zip(source.text.lines()).filter(|(_, line)| has_word(line));
    lines
        .map(|(number, _): (u32, _)| format!("{}:{number}: a vendor's word", source.path.display()))
        .collect()
}

/// Whether the functions that a file shares with its twin come in another order there.
fn disorder(source: &Source, sources: &[Source]) -> Option<String> {
    let [ours, theirs] = TWINS.map(|twin| format!("/{twin}/"));
    let path = source.path.to_str()?;
    let twin_path = path.contains(&ours).then(|| path.replace(&ours, &theirs))?;
    let twin = sources.iter().find(|other| other.path == Path::new(&twin_path))?;
    let (here, there) = (functions(&source.text), functions(&twin.text));
    let of_both = |names: &[String], others: &[String]| -> Vec<String> {
        names.iter().filter(|name| others.contains(name)).cloned().collect()
    };
    let (here, there) = (of_both(&here, &there), of_both(&there, &here));
    (here != there).then(|| format!("{path}: {here:?}, but {twin_path}: {there:?}"))
}

/// The names of a file's functions, each once, before its tests.
fn functions(text: &str) -> Vec<String> {
    let code = text.split_once("#[cfg(test)]").map_or(text, |(code, _)| code);
    let mut names: Vec<String> = Vec::new();
    for line in code.lines().map(str::trim_start).filter(|line| !line.starts_with("//")) {
        let Some((before, after)) = line.split_once("fn ") else { continue };
        let is_definition = before.split_whitespace().all(|word| {
            word.starts_with("pub") || word.starts_with('"') || ["const", "unsafe", "extern"].contains(&word)
        });
        let name: String = after.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        if is_definition && !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.to_owned() }
    }

    #[test]
    fn a_vendors_word_is_found_outside_of_its_folder_only() {
        let text = format!("// the {}\n", WORDS[0].to_uppercase());
        let found = complaints(&[source("a/svm/b.rs", &text), source("a/b.rs", &text)], &[]);
        assert_eq!(found, ["a/b.rs:1: a vendor's word"]);
        assert_eq!(complaints(&[], &[source("docs/a.md", &text)]).len(), 1);
    }

    #[test]
    fn twins_have_what_they_share_in_one_order() {
        let svm = source("a/svm/b.rs", "fn one() {}\n    pub(super) const fn two() {}\nfn own() {}\n");
        let vmx = "unsafe extern \"C\" fn two() {}\nfn one() {}\n";
        assert_eq!(complaints(&[svm.clone(), source("a/vmx/b.rs", vmx)], &[]).len(), 1);
        let vmx = "fn one() {}\nfn other() {}\nfn two() {}\n";
        assert!(complaints(&[svm, source("a/vmx/b.rs", vmx)], &[]).is_empty());
    }
}
