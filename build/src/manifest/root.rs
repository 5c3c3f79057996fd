//! `[sealing_root]`: which key of the TPM must serve as sealing root.

use dolmen_vm::manifest::SealingRoot;

use super::complaint::Complaint;
use super::read::Reader;

/// Compiles the table as `dolmen provision` prints it.
pub(super) fn sealing_root(reader: &Reader<'_>) -> Result<SealingRoot, Complaint> {
    let (first, last) = SealingRoot::HANDLES.into_inner();
    let handle = reader.integer("handle", u64::from(first)..=u64::from(last), 1)?;
    let handle = reader.required("handle", handle)?;
    let text = reader.string("name")?;
    let text = reader.required("name", text)?;
    let name = hex::decode(text.get_ref()).ok();
    let name: Option<[u8; SealingRoot::NAME_BYTES]> = name.and_then(|bytes| bytes.try_into().ok());
    let name = name.filter(|name| name.starts_with(&SealingRoot::NAME_ALGORITHM));
    let expected = "68 hexadecimal digits that begin with 000b, as `dolmen provision` prints them";
    Ok(SealingRoot {
        handle: u32::try_from(*handle.get_ref()).unwrap_or(0),
        name: name.ok_or_else(|| reader.wrong(&text.span(), "name", expected))?,
        reserved: [0; 2],
    })
}
