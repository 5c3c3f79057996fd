//! Makes evidence as a guest would get it, with a key that is no TPM's, so that every part can be altered.

use dolmen_abi::evidence::host::{HostEvidence, MAX_HOST_EVIDENCE};
use dolmen_abi::evidence::{Evidence, MAX_EVIDENCE, Path};
use dolmen_abi::{Binding, LaunchFacts};
use dolmen_drtm::handoff::Bank;
use dolmen_drtm::log::LogWriter;
use dolmen_drtm::replay::EventLog;
use dolmen_drtm::{Algorithm, BankSet, DigestSet};
use dolmen_tpm::crypto::sha256;
use dolmen_tpm::policy::{SELECT_17_18, host_policy, launch_policy};
use dolmen_tpm::public::AK_ATTRIBUTES;
use dolmen_verify::{AttestationKey, Expected, Policy, Report, leaf};
use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::ecdsa::{Signature, SigningKey};
use zerocopy::FromZeros;

/// Report data of honest evidence.
pub(crate) const NONCE: &[u8] = b"a nonce that the relying party chose";

/// One event: register, data, what was measured.
pub(crate) type Event = (u8, &'static str, &'static [u8]);

/// Everything that evidence is made of.
#[derive(Clone)]
pub(crate) struct Forge {
    pub(crate) secret: [u8; 32],
    pub(crate) attributes: u32,
    pub(crate) key_policy: [u8; 32],
    pub(crate) events: Vec<Event>,
    pub(crate) algorithms: Vec<Algorithm>,
    pub(crate) binding: Binding,
    pub(crate) place: (u32, u32, Vec<[u8; 32]>),
    pub(crate) selection: Vec<u8>,
    pub(crate) counts: (u32, u32),
    /// Replaces what would be right.
    pub(crate) extra_data: Option<[u8; 32]>,
    pub(crate) quoted: Option<(Vec<u8>, Vec<u8>)>,
    pub(crate) log: Option<Vec<u8>>,
    pub(crate) head: [u8; 6],
}

impl Forge {
    /// Evidence without a fault.
    pub(crate) fn honest() -> Self {
        let mut forge = Self {
            secret: [3; 32],
            attributes: AK_ATTRIBUTES,
            key_policy: [0; 32],
            events: vec![
                (17, "SKINIT", b"launch image"),
                (17, "core", b"core"),
                (18, "manifest", b"manifest"),
                (18, "guest/demo/kernel", b"kernel"),
                (18, "guest/demo/cmdline", b"console=ttyS0"),
            ],
            algorithms: vec![Algorithm::Sha1, Algorithm::Sha256],
            binding: binding(),
            place: (0, 1, vec![]),
            selection: SELECT_17_18.to_vec(),
            counts: (7, 1),
            extra_data: None,
            quoted: None,
            log: None,
            head: [0xff, 0x54, 0x43, 0x47, 0x80, 0x18],
        };
        forge.key_policy = launch_policy(&forge.pcr(17));
        forge
    }

    pub(crate) fn event_log(&self) -> Vec<u8> {
        let list: Vec<_> = self
            .algorithms
            .iter()
            .map(|a| Bank { algorithm: a.id(), digest_size: a.size() as u16, measured: 1 })
            .collect();
        let banks = BankSet::from_list(&list).unwrap();
        let mut buffer = vec![0; 8192];
        let mut writer = LogWriter::begin(&mut buffer, &banks).unwrap();
        for (pcr, data, measured) in &self.events {
            writer.append(*pcr, &DigestSet::of(&banks, measured), data.as_bytes()).unwrap();
        }
        writer.bytes().to_vec()
    }

    /// The register as the events make it.
    pub(crate) fn pcr(&self, pcr: u8) -> [u8; 32] {
        let log = self.event_log();
        let value = EventLog::parse(&log).unwrap().replay(Algorithm::Sha256, pcr).unwrap();
        value.bytes().try_into().unwrap()
    }

    fn key(&self) -> SigningKey {
        SigningKey::from_slice(&self.secret).unwrap()
    }

    /// TPM2B_PUBLIC.
    pub(crate) fn public(&self) -> Vec<u8> {
        let point = self.key().verifying_key().to_sec1_point(false);
        let mut area = vec![0, 0x23, 0, 0x0b];
        area.extend(self.attributes.to_be_bytes());
        area.extend([0, 32]);
        area.extend(self.key_policy);
        area.extend([0, 0x10, 0, 0x18, 0, 0x0b, 0, 3, 0, 0x10]);
        for coordinate in point.as_bytes()[1..].chunks(32) {
            area.extend([0, 32]);
            area.extend(coordinate);
        }
        let size = (area.len() as u16).to_be_bytes();
        [&size[..], &area].concat()
    }

