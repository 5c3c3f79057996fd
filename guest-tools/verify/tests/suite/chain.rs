//! Chains of certificates of a maker's authority, made with openssl: which lead from an endorsement key to a root.

use std::process::Command;
use std::time::Duration;

use dolmen_tpm::crypto::Point;
use dolmen_verify::enrol::{Certificate, CertificateError, EkPublic, check_certificate};

use crate::enrolling::{is_refused_once_damaged, now, pem_to_der, run};

/// Extensions by the name of their file.
const EXTENSIONS: [(&str, &str); 6] = [
    ("none", ""),
    ("ca", "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n"),
    ("last", "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\n"),
    ("signer", "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,digitalSignature\n"),
    ("strange", "basicConstraints=critical,CA:TRUE\n1.2.3.4=critical,ASN1:NULL\n"),
    ("ek", "basicConstraints=critical,CA:FALSE\nextendedKeyUsage=2.23.133.8.1\n"),
];
/// Days that certificates are valid, and that those are which soon are out of date.
const LONG: u32 = 20;
const SHORT: u32 = 2;

/// A maker's authority of two levels with elliptic keys, in a folder of its own, and its certificate for an endorsement
/// key: "root", "between" and "ek".
struct Authority {
    folder: tempfile::TempDir,
    digest: &'static str,
}

impl Authority {
    fn new(curve: &str, digest: &'static str) -> Self {
        let authority = Self { folder: tempfile::tempdir().unwrap(), digest };
        for (name, text) in EXTENSIONS {
            std::fs::write(authority.folder.path().join(format!("{name}.ext")), text).unwrap();
        }
        for (name, curve) in [("root", curve), ("between", curve), ("lower", curve), ("ek", "prime256v1")] {
            authority.openssl(&format!("ecparam -name {curve} -genkey -noout -out {name}.key"));
        }
        authority.issue("root", "root", "root", "ca", LONG);
        authority.issue("root", "between", "between", "ca", LONG);
        authority.issue("between", "ek", "ek", "ek", LONG);
        authority
    }

    /// Writes `out`.pem: `issuer` signs for `subject`, which may be itself.
    fn issue(&self, issuer: &str, subject: &str, out: &str, extensions: &str, days: u32) {
        let by = if issuer == subject {
            format!("-signkey {issuer}.key")
        } else {
            format!("-CA {issuer}.pem -CAkey {issuer}.key -CAcreateserial")
        };
        self.openssl(&format!("req -new -key {subject}.key -subj /CN={subject} -out {subject}.csr"));
        let digest = self.digest;
        self.openssl(&format!(
            "x509 -req -in {subject}.csr {by} -{digest} -days {days} -extfile {extensions}.ext -out {out}.pem"
        ));
    }

    fn openssl(&self, line: &str) {
        run(Command::new("openssl").args(line.split_whitespace()).current_dir(self.folder.path()));
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(name)).unwrap()
    }

    fn certificates(&self, names: &[&str]) -> Vec<Certificate> {
        let one = |name: &&str| Certificate::from_pem(&self.read(&format!("{name}.pem"))).unwrap();
        names.iter().flat_map(one).collect()
    }

    /// The endorsement key's certificate.
    fn der(&self) -> Vec<u8> {
        pem_to_der(&self.folder.path().join("ek.pem"))
    }

    /// The endorsement key.
    fn ek(&self) -> EkPublic<'static> {
        self.openssl("ec -in ek.key -pubout -outform der -out ek.pub");
        let public = self.read("ek.pub");
        let (_, point) = public.split_at(public.len() - 64);
        EkPublic::Ecc(Point::from_coordinates(&point[..32], &point[32..]).unwrap())
    }

    /// What is said of the endorsement key's certificate `after` so many days, with these intermediates and roots.
    fn check(&self, between: &[&str], roots: &[&str], after: u32) -> Result<(), CertificateError> {
        let (between, roots) = (self.certificates(between), self.certificates(roots));
        let time = now() + Duration::from_hours(24) * after;
        check_certificate(&self.der(), &self.ek(), &between, &roots, time)
    }
}

fn no_chain(end: &str) -> Result<(), CertificateError> {
    Err(CertificateError::NoChain(format!("CN={end}")))
}

