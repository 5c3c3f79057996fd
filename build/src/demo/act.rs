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
use crate::proof::{Objection, Proof, RelyingParty, Verdict};
use crate::{guest, measure, place, ui};

/// What the guests keep secret, and the labels under which they seal it; each guest has the next.
const SECRETS: [(&str, &str); 2] =
    [("harbour", "the key to the harbour gate"), ("beacon", "the rhythm of the beacon")];

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
    /// One blob for each guest.
    blobs: Vec<Vec<u8>>,
    enrolled: PathBuf,
}

/// A guest that is up: its shell, and its secret with its label.
#[derive(Debug)]
struct Inhabitant {
    name: String,
    shell: Shell,
    label: &'static str,
    secret: &'static str,
}

impl Inhabitant {
    fn seal(&mut self) -> Result<Vec<u8>> {
        guest::seal(&mut self.shell, self.label, self.secret)
    }

    /// Whether it opens a blob that was sealed under this label with this secret; why not, otherwise.
    fn opens(&mut self, blob: &[u8], label: &str, secret: &str) -> Result<Option<String>> {
        match guest::unseal(&mut self.shell, label, blob)? {
            Opened::Secret(found) if found == secret => Ok(None),
            Opened::Secret(found) => bail!("{} got something else out of a blob: {found}", self.name),
            Opened::Shut(why) => Ok(Some(why)),
        }
    }

    fn must_open(&mut self, blob: &[u8]) -> Result<()> {
        match self.opens(blob, self.label, self.secret)? {
            None => Ok(()),
            Some(why) => bail!("{} cannot open its own secret: {why}", self.name),
        }
    }
}

impl<'a> Story<'a> {
    /// A story on this machine.
    pub(crate) const fn new(lab: &'a Lab<'a>, release: &'a Release, party: RelyingParty) -> Self {
        Self { lab, release, party }
    }

    /// Tells it from the beginning.
    pub(crate) fn tell(&self) -> Result<()> {
        ui::heading("1. The machine starts; guests seal secrets and prove what they run on");
        let kept = self.first()?;
        ui::heading("2. The machine restarts, everything as it was");
        self.second(&kept)?;
        ui::heading("3. The machine restarts, one bit of the hypervisor changed");
        self.third(&kept)
    }

    fn start(&self, cycle: &str, release: &Release, detail: Detail) -> Result<(Machine, Vec<Inhabitant>)> {
        let mut machine = self.lab.boot(cycle, &release.parts)?;
        Narrator::follow(&machine.log, detail);
        lab::measured(&mut machine)?;
        machine.log.wait_for("serve: guest runs", lab::LAUNCH)?;
        let names: Vec<&str> = release.manifest.guests.iter().map(|guest| guest.name.as_str()).collect();
        let progress = ui::Progress::start(&format!("Debian's kernels boot, as {}", names.join(" and ")));
        let shells = lab::shells(&mut machine, &release.manifest)?;
        progress.done();
        let guests = names.into_iter().zip(shells).zip(SECRETS.iter().cycle());
        let guests = guests.map(|((name, shell), (label, secret))| Inhabitant {
            name: name.to_owned(),
            shell,
            label,
            secret,
        });
        Ok((machine, guests.collect()))
    }

    fn first(&self) -> Result<Kept> {
        let (machine, mut guests) = self.start("1-first", self.release, Detail::Full)?;
        let mut blobs = Vec::new();
        for guest in &mut guests {
            let kernel = guest.shell.expect("uname -sr")?;
            ui::good(&format!("{}: its shell answers: {kernel}", guest.name));
            let blob = guest.seal()?;
            ui::good(&format!(
                "{}: it sealed a secret: {} bytes that only it can open, only here",
                guest.name,
                blob.len()
            ));
            blobs.push(blob);
        }
        for (guest, blob) in guests.iter_mut().zip(&blobs) {
            guest.must_open(blob)?;
            ui::good(&format!("{}: it unsealed its secret again", guest.name));
        }
        try_each_others(&mut guests, &blobs)?;
        let enrolled = self.lab.folder().join("enrolled-ak.pub");
        for guest in &mut guests {
            guest::extend(&mut guest.shell, 1, "harbour-master 2.1")?;
            ui::good(&format!(
                "{}: it extended its register G1 with the name of the program it will run",
                guest.name
            ));
            let proof = self.quote(guest, "evidence-1")?;
            if !enrolled.exists() {
                self.party.trust(&proof)?;
                place::copy(&self.party.export(&proof)?.join("ak.pub"), &enrolled)?;
                ui::note(
                    "the attestation key is trusted from now on, on first use (a fleet would enrol it: its TPM's maker vouches for it)",
                );
            }
            self.accept(&proof, &enrolled)?;
        }
        self.power_cut(machine)?;
        Ok(Kept { blobs, enrolled })
    }

