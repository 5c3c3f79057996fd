//! What the programs of a release are made of, as CycloneDX 1.5 in JSON.
//!
//! `cargo tree` says what each program links on its own target with its own features, `cargo metadata` what those packages
//! are, and the lock file which bytes they were. Written by hand, since the form is small and the library for it brings
//! an XML reader and a generator of random serial numbers; a test reads it back with that library.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::artifact::{Program, RELEASED};
use crate::{place, process};

/// Where packages come from that have a checksum in the lock file.
const REGISTRY: &str = "registry+";

/// A package, as cargo knows it.
#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    description: Option<String>,
    source: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Debug, Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Toolchain {
    toolchain: Channel,
}

#[derive(Debug, Deserialize)]
struct Channel {
    channel: String,
}

/// Name and version.
type Id = (String, String);
/// What each package links.
type Edges = BTreeMap<Id, BTreeSet<Id>>;

/// One component, in the order of its fields.
#[derive(Debug, Serialize)]
struct Component {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(rename = "bom-ref")]
    reference: String,
    name: String,
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hashes: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    licenses: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purl: Option<String>,
}

/// The list of what the programs in `folder`, built from the sources in `root`, are made of.
pub(super) fn of(root: &Path, folder: &Path) -> Result<String> {
    let mut edges = Edges::new();
    let mut components = Vec::new();
    let mut dependencies = BTreeMap::new();
    for program in &RELEASED {
        let top = links(root, program, &mut edges)?;
        let digest = hex::encode(Sha256::digest(place::read(&folder.join(program.output))?));
        components.push(file(program, &digest));
        dependencies.insert(reference_of_file(program), BTreeSet::from([reference(&top), rust().to_owned()]));
    }
    let packages = packages(root)?;
    let checksums = checksums(root)?;
    for id in edges.keys() {
        let package =
            packages.get(id).with_context(|| format!("cargo knows nothing of {} {}", id.0, id.1))?;
        components.push(library(package, checksums.get(id)));
    }
    components.push(toolchain(root)?);
    for (id, linked) in &edges {
        dependencies.insert(reference(id), linked.iter().map(reference).collect());
    }
    let dependencies: Vec<Value> =
        dependencies.iter().map(|(from, to)| json!({ "ref": from, "dependsOn": to })).collect();
    let whole = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "firmware",
                "bom-ref": "dolmen",
                "name": "dolmen",
                "version": env!("CARGO_PKG_VERSION"),
                "licenses": [{ "expression": env!("CARGO_PKG_LICENSE") }],
            },
        },
        "components": components,
        "dependencies": dependencies,
    });
    Ok(format!("{}\n", serde_json::to_string_pretty(&whole)?))
}

fn cargo(root: &Path) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root).env("CARGO_TERM_COLOR", "never");
    command
}