#[test]
fn makers_may_sign_with_each_curve_and_digest() {
    let other = Authority::new("secp384r1", "sha384");
    for (curve, digest) in [
        ("prime256v1", "sha256"),
        ("prime256v1", "sha384"),
        ("secp384r1", "sha256"),
        ("secp384r1", "sha384"),
        ("secp384r1", "sha512"),
        ("secp521r1", "sha384"),
        ("secp521r1", "sha512"),
    ] {
        let maker = Authority::new(curve, digest);
        let (der, ek) = (maker.der(), maker.ek());
        let (root, between) = (maker.certificates(&["root"]), maker.certificates(&["between"]));
        assert_eq!(check_certificate(&der, &ek, &between, &root, now()), Ok(()), "{curve} {digest}");
        // Of the same names, with other keys.
        for (between, root) in
            [(&between, &other.certificates(&["root"])), (&other.certificates(&["between"]), &root)]
        {
            let refused = check_certificate(&der, &ek, between, root, now());
            assert!(matches!(refused, Err(CertificateError::NoChain(_))), "{curve} {digest}: {refused:?}");
        }
        is_refused_once_damaged(&der, |damaged| {
            check_certificate(damaged, &ek, &between, &root, now()).is_err()
        });
    }
}

#[test]
fn curves_that_are_not_understood_lead_to_no_root() {
    let maker = Authority::new("secp256k1", "sha256");
    assert_eq!(maker.check(&["between"], &["root"], 0), no_chain("ek"));
}

#[test]
fn an_authority_signs_no_further_than_it_may() {
    let maker = Authority::new("prime256v1", "sha256");
    maker.issue("root", "between", "last", "last", LONG);
    maker.issue("root", "between", "signer", "signer", LONG);
    maker.issue("between", "lower", "lower", "ca", LONG);
    assert_eq!(maker.check(&["last"], &["root"], 0), Ok(()), "nobody is below the last authority");
    assert_eq!(
        maker.check(&["signer"], &["root"], 0),
        no_chain("ek"),
        "its key is for signatures, but not of certificates"
    );
    maker.issue("lower", "ek", "ek", "ek", LONG);
    assert_eq!(maker.check(&["lower", "between"], &["root"], 0), Ok(()));
    assert_eq!(
        maker.check(&["lower", "last"], &["root"], 0),
        no_chain("lower"),
        "the last authority has one below it"
    );
}

#[test]
fn an_issuer_out_of_date_does_not_hide_its_current_copy() {
    let maker = Authority::new("prime256v1", "sha256");
    maker.issue("root", "between", "old", "ca", SHORT);
    maker.issue("root", "between", "strange", "strange", LONG);
    maker.issue("root", "root", "old-root", "ca", SHORT);
    let later = SHORT + 1;
    for (between, roots) in [
        (&["old", "between"][..], &["root"][..]),
        (&["strange", "between"], &["root"]),
        (&["between"], &["old-root", "root"]),
        (&["strange", "old", "old-root", "between"], &["old-root", "root"]),
    ] {
        assert_eq!(maker.check(between, roots, later), Ok(()), "{between:?} {roots:?}");
    }
    // What is wrong is said if nothing else fits.
    let time = |name: &str| Err(CertificateError::Time(format!("CN={name}")));
    assert_eq!(maker.check(&["old"], &["root"], later), time("between"));
    assert_eq!(maker.check(&["between"], &["old-root"], later), time("root"));
    let strange = CertificateError::Extension { subject: "CN=between".into(), extension: "1.2.3.4".into() };
    assert_eq!(maker.check(&["strange"], &["root"], 0), Err(strange));
    assert_eq!(maker.check(&["old", "between"], &[], later), no_chain("between"));
}

#[test]
fn an_issuer_that_leads_nowhere_does_not_hide_one_that_leads_to_a_root() {
    let maker = Authority::new("prime256v1", "sha256");
    maker.issue("lower", "lower", "lower", "ca", LONG);
    maker.issue("lower", "between", "elsewhere", "ca", LONG);
    assert_eq!(maker.check(&["elsewhere", "between"], &["root"], 0), Ok(()));
    assert_eq!(maker.check(&["elsewhere", "lower"], &["root"], 0), no_chain("lower"));
}

