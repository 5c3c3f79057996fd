//! Enrolment by credential, through the hypervisor: the guest's request, the relying party's challenge, the TPM's answer,
//! and what must not be enrolled.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::{ALL_BANKS, Scene, tsm};
use crate::lab::{Lab, Release};
use crate::machine::shell::Shell;
use crate::machine::swtpm::Maker;
use crate::proof::{Proof, RelyingParty, Verdict};
use crate::{demo, guest, place, process, ui};

/// Where the guest keeps a challenge.
const CHALLENGE: &str = "/tmp/challenge";
/// NV index of the RSA endorsement key's certificate.
const RSA_CERTIFICATE: &str = "0x1c00002";

/// First NV index of the chain of certificates behind that.
const CHAIN: &str = "0x1c00100";
/// Who may read it: everybody.
const NV_ATTRIBUTES: &str = "ownerwrite|ownerread|authread|ppread|no_da";

/// A relying party's desk for enrolments, and the guest that it deals with.
struct Desk<'a> {
    shell: &'a mut Shell,
    party: RelyingParty,
    maker: &'a Maker,
    folder: PathBuf,
    challenges: u32,
}

/// Enrols a key of each kind in a machine whose TPM is by `maker`, and tries to cheat.
pub(super) fn tell(shell: &mut Shell, scene: &Scene<'_>, release: &Release, maker: &Maker) -> Result<()> {
    let folder = scene.folder.join("enrolment");
    let party = RelyingParty::new(&scene.bench.artifacts, &release.reference, &folder.join("policy.toml"))?;
    let mut desk = Desk { shell, party, maker, folder, challenges: 0 };
    let (request, answer) = desk.guest_key()?;
    desk.host_key()?;
    desk.other_certificates(scene, &request)?;
    desk.other_credentials(&request, &answer)?;
    desk.report(&request)?;
    // Of all these attempts, none has enrolled a key besides.
    let proof = desk.quote("rsa")?;
    match desk.party.verify(&proof)? {
        Verdict::Refused(checks, _) if checks == ["enrolled"] => {}
        verdict @ (Verdict::Trusted | Verdict::Refused(..)) => {
            bail!("evidence by a key that was never enrolled: {verdict:?}")
        }
    }
    ui::fact(
        "a guest's key and a host's key were enrolled by the TPM's certificate, five attempts to cheat failed",
    );
    Ok(())
}

