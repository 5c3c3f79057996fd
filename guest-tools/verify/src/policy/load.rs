//! From the text of a policy to a [`Policy`]; files that it names are read through a function.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use dolmen_abi::{LaunchFacts, REGISTER_BYTES};
use dolmen_drtm::bank::{PCR_CODE, PCR_CONFIGURATION};
use toml::de::DeTable;

use super::complaint::PolicyError;
use super::read::Table;
use super::{
    AcceptedCode, AcceptedGuest, Components, Configuration, EnrolledKey, FactRules, Policy, TpmRules,
};
use crate::file::read_at_most;
use crate::record;
use crate::reference::Release;

/// Most combinations of a launch image and a core: each is a hash, and a step of every check.
const MOST_COMBINATIONS: usize = 1024;

/// No policy, and no file that one names, is longer.
pub const MAX_POLICY: usize = 16 << 20;

const TOP: &[&str] = &[
    "releases",
    "pcr17",
    "pcr18",
    "launch_image",
    "core",
    "manifest",
    "components",
    "allow_unenrolled",
    "max_launches",
    "guests",
    "keys",
    "tpm",
    "facts",
];
const GUEST: &[&str] = &["g0", "registers"];
const REGISTERS: &[&str] = &["g1", "g2", "g3", "g4", "g5", "g6", "g7"];
const KEY: &[&str] = &["name", "reset_count", "restart_count", "record"];
const TPM: &[&str] = &["min_reset_count", "min_restart_count", "safe_clock", "firmware"];
const FACTS: &[&str] = &["require", "allow"];

/// Every table of a policy with its fields, for the documentation.
pub const FIELDS: &[(&str, &[&str])] = &[
    ("", TOP),
    ("guests.NAME", GUEST),
    ("guests.NAME.registers", REGISTERS),
    ("keys", KEY),
    ("tpm", TPM),
    ("facts", FACTS),
];

/// Reads the file of a name that the policy gives.
type ReadFile<'f> = &'f dyn Fn(&str) -> io::Result<Vec<u8>>;

impl Policy {
    /// Reads a policy that names no files.
    ///
    /// # Errors
    /// [`PolicyError`] points at line and field, and says what was expected there.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        Self::parse_with(text, &|_| {
            Err(io::Error::new(io::ErrorKind::Unsupported, "this program reads policies without files only"))
        })
    }

    /// Reads a policy; files that it names are looked for beside it, in `folder`.
    ///
    /// # Errors
    /// As [`Self::parse`], and for files that cannot be read or are not what they should be.
    pub fn parse_in(text: &str, folder: &Path) -> Result<Self, PolicyError> {
        Self::parse_with(text, &|name| read_at_most(&folder.join(name), MAX_POLICY))
    }

    /// Reads a policy; `read` gives the content of a file that it names.
    ///
    /// # Errors
    /// As [`Self::parse_in`].
    pub fn parse_with(text: &str, read: ReadFile<'_>) -> Result<Self, PolicyError> {
        let parsed = DeTable::parse(text).map_err(|error| {
            PolicyError::new(text, &error.span().unwrap_or_default(), "", error.message().to_owned())
        })?;
        let top = Table::top(text, &parsed, TOP)?;
        let releases = releases(&top, read)?;
        let components = components(&top, &releases)?;
        Ok(Self {
            code: code(&top, &releases)?,
            configuration: configuration(&top, &releases)?,
            guests: guests(&top, &releases)?,
            components,
            releases,
            keys: keys(&top, read)?,
            allow_unenrolled: top.flag("allow_unenrolled")?,
            max_launches: top.number("max_launches", "a number of launches, 0 to 4294967295")?,
            tpm: tpm(&top)?,
            facts: facts(&top)?,
        })
    }
}

fn releases(top: &Table<'_>, read: ReadFile<'_>) -> Result<Vec<Release>, PolicyError> {
    let expected = "the path of a file with reference values, or a list of such paths";
    let mut releases = Vec::new();
    for value in top.one_or_more("releases") {
        let name = top.string_of("releases", value, expected)?;
        let refuse = |why: String| top.wrong(&value.span(), "releases", &format!("{expected}; {why}"));
        let bytes = read(name).map_err(|error| refuse(format!("it cannot be read: {error}")))?;
        releases.push(Release::parse(&bytes, name).map_err(|error| refuse(format!("it is none: {error}")))?);
    }
    Ok(releases)
}

