//! Unmodified tpm2-tools and openssl on what `export` writes.

use std::path::Path;
use std::process::{Command, Output};

use dolmen_verify::export::{Export, export};

use crate::forge::Forge;

struct Folder(tempfile::TempDir);

impl Folder {
    fn of(forge: &Forge) -> (Self, Export) {
        let export = export(&forge.bytes()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in &export.files {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        (Self(folder), export)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn run(&self, program: &str, arguments: &str) -> Output {
        Command::new(program).args(arguments.split(' ')).current_dir(self.path()).output().expect(program)
    }

    fn checkquote(&self, key: &str, extra_data: &str) -> Output {
        let arguments =
            format!("-u {key} -m quote.msg -s quote.sig -f pcrs -g sha256 -q {extra_data} -e eventlog");
        self.run("tpm2_checkquote", &arguments)
    }
}

#[test]
fn tpm2_checkquote_accepts_the_quote_with_the_extra_data_that_we_print() {
    let (folder, export) = Folder::of(&Forge::honest());
    for key in ["ak.pub", "ak.pem"] {
        let output = folder.checkquote(key, &export.extra_data);
        assert!(output.status.success(), "{key}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(!folder.checkquote("ak.pem", &"00".repeat(32)).status.success());
}

#[test]
fn tpm2_checkquote_accepts_the_root_of_several_requests() {
    let mut forge = Forge::honest();
    forge.place = (1, 3, vec![[1; 32], [2; 32]]);
    let (folder, export) = Folder::of(&forge);
    let output = folder.checkquote("ak.pub", &export.extra_data);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn tpm2_eventlog_replays_to_our_values() {
    let forge = Forge::honest();
    let (folder, _) = Folder::of(&forge);
    let output = folder.run("tpm2_eventlog", "eventlog");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains(&hex::encode(forge.pcr(17))), "{text}");
    assert!(text.contains(&hex::encode(forge.pcr(18))), "{text}");
}

#[test]
fn a_log_that_says_nothing_of_the_quote_is_not_exported() {
    let mut other = Forge::honest();
    other.events[0].2 = b"x";
    let mut forge = Forge::honest();
    forge.log = Some(other.event_log());
    assert!(export(&forge.bytes()).is_err());
}
