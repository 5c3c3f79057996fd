//! Evidence taken apart into its fields, each of which can be changed, and put together again.

use std::ops::Range;

use dolmen_abi::evidence::{Evidence, FORMAT};
use zerocopy::IntoBytes;

/// A field: what it is called, and which bytes it has.
pub(crate) type Field = (String, Range<usize>);

/// The parts of one piece of evidence.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) attest: Vec<u8>,
    pub(crate) signature: Vec<u8>,
    pub(crate) public: Vec<u8>,
    pub(crate) log: Vec<u8>,
    pub(crate) binding: Vec<u8>,
    pub(crate) index: u32,
    pub(crate) count: u32,
    pub(crate) path: Vec<Vec<u8>>,
}

impl Parts {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let evidence = Evidence::decode(bytes).unwrap();
        Self {
            attest: evidence.attest.to_vec(),
            signature: evidence.signature.to_vec(),
            public: evidence.ak_public.to_vec(),
            log: evidence.event_log.to_vec(),
            binding: evidence.binding.as_bytes().to_vec(),
            index: evidence.index,
            count: evidence.count,
            path: evidence.path.siblings().iter().map(|sibling| sibling.to_vec()).collect(),
        }
    }

    /// The map's entries, each with its key.
    pub(crate) fn entries(&self) -> Vec<Vec<u8>> {
        let mut path = head(4, self.path.len() as u32);
        for sibling in &self.path {
            path.extend(bytes(sibling));
        }
        let values = [
            [head(3, FORMAT.len() as u32), FORMAT.as_bytes().to_vec()].concat(),
            bytes(&self.attest),
            bytes(&self.signature),
            bytes(&self.public),
            bytes(&self.log),
            bytes(&self.binding),
            head(0, self.index),
            head(0, self.count),
            path,
        ];
        (0..).zip(values).map(|(key, value)| [head(0, key), value].concat()).collect()
    }

    /// The file, in its canonical encoding.
    pub(crate) fn file(&self) -> Vec<u8> {
        [head(5, 9), self.entries().concat()].concat()
    }
}

/// A CBOR head: major type and the shortest form of a number.
pub(crate) fn head(major: u8, number: u32) -> Vec<u8> {
    let top = major << 5;
    match number {
        0..24 => vec![top | number as u8],
        24..0x100 => vec![top | 24, number as u8],
        0x100..0x1_0000 => [&[top | 25][..], &(number as u16).to_be_bytes()].concat(),
        _ => [&[top | 26][..], &number.to_be_bytes()].concat(),
    }
}

/// A CBOR byte string.
pub(crate) fn bytes(content: &[u8]) -> Vec<u8> {
    [head(2, content.len() as u32), content.to_vec()].concat()
}

/// Walks through a structure and writes down its fields.
struct Walk<'b> {
    bytes: &'b [u8],
    at: usize,
    fields: Vec<Field>,
}

impl<'b> Walk<'b> {
    fn new(bytes: &'b [u8]) -> Self {
        Self { bytes, at: 0, fields: Vec::new() }
    }

    fn field(&mut self, name: impl Into<String>, length: usize) -> &'b [u8] {
        let range = self.at..self.at + length;
        self.at = range.end;
        self.fields.push((name.into(), range.clone()));
        &self.bytes[range]
    }

    /// A TPM2B: size, then content.
    fn sized(&mut self, name: &str) {
        let size = self.field(format!("{name}.size"), 2);
        self.field(name, usize::from(u16::from_be_bytes(size.try_into().unwrap())));
    }

    fn little(&mut self, name: impl Into<String>) -> usize {
        u32::from_le_bytes(self.field(name, 4).try_into().unwrap()) as usize
    }

    fn done(self) -> Vec<Field> {
        assert_eq!(self.at, self.bytes.len(), "the fields do not cover the structure");
        self.fields
    }
}

/// TPMS_ATTEST of a quote.
pub(crate) fn attest(bytes: &[u8]) -> Vec<Field> {
    let mut walk = Walk::new(bytes);
    for (name, length) in [("magic", 4), ("type", 2)] {
        walk.field(name, length);
    }
    walk.sized("signer");
    walk.sized("extra");
    for (name, length) in
        [("clock", 8), ("resets", 4), ("restarts", 4), ("safe", 1), ("firmware", 8), ("selection.count", 4)]
    {
        walk.field(name, length);
    }
    walk.field("selection.hash", 2);
    walk.field("selection.size", 1);
    for byte in 0..3 {
        walk.field(format!("selection.{byte}"), 1);
    }
    walk.sized("digest");
    walk.done()
}

/// TPMT_SIGNATURE by ECDSA.
pub(crate) fn signature(bytes: &[u8]) -> Vec<Field> {
    let mut walk = Walk::new(bytes);
    walk.field("scheme", 2);
    walk.field("hash", 2);
    walk.sized("r");
    walk.sized("s");
    walk.done()
}

/// TPM2B_PUBLIC of an ECC key.
pub(crate) fn public(bytes: &[u8]) -> Vec<Field> {
    let mut walk = Walk::new(bytes);
    for (name, length) in [("size", 2), ("type", 2), ("name-algorithm", 2), ("attributes", 4)] {
        walk.field(name, length);
    }
    walk.sized("policy");
    for name in ["symmetric", "scheme", "scheme-hash", "curve", "kdf"] {
        walk.field(name, 2);
    }
    walk.sized("x");
    walk.sized("y");
    walk.done()
}

/// The event log.
pub(crate) fn log(bytes: &[u8]) -> Vec<Field> {
    let mut walk = Walk::new(bytes);
    for (name, length) in [
        ("pcr", 4),
        ("type", 4),
        ("digest", 20),
        ("size", 4),
        ("signature", 16),
        ("class", 4),
        ("minor", 1),
        ("major", 1),
        ("errata", 1),
        ("width", 1),
    ] {
        walk.field(format!("header.{name}"), length);
    }
    let count = walk.little("header.algorithms");
    let mut sizes = Vec::new();
    for index in 0..count {
        let id = walk.field(format!("header.algorithm{index}"), 2);
        let size = walk.field(format!("header.size{index}"), 2);
        sizes.push((id.to_vec(), usize::from(u16::from_le_bytes(size.try_into().unwrap()))));
    }
    walk.field("header.vendor", 1);
    let mut event = 0;
    while walk.at < bytes.len() {
        for name in ["pcr", "type", "digests"] {
            walk.field(format!("event{event}.{name}"), 4);
        }
        for (id, size) in &sizes {
            walk.field(format!("event{event}.algorithm"), 2);
            walk.field(format!("event{event}.digest-{}", hex::encode(id)), *size);
        }
        let length = walk.little(format!("event{event}.size"));
        walk.field(format!("event{event}.data"), length);
        event += 1;
    }
    walk.done()
}

/// The binding.
pub(crate) fn binding(bytes: &[u8]) -> Vec<Field> {
    let mut walk = Walk::new(bytes);
    walk.field("name", 1);
    walk.field("name.rest", 31);
    walk.field("facts", 4);
    walk.field("reserved", 4);
    for register in 0..8 {
        walk.field(format!("g{register}"), 48);
    }
    walk.field("report-data", 64);
    walk.done()
}
