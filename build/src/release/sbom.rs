//! What the programs of a release are made of, as CycloneDX 1.5 in JSON.
//!
//! Cargo says what each program links and what those packages are, the lock file which bytes they were. Written by hand, since the form is small and the library for it brings
//! an XML reader and a generator of random serial numbers; a test reads it back with that library.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::artifact::{Program, RELEASED};
use crate::linked::{self, Edges, Id, Package};
use crate::place;

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
        let top = linked::links(root, program, "normal", &mut edges)?;
        let digest = hex::encode(Sha256::digest(place::read(&folder.join(program.output))?));
        components.push(file(program, &digest));
        dependencies.insert(reference_of_file(program), BTreeSet::from([reference(&top), rust().to_owned()]));
    }
    let packages = linked::packages(root)?;
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
        purl: package.is_foreign().then(|| format!("pkg:cargo/{}@{}", package.name, package.version)),
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
