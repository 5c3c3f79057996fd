//! `cargo xtask measure`: reference values from files alone, without a machine and without a TPM.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use dolmen_drtm::bank::{PCR_CODE, PCR_CONFIGURATION};
use dolmen_drtm::digest::Algorithm;
use dolmen_drtm::log::{CORE_EVENT, LAUNCH_EVENT, MANIFEST_EVENT};
use dolmen_drtm::predict;
use dolmen_vm::manifest::{ComponentConfig, ComponentDigest, measure_guest};
use serde::Serialize;

use crate::image::Parts;
use crate::manifest::Manifest;
use crate::{artifact, place, setup, ui};

/// What the JSON form is, and its version: what `dolmen-verify` knows it by.
const FORMAT: &str = "dolmen-reference-values-1";

/// What the user chose.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Manifest to measure.
    #[arg(long, default_value = "dolmen.toml")]
    manifest: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Reference values of one configuration, in the form that `dolmen-verify` reads (`docs/verify.md`).
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub(crate) struct Reference {
    /// What this is, and the version of the form.
    pub(crate) format: &'static str,
    /// Bytes of the launch image that the processor measures.
    pub(crate) launch_bytes: usize,
    /// PCR 17 and 18 in each bank.
    pub(crate) banks: Vec<Bank>,
    /// What is extended, in order.
    pub(crate) events: Vec<Event>,
    /// Guests in order.
    pub(crate) guests: Vec<Guest>,
}

/// One PCR bank.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub(crate) struct Bank {
    /// Name as tpm2-tools write it.
    pub(crate) bank: &'static str,
    /// Launch image and core.
    pub(crate) pcr17: String,
    /// Manifest and guests.
    pub(crate) pcr18: String,
}

/// One extend.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub(crate) struct Event {
    /// Register.
    pub(crate) pcr: u8,
    /// What the event log calls it.
    pub(crate) event: String,
    /// Digest by bank.
    pub(crate) digests: BTreeMap<&'static str, String>,
}

impl Event {
    fn of(pcr: u8, event: impl Into<String>, bytes: &[u8]) -> Self {
        let digests = Algorithm::ALL.map(|a| (bank_name(a), hex::encode(a.hash(&[bytes]).bytes())));
        Self { pcr, event: event.into(), digests: digests.into() }
    }
}

/// One guest.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub(crate) struct Guest {
    /// Name.
    pub(crate) name: String,
    /// Its identity: register G0.
    pub(crate) g0: String,
}

/// Register values by bank.
pub(crate) type Registers = BTreeMap<u8, BTreeMap<&'static str, String>>;

/// Reference values of launch image and core alone.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub(crate) struct CodeReference {
    format: &'static str,
    launch_bytes: usize,
    banks: Vec<CodeBank>,
    /// What is extended into PCR 17, in order.
    pub(crate) events: Vec<Event>,
    /// None: there is no manifest.
    guests: [Guest; 0],
}

/// PCR 17 of one bank.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
struct CodeBank {
    bank: &'static str,
    pcr17: String,
}

impl CodeReference {
    /// The registers.
    pub(crate) fn registers(&self) -> Registers {
        let values = self.banks.iter().map(|bank| (bank.bank, bank.pcr17.clone()));
        [(PCR_CODE, values.collect())].into()
    }
}

impl Reference {
    /// The registers.
    pub(crate) fn registers(&self) -> Registers {
        let code = self.banks.iter().map(|bank| (bank.bank, bank.pcr17.clone())).collect();
        let configuration = self.banks.iter().map(|bank| (bank.bank, bank.pcr18.clone())).collect();
        [(PCR_CODE, code), (PCR_CONFIGURATION, configuration)].into()
    }

    /// The values of one bank.
    pub(crate) fn bank(&self, name: &str) -> Result<&Bank> {
        self.banks.iter().find(|bank| bank.bank == name).with_context(|| format!("no bank {name}"))
    }
}

/// Computes and prints the reference values of a manifest.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.json {
        ui::data_only();
    }
    Manifest::check_early(&options.manifest)?;
    let artifacts = artifact::build(&setup::ensure()?)?;
    let manifest = Manifest::load(&options.manifest)?;
    let reference =
        reference(&Parts::collect(&artifacts, &manifest, artifacts.file("manifest.bin"))?, &manifest)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&reference)?);
    } else {
        show(&reference);
    }
    Ok(())
}

