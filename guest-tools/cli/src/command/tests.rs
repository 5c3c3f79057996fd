use clap::Parser;
use dolmen_abi::evidence::Evidence;
use dolmen_guest::loopback::Loopback;
use serde_json::Value;

use super::*;
use crate::args::Arguments;

fn client() -> Client<Loopback> {
    Client::new(Loopback::launched().unwrap())
}

/// Runs a command line, with input that stands for the file it names.
fn run_line(client: &mut Client<Loopback>, line: &str, input: &[u8]) -> Result<Product, Failure> {
    let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
    run(client, &arguments.action, input)
}

fn json(product: &Product) -> Value {
    serde_json::from_str(&product.as_text(true)).unwrap()
}

#[test]
fn status_says_how_the_machine_was_launched() {
    let product = run_line(&mut client(), "dolmen status", &[]).unwrap();
    let text = product.as_text(false);
    for part in
        ["guest      first", "AMD_SKINIT", "IOMMU_SHIELDED", "random, registers, seal, quote, log", "16384"]
    {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    let json = json(&product);
    assert_eq!((&json["guest"], &json["launched"]), (&Value::from("first"), &Value::from(true)));
}

#[test]
fn random_gives_as_many_bytes_as_wanted() {
    let product = run_line(&mut client(), "dolmen random 3000", &[]).unwrap();
    assert_eq!(product.as_bytes().len(), 3000);
}

#[test]
fn extending_text_a_file_or_its_digest_is_the_same() {
    let want: [u8; 48] = Sha384::digest(b"boot-complete").into();
    let by_digest = format!("dolmen extend 3 --digest {}", hex::encode(want));
    let values: Vec<Value> = ["dolmen extend 3 --data boot-complete", "dolmen extend 3 --file x", &by_digest]
        .iter()
        .map(|line| json(&run_line(&mut client(), line, &want).unwrap()))
        .collect();
    assert_eq!(values[0], values[1]);
    assert_eq!(values[0], values[2]);
    assert_eq!(values[0]["g3"], hex::encode(Sha384::digest([[0; 48], want].concat())));
}

#[test]
fn registers_show_what_was_extended() {
    let mut client = client();
    let extended = json(&run_line(&mut client, "dolmen extend 7 --data x", &[]).unwrap());
    let registers = json(&run_line(&mut client, "dolmen registers", &[]).unwrap());
    assert_eq!(registers["g7"], extended["g7"]);
    assert_eq!(registers["g0"], "60".repeat(48));
    assert_eq!(registers["g1"], "00".repeat(48));
}

#[test]
fn a_sealed_file_opens_under_its_label_only() {
    let mut client = client();
    let blob = run_line(&mut client, "dolmen seal --label disk FILE", b"the key").unwrap();
    let opened = run_line(&mut client, "dolmen unseal --label disk FILE", blob.as_bytes()).unwrap();
    assert_eq!(opened.as_bytes(), b"the key");
    let refused = run_line(&mut client, "dolmen unseal FILE", blob.as_bytes()).unwrap_err();
    assert!(refused.to_string().contains("REFUSED"), "{refused}");
}

#[test]
fn a_policy_binds_to_a_register() {
    let mut client = client();
    let blob = run_line(&mut client, "dolmen seal --policy g2 FILE", b"the key").unwrap();
    run_line(&mut client, "dolmen extend 1 --data x", &[]).unwrap();
    assert!(run_line(&mut client, "dolmen unseal FILE", blob.as_bytes()).is_ok());
    run_line(&mut client, "dolmen extend 2 --data x", &[]).unwrap();
    assert!(run_line(&mut client, "dolmen unseal FILE", blob.as_bytes()).is_err());
}

#[test]
fn a_blob_for_any_guest_of_the_manifest_opens_in_another_one_and_the_default_does_not() {
    let mut sealer = client();
    let shared = run_line(&mut sealer, "dolmen seal --policy manifest FILE", b"the key").unwrap();
    let own = run_line(&mut sealer, "dolmen seal FILE", b"the key").unwrap();
    let mut neighbour = Client::new(Loopback::neighbour().unwrap());
    let opened = run_line(&mut neighbour, "dolmen unseal FILE", shared.as_bytes()).unwrap();
    assert_eq!(opened.as_bytes(), b"the key");
    let refused = run_line(&mut neighbour, "dolmen unseal FILE", own.as_bytes()).unwrap_err();
    assert!(refused.to_string().ends_with("bound to: it says this hypervisor, g0"), "{refused}");
}

#[test]
fn a_blob_of_a_newer_version_is_told_from_one_that_does_not_open() {
    let mut client = client();
    let blob = run_line(&mut client, "dolmen seal FILE", b"the key").unwrap();
    let mut newer = blob.as_bytes().to_vec();
    newer[8] = 9;
    let refused = run_line(&mut client, "dolmen unseal FILE", &newer).unwrap_err();
    assert!(refused.to_string().contains("NEWER_BLOB"), "{refused}");
    assert!(!refused.to_string().contains("it says"), "{refused}");
}

#[test]
fn a_quote_is_evidence_that_binds_the_nonce() {
    let product = run_line(&mut client(), "dolmen quote --nonce c0ffee", &[]).unwrap();
    let evidence = Evidence::decode(product.as_bytes()).unwrap();
    assert_eq!(evidence.binding.report_data[..4], [0xc0, 0xff, 0xee, 0]);
}

#[test]
fn a_quote_about_the_host_has_the_nonce_as_it_is_and_the_registers_wanted() {
    use dolmen_abi::evidence::host::HostEvidence;
    let product = run_line(&mut client(), "dolmen host-quote --nonce c0ffee --pcrs 4,17", &[]).unwrap();
    let evidence = HostEvidence::decode(product.as_bytes()).unwrap();
    assert_eq!((evidence.attest, evidence.pcrs), (&[0xc0, 0xff, 0xee][..], 0x0002_0010));
    assert_eq!(evidence.values, [[4; 32], [17; 32]].concat());
    assert_eq!(evidence.ak_public, b"k\x02");
}

#[test]
fn the_rsa_key_signs_if_it_is_asked_to() {
    let mut client = client();
    let product = run_line(&mut client, "dolmen quote --nonce 00 --key rsa", &[]).unwrap();
    assert_eq!(Evidence::decode(product.as_bytes()).unwrap().ak_public, b"k\x01");
    assert_eq!(client.transport().tpm.key, AkId::GUEST_RSA);
    assert_eq!(run_line(&mut client, "dolmen ak --key host-rsa", &[]).unwrap().as_bytes(), b"k\x03");
}

#[test]
fn log_and_key_come_as_they_are() {
    let mut client = client();
    let log = run_line(&mut client, "dolmen log", &[]).unwrap();
    assert_eq!(log.as_bytes(), client.transport().tpm.log);
    assert_eq!(run_line(&mut client, "dolmen ak", &[]).unwrap().as_bytes(), b"the public part of a key");
}

#[test]
fn a_refusal_by_the_tpm_is_told_with_its_code() {
    let mut client = client();
    client.transport().tpm.failure = 0x922;
    let failure = run_line(&mut client, "dolmen quote --nonce 00", &[]).unwrap_err();
    assert!(failure.to_string().contains("0x922"), "{failure}");
}

#[test]
fn input_is_read_to_its_limit_and_no_further() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, vec![7; MAX_SECRET]).unwrap();
    assert_eq!(read(&path, MAX_SECRET).unwrap().len(), MAX_SECRET);
    std::fs::write(&path, vec![7; MAX_SECRET + 1]).unwrap();
    let failure = read(&path, MAX_SECRET).unwrap_err().to_string();
    assert!(failure.contains("longer than the 16384 bytes"), "{failure}");
    let missing = read(&folder.path().join("none"), 1).unwrap_err().to_string();
    assert!(missing.contains("cannot open"), "{missing}");
    assert_eq!(hash(&path).unwrap()[..], Sha384::digest(vec![7; MAX_SECRET + 1])[..]);
}

