//! The verifier on evidence whose parts are any bytes: a verdict, and never trust.
#![no_main]

use dolmen_abi::Binding;
use dolmen_abi::evidence::{Evidence, MAX_EVIDENCE, Path};
use dolmen_verify::{Expected, Policy, Verdict, check, explain, export};
use zerocopy::{FromZeros, IntoBytes};

/// Takes a part from the front: its length is the first byte, times eight.
fn part<'b>(bytes: &mut &'b [u8]) -> &'b [u8] {
    let Some((length, rest)) = bytes.split_first() else { return &[0] };
    let (part, rest) = rest.split_at(rest.len().min(usize::from(*length) * 8));
    *bytes = rest;
    if part.is_empty() { &[0] } else { part }
}

fn policy() -> Policy {
    let (pcr, register) = ("00".repeat(32), "00".repeat(48));
    Policy::parse(&format!("pcr17 = \"{pcr}\"\npcr18 = \"{pcr}\"\n[guests.demo]\ng0 = \"{register}\"\n"))
        .expect("the policy is right")
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    let (attest, signature, ak_public) = (part(&mut rest), part(&mut rest), part(&mut rest));
    let mut binding = Binding::new_zeroed();
    let head = part(&mut rest);
    let size = head.len().min(binding.as_bytes().len());
    binding.as_mut_bytes()[..size].copy_from_slice(&head[..size]);
    let event_log = if rest.is_empty() { &[0][..] } else { rest };
    let path = Path::new(&[]).expect("no siblings are few enough");
    let evidence =
        Evidence { attest, signature, ak_public, event_log, binding, index: 0, count: 1, path };
    let mut file = vec![0; MAX_EVIDENCE];
    let Ok(length) = evidence.encode(&mut file) else { return };
    let file = &file[..length];
    assert_eq!(check(file, &policy(), &Expected::Anything).verdict, Verdict::Refused);
    assert!(explain(file).is_ok());
    let _ = export::export(file);
});
