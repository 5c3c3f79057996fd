//! Tables of documents that are made from the code, and held to it.

use std::path::Path;

/// Fails unless the tables in `docs/<name>` are these; with DOLMEN_BLESS set it writes them instead.
pub(crate) fn assert_tables(name: &str, tables: &[(&'static str, String)]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    let document = std::fs::read_to_string(&path).unwrap();
    let want = tables.iter().fold(document.clone(), |text, (name, table)| replaced(&text, name, table));
    if std::env::var_os("DOLMEN_BLESS").is_some() {
        std::fs::write(&path, want).unwrap();
        return;
    }
    for (old, new) in document.lines().zip(want.lines()) {
        assert_eq!(old, new, "docs/{name} differs from the code; DOLMEN_BLESS=1 writes it anew");
    }
    assert_eq!(document, want);
}

/// The document with the table after `<!-- generated: name -->` replaced.
fn replaced(document: &str, name: &str, table: &str) -> String {
    let mark = format!("<!-- generated: {name} -->\n");
    let (before, rest) = document.split_once(&mark).unwrap_or_else(|| panic!("no place for `{name}`"));
    let (_, after) = rest.split_once("<!-- end -->").unwrap_or_else(|| panic!("no end of `{name}`"));
    format!("{before}{mark}{table}<!-- end -->{after}")
}