/// Accepted values of PCR 17: those given whole, those of releases, and every launch image with every core.
fn code(top: &Table<'_>, releases: &[Release]) -> Result<Vec<AcceptedCode>, PolicyError> {
    let mut values: Vec<[u8; 32]> = top.digests("pcr17")?;
    values.extend(releases.iter().map(Release::pcr17));
    let (images, cores) = (top.digests::<32>("launch_image")?, top.digests::<32>("core")?);
    for (given, missing) in [("launch_image", "core"), ("core", "launch_image")] {
        if top.has(given) && !top.has(missing) {
            return Err(top.clash(given, &format!("expected `{missing}` too: PCR 17 is made of both")));
        }
    }
    if images.len().saturating_mul(cores.len()) > MOST_COMBINATIONS {
        let message = format!("expected at most {MOST_COMBINATIONS} combinations with `core`");
        return Err(top.clash("launch_image", &message));
    }
    for image in &images {
        values.extend(cores.iter().map(|core| extended(&extended(&[0; 32], image), core)));
    }
    if values.is_empty() {
        return Err(top.clash("pcr17", "expected a value here, or `releases`, or `launch_image` and `core`"));
    }
    values.sort_unstable();
    values.dedup();
    Ok(values.into_iter().map(AcceptedCode::new).collect())
}

fn extended(value: &[u8; 32], digest: &[u8; 32]) -> [u8; 32] {
    dolmen_tpm::crypto::sha256(&[value, digest])
}

/// Accepted values of PCR 18.
fn configuration(top: &Table<'_>, releases: &[Release]) -> Result<Configuration, PolicyError> {
    let is_any = top.find("pcr18").is_some_and(|value| value.get_ref().as_str() == Some("any"));
    let mut values = if is_any { Vec::new() } else { top.digests("pcr18")? };
    values.extend(releases.iter().filter_map(Release::pcr18));
    let (manifests, parts) = (top.digests("manifest")?, top.digests("components")?);
    for (given, missing) in [("manifest", "components"), ("components", "manifest")] {
        if top.has(given) && !top.has(missing) {
            return Err(top.clash(given, &format!("expected `{missing}` too: PCR 18 is made of both")));
        }
    }
    if !is_any && values.is_empty() && manifests.is_empty() {
        let message = "expected a value here, or \"any\", or `releases`, or `manifest` and `components`";
        return Err(top.clash("pcr18", message));
    }
    Ok(Configuration { is_any, values, manifests, parts })
}

/// What is known by component, to name what differs.
fn components(top: &Table<'_>, releases: &[Release]) -> Result<Components, PolicyError> {
    let known = |pcr, index| releases.iter().filter_map(move |release| release.digest_of(pcr, index));
    let mut all = Components {
        launch_images: top.digests("launch_image")?,
        cores: top.digests("core")?,
        manifests: top.digests("manifest")?,
    };
    all.launch_images.extend(known(PCR_CODE, 0));
    all.cores.extend(known(PCR_CODE, 1));
    all.manifests.extend(known(PCR_CONFIGURATION, 0));
    Ok(all)
}

/// Accepted guests: all of the releases, or those that the policy names.
fn guests(top: &Table<'_>, releases: &[Release]) -> Result<BTreeMap<String, AcceptedGuest>, PolicyError> {
    let mut released: BTreeMap<String, Vec<[u8; REGISTER_BYTES]>> = BTreeMap::new();
    for (name, g0) in releases.iter().flat_map(Release::guests) {
        released.entry(name.clone()).or_default().push(*g0);
    }
    let Some(table) = top.open_table("guests")? else {
        if released.is_empty() {
            return Err(top.clash("guests", "expected at least one guest: a table `[guests.NAME]`"));
        }
        let all = released.into_iter();
        return Ok(all.map(|(name, g0)| (name, AcceptedGuest { g0, registers: BTreeMap::new() })).collect());
    };
    let mut guests = BTreeMap::new();
    for name in table.names() {
        let Some(guest) = table.table(name, GUEST)? else { continue };
        let mut g0 = guest.digests("g0")?;
        if g0.is_empty() {
            g0 = released.get(name).cloned().unwrap_or_default();
        }
        if g0.is_empty() {
            return Err(
                guest.clash("g0", "expected the guest's identity: no release has a guest of this name")
            );
        }
        guests.insert(name.to_owned(), AcceptedGuest { g0, registers: registers(&guest)? });
    }
    if guests.is_empty() { Err(top.clash("guests", "expected at least one guest")) } else { Ok(guests) }
}

