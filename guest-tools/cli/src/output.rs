//! How a result leaves: as text, JSON, bytes, a frame or a file.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::args::Arguments;
use crate::failure::Failure;
use crate::frame;

/// What a command brought.
#[derive(Debug)]
pub(crate) struct Product {
    /// Names the frame, and says what it is.
    name: &'static str,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Bytes(Zeroizing<Vec<u8>>),
    Report { text: String, json: Value },
    Nothing,
}

impl Product {
    /// Bytes as they are.
    pub(crate) const fn bytes(name: &'static str, bytes: Zeroizing<Vec<u8>>) -> Self {
        Self { name, content: Content::Bytes(bytes) }
    }

    /// Facts for people and programs.
    pub(crate) const fn report(name: &'static str, text: String, json: Value) -> Self {
        Self { name, content: Content::Report { text, json } }
    }

    /// Nothing to say.
    pub(crate) const fn nothing() -> Self {
        Self { name: "nothing", content: Content::Nothing }
    }

    /// The bytes of a binary result.
    #[cfg(test)]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match &self.content {
            Content::Bytes(bytes) => bytes,
            Content::Report { .. } | Content::Nothing => &[],
        }
    }

    /// A result as text, or as JSON.
    pub(crate) fn as_text(&self, as_json: bool) -> String {
        match &self.content {
            Content::Bytes(bytes) => {
                let json =
                    json!({ "what": self.name, "length": bytes.len(), "base64": STANDARD.encode(bytes) });
                format!("{json}\n")
            }
            Content::Report { json, .. } if as_json => format!("{json:#}\n"),
            Content::Report { text, .. } => text.clone(),
            Content::Nothing => String::new(),
        }
    }
}

/// Brings the result to where the arguments want it.
pub(crate) fn deliver(product: &Product, arguments: &Arguments) -> Result<(), Failure> {
    if matches!(product.content, Content::Nothing) {
        return Ok(());
    }
    let is_terminal = io::stdout().is_terminal();
    let form = Form {
        json: arguments.json,
        frame: arguments.frame,
        is_terminal: is_terminal && arguments.output.is_none(),
    };
    let bytes = render(product, form)?;
    match &arguments.output {
        Some(path) => write_file(path, &bytes),
        None => {
            let mut out = io::stdout().lock();
            let written = out.write_all(&bytes).and_then(|()| out.flush());
            written.map_err(|error| Failure::plain(&format!("cannot write to standard output: {error}")))
        }
    }
}

/// What form a result takes.
#[derive(Clone, Copy, Debug)]
struct Form {
    json: bool,
    frame: bool,
    /// It goes to a terminal, which arbitrary bytes would confuse.
    is_terminal: bool,
}

fn render(product: &Product, form: Form) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let content = match &product.content {
        Content::Bytes(bytes) if !form.json => bytes.clone(),
        Content::Bytes(_) | Content::Report { .. } | Content::Nothing => {
            Zeroizing::new(product.as_text(form.json).into_bytes())
        }
    };
    if form.frame {
        return Ok(Zeroizing::new(frame::encode(product.name, &content).into_bytes()));
    }
    let is_binary = matches!(product.content, Content::Bytes(_)) && !form.json;
    if !is_binary || !form.is_terminal {
        return Ok(content);
    }
    match product.name {
        "random" => Ok(Zeroizing::new(format!("{}\n", hex::encode(&*content)).into_bytes())),
        "secret" if is_text(&content) => Ok(content),
        name => Err(Failure::plain(&format!(
            "the {name} is binary and standard output is a terminal; use `-o FILE`, `--frame` or `--json`"
        ))),
    }
}

fn is_text(bytes: &[u8]) -> bool {
    core::str::from_utf8(bytes)
        .is_ok_and(|text| !text.chars().any(|c| c.is_control() && !c.is_ascii_whitespace()))
}

/// Replaces a file whole or not at all; only its owner may read it.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let failed = |error: &io::Error| Failure::file("write", path, error);
    if path.exists() && !path.is_file() {
        // A device or pipe: replacing it by a file is not what was meant.
        return std::fs::write(path, bytes).map_err(|error| failed(&error));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|error| failed(&error))?;
    file.write_all(bytes).map_err(|error| failed(&error))?;
    file.as_file().sync_all().map_err(|error| failed(&error))?;
    file.persist(path).map_err(|error| failed(&error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn form(json: bool, frame: bool, is_terminal: bool) -> Form {
        Form { json, frame, is_terminal }
    }

    fn product(name: &'static str, bytes: &[u8]) -> Product {
        Product::bytes(name, Zeroizing::new(bytes.to_vec()))
    }

    #[test]
    fn bytes_go_out_as_they_are_unless_a_terminal_would_get_them() {
        let blob = product("blob", &[0, 1, 2]);
        assert_eq!(*render(&blob, form(false, false, false)).unwrap(), [0, 1, 2]);
        let refusal = render(&blob, form(false, false, true)).unwrap_err().to_string();
        assert!(refusal.contains("-o FILE"), "{refusal}");
        assert_eq!(*render(&product("random", &[0xab]), form(false, false, true)).unwrap(), b"ab\n"[..]);
    }

    #[test]
    fn a_secret_is_shown_on_a_terminal_only_if_it_is_text() {
        assert_eq!(
            *render(&product("secret", b"hello\n"), form(false, false, true)).unwrap(),
            b"hello\n"[..]
        );
        for bytes in [&b"\x1b[2J"[..], &[0xff], &[0]] {
            assert!(render(&product("secret", bytes), form(false, false, true)).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn json_holds_bytes_as_base64() {
        let text = product("blob", b"abc").as_text(true);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value, json!({ "what": "blob", "length": 3, "base64": "YWJj" }));
    }

    #[test]
    fn a_frame_holds_text_json_or_bytes() {
        let report = Product::report("status", "all well\n".to_owned(), json!({ "well": true }));
        for (product, json, want) in [
            (&report, false, &b"all well\n"[..]),
            (&report, true, b"{\n  \"well\": true\n}\n"),
            (&product("blob", b"xyz"), false, b"xyz"),
        ] {
            let framed = render(product, form(json, true, true)).unwrap();
            assert_eq!(frame::decode(&framed).unwrap().content, want);
        }
    }

    #[test]
    fn a_file_is_replaced_whole_and_is_its_owners() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "old and longer").unwrap();
        write_file(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write_file(&folder.path().join("no/such/folder"), b"x").is_err());
        write_file(Path::new("/dev/null"), b"x").unwrap();
    }
}
