//! Bare guests that ask of the TPM what they are told to (`errands` of the micro-guest), and credentials for them.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use super::{ALL_BANKS, Case, Scene};
use crate::artifact::{self, MICRO_GUEST};
use crate::lab::{self, LAUNCH, Lab};
use crate::machine::stream::Stream;
use crate::{place, process};

/// The test of this file.
pub(super) const CASES: &[Case] =
    &[Case { name: "guests_that_ask_at_the_same_time_are_all_served", run: at_the_same_time }];

/// Guests that ask at the same time.
const CROWD: [&str; 4] = ["alpha", "beta", "gamma", "delta"];
/// Longest wait for what a guest was told to do.
const LIMIT: Duration = Duration::from_secs(90);
/// Digits of a credential that are sent at once: a guest's console holds few bytes that were not read.
const PIECE: usize = 14;
/// Bytes that `tpm2_makecredential` writes before the credential: a magic and a version.
const MADE_HEAD: usize = 8;

/// What a guest is told to ask for, by one byte each.
pub(super) mod ask {
    pub(crate) const QUOTE: u8 = b'q';
    pub(crate) const RSA_QUOTE: u8 = b'r';
    pub(crate) const HOST_QUOTE: u8 = b'h';
    pub(crate) const CERTIFY: u8 = b'H';
    pub(crate) const RSA_CERTIFY: u8 = b'V';
    pub(crate) const KEY: u8 = b'k';
    pub(crate) const HOST_KEY: u8 = b'p';
    pub(crate) const ENDORSEMENT_KEY: u8 = b'E';
    pub(crate) const RSA_ENDORSEMENT_KEY: u8 = b'R';
    pub(crate) const CERTIFICATE: u8 = b'C';
    pub(crate) const CHAIN: u8 = b'X';
    pub(crate) const OPEN_CREDENTIAL: u8 = b'A';
    pub(crate) const RANDOM: u8 = b'Z';
    pub(crate) const MUCH_RANDOM: u8 = b'F';
    pub(crate) const SEAL: u8 = b'S';
    pub(crate) const KEY_IN_A_HURRY: u8 = b'K';
}

/// Guests, each on a processor of its own, ask for the same place without a pause. All are served each time, and the place is
/// free afterwards.
fn at_the_same_time(scene: &Scene<'_>) -> Result<()> {
    let artifacts = &scene.bench.artifacts;
    let kernel = artifact::compile(&MICRO_GUEST, &place::root(), &place::target(), &artifacts.folder)?;
    let mut text = String::new();
    for (processor, name) in CROWD.iter().enumerate() {
        write!(
            text,
            "[[guest]]\nname = \"{name}\"\nmemory_mib = 64\nformat = \"pvh\"\nconsoles = [\"multiplexed\"]\n\
             affinity = [{processor}]\nhypercalls = [\"quote\", \"enrol\"]\nkernel = \"{}\"\ncmdline = \"errands\"\n",
            kernel.display()
        )?;
    }
    let release = super::release(scene.bench, &scene.folder, &text)?;
    let folder = scene.folder.join("machine");
    let lab = Lab::new(&scene.bench.tools, artifacts, "bios", &folder, ALL_BANKS)?
        .with_cpus(u32::try_from(CROWD.len())?);
    let mut machine = lab.boot("run", &release.parts)?;
    lab::measured(&mut machine)?;
    let mut guests = Vec::new();
    for name in CROWD {
        guests.push(Asker::wait(machine.log.guest(name)?, LAUNCH)?);
    }
    for guest in &mut guests {
        guest.begin(ask::KEY_IN_A_HURRY)?;
    }
    for guest in &mut guests {
        let said = guest.end(ask::KEY_IN_A_HURRY)?;
        ensure!(said.starts_with("OK "), "a guest that asked beside another: {said}");
    }
    for guest in &mut guests {
        guest.get(ask::QUOTE)?;
        guest.get(ask::KEY)?;
    }
    Ok(())
}

/// A guest that does errands.
#[derive(Debug)]
pub(super) struct Asker {
    stream: Stream,
}

impl Asker {
    /// The guest on this console, once it is there.
    pub(super) fn wait(mut stream: Stream, limit: Duration) -> Result<Self> {
        stream.wait_for("here", limit)?;
        Ok(Self { stream })
    }

    /// Asks once; what the guest says of it.
    pub(super) fn ask(&mut self, what: u8) -> Result<String> {
        self.begin(what)?;
        self.end(what)
    }

    /// Has the guest ask.
    pub(super) fn begin(&mut self, what: u8) -> Result<()> {
        self.stream.send(&[what])
    }

    /// What the guest says of what it asked for.
    pub(super) fn end(&mut self, what: u8) -> Result<String> {
        let head = format!("done {}: ", char::from(what));
        let line = self.stream.wait_for(&head, LIMIT)?;
        Ok(line.trim().strip_prefix(&head).context("the guest is confused")?.to_owned())
    }

    /// Asks for what must come; the bytes that it brings.
    pub(super) fn get(&mut self, what: u8) -> Result<Vec<u8>> {
        let said = self.ask(what)?;
        let digits = said.strip_prefix("OK").with_context(|| format!("{}: {said}", char::from(what)))?;
        hex::decode(digits.trim()).context("the guest's bytes")
    }

    /// Asks for what must fail at the TPM; its response code, 0 where there was none to believe.
    pub(super) fn fail(&mut self, what: u8) -> Result<u32> {
        let said = self.ask(what)?;
        match said.strip_prefix("TPM_FAILED 0x") {
            Some(code) => u32::from_str_radix(code, 16).context("a response code"),
            None => bail!("{} ended with {said}", char::from(what)),
        }
    }

    /// Makes a credential for this guest's attestation key with `secret` in it, and gives it to the guest.
    pub(super) fn challenge(&mut self, secret: &[u8], folder: &Path) -> Result<()> {
        let (ek, ak) = (self.get(ask::ENDORSEMENT_KEY)?, self.get(ask::KEY)?);
        place::write(&folder.join("ek.pub"), &ek)?;
        place::write(&folder.join("secret"), secret)?;
        let digest = Sha256::digest(ak.get(2..).context("no attestation key")?);
        let name = format!("000b{}", hex::encode(digest));
        let mut make = Command::new("tpm2_makecredential");
        make.current_dir(folder).args(["-Q", "-T", "none", "-u", "ek.pub", "-s", "secret", "-o", "made"]);
        process::output(make.args(["-n", &name]))?;
        let made = place::read(&folder.join("made"))?;
        let digits = hex::encode(made.get(MADE_HEAD..).context("no credential")?);
        self.stream.send(b"-")?;
        let mut sent: usize = 0;
        for piece in digits.as_bytes().chunks(PIECE) {
            self.stream.send(piece)?;
            self.stream.send(b"?")?;
            sent = sent.saturating_add(piece.len());
            let told = self.stream.wait_for("digits ", LIMIT)?;
            ensure!(told.trim() == format!("digits {sent}"), "the guest lost a digit: {told}, not {sent}");
        }
        Ok(())
    }

    /// Opens the credential, which must hold `secret`.
    pub(super) fn open(&mut self, secret: &[u8]) -> Result<()> {
        let opened = self.get(ask::OPEN_CREDENTIAL)?;
        ensure!(opened == secret, "the credential held {opened:02x?}, not {secret:02x?}");
        Ok(())
    }
}
