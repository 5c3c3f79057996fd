//! Tests that documents name: each is there, and each claim of the threat model names one.

use std::collections::HashSet;

use super::Source;

/// The document whose claims are tested.
const CLAIMS: &str = "threat-model.md";
/// What stands before the tests of a claim there.
const TESTS: &str = "*Tests*";
/// Tests have sentences for names: that many words at least.
const WORDS: usize = 4;
/// Where tests on machines have their names in texts.
const MACHINES: [&str; 3] = ["build/src/e2e/", "build/src/test/", "tests/guest/src/"];

/// What is wrong with what documents say of tests.
pub(super) fn complaints(sources: &[Source], documents: &[Source]) -> Vec<String> {
    let tests: HashSet<String> = sources.iter().flat_map(tests).collect();
    let mut complaints = Vec::new();
    for document in documents {
        let path = document.path.display();
        for name in names(&document.text).filter(|name| !tests.contains(*name)) {
            complaints.push(format!("{path}: names the test `{name}`, which does not exist"));
        }
        if document.path.ends_with(CLAIMS) {
            let unnamed = claims(&document.text).filter(|claim| names(claim).next().is_none());
            complaints.extend(unnamed.map(|claim| format!("{path}: no test is named: {}", start(claim))));
        }
    }
    complaints
}

/// What a document names in backticks that can only be a test.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let is_of_names = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '\'';
    text.split('`').filter(move |span| span.chars().all(is_of_names) && span.split('_').count() >= WORDS)
}

/// What a document says of the tests of each claim, to the end of the paragraph.
fn claims(text: &str) -> impl Iterator<Item = &str> {
    text.split(TESTS).skip(1).map(|rest| rest.split("\n\n").next().unwrap_or_default())
}

fn start(claim: &str) -> &str {
    claim.lines().next().unwrap_or_default().trim_start_matches(':').trim()
}

/// The names of a file's tests: functions with the attribute, and on machines the texts that may be a case's sentence.
fn tests(source: &Source) -> Vec<String> {
    let mut found: Vec<String> = source.text.split("#[test]").skip(1).filter_map(function).collect();
    if MACHINES.iter().any(|folder| source.path.starts_with(folder)) {
        found.extend(source.text.split('"').map(|text| text.replace(' ', "_")));
    }
    found
}

/// The name of the first function in this text.
fn function(text: &str) -> Option<String> {
    let (_, after) = text.split_once("fn ")?;
    Some(after.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.to_owned() }
    }

    fn said_of(document: &str) -> Vec<String> {
        let sources = [
            source("a/b.rs", "#[test]\nfn a_lie_is_always_found() {}\nfn a_lie_is_never_told() {}\n"),
            source("build/src/e2e/c.rs", "Case { name: \"a whole machine is attacked\", run: x }"),
        ];
        complaints(&sources, &[source("docs/threat-model.md", document)])
    }

    #[test]
    fn tests_that_exist_may_be_named() {
        let text = "*Tests*: lies (`a_lie_is_always_found`).\n\n*Tests*: `a_whole_machine_is_attacked`; `snake_case`.\n";
        assert_eq!(said_of(text), [""; 0]);
    }

    #[test]
    fn a_test_that_does_not_exist_may_not() {
        let found = said_of("*Tests*: `a_lie_is_always_found`, `a_lie_is_never_told`.\n");
        assert_eq!(
            found,
            ["docs/threat-model.md: names the test `a_lie_is_never_told`, which does not exist"]
        );
    }

    #[test]
    fn a_claim_without_a_test_is_found() {
        let found = said_of("*Tests*: lies.\n\nMore (`a_lie_is_always_found`).\n");
        assert_eq!(found, ["docs/threat-model.md: no test is named: lies."]);
    }
}
