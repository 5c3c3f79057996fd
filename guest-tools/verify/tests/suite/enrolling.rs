//! Enrolment against a real software TPM with certificates of swtpm's own authority: its certificate, and credentials that
//! unmodified tools open.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dolmen_tpm::crypto::sha256;
use dolmen_verify::enrol::{
    Certificate, CertificateError, EkPublic, REQUEST_FORMAT, Request, STATE_FORMAT, State, check_certificate,
    finish, make_credential,
};

use crate::forge::{Forge, NONCE};

/// A TPM whose maker certified its endorsement key; ended when dropped.
struct Tpm {
    folder: tempfile::TempDir,
    child: Child,
}

impl Tpm {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("ca")).unwrap();
        std::fs::create_dir(at("state")).unwrap();
        let show = |name: &str| at(name).display().to_string();
        let authority = format!(
            "statedir = {0}\nsigningkey = {0}/signkey.pem\nissuercert = {0}/issuercert.pem\ncertserial = {0}/certserial\n",
            show("ca")
        );
        std::fs::write(at("localca.conf"), authority).unwrap();
        let setup = format!(
            "create_certs_tool=/usr/bin/swtpm_localca\ncreate_certs_tool_config={}\ncreate_certs_tool_options=/etc/swtpm-localca.options\n",
            show("localca.conf")
        );
        std::fs::write(at("setup.conf"), setup).unwrap();
        let mut command = Command::new("swtpm_setup");
        command.args(["--tpm2", "--create-ek-cert", "--overwrite", "--config", &show("setup.conf")]);
        run(command.args(["--tpmstate", &show("state")]));
        let socket = |name: &str| format!("type=unixio,path={}", show(name));
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={}", show("state"))])
            .args(["--ctrl", &socket("tpm.ctrl"), "--server", &socket("tpm")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("swtpm");
        let tpm = Self { folder, child };
        let begin = Instant::now();
        while !tpm.path("tpm").exists() || !tpm.path("tpm.ctrl").exists() {
            assert!(begin.elapsed() < Duration::from_secs(20), "swtpm does not start");
            std::thread::yield_now();
        }
        tpm
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn tool(&self, line: &str) {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        let socket = format!("swtpm:path={}", self.path("tpm").display());
        run(command.args(words).current_dir(self.folder.path()).env("TPM2TOOLS_TCTI", socket));
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// The endorsement key's TPM2B_PUBLIC.
    fn endorsement_key(&self, kind: &str) -> Vec<u8> {
        self.tool(&format!("tpm2_createek -Q -G {kind} -c ek.ctx -u ek.pub"));
        self.tool("tpm2_flushcontext -t");
        self.read("ek.pub")
    }

    fn roots(&self, name: &str) -> Vec<Certificate> {
        Certificate::from_pem(&self.read(&format!("ca/{name}.pem"))).unwrap()
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        self.child.kill().unwrap_or(());
        self.child.wait().map(drop).unwrap_or(());
    }
}

pub(crate) fn run(command: &mut Command) {
    let output = command.output().expect("a tool is missing: `cargo xtask setup` installs them");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

#[test]
fn the_certificate_of_a_tpm_leads_to_its_makers_root_and_to_no_other() {
    let (tpm, other) = (Tpm::new(), Tpm::new());
    let public = tpm.endorsement_key("rsa");
    let ek = EkPublic::parse(&public).unwrap();
    tpm.tool("tpm2_nvread -Q -C o -o certificate 0x1c00002");
    let der = tpm.read("certificate");
    let (root, issuer) = (tpm.roots("swtpm-localca-rootca-cert"), tpm.roots("issuercert"));

    assert_eq!(check_certificate(&der, &ek, &issuer, &root, now()), Ok(()));
    assert_eq!(check_certificate(&der, &ek, &[], &issuer, now()), Ok(()));
    let padded = [&der[..], &[0xff; 40]].concat();
    assert_eq!(check_certificate(&padded, &ek, &issuer, &root, now()), Ok(()));

    let foreign = other.roots("swtpm-localca-rootca-cert");
    let refused = check_certificate(&der, &ek, &issuer, &foreign, now());
    assert!(matches!(refused, Err(CertificateError::NoChain(_))), "{refused:?}");
    assert!(matches!(check_certificate(&der, &ek, &[], &root, now()), Err(CertificateError::NoChain(_))));
    let early = check_certificate(&der, &ek, &issuer, &root, Duration::from_secs(1_000_000_000));
    assert!(matches!(early, Err(CertificateError::Time(_))), "{early:?}");
    let others = other.endorsement_key("rsa");
    let wrong = check_certificate(&der, &EkPublic::parse(&others).unwrap(), &issuer, &root, now());
    assert_eq!(wrong, Err(CertificateError::OtherKey));
    let not_an_ek = check_certificate(&pem_to_der(&tpm.path("ca/issuercert.pem")), &ek, &[], &root, now());
    assert_eq!(not_an_ek, Err(CertificateError::OtherKey));
    is_refused_once_damaged(&der, |damaged| check_certificate(damaged, &ek, &issuer, &root, now()).is_err());
}

pub(crate) fn is_refused_once_damaged(der: &[u8], is_refused: impl Fn(&[u8]) -> bool) {
    for at in [40, der.len() / 2, der.len() - 10] {
        let mut changed = der.to_vec();
        changed[at] ^= 1;
        assert!(is_refused(&changed), "byte {at}");
    }
    for length in (0..der.len()).step_by(37) {
        assert!(is_refused(&der[..length]), "{length}");
    }
}

pub(crate) fn pem_to_der(path: &Path) -> Vec<u8> {
    let output = Command::new("openssl").args(["x509", "-outform", "der", "-in"]).arg(path).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn a_real_tpm_opens_our_credentials_for_the_key_of_that_name_only() {
    let tpm = Tpm::new();
    tpm.tool("tpm2_createprimary -Q -C e -G ecc256:ecdsa-sha256:null -c ak.ctx -a fixedtpm|fixedparent|sensitivedataorigin|restricted|sign|userwithauth");
    tpm.tool("tpm2_flushcontext -t");
    tpm.tool("tpm2_readpublic -Q -c ak.ctx -n ak.name");
    tpm.tool("tpm2_flushcontext -t");
    let name: [u8; 34] = tpm.read("ak.name").try_into().unwrap();
    for kind in ["rsa", "ecc"] {
        let public = tpm.endorsement_key(kind);
        let ek = EkPublic::parse(&public).unwrap();
        let opens = |name: &[u8; 34]| {
            let made = make_credential(&ek, name, &[0x5a; 32]).unwrap();
            let sized = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
            // The form of tpm2_makecredential: a magic and a version, then both structures with their sizes.
            let head = [0xba, 0xdc, 0xc0, 0xde, 0, 0, 0, 1];
            let file = [&head[..], &sized(&made.id_object), &sized(&made.encrypted_seed)].concat();
            std::fs::write(tpm.path("credential"), file).unwrap();
            tpm.tool("tpm2_flushcontext -l");
            tpm.tool("tpm2_startauthsession --policy-session -S session");
            tpm.tool("tpm2_policysecret -Q -S session -c e");
            let socket = format!("swtpm:path={}", tpm.path("tpm").display());
            let line = "-Q -c ak.ctx -C ek.ctx -i credential -o opened -P session:session";
            let activate = || {
                Command::new("tpm2_activatecredential")
                    .args(line.split(' '))
                    .current_dir(tpm.folder.path())
                    .env("TPM2TOOLS_TCTI", &socket)
                    .output()
                    .unwrap()
            };
            let status = activate().status.success();
            tpm.tool("tpm2_flushcontext -t");
            status && tpm.read("opened") == [0x5a; 32]
        };
        assert!(opens(&name), "{kind}");
        let other = [&name[..2], &sha256(&[b"another key"])].concat().try_into().unwrap();
        std::fs::remove_file(tpm.path("opened")).unwrap();
        assert!(!opens(&other), "{kind}");
    }
}

#[test]
fn a_public_area_that_is_no_template_of_the_profile_is_refused() {
    for bytes in [&b""[..], &[0, 2, 0, 1], &[0; 316]] {
        assert!(EkPublic::parse(bytes).is_err());
    }
}

#[test]
fn a_certificate_has_one_fingerprint_whatever_the_tpm_has_after_it() {
    let forge = Forge::honest();
    let finish = |certificate: &[u8]| {
        let state = state(&forge, certificate);
        finish(&forge.bytes(), &state, &forge.policy()).map(|record| record.ek_certificate_sha256)
    };
    let certificate = [&[0x30, 0x81, 0x80][..], &[7; 0x80]].concat();
    let want = hex::encode(sha256(&[&certificate]));
    assert_eq!(finish(&certificate).unwrap(), want);
    assert_eq!(finish(&[&certificate[..], &[0xff; 40]].concat()).unwrap(), want);
    assert_eq!(finish(&[&certificate[..], &[0]].concat()).unwrap(), want);
    assert!(finish(&certificate[..90]).is_err());
}

/// What `begin` keeps of an enrolment whose answer is the evidence of `forge`.
pub(crate) fn state(forge: &Forge, certificate: &[u8]) -> State {
    let request = Request {
        format: REQUEST_FORMAT.to_owned(),
        key: "ecdsa".to_owned(),
        ak_public: STANDARD.encode(forge.public()),
        ek: "ecc".to_owned(),
        ek_public: String::new(),
        ek_certificate: STANDARD.encode(certificate),
        ek_chain: String::new(),
    };
    State { format: STATE_FORMAT.to_owned(), nonce: hex::encode(NONCE), request }
}