fn registers(guest: &Table<'_>) -> Result<BTreeMap<usize, Vec<[u8; REGISTER_BYTES]>>, PolicyError> {
    let Some(table) = guest.table("registers", REGISTERS)? else { return Ok(BTreeMap::new()) };
    let mut registers = BTreeMap::new();
    for (index, name) in (1..).zip(REGISTERS) {
        let values = table.digests(name)?;
        if !values.is_empty() {
            registers.insert(index, values);
        }
    }
    Ok(registers)
}

/// Enrolled keys: each by its Name, or by the record that an enrolment made.
fn keys(top: &Table<'_>, read: ReadFile<'_>) -> Result<Vec<EnrolledKey>, PolicyError> {
    let (mut keys, mut names) = (Vec::new(), BTreeSet::new());
    for table in top.tables("keys", KEY)? {
        let key = key(&table, read)?;
        if !names.insert(key.name) {
            let field = if key.record.is_some() { "record" } else { "name" };
            return Err(table.clash(field, "expected a key that no earlier entry has"));
        }
        keys.push(key);
    }
    Ok(keys)
}

fn key(key: &Table<'_>, read: ReadFile<'_>) -> Result<EnrolledKey, PolicyError> {
    let expected = "the path of an enrolment record";
    if let Some(path) = key.string("record", expected)? {
        if let Some(other) = KEY.iter().find(|name| **name != "record" && key.has(name)) {
            return Err(key.clash(other, "not beside `record`, which says it already"));
        }
        let refuse = |why: String| key.clash("record", &format!("expected {expected}; {why}"));
        let bytes = read(path).map_err(|error| refuse(format!("{path} cannot be read: {error}")))?;
        return record::read(&bytes, path).map_err(|error| refuse(format!("{path} is none: {error}")));
    }
    let name = key.digests("name")?;
    let [name] = name.as_slice() else {
        return Err(key.clash("name", "expected the key's Name, one value of 34 bytes in hex, or a `record`"));
    };
    let count = |field| key.number(field, "a count, 0 to 4294967295");
    Ok(EnrolledKey {
        name: *name,
        reset_count: count("reset_count")?.unwrap_or(0),
        restart_count: count("restart_count")?.unwrap_or(0),
        record: None,
    })
}

fn tpm(top: &Table<'_>) -> Result<TpmRules, PolicyError> {
    let Some(table) = top.table("tpm", TPM)? else { return Ok(TpmRules::default()) };
    let count = |field| table.number(field, "a count, 0 to 4294967295");
    let (resets, restarts) = (count("min_reset_count")?, count("min_restart_count")?);
    let firmware = table.one_or_more("firmware").into_iter().map(|value| {
        table.number_of(
            "firmware",
            value,
            "a firmware version of 64 bits, such as 0x2020031800120000, or a list of them",
        )
    });
    if restarts.is_some() && resets.is_none() {
        let message = "expected `min_reset_count` too: a reset of the TPM sets the restart count to zero";
        return Err(table.clash("min_restart_count", message));
    }
    let min_counts = resets.map(|resets| (resets, restarts.unwrap_or(0)));
    Ok(TpmRules {
        min_counts,
        safe_clock: table.flag("safe_clock")?,
        firmware: firmware.collect::<Result<_, _>>()?,
    })
}

fn facts(top: &Table<'_>) -> Result<FactRules, PolicyError> {
    let mut rules = FactRules::default();
    let Some(table) = top.table("facts", FACTS)? else { return Ok(rules) };
    if table.has("require") {
        rules.require = fact_list(&table, "require")?;
    }
    if table.has("allow") {
        rules.allow = fact_list(&table, "allow")?;
    }
    Ok(rules)
}

fn fact_list(table: &Table<'_>, field: &str) -> Result<LaunchFacts, PolicyError> {
    let never = LaunchFacts::DEBUG.union(LaunchFacts::UNMEASURED);
    let known = || LaunchFacts::ALL.iter().filter(|(bit, ..)| !never.contains(*bit));
    let expected = || {
        let names: Vec<&str> = known().map(|(_, name, _)| *name).collect();
        format!("launch facts: {}", names.join(", "))
    };
    let mut facts = LaunchFacts::empty();
    for value in table.one_or_more(field) {
        let name = table.string_of(field, value, &expected())?;
        if let Some((bit, ..)) = known().find(|(_, known, _)| *known == name) {
            facts.insert(*bit);
        } else if LaunchFacts::ALL.iter().any(|(_, known, _)| *known == name) {
            return Err(table.wrong(&value.span(), field, "no fact that is always refused"));
        } else {
            return Err(table.wrong(&value.span(), field, &expected()));
        }
    }
    Ok(facts)
}
