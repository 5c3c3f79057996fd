//! Commands without sessions, through the TIS driver, against a real TPM.

use crate::swtpm::Swtpm;
use crate::tis_model::TisModel;
use dolmen_tpm::command::{self, Digest, PcrIndex};
use dolmen_tpm::constant::{ResponseCode, alg, property};
use dolmen_tpm::tis::{Locality, Tis};
use dolmen_tpm::{TpmError, measure};
use sha2::{Digest as _, Sha256, Sha384};

fn tis(tpm: Swtpm, locality: Locality) -> Tis<TisModel<Swtpm>> {
    let mut tis = Tis::new(TisModel::new(tpm, Swtpm::set_locality), locality);
    tis.claim().expect("the locality is free");
    tis
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    Sha256::digest(parts.concat()).into()
}

#[test]
fn the_launch_value_and_each_extend_read_back_as_predicted() {
    let mut tpm = Swtpm::with_banks("sha256,sha384");
    tpm.dynamic_launch(b"launch image");
    let mut tis = tis(tpm, Locality::Two);
    let (code, code384) = (sha256(&[b"core"]), Sha384::digest(b"core"));
    let digests = [Digest::new(alg::SHA256, &code).unwrap(), Digest::new(alg::SHA384, &code384).unwrap()];

    let banks = measure::read_banks(&mut tis).unwrap();
    measure::check_covered(&banks, PcrIndex::DRTM_CODE, &digests).unwrap();
    let launched = measure::read_pcr(&mut tis, alg::SHA256, PcrIndex::DRTM_CODE).unwrap().unwrap();
    measure::extend_all(&mut tis, PcrIndex::DRTM_CODE, &digests).unwrap();
    let mut seen = Vec::new();
    measure::read_all(&mut tis, &banks, PcrIndex::DRTM_CODE, |algorithm, value| {
        seen.push((algorithm, value.bytes().to_vec()));
    })
    .unwrap();

    let start = sha256(&[&[0; 32], &sha256(&[b"launch image"])]);
    let start384 = Sha384::digest([&[0; 48][..], &Sha384::digest(b"launch image")].concat());
    assert_eq!(launched.bytes(), start);
    let want384 = Sha384::digest([&start384[..], &code384].concat()).to_vec();
    assert_eq!(seen, [(alg::SHA256, sha256(&[&start, &code]).to_vec()), (alg::SHA384, want384)]);
}

#[test]
fn an_extend_of_the_launch_register_from_locality_zero_is_refused() {
    let mut tis = tis(Swtpm::new(), Locality::Zero);
    let zero = [0; 32];
    let digest = [Digest::new(alg::SHA256, &zero).unwrap()];
    let result = measure::extend_all(&mut tis, PcrIndex::DRTM_CODE, &digest);
    assert_eq!(result, Err(TpmError::Refused(ResponseCode::LOCALITY)));
}

#[test]
fn a_bank_that_is_off_reads_as_nothing_and_a_bank_too_many_is_named() {
    let mut tis = tis(Swtpm::with_banks("sha1,sha384"), Locality::Two);
    let zero = [0; 48];
    let digests = [Digest::new(alg::SHA384, &zero).unwrap()];

    let banks = measure::read_banks(&mut tis).unwrap();
    let value = measure::read_pcr(&mut tis, alg::SHA256, PcrIndex::DRTM_CODE).unwrap();

    assert!(!banks.has(alg::SHA256, PcrIndex::DRTM_CODE));
    assert!(banks.has(alg::SHA384, PcrIndex::DRTM_CODE));
    assert_eq!(value, None);
    let uncovered = measure::check_covered(&banks, PcrIndex::DRTM_CODE, &digests);
    assert_eq!(uncovered, Err(measure::Uncovered(alg::SHA1)));
}

#[test]
fn starting_twice_is_not_an_error() {
    let mut tis = tis(Swtpm::new(), Locality::Zero);
    assert_eq!(command::start(&mut tis), Ok(()));
    assert_eq!(command::start(&mut tis), Ok(()));
}

#[test]
fn properties_are_read_and_an_unknown_one_is_none() {
    let mut tis = tis(Swtpm::new(), Locality::Two);
    let maker = command::read_property(&mut tis, property::MANUFACTURER).unwrap();
    assert_eq!(maker, Some(u32::from_be_bytes(*b"IBM\0")));
    assert_eq!(command::read_property(&mut tis, 0xffff_0000), Ok(None));
    assert_eq!(command::flush_leftovers(&mut tis), Ok(()));
}