#[test]
fn a_root_signs_no_further_than_it_may_if_it_says_how_far() {
    let maker = Authority::new("prime256v1", "sha256");
    for (name, outcome) in [
        ("none", Ok(())),
        ("ca", Ok(())),
        ("last", no_chain("between")),
        ("signer", no_chain("between")),
        ("ek", no_chain("between")),
    ] {
        maker.issue("root", "root", "other", name, LONG);
        assert_eq!(maker.check(&["between"], &["other"], 0), outcome, "{name}");
    }
    maker.issue("root", "ek", "ek", "ek", LONG);
    maker.issue("root", "root", "other", "last", LONG);
    assert_eq!(maker.check(&[], &["other"], 0), Ok(()), "nobody is below it");
}

#[test]
fn what_counts_is_the_bytes_that_were_signed_however_odd() {
    let maker = Authority::new("prime256v1", "sha256");
    let (ek, between, root) = (maker.ek(), maker.certificates(&["between"]), maker.certificates(&["root"]));
    let check = |der: &[u8]| check_certificate(der, &ek, &between, &root, now());
    let der = maker.der();
    let [tbs, algorithm, signature] = <[Vec<u8>; 3]>::try_from(parts(&der)).unwrap();
    assert_eq!(check(&whole(0x30, &[&tbs, &algorithm, &signature])), Ok(()));

    // The extended key usage is not critical, which DER says by leaving it out (RFC 5280, 4.1.2.9).
    let odd = with_explicit_false(&tbs, &[6, 3, 0x55, 0x1d, 0x25]);
    assert_eq!(odd.len(), tbs.len() + 3);
    assert_eq!(
        check(&whole(0x30, &[&odd, &algorithm, &signature])),
        no_chain("ek"),
        "the maker never signed them"
    );
    std::fs::write(maker.folder.path().join("odd"), &odd).unwrap();
    maker.openssl("dgst -sha256 -sign between.key -out odd.sig odd");
    let own = whole(3, &[&[0], &maker.read("odd.sig")]);
    assert_eq!(check(&whole(0x30, &[&odd, &algorithm, &own])), Ok(()), "the maker signed them");
    let more = whole(3, &[&[0], &maker.read("odd.sig"), &[0]]);
    assert_eq!(
        check(&whole(0x30, &[&odd, &algorithm, &more])),
        no_chain("ek"),
        "something follows the signature"
    );
}

#[test]
fn certificates_are_read_from_a_text_with_anything_between_them() {
    let maker = Authority::new("prime256v1", "sha256");
    let text =
        [b"Our root:\n", &maker.read("root.pem")[..], b"\n\xe9\n", &maker.read("between.pem")].concat();
    assert_eq!(Certificate::from_pem(&text).unwrap().len(), 2);
    for cut in [30, 200] {
        assert!(Certificate::from_pem(&text[..text.len() - cut]).is_err(), "{cut}");
    }
    assert!(Certificate::from_pem(&maker.der()).unwrap().is_empty());
}

/// The parts of a structure in DER, each with tag and length.
fn parts(der: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    let mut rest = content(der);
    while !rest.is_empty() {
        let head = rest.len() - content(rest).len();
        let (part, others) = rest.split_at(head + length(rest));
        parts.push(part.to_vec());
        rest = others;
    }
    parts
}

/// What the length at the start of a structure says.
fn length(der: &[u8]) -> usize {
    match der[1] {
        short @ ..0x80 => short.into(),
        long => {
            der[2..][..usize::from(long & 0x7f)].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
        }
    }
}

/// Everything behind the length at the start of a structure.
fn content(der: &[u8]) -> &[u8] {
    &der[if der[1] < 0x80 { 2 } else { 2 + usize::from(der[1] & 0x7f) }..]
}

fn whole(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = (content.len() as u16).to_be_bytes();
    let head = match content.len() {
        ..0x80 => vec![tag, length[1]],
        0x80..0x100 => vec![tag, 0x81, length[1]],
        _ => vec![tag, 0x82, length[0], length[1]],
    };
    [head, content].concat()
}

/// The same structure with `critical FALSE` written out in the extension of this object identifier.
fn with_explicit_false(der: &[u8], identifier: &[u8]) -> Vec<u8> {
    if der == identifier {
        return [der, &[1, 1, 0]].concat();
    }
    if der[0] & 0x20 == 0 {
        return der.to_vec();
    }
    let parts: Vec<_> = parts(der).iter().map(|part| with_explicit_false(part, identifier)).collect();
    whole(der[0], &parts.iter().map(Vec::as_slice).collect::<Vec<_>>())
}