impl Desk<'_> {
    /// The key that binds guests: unknown before, trusted by its record after. Gives the request and its answer.
    fn guest_key(&mut self) -> Result<(Value, Vec<u8>)> {
        let proof = self.quote("ecdsa")?;
        match self.party.verify(&proof)? {
            Verdict::Refused(checks, why) if checks.is_empty() && why == "UNENROLLED" => {}
            verdict @ (Verdict::Trusted | Verdict::Refused(..)) => bail!("before enrolment: {verdict:?}"),
        }
        let request = self.request("ecdsa")?;
        let (challenge, state) = self.challenge(&request)?;
        let answer = self.answered(&challenge)?;
        let record = self.finish(&answer, &state)?.map_err(|why| anyhow!("a good answer: {why}"))?;
        ensure!(!state.exists(), "the state of an enrolment is left behind");
        self.party.accept(&record, "ecdsa")?;
        match self.party.verify(&proof)? {
            Verdict::Trusted => Ok((request, answer)),
            Verdict::Refused(checks, why) => bail!("evidence by the enrolled key ({checks:?}): {why}"),
        }
    }

    /// A key that speaks of the host, of the other kind.
    fn host_key(&mut self) -> Result<()> {
        let request = self.request("host-rsa")?;
        let (challenge, state) = self.challenge(&request)?;
        let answer = self.answered(&challenge)?;
        let record = self.finish(&answer, &state)?.map_err(|why| anyhow!("a good answer: {why}"))?;
        self.party.accept(&record, "host-rsa")?;
        let nonce = demo::nonce()?;
        let evidence = guest::host_quote(self.shell, "rsa", "17,18", &hex::encode(nonce))?;
        let (is_trusted, said) =
            self.party.verify_host(&Proof::save(&evidence, &nonce, &self.folder.join("host"))?)?;
        ensure!(is_trusted, "evidence about the host by the enrolled key is refused:\n{said}");
        Ok(())
    }

    /// A TPM by another maker vouches for nothing here: not by its root, and not by its endorsement key.
    fn other_certificates(&mut self, scene: &Scene<'_>, request: &Value) -> Result<()> {
        let other = Maker::of(&scene.folder.join("other-maker"))?;
        let bench = &scene.bench;
        let lab = Lab::new(&bench.tools, &bench.artifacts, "bios", &scene.folder.join("other"), ALL_BANKS)?
            .with_tpm_by(&other)?;
        match self.begin(request, &other)?.0 {
            Err(why) if why.contains("no chain leads from the certificate to a root") => {}
            outcome => bail!("with the root of another maker: {outcome:?}"),
        }
        let (public, certificate) = endorsement_key(&lab)?;
        let mut forged = request.clone();
        set(&mut forged, "ek_public", STANDARD.encode(&public))?;
        match self.begin(&forged, self.maker)?.0 {
            Err(why) if why.contains("the certificate is for another key") => {}
            outcome => bail!("with another TPM's endorsement key: {outcome:?}"),
        }
        set(&mut forged, "ek_certificate", STANDARD.encode(&certificate))?;
        let (challenge, _) = self.begin(&forged, &other)?;
        let challenge = challenge.map_err(|why| anyhow!("the other TPM's own certificate: {why}"))?;
        self.must_not_open(&challenge, "a credential for another TPM")
    }

    /// A credential for another key does not open, and what came of an older one does not answer it.
    fn other_credentials(&mut self, request: &Value, old_answer: &[u8]) -> Result<()> {
        let (challenge, state) = self.challenge(request)?;
        let mut other: Value = serde_json::from_slice(&challenge)?;
        set(&mut other, "key", "rsa".to_owned())?;
        self.must_not_open(&serde_json::to_vec(&other)?, "a credential for another attestation key")?;
        match self.finish(old_answer, &state)? {
            Err(why) if why.contains("report-data") || why.contains("report data") => Ok(()),
            outcome => bail!("an answer to an older challenge: {outcome:?}"),
        }
    }

    /// A report by configfs-tsm brings the same, and unmodified openssl follows the chain.
    fn report(&mut self, request: &Value) -> Result<()> {
        let bytes = |field: &str| {
            let text = request.get(field).and_then(Value::as_str).with_context(|| format!("no `{field}`"))?;
            Ok::<_, anyhow::Error>(STANDARD.decode(text)?)
        };
        let (certificate, chain) = (bytes("ek_certificate")?, bytes("ek_chain")?);
        ensure!(chain == authority(self.maker)?, "the guest sends another chain than the TPM has");
        tsm::vouched(
            self.shell,
            &[
                ("ak", &bytes("ak_public")?),
                ("ek", &bytes("ek_public")?),
                ("certificate", &certificate),
                ("chain", &chain),
            ],
        )?;
        let (leaf, between) = (self.folder.join("ek.der"), self.folder.join("between.der"));
        place::write(&leaf, &certificate)?;
        place::write(&between, &chain)?;
        let mut openssl = Command::new("openssl");
        // The certificate's subject alternative name is critical, which openssl does not understand.
        openssl.args(["verify", "-ignore_critical", "-CAfile"]).arg(self.maker.root());
        openssl.arg("-untrusted").arg(&between).arg(&leaf);
        process::output(&mut openssl).map(drop)
    }

    fn must_not_open(&mut self, challenge: &[u8], what: &str) -> Result<()> {
        self.shell.send(CHALLENGE, challenge)?;
        let answer = self.shell.run(&format!("dolmen answer {CHALLENGE} >/tmp/opened"))?;
        ensure!(answer.status == 1, "{what}: `dolmen answer` ended with {}", answer.status);
        ensure!(answer.text().contains("the TPM refused"), "{what}: {}", answer.text());
        self.shell.expect("test ! -s /tmp/opened").map(drop)
    }

    fn quote(&mut self, key: &str) -> Result<Proof> {
        let nonce = demo::nonce()?;
        let evidence = guest::quote_by(self.shell, key, &hex::encode(nonce))?;
        Proof::save(&evidence, &nonce, &self.folder.join(format!("quote-{key}")))
    }

    /// What the guest asks for.
    fn request(&mut self, key: &str) -> Result<Value> {
        let request = self.shell.receive(&format!("dolmen --frame enrol --key {key}"))?;
        serde_json::from_slice(&request).context("the guest's request")
    }

    /// A challenge that must be made, and where its state is.
    fn challenge(&mut self, request: &Value) -> Result<(Vec<u8>, PathBuf)> {
        let (challenge, state) = self.begin(request, self.maker)?;
        Ok((challenge.map_err(|why| anyhow!("a good request: {why}"))?, state))
    }

    fn begin(
        &mut self,
        request: &Value,
        maker: &Maker,
    ) -> Result<(core::result::Result<Vec<u8>, String>, PathBuf)> {
        self.challenges = self.challenges.saturating_add(1);
        let at = |what: &str| self.folder.join(format!("{}-{what}", self.challenges));
        let (file, state) = (at("request.json"), at("state.json"));
        place::write(&file, &serde_json::to_vec(request)?)?;
        let (root, intermediate) = (maker.root(), maker.intermediate());
        let mut step = vec![
            OsStr::new("begin"),
            file.as_os_str(),
            "--roots".as_ref(),
            root.as_os_str(),
            "--state".as_ref(),
            state.as_os_str(),
        ];
        // This machine's TPM has what is between, and the guest sends it along.
        if maker.root() != self.maker.root() {
            step.extend([OsStr::new("--intermediates"), intermediate.as_os_str()]);
        }
        Ok((self.party.enrol(&step)?, state))
    }

    /// The guest's answer, which it must be able to give.
    fn answered(&mut self, challenge: &[u8]) -> Result<Vec<u8>> {
        self.shell.send(CHALLENGE, challenge)?;
        self.shell.receive(&format!("dolmen --frame answer {CHALLENGE}"))
    }

    fn finish(&self, answer: &[u8], state: &Path) -> Result<core::result::Result<Vec<u8>, String>> {
        let file = self.folder.join(format!("{}-answer", self.challenges));
        place::write(&file, answer)?;
        self.party.enrol(&["finish".as_ref(), file.as_os_str(), OsStr::new("--state"), state.as_os_str()])
    }
}