    /// TPMS_ATTEST.
    pub(crate) fn attest(&self) -> Vec<u8> {
        self.attest_over(&self.extra_data.unwrap_or_else(|| self.root()))
    }

    /// TPMS_ATTEST with this extra data.
    fn attest_over(&self, extra_data: &[u8]) -> Vec<u8> {
        let public = self.public();
        let signer = AttestationKey::parse(&public).unwrap().qualified_name();
        let mut out = self.head.to_vec();
        out.extend([0, 34]);
        out.extend(signer);
        out.extend((extra_data.len() as u16).to_be_bytes());
        out.extend(extra_data);
        out.extend(123_456_u64.to_be_bytes());
        out.extend(self.counts.0.to_be_bytes());
        out.extend(self.counts.1.to_be_bytes());
        out.push(1);
        out.extend(0x2020_0318_0012_0000_u64.to_be_bytes());
        out.extend(&self.selection);
        out.extend([0, 32]);
        out.extend(sha256(&[&self.pcr(17), &self.pcr(18)]));
        out
    }

    fn root(&self) -> [u8; 32] {
        let mut value = leaf(&self.binding);
        let mut index = self.place.0;
        for sibling in &self.place.2 {
            let (left, right) = if index & 1 == 1 { (sibling, &value) } else { (&value, sibling) };
            value = sha256(&[&[1], left, right]);
            index >>= 1;
        }
        value
    }

    /// TPMT_SIGNATURE over `attest`.
    pub(crate) fn sign(&self, attest: &[u8]) -> Vec<u8> {
        let made: Signature = self.key().sign_prehash(&sha256(&[attest])).unwrap();
        let (r, s) = made.split_bytes();
        [&[0, 0x18, 0, 0x0b, 0, 32][..], &r, &[0, 32], &s].concat()
    }

    /// The file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let attest = self.attest();
        let signature = self.sign(&attest);
        let (attest, signature) = self.quoted.clone().unwrap_or((attest, signature));
        let (public, log) = (self.public(), self.log.clone().unwrap_or_else(|| self.event_log()));
        let evidence = Evidence {
            attest: &attest,
            signature: &signature,
            ak_public: &public,
            event_log: &log,
            binding: self.binding,
            index: self.place.0,
            count: self.place.1,
            path: Path::new(&self.place.2).unwrap(),
        };
        let mut out = vec![0; MAX_EVIDENCE];
        let length = evidence.encode(&mut out).unwrap();
        out.truncate(length);
        out
    }

    /// The same about the host, over [`NONCE`], by a key that speaks of it.
    pub(crate) fn of_host() -> Self {
        let mut forge = Self::honest();
        forge.key_policy = host_policy(&forge.pcr(17));
        forge
    }

    /// The file about the host.
    pub(crate) fn host_bytes(&self) -> Vec<u8> {
        let attest = self.attest_over(NONCE);
        let (signature, public, log) = (self.sign(&attest), self.public(), self.event_log());
        let values = [self.pcr(17), self.pcr(18)].concat();
        let evidence = HostEvidence {
            attest: &attest,
            signature: &signature,
            ak_public: &public,
            event_log: &log,
            pcrs: 1 << 17 | 1 << 18,
            values: &values,
        };
        let mut out = vec![0; MAX_HOST_EVIDENCE];
        let length = evidence.encode(&mut out).unwrap();
        out.truncate(length);
        out
    }

    /// The policy that accepts this evidence, as TOML.
    pub(crate) fn policy_text(&self) -> String {
        let public = self.public();
        let name = hex::encode(AttestationKey::parse(&public).unwrap().name());
        format!(
            "pcr17 = \"{}\"\npcr18 = \"{}\"\n[guests.demo]\ng0 = \"{}\"\n[[keys]]\nname = \"{name}\"\nreset_count = 7\n",
            hex::encode(self.pcr(17)),
            hex::encode(self.pcr(18)),
            hex::encode(self.binding.registers[0]),
        )
    }

    pub(crate) fn policy(&self) -> Policy {
        Policy::parse(&self.policy_text()).unwrap()
    }
}

fn binding() -> Binding {
    let mut binding = Binding::new_zeroed();
    binding.name[..4].copy_from_slice(b"demo");
    binding.facts =
        (LaunchFacts::AMD_SKINIT | LaunchFacts::IOMMU_SHIELDED | LaunchFacts::SMM_NOT_ISOLATED).bits();
    binding.registers[0] = [0x61; 48];
    binding.report_data[..NONCE.len()].copy_from_slice(NONCE);
    binding
}

/// The report on `forge` under the policy that honest evidence fulfils.
pub(crate) fn judge(forge: &Forge) -> Report {
    dolmen_verify::check(&forge.bytes(), &Forge::honest().policy(), &Expected::nonce(NONCE).unwrap())
}
