//! Reference values as a CoRIM (draft-ietf-rats-corim), for verifiers that are not ours.
//!
//! One CoMID with one reference triple: what is launched (class: vendor and model), each event's digests under its name,
//! and the registers. Unsigned: who publishes a release signs the checksums, or wraps this file into COSE.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use corim::builder::{ComidBuilder, CorimBuilder};
use corim::types::common::{MeasuredElement, TagIdChoice};
use corim::types::corim::CorimId;
use corim::types::environment::{ClassMap, EnvironmentMap};
use corim::types::measurement::{
    Digest, IntegrityRegisterId, IntegrityRegisters, MeasurementMap, MeasurementValuesMap,
};
use corim::types::triples::ReferenceTriple;

use crate::measure::{Event, Registers};

/// Numbers of algorithms in IANA's registry of named information. SHA-1 has none there, and is left out.
const ALGORITHMS: [(&str, i64); 3] = [("sha256", 1), ("sha384", 7), ("sha512", 8)];
/// Name and version of what is released.
const NAME: &str = concat!("dolmen-", env!("CARGO_PKG_VERSION"));

/// The CoRIM of these events and registers.
pub(super) fn of(events: &[Event], registers: &Registers) -> Result<Vec<u8>> {
    let mut measurements = events.iter().map(event).collect::<Result<Vec<_>>>()?;
    measurements.push(of_registers(registers)?);
    let environment = EnvironmentMap {
        class: Some(ClassMap {
            class_id: None,
            vendor: Some("Dolmen".into()),
            model: Some("hypervisor".into()),
            layer: None,
            index: None,
        }),
        instance: None,
        group: None,
    };
    let comid = ComidBuilder::new(TagIdChoice::Text(format!("{NAME}-{}", identity(registers))))
        .add_reference_triple(ReferenceTriple::new(environment, measurements))
        .build()
        .map_err(|error| anyhow!("no CoMID: {error}"))?;
    CorimBuilder::new(CorimId::Text(NAME.into()))
        .add_comid_tag(comid)
        .and_then(CorimBuilder::build_bytes)
        .map_err(|error| anyhow!("no CoRIM: {error}"))
}

/// A tag's name must be one of its kind: the registers make it so.
fn identity(registers: &Registers) -> String {
    let values = registers.values().filter_map(|banks| banks.get("sha256"));
    values.map(|value| value.chars().take(16).collect::<String>()).collect::<Vec<_>>().join("-")
}

fn event(event: &Event) -> Result<MeasurementMap> {
    let mut values = MeasurementValuesMap::new();
    values.digests = Some(digests(&event.digests)?);
    Ok(MeasurementMap {
        mkey: Some(MeasuredElement::Text(event.event.clone())),
        mval: values,
        authorized_by: None,
    })
}

fn of_registers(registers: &Registers) -> Result<MeasurementMap> {
    let values = registers
        .iter()
        .map(|(pcr, banks)| Ok((IntegrityRegisterId::Uint(u64::from(*pcr)), digests(banks)?)))
        .collect::<Result<BTreeMap<_, _>>>()?;
    let mut measured = MeasurementValuesMap::new();
    measured.integrity_registers = Some(IntegrityRegisters(values));
    Ok(MeasurementMap {
        mkey: Some(MeasuredElement::Text("TPM PCRs".into())),
        mval: measured,
        authorized_by: None,
    })
}

fn digests(banks: &BTreeMap<&'static str, String>) -> Result<Vec<Digest>> {
    let known = ALGORITHMS.iter().filter_map(|(bank, number)| Some((*number, banks.get(bank)?)));
    known.map(|(number, value)| Ok(Digest::new(number, hex::decode(value)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn banks(byte: &str) -> BTreeMap<&'static str, String> {
        [("sha1", 20), ("sha256", 32), ("sha384", 48), ("sha512", 64)]
            .map(|(bank, size)| (bank, byte.repeat(size)))
            .into()
    }

    #[test]
    fn a_reader_of_corim_finds_events_and_registers() {
        let events = [Event { pcr: 17, event: "core".into(), digests: banks("ab") }];
        let bytes = of(&events, &[(17, banks("cd"))].into()).unwrap();
        let (corim, comids) = corim::validate::decode_and_validate(&bytes).unwrap();
        assert_eq!(corim.id, CorimId::Text(NAME.into()));
        let triples = comids[0].triples.reference_triples.as_ref().unwrap();
        let measurements = triples[0].measurements();
        assert_eq!(measurements[0].mkey, Some(MeasuredElement::Text("core".into())));
        let digests = measurements[0].mval.digests.as_ref().unwrap();
        assert_eq!(
            digests[..],
            [Digest::new(1, vec![0xab; 32]), Digest::new(7, vec![0xab; 48]), Digest::new(8, vec![0xab; 64])]
        );
        let registers = measurements[1].mval.integrity_registers.as_ref().unwrap();
        assert_eq!(registers.0[&IntegrityRegisterId::Uint(17)][0], Digest::new(1, vec![0xcd; 32]));
        assert_eq!(of(&events, &[(17, banks("cd"))].into()).unwrap(), bytes);
    }
}