/// Has the TPM of a machine that is off hold the certificate behind those of its endorsement keys, as makers store it.
pub(super) fn store_chain(lab: &Lab<'_>, maker: &Maker) -> Result<()> {
    let der = authority(maker)?;
    let file = lab.folder().join("chain.der");
    place::write(&file, &der)?;
    let (_power, tpm) = lab.tpm_alone()?;
    let (size, file) = (der.len().to_string(), file.display().to_string());
    tpm.run("tpm2_nvdefine", &["-Q", "-C", "o", "-s", &size, "-a", NV_ATTRIBUTES, CHAIN])?;
    tpm.run("tpm2_nvwrite", &["-Q", "-C", "o", "-i", &file, CHAIN])?;
    tpm.run("tpm2_shutdown", &["-c"]).map(drop)
}

/// The certificate of the authority that signs those of the TPMs, in DER.
fn authority(maker: &Maker) -> Result<Vec<u8>> {
    let text = std::fs::read_to_string(maker.intermediate()).context("no certificate of the authority")?;
    let lines = text.lines().skip_while(|line| !line.starts_with("-----BEGIN")).skip(1);
    let digits: String = lines.take_while(|line| !line.starts_with("-----END")).collect();
    STANDARD.decode(digits).context("the authority's certificate is not in PEM")
}

/// The RSA endorsement key of a machine that is off, as TPM2B_PUBLIC, and its certificate.
fn endorsement_key(lab: &Lab<'_>) -> Result<(Vec<u8>, Vec<u8>)> {
    let (_power, tpm) = lab.tpm_alone()?;
    let at = |name: &str| lab.folder().join(name).display().to_string();
    let (context, public, certificate) = (at("ek.ctx"), at("ek.pub"), at("ek.der"));
    tpm.run("tpm2_createek", &["-Q", "-G", "rsa", "-c", &context, "-u", &public])?;
    tpm.run("tpm2_nvread", &["-Q", "-C", "o", "-o", &certificate, RSA_CERTIFICATE])?;
    Ok((place::read(Path::new(&public))?, place::read(Path::new(&certificate))?))
}

fn set(object: &mut Value, field: &str, text: String) -> Result<()> {
    *object.get_mut(field).with_context(|| format!("no `{field}`"))? = Value::String(text);
    Ok(())
}