#[test]
fn guests_are_listed_for_people_and_programs() {
    let product = run_line(&mut client(), "dolmen ps", &[]).unwrap();
    let text = product.as_text(false);
    assert!(text.starts_with("GUEST   STATE    FOR") && text.contains("\nfirst*  running  2.0s"), "{text}");
    let json = json(&product);
    assert_eq!((&json["guests"][0]["name"], &json["guests"][1]["state"]), (&"first".into(), &"off".into()));
}

#[test]
fn start_stop_and_reset_wait_until_it_is_done() {
    let mut client = client();
    for (line, state, want) in [
        ("dolmen start second", "running", "second runs\n"),
        ("dolmen reset second", "running", "second runs\n"),
        ("dolmen stop second", "stopped", "second is stopped, its memory wiped\n"),
    ] {
        let product = run_line(&mut client, line, &[]).unwrap();
        assert_eq!(product.as_text(false), want);
        assert_eq!(json(&product)["state"], state, "{line}");
    }
}

#[test]
fn what_cannot_be_done_to_a_guest_is_explained() {
    for (line, part) in [
        ("dolmen start first", "WRONG_STATE"),
        ("dolmen stop second", "start what is stopped"),
        ("dolmen start fourth", "no guest is called fourth; `dolmen ps` lists them"),
        ("dolmen stop first --timeout 0", "first is still stopping after 0 seconds"),
    ] {
        let failure = run_line(&mut client(), line, &[]).unwrap_err().to_string();
        assert!(failure.contains(part), "{line}: {failure}");
    }
}