    /// A quote over a nonce that is chosen only now, so that no old quote will do.
    fn quote(&self, guest: &mut Inhabitant, name: &str) -> Result<Proof> {
        let nonce = nonce()?;
        ui::note(&format!("the relying party of {} chooses a nonce: {}", guest.name, hex::encode(nonce)));
        let evidence = guest::quote(&mut guest.shell, &hex::encode(nonce))?;
        Proof::save(&evidence, &nonce, &self.lab.folder().join(format!("{name}-{}", guest.name)))
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
        let (machine, mut guests) = self.start("2-again", self.release, Detail::Brief)?;
        for (guest, blob) in guests.iter_mut().zip(&kept.blobs) {
            guest.must_open(blob)?;
            ui::good(&format!("{}: same measurement, same key: the secret opens", guest.name));
        }
        let guest = guests.first_mut().context("no guest")?;
        let proof = self.quote(guest, "evidence-2")?;
        self.accept(&proof, &kept.enrolled)?;
        drop(machine);
        Ok(())
    }

    fn third(&self, kept: &Kept) -> Result<()> {
        let mut changed = self.release.clone();
        changed.parts = launch::flip_core(&self.release.parts, self.lab.folder())?;
        changed.reference = measure::reference(&changed.parts, &changed.manifest)?;
        let (good, evil) = (self.release.reference.bank("sha256")?, changed.reference.bank("sha256")?);
        let (machine, mut guests) = self.start("3-changed", &changed, Detail::Brief)?;
        for (guest, blob) in guests.iter_mut().zip(&kept.blobs) {
            match guest.opens(blob, guest.label, guest.secret)? {
                Some(why) => ui::good(&format!("{}: the secret stays shut: {why}", guest.name)),
                None => bail!("{}: the secret opened for a changed hypervisor", guest.name),
            }
        }
        ui::note("their keys come from a TPM key that exists only under the PCR 17 of the unchanged core");
        let guest = guests.first_mut().context("no guest")?;
        let proof = self.quote(guest, "evidence-3")?;
        match self.party.verify(&proof)? {
            Verdict::Refused(_, why) => ui::good(&format!("dolmen-verify refuses the quote: {why}")),
            Verdict::Trusted => bail!("dolmen-verify trusts a changed hypervisor"),
        }
        let objection = |to| self.party.objection(&proof, &kept.enrolled, to);
        match (objection(&self.release.reference)?, objection(&changed.reference)?) {
            (Some(Objection::Log), Some(Objection::Signature)) => {}
            said => bail!("tpm2_checkquote says of a changed hypervisor: {said:?}"),
        }
        ui::good(
            "tpm2_checkquote refuses it too: other registers, and the enrolled key, which cannot sign any more, did not sign them",
        );
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

/// No guest opens what another one sealed.
fn try_each_others(guests: &mut [Inhabitant], blobs: &[Vec<u8>]) -> Result<()> {
    let sealed: Vec<_> = guests.iter().map(|guest| (guest.name.clone(), guest.label, guest.secret)).collect();
    for (index, guest) in guests.iter_mut().enumerate() {
        for (other, ((owner, label, secret), blob)) in sealed.iter().zip(blobs).enumerate() {
            if other == index {
                continue;
            }
            match guest.opens(blob, label, secret)? {
                Some(why) => ui::good(&format!("{}: the secret of {owner} stays shut: {why}", guest.name)),
                None => bail!("{} opened the secret of {owner}", guest.name),
            }
        }
    }
    Ok(())
}

/// 32 random bytes of the host.
pub(crate) fn nonce() -> Result<[u8; 32]> {
    let mut nonce = [0; 32];
    let mut source = File::open("/dev/urandom").context("no random numbers")?;
    source.read_exact(&mut nonce).context("no random numbers")?;
    Ok(nonce)
}
