//! What programs link, as cargo knows it: `cargo tree` says what each links on its own target with its own features,
//! `cargo metadata` what those packages are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::artifact::Program;
use crate::process;

/// Where packages come from that have a checksum in the lock file.
const REGISTRY: &str = "registry+";

/// A package, as cargo knows it.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) license: Option<String>,
    pub(crate) description: Option<String>,
    source: Option<String>,
    manifest_path: PathBuf,
}

impl Package {
    /// Whether it is somebody else's.
    pub(crate) fn is_foreign(&self) -> bool {
        self.source.as_ref().is_some_and(|source| source.starts_with(REGISTRY))
    }

    /// The folder with its sources.
    pub(crate) fn folder(&self) -> Result<&Path> {
        self.manifest_path.parent().context("a package without a folder")
    }
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

/// Name and version.
pub(crate) type Id = (String, String);
/// What each package links.
pub(crate) type Edges = BTreeMap<Id, BTreeSet<Id>>;

fn cargo(root: &Path) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root).env("CARGO_TERM_COLOR", "never");
    command
}

/// Adds what `program` links to `edges`, by edges of these kinds; its own package comes back.
pub(crate) fn links(root: &Path, program: &Program, kinds: &str, edges: &mut Edges) -> Result<Id> {
    let mut command = cargo(root);
    command.args(["tree", "--locked", "--edges", kinds, "--prefix", "depth", "--no-dedupe"]);
    command.args(["--format", " {p}", "--package", program.package, "--target", program.target]);
    command.args(["--features", program.features]);
    add(&process::output(&mut command)?, edges)
}

/// Reads what `cargo tree` prints: on each line depth, name, `v` and version, and perhaps more.
fn add(tree: &str, edges: &mut Edges) -> Result<Id> {
    let mut above: Vec<Id> = Vec::new();
    for line in tree.lines().filter(|line| !line.is_empty()) {
        let mut words = line.split_whitespace();
        let (depth, name, version) = (words.next(), words.next(), words.next());
        let depth: usize = depth.and_then(|depth| depth.parse().ok()).context("cargo tree: no depth")?;
        let (Some(name), Some(version)) = (name, version.and_then(|version| version.strip_prefix('v')))
        else {
            bail!("cargo tree: `{line}` is no package");
        };
        let id = (name.to_owned(), version.to_owned());
        edges.entry(id.clone()).or_default();
        above.truncate(depth);
        if let Some(parent) = above.last() {
            edges.entry(parent.clone()).or_default().insert(id.clone());
        }
        above.push(id);
    }
    above.into_iter().next().context("cargo tree: nothing")
}

/// All packages of the workspace in `root`, and those that they need.
pub(crate) fn packages(root: &Path) -> Result<BTreeMap<Id, Package>> {
    let text = process::output(cargo(root).args(["metadata", "--locked", "--format-version", "1"]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("cargo metadata")?;
    let named = metadata.packages.into_iter();
    Ok(named.map(|package| ((package.name.clone(), package.version.clone()), package)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_becomes_edges() {
        let tree = "0 a v1.0.0 (/somewhere)\n1 b v2.0.0\n2 c v3.0.0 (proc-macro)\n1 c v3.0.0\n\n";
        let mut edges = Edges::new();
        assert_eq!(add(tree, &mut edges).unwrap().0, "a");
        let id = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        assert_eq!(edges[&id("a", "1.0.0")], [id("b", "2.0.0"), id("c", "3.0.0")].into());
        assert_eq!(edges[&id("b", "2.0.0")], [id("c", "3.0.0")].into());
        assert!(edges[&id("c", "3.0.0")].is_empty());
        assert!(add("no tree at all\n", &mut Edges::new()).is_err());
    }
}
