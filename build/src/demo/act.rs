//! The acts of the story.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::narrator::{Detail, Narrator};
use crate::e2e::launch;
use crate::guest::Opened;
use crate::lab::{self, Lab, Release};
use crate::machine::Machine;
use crate::machine::shell::Shell;
use crate::proof::{Proof, RelyingParty, Verdict};
use crate::{guest, measure, place, ui};

/// What the guest keeps secret.
const SECRET: &str = "the key to the harbour gate";
/// What the secret is sealed under.
const LABEL: &str = "harbour";

/// What the relying party remembers from one power cycle to the next.
#[derive(Debug)]
pub(crate) struct Story<'a> {
    lab: &'a Lab<'a>,
    release: &'a Release,
    party: RelyingParty,
}

/// What came out of the first power cycle.
#[derive(Debug)]
struct Kept {
    blob: Vec<u8>,
    enrolled: PathBuf,
}

impl<'a> Story<'a> {
    /// A story on this machine.
    pub(crate) const fn new(lab: &'a Lab<'a>, release: &'a Release, party: RelyingParty) -> Self {
        Self { lab, release, party }
    }

    /// Tells it from the beginning.
    pub(crate) fn tell(&self) -> Result<()> {
        ui::heading("1. The machine starts; a guest seals a secret and proves what it runs on");
        let kept = self.first()?;
        ui::heading("2. The machine restarts, everything as it was");
        self.second(&kept)?;
        ui::heading("3. The machine restarts, one bit of the hypervisor changed");
        self.third(&kept)
    }

    fn start(&self, cycle: &str, release: &Release, detail: Detail) -> Result<(Machine, Shell)> {
        let mut machine = self.lab.boot(cycle, &release.parts)?;
        Narrator::follow(&machine.log, detail);
        lab::measured(&mut machine)?;
        machine.log.wait_for("serve: guest runs", lab::LAUNCH)?;
        let progress = ui::Progress::start("Debian's kernel boots as the guest");
        let shell = lab::shell(&mut machine)?;
        progress.done();
        Ok((machine, shell))
    }

    fn first(&self) -> Result<Kept> {
        let (machine, mut shell) = self.start("1-first", self.release, Detail::Full)?;
        let kernel = shell.expect("uname -sr")?;
        ui::good(&format!("the guest's shell answers: {kernel}"));
        let blob = guest::seal(&mut shell, LABEL, SECRET)?;
        ui::good(&format!(
            "the guest sealed a secret: {} bytes that only it can open, only here",
            blob.len()
        ));
        match guest::unseal(&mut shell, LABEL, &blob)? {
            Opened::Secret(secret) if secret == SECRET => ui::good("the guest unsealed it again"),
            other @ (Opened::Secret(_) | Opened::Shut(_)) => bail!("the secret did not come back: {other:?}"),
        }
        guest::extend(&mut shell, 1, "harbour-master 2.1")?;
        ui::good("the guest extended its register G1 with the name of the program it will run");
        let enrolled = self.lab.folder().join("enrolled-ak.pub");
        let proof = self.quote(&mut shell, "evidence-1")?;
        self.party.enrol(&proof)?;
        place::copy(&self.party.export(&proof)?.join("ak.pub"), &enrolled)?;
        ui::note(
            "the attestation key is enrolled now (a fleet would have its TPM's maker vouch for it first)",
        );
        self.accept(&proof, &enrolled)?;
        self.power_cut(machine)?;
        Ok(Kept { blob, enrolled })
    }

    /// A quote over a nonce that is chosen only now, so that no old quote will do.
    fn quote(&self, shell: &mut Shell, name: &str) -> Result<Proof> {
        let nonce = nonce()?;
        ui::note(&format!("the relying party chooses a nonce: {}", hex::encode(nonce)));
        let evidence = guest::quote(shell, &hex::encode(nonce))?;
        Proof::save(&evidence, &nonce, &self.lab.folder().join(name))
    }