pub(crate) fn show(reference: &Reference) {
    ui::heading("Reference values, computed from the files");
    ui::note(&format!("the processor measures {} bytes", reference.launch_bytes));
    for bank in &reference.banks {
        ui::note(&format!("{:<7} PCR 17  {}", bank.bank, bank.pcr17));
        ui::note(&format!("{:<7} PCR 18  {}", bank.bank, bank.pcr18));
    }
    for guest in &reference.guests {
        ui::note(&format!("{} G0  {}", guest.name, guest.g0));
    }
}

/// Predicts every register from the files that an image or a Multiboot start carries.
pub(crate) fn reference(parts: &Parts, manifest: &Manifest) -> Result<Reference> {
    let CodeReference { format, launch_bytes, banks, mut events, guests: [] } =
        code(&parts.launch, &parts.core)?;
    let files = Files::read(manifest)?;
    let configuration = files.events(manifest);
    let bank = |(algorithm, CodeBank { bank, pcr17 })| {
        let pcr18 = predict::pcr18(algorithm, configuration.iter().map(|(_, bytes)| *bytes));
        Bank { bank, pcr17, pcr18: hex::encode(pcr18.bytes()) }
    };
    let banks = Algorithm::ALL.into_iter().zip(banks).map(bank).collect();
    let guests = files.identities(manifest)?;
    events.extend(configuration.into_iter().map(|(name, bytes)| Event::of(PCR_CONFIGURATION, name, bytes)));
    Ok(Reference { format, launch_bytes, banks, events, guests })
}

/// Predicts PCR 17 from launch image and core.
pub(crate) fn code(launch: &Path, core: &Path) -> Result<CodeReference> {
    let (image, core) = (place::read(launch)?, place::read(core)?);
    let refuse = |error| anyhow!("{} is no launch image: {error:?}", launch.display());
    let measured = predict::measured_part(&image).map_err(refuse)?;
    let mut banks = Vec::new();
    for algorithm in Algorithm::ALL {
        let pcr17 = predict::pcr17(algorithm, &image, &core).map_err(refuse)?;
        banks.push(CodeBank { bank: bank_name(algorithm), pcr17: hex::encode(pcr17.bytes()) });
    }
    let events = vec![
        Event::of(PCR_CODE, String::from_utf8_lossy(LAUNCH_EVENT), measured),
        Event::of(PCR_CODE, String::from_utf8_lossy(CORE_EVENT), &core),
    ];
    Ok(CodeReference { format: FORMAT, launch_bytes: measured.len(), banks, events, guests: [] })
}

pub(crate) const fn bank_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Sha1 => "sha1",
        Algorithm::Sha256 => "sha256",
        Algorithm::Sha384 => "sha384",
        Algorithm::Sha512 => "sha512",
    }
}

/// The bytes of all components, guest by guest.
#[derive(Debug)]
struct Files {
    guests: Vec<Vec<Vec<u8>>>,
}

impl Files {
    fn read(manifest: &Manifest) -> Result<Self> {
        let guests = manifest
            .guests
            .iter()
            .map(|guest| guest.files.iter().map(|file| place::read(&file.path)).collect::<Result<Vec<_>>>())
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { guests })
    }

    /// What is extended into PCR 18, in order: name and bytes.
    fn events<'a>(&'a self, manifest: &'a Manifest) -> Vec<(String, &'a [u8])> {
        let mut events =
            vec![(String::from_utf8_lossy(MANIFEST_EVENT).into_owned(), manifest.bytes.as_slice())];
        for (guest, files) in manifest.guests.iter().zip(&self.guests) {
            let named = files.iter().enumerate().filter_map(|(index, bytes)| {
                guest.config.component_event(index).map(|name| (name.to_string(), bytes.as_slice()))
            });
            events.extend(named);
            events.push((guest.config.cmdline_event().to_string(), guest.config.cmdline()));
        }
        events
    }

    fn identities(&self, manifest: &Manifest) -> Result<Vec<Guest>> {
        let mut guests = Vec::new();
        for (guest, files) in manifest.guests.iter().zip(&self.guests) {
            let measured =
                guest.files.iter().zip(files).filter(|(file, _)| file.kind != ComponentConfig::DATA);
            let digests: Vec<_> =
                measured.map(|(file, bytes)| ComponentDigest::of(file.kind, bytes)).collect();
            let g0 = measure_guest(&guest.config, &digests).context("components do not fit the manifest")?;
            guests.push(Guest { name: guest.name.clone(), g0: hex::encode(g0) });
        }
        Ok(guests)
    }
}