/// Adds what `program` links to `edges`; its own package comes back.
fn links(root: &Path, program: &Program, edges: &mut Edges) -> Result<Id> {
    let mut command = cargo(root);
    command.args([
        "tree",
        "--locked",
        "--edges",
        "normal",
        "--prefix",
        "depth",
        "--no-dedupe",
        "--format",
        " {p}",
    ]);
    command.args(["--package", program.package, "--target", program.target, "--features", program.features]);
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

fn packages(root: &Path) -> Result<BTreeMap<Id, Package>> {
    let text = process::output(cargo(root).args(["metadata", "--locked", "--format-version", "1"]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("cargo metadata")?;
    let named = metadata.packages.into_iter();
    Ok(named.map(|package| ((package.name.clone(), package.version.clone()), package)).collect())
}

fn checksums(root: &Path) -> Result<BTreeMap<Id, String>> {
    let lock: Lock = toml::from_str(&String::from_utf8(place::read(&root.join("Cargo.lock"))?)?)?;
    let locked = lock.package.into_iter();
    Ok(locked.filter_map(|package| Some(((package.name, package.version), package.checksum?))).collect())
}

fn reference(id: &Id) -> String {
    format!("{}@{}", id.0, id.1)
}

fn reference_of_file(program: &Program) -> String {
    format!("file:{}", program.output)
}

const fn rust() -> &'static str {
    "rust"
}

fn sha256(digest: &str) -> Vec<Value> {
    vec![json!({ "alg": "SHA-256", "content": digest })]
}

fn file(program: &Program, digest: &str) -> Component {
    Component {
        kind: "firmware",
        reference: reference_of_file(program),
        name: program.output.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        description: Some(program.what.to_owned()),
        hashes: sha256(digest),
        licenses: vec![json!({ "expression": env!("CARGO_PKG_LICENSE") })],
        purl: None,
    }
}

fn library(package: &Package, checksum: Option<&String>) -> Component {
    let is_foreign = package.source.as_ref().is_some_and(|source| source.starts_with(REGISTRY));
    Component {
        kind: "library",
        reference: reference(&(package.name.clone(), package.version.clone())),
        name: package.name.clone(),
        version: package.version.clone(),
        description: package
            .description
            .as_ref()
            .map(|text| text.split_whitespace().collect::<Vec<_>>().join(" ")),
        hashes: checksum.map(|checksum| sha256(checksum)).unwrap_or_default(),
        // Older packages write a slash where the expression has OR.
        licenses: package
            .license
            .iter()
            .map(|text| json!({ "expression": text.replace('/', " OR ") }))
            .collect(),
        purl: is_foreign.then(|| format!("pkg:cargo/{}@{}", package.name, package.version)),
    }
}

/// The compiler's own libraries are linked too.
fn toolchain(root: &Path) -> Result<Component> {
    let text = String::from_utf8(place::read(&root.join("rust-toolchain.toml"))?)?;
    let Toolchain { toolchain } = toml::from_str(&text)?;
    Ok(Component {
        kind: "library",
        reference: rust().to_owned(),
        name: "rust".to_owned(),
        version: toolchain.channel,
        description: Some("core, alloc and compiler_builtins of the Rust toolchain".to_owned()),
        hashes: Vec::new(),
        licenses: vec![json!({ "expression": "MIT OR Apache-2.0" })],
        purl: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cyclonedx_bom::prelude::{Bom, Validate};

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

    #[test]
    fn the_list_is_read_by_the_library_of_its_makers_and_has_what_is_linked() {
        let folder = tempfile::tempdir().unwrap();
        for program in &RELEASED {
            std::fs::write(folder.path().join(program.output), program.output).unwrap();
        }
        let text = of(&place::root(), folder.path()).unwrap();
        assert_eq!(text, of(&place::root(), folder.path()).unwrap());
        assert!(!text.contains(place::root().to_str().unwrap()));
        let bom = Bom::parse_from_json_v1_5(text.as_bytes()).unwrap();
        assert!(bom.validate().passed(), "{:?}", bom.validate());
        let components = bom.components.unwrap().0;
        let find = |name: &str| components.iter().find(|component| component.name.to_string() == name);
        for name in
            ["launch.bin", "core.bin", "loader.elf", "loader.efi", "dolmen-core", "sha2", "uefi", "rust"]
        {
            assert!(find(name).is_some(), "{name}");
        }
        // What only verifies, builds or tests is not in it.
        for name in ["serde_json", "clap", "minicbor", "proptest", "xtask"] {
            assert!(find(name).is_none(), "{name}");
        }
        let sha2 = find("sha2").unwrap();
        assert!(sha2.hashes.is_some() && sha2.licenses.is_some() && sha2.purl.is_some());
        let linked = bom.dependencies.unwrap().0;
        let of_file = |file: &str| linked.iter().find(|entry| entry.dependency_ref == file).unwrap();
        assert!(of_file("file:core.bin").dependencies.iter().any(|id| id.starts_with("dolmen-core@")));
    }
}
