//! The keys of a launch, in the hands of somebody who holds the TPM but is not the launched hypervisor.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::launch;
use super::{Case, Scene};
use crate::lab;
use crate::machine::relay::ToolTpm;
use crate::place;

/// The tests of this file.
pub(super) const CASES: &[Case] = &[
    Case { name: "the_attestation_key_signs_at_locality_2_only", run: localities },
    Case { name: "the_attestation_key_does_not_sign_after_an_evil_relaunch", run: evil_relaunch },
];

/// The attestation key, made again from its public template.
struct Key<'a> {
    tpm: &'a ToolTpm,
    folder: &'a Path,
}

impl<'a> Key<'a> {
    /// Makes the key: anybody can. Its policy is computed by a trial session from the TPM's present PCR 17.
    fn make(tpm: &'a ToolTpm, folder: &'a Path) -> Result<Self> {
        let key = Self { tpm, folder };
        key.tool("tpm2_startauthsession", &["-S", "@trial"])?;
        key.tool("tpm2_policypcr", &["-S", "@trial", "-l", "sha256:17"])?;
        key.tool("tpm2_policylocality", &["-S", "@trial", "-L", "@policy", "two"])?;
        key.tool("tpm2_flushcontext", &["@trial"])?;
        key.create()?;
        Ok(key)
    }

    fn create(&self) -> Result<()> {
        let attributes = "fixedtpm|fixedparent|sensitivedataorigin|restricted|sign";
        self.tool(
            "tpm2_createprimary",
            &[
                "-C",
                "e",
                "-g",
                "sha256",
                "-G",
                "ecc256:ecdsa-sha256:null",
                "-L",
                "@policy",
                "-a",
                attributes,
                "-c",
                "@key",
            ],
        )?;
        self.tool("tpm2_readpublic", &["-c", "@key", "-o", "@public"])?;
        self.tool("tpm2_flushcontext", &["-t"])
    }

    /// Its public part.
    fn public(&self) -> Result<Vec<u8>> {
        place::read(&self.folder.join("public"))
    }

    /// Signs a quote at this locality, with the policy satisfied as far as the TPM lets it be.
    fn sign(&self, locality: u8) -> Result<()> {
        self.tpm.set_locality(locality)?;
        let signed = self.try_sign();
        // Leaves no session behind, whatever came of it.
        drop(self.tool("tpm2_flushcontext", &["-l"]));
        drop(self.tool("tpm2_flushcontext", &["-t"]));
        self.tpm.set_locality(0)?;
        signed
    }

    fn try_sign(&self) -> Result<()> {
        self.tool("tpm2_startauthsession", &["--policy-session", "-S", "@session"])?;
        self.tool("tpm2_policypcr", &["-S", "@session", "-l", "sha256:17"])?;
        self.tool("tpm2_policylocality", &["-S", "@session", "two"])?;
        self.tool(
            "tpm2_quote",
            &[
                "-c",
                "@key",
                "-p",
                "session:@session",
                "-l",
                "sha256:17,18",
                "-g",
                "sha256",
                "-m",
                "@message",
                "-s",
                "@signature",
            ],
        )
    }

    /// Runs a tool; `@name` is a file of ours.
    fn tool(&self, name: &str, arguments: &[&str]) -> Result<()> {
        let folder = format!("{}/", self.folder.display());
        let full: Vec<String> = arguments.iter().map(|argument| argument.replace('@', &folder)).collect();
        let full: Vec<&str> = full.iter().map(String::as_str).collect();
        self.tpm.run(name, &full).map(drop)
    }
}

/// The launch log names the key; the one that was made again must be it, or the test shows nothing.
fn name_of(public: &[u8]) -> Result<String> {
    use sha2::{Digest as _, Sha256};
    let area = public.get(2..).context("a short public area")?;
    Ok(format!("000b{}", hex::encode(Sha256::digest(area))))
}

fn localities(scene: &Scene<'_>) -> Result<()> {
    let mut machine = scene.lab("bios")?.boot("one", &scene.micro.parts)?;
    let line = lab::measured(&mut machine)?;
    let (_power, tpm) = lab::autopsy(machine)?;
    launch::check(&tpm, &scene.micro.reference, &["sha256"])?;
    let key = Key::make(&tpm, &scene.folder)?;
    let name = name_of(&key.public()?)?;
    if !line.contains(&name) {
        bail!("the key made again is {name}, not the hypervisor's: {line}");
    }
    for locality in [0, 1, 3, 4] {
        if key.sign(locality).is_ok() {
            bail!("the key signs at locality {locality}");
        }
    }
    key.sign(2).context("the key should sign at locality 2, or this test shows nothing")
}

fn evil_relaunch(scene: &Scene<'_>) -> Result<()> {
    let lab = scene.lab("bios")?;
    let mut machine = lab.boot("good", &scene.micro.parts)?;
    lab::measured(&mut machine)?;
    let (power, tpm) = lab::autopsy(machine)?;
    let good = Key::make(&tpm, &scene.folder)?.public()?;
    drop(tpm);
    drop(power);

    let parts = launch::flip_core(&scene.micro.parts, &scene.folder)?;
    let mut machine = lab.boot("evil", &parts)?;
    lab::measured(&mut machine)?;
    let (_power, tpm) = lab::autopsy(machine)?;
    // The policy file is still that of the good launch: the same key can be made, but not used.
    let key = Key { tpm: &tpm, folder: &scene.folder };
    key.create()?;
    if key.public()? != good {
        bail!("the good launch's key could not be made again, so this test shows nothing");
    }
    if key.sign(2).is_ok() {
        bail!("the key signs after another launch");
    }
    Ok(())
}
