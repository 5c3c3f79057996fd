//! The TPM's traffic in a whole life: recorded, decoded, held to `docs/tpm.md`, and searched for every secret there is.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use dolmen_tpm::constant::cc;
use dolmen_tpm::keys::{Setup, set_up};
use dolmen_tpm::{Transport, TransportError};

use super::errands::{Asker, ask};
use super::{ALL_BANKS, Case, Scene, enrolment};
use crate::artifact::{self, MICRO_GUEST};
use crate::lab::{self, LAUNCH, Lab, Release};
use crate::machine::Machine;
use crate::machine::bus::OURS;
use crate::machine::swtpm::{Attached, Maker};
use crate::machine::traffic::{self, Inspection};
use crate::{demo, place, ui};

/// Longest wait for a reseed that is due.
const RESEED: Duration = Duration::from_secs(30);

/// The tests of this file.
pub(super) const CASES: &[Case] =
    &[Case { name: "no_secret_crosses_the_tpms_bus_in_the_clear_in_a_whole_life", run: whole_life }];

/// What guests alone know: what it is, and its bytes.
type Secrets = Vec<(&'static str, Vec<u8>)>;

fn whole_life(scene: &Scene<'_>) -> Result<()> {
    let artifacts = &scene.bench.artifacts;
    let kernel = artifact::compile(&MICRO_GUEST, &place::root(), &place::target(), &artifacts.folder)?;
    let release = super::release(scene.bench, &scene.folder, &manifest(&kernel))?;
    let maker = Maker::of(&scene.folder.join("maker"))?;
    let folder = scene.folder.join("machine");
    let lab = Lab::new(&scene.bench.tools, artifacts, "bios", &folder, ALL_BANKS)?
        .with_cpus(1)
        .with_tpm_by(&maker)?
        .with_tpm_bus(&[]);
    enrolment::store_chain(&lab, &maker)?;
    let mut machine = lab.boot("run", &release.parts)?;
    lab::measured(&mut machine)?;
    let mut guest = Asker::wait(machine.console.take().context("no console")?, LAUNCH)?;
    let mut secrets = errands(&mut guest, &scene.folder)?;
    reseed(&mut guest, &machine)?;
    secrets.push(("what the generator gave after its reseed", guest.get(ask::RANDOM)?));
    let heard = machine.tpm_bus()?.heard();
    secrets.push(("the sealing root", root(machine, &release)?.to_vec()));
    let table = traffic::documented(&String::from_utf8(place::read(&place::root().join("docs/tpm.md"))?)?)?;
    let known: Vec<(&str, &[u8])> = secrets.iter().map(|(what, bytes)| (*what, bytes.as_slice())).collect();
    let inspection = Inspection::of(&heard, &table, &known)?;
    ensure!(inspection.count(cc::ACTIVATE_CREDENTIAL) > 0, "no credential was opened");
    ui::fact(&format!("none of {} secrets in {} exchanges: {}", known.len(), heard.len(), inspection.told()));
    Ok(())
}

/// One errand of each kind. What came of them that nobody on the bus may hear.
fn errands(guest: &mut Asker, folder: &Path) -> Result<Secrets> {
    let mut secrets = Vec::new();
    secrets.push(("random bytes", guest.get(ask::RANDOM)?));
    secrets.push(("sealed data", guest.get(ask::SEAL)?));
    for quote in [ask::QUOTE, ask::RSA_QUOTE, ask::HOST_QUOTE, ask::CERTIFY, ask::RSA_CERTIFY] {
        guest.get(quote)?;
    }
    for public in [ask::HOST_KEY, ask::RSA_ENDORSEMENT_KEY, ask::CERTIFICATE, ask::CHAIN] {
        ensure!(!guest.get(public)?.is_empty(), "{} brought nothing", char::from(public));
    }
    let secret = demo::nonce()?;
    guest.challenge(&secret, folder)?;
    guest.open(&secret)?;
    secrets.push(("what the credential held", secret.to_vec()));
    Ok(secrets)
}

/// Draws until a reseed is due, and waits for it.
fn reseed(guest: &mut Asker, machine: &Machine) -> Result<()> {
    let before = machine.tpm_bus()?.seeds();
    guest.get(ask::MUCH_RANDOM)?;
    machine.tpm_bus()?.wait_for_seed(before, RESEED)
}

/// The sealing root of this launch: the machine is off, but its TPM has power and the registers' values, and whoever sits
/// at locality 2 then can make it. (Nobody can on a machine that runs; that is what the launch is for.)
fn root(machine: Machine, release: &Release) -> Result<[u8; 32]> {
    let tpm = machine.cut_power()?;
    let mut attached = tpm.attach()?;
    attached.set_locality(OURS)?;
    let bank = release.reference.banks.iter().find(|bank| bank.bank == "sha256").context("no such bank")?;
    let mut pcr17 = [0; 32];
    hex::decode_to_slice(&bank.pcr17, &mut pcr17).context("the register's value")?;
    let setup = Setup { pcr17, cpu_entropy: &[0x5a; 32], provisioned: None };
    let keys =
        set_up(&mut Bus(attached), &setup).map_err(|error| anyhow!("the keys of the launch: {error}"))?;
    Ok(*keys.root.expose())
}

/// The TPM of a machine that is off, for the core's own library.
struct Bus(Attached);

impl Transport for Bus {
    fn transmit(&mut self, command: &[u8], response: &mut [u8]) -> Result<usize, TransportError> {
        let told = self.0.transmit(command).map_err(|_| TransportError::Disconnected)?;
        response.get_mut(..told.len()).ok_or(TransportError::TrailingData)?.copy_from_slice(&told);
        Ok(told.len())
    }
}

fn manifest(kernel: &Path) -> String {
    format!(
        "[[guest]]\nname = \"asker\"\nmemory_mib = 64\nformat = \"pvh\"\nconsoles = [\"com2\"]\n\
         hypercalls = [\"random\", \"seal\", \"quote\", \"host-quote\", \"enrol\"]\n\
         kernel = \"{}\"\ncmdline = \"errands\"\n",
        kernel.display()
    )
}
