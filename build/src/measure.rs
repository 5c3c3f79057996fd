//! `cargo xtask measure`: reference values from files alone, without a machine and without a TPM.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use dolmen_drtm::digest::Algorithm;
use dolmen_drtm::predict;
use dolmen_vm::manifest::{ComponentConfig, ComponentDigest, measure_guest};
use serde::Serialize;

use crate::image::Parts;
use crate::manifest::Manifest;
use crate::{artifact, place, setup, ui};

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

/// Reference values of one configuration.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub(crate) struct Reference {
    /// Bytes of the launch image that the processor measures.
    pub(crate) launch_bytes: usize,
    /// PCR 17 and 18 in each bank.
    pub(crate) banks: Vec<Bank>,
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

/// One guest.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub(crate) struct Guest {
    /// Name.
    pub(crate) name: String,
    /// Its identity: register G0.
    pub(crate) g0: String,
}

impl Reference {
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
    let launch = place::read(&parts.launch)?;
    let core = place::read(&parts.core)?;
    let files = Files::read(manifest)?;
    let events = files.events(manifest);
    let mut banks = Vec::new();
    for algorithm in Algorithm::ALL {
        let code = predict::pcr17(algorithm, &launch, &core)
            .map_err(|error| anyhow!("{} is no launch image: {error:?}", parts.launch.display()))?;
        let configuration = predict::pcr18(algorithm, events.iter().copied());
        banks.push(Bank {
            bank: bank_name(algorithm),
            pcr17: hex::encode(code.bytes()),
            pcr18: hex::encode(configuration.bytes()),
        });
    }
    let measured = predict::measured_part(&launch)
        .map_err(|error| anyhow!("{} is no launch image: {error:?}", parts.launch.display()))?;
    Ok(Reference { launch_bytes: measured.len(), banks, guests: files.identities(manifest)? })
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

    /// What is extended into PCR 18, in order.
    fn events<'a>(&'a self, manifest: &'a Manifest) -> Vec<&'a [u8]> {
        let mut events = vec![manifest.bytes.as_slice()];
        for (guest, files) in manifest.guests.iter().zip(&self.guests) {
            let measured =
                guest.files.iter().zip(files).filter(|(file, _)| file.kind != ComponentConfig::DATA);
            events.extend(measured.map(|(_, bytes)| bytes.as_slice()));
            events.push(guest.config.cmdline());
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