    /// Everybody who judges the evidence must be content.
    fn accept(&self, proof: &Proof, enrolled: &std::path::Path) -> Result<()> {
        match self.party.verify(proof)? {
            Verdict::Trusted => ui::good("dolmen-verify: trusted; key, nonce, registers and log all fit"),
            Verdict::Refused(_, why) => bail!("dolmen-verify refuses good evidence: {why}"),
        }
        self.party.checkquote(proof, enrolled, &self.release.reference)?;
        ui::good(
            "tpm2_checkquote, unmodified, agrees: signature, binding, PCR 17 and 18 as predicted, log replays",
        );
        let events = self.party.eventlog(proof, &self.release.reference)?;
        ui::good(&format!(
            "tpm2_eventlog, unmodified, replays {events} events to the predicted values in every bank"
        ));
        Ok(())
    }

    /// Reads the TPM behind the machine's back: its registers, not what anybody says of them.
    fn power_cut(&self, machine: Machine) -> Result<()> {
        let (_power, tpm) = lab::autopsy(machine)?;
        launch::check(&tpm, &self.release.reference, &["sha1", "sha256", "sha384", "sha512"])?;
        ui::good("power cut; tpm2_pcrread shows PCR 17 and 18 as predicted, in all four banks");
        Ok(())
    }

    fn second(&self, kept: &Kept) -> Result<()> {
        let (machine, mut shell) = self.start("2-again", self.release, Detail::Brief)?;
        match guest::unseal(&mut shell, LABEL, &kept.blob)? {
            Opened::Secret(secret) if secret == SECRET => {
                ui::good("same measurement, same key: the secret opens")
            }
            other @ (Opened::Secret(_) | Opened::Shut(_)) => {
                bail!("the secret should open after a restart: {other:?}")
            }
        }
        let proof = self.quote(&mut shell, "evidence-2")?;
        self.accept(&proof, &kept.enrolled)?;
        drop(machine);
        Ok(())
    }

    fn third(&self, kept: &Kept) -> Result<()> {
        let mut changed = self.release.clone();
        changed.parts = launch::flip_core(&self.release.parts, self.lab.folder())?;
        changed.reference = measure::reference(&changed.parts, &changed.manifest)?;
        let (good, evil) = (self.release.reference.bank("sha256")?, changed.reference.bank("sha256")?);
        let (machine, mut shell) = self.start("3-changed", &changed, Detail::Brief)?;
        match guest::unseal(&mut shell, LABEL, &kept.blob)? {
            Opened::Shut(why) => {
                ui::good(&format!("the secret stays shut: {why}"));
                ui::note(
                    "its key comes from a TPM key that exists only under the PCR 17 of the unchanged core",
                );
            }
            Opened::Secret(_) => bail!("the secret opened for a changed hypervisor"),
        }
        let proof = self.quote(&mut shell, "evidence-3")?;
        match self.party.verify(&proof)? {
            Verdict::Refused(_, why) => ui::good(&format!("dolmen-verify refuses the quote: {why}")),
            Verdict::Trusted => bail!("dolmen-verify trusts a changed hypervisor"),
        }
        if self.party.checkquote(&proof, &kept.enrolled, &self.release.reference).is_ok() {
            bail!("tpm2_checkquote accepts a changed hypervisor");
        }
        ui::good("tpm2_checkquote refuses it too: the enrolled key did not sign this, and cannot any more");
        let (_power, tpm) = lab::autopsy(machine)?;
        let held = tpm.pcr("sha256", 17)?;
        if held == good.pcr17 || held != evil.pcr17 {
            bail!("PCR 17 is {held}, which is not what the changed core measures to");
        }
        ui::good("one bit changed, measured differently:");
        ui::fact(&format!("PCR 17 was {}", good.pcr17));
        ui::fact(&format!("PCR 17 is  {held}"));
        Ok(())
    }
}

/// 32 random bytes of the host.
pub(crate) fn nonce() -> Result<[u8; 32]> {
    let mut nonce = [0; 32];
    let mut source = File::open("/dev/urandom").context("no random numbers")?;
    source.read_exact(&mut nonce).context("no random numbers")?;
    Ok(nonce)
}
