//! `dolmen provision` against a software TPM, as its owner would run it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may fail loudly")]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use sha2::{Digest, Sha256};

/// The owner's value.
const VALUE: &str = "beneath the mat";
/// Longest wait for the TPM to start.
const LIMIT: Duration = Duration::from_secs(20);

/// A TPM whose owner hierarchy has a value; ended when dropped.
struct Owned {
    folder: tempfile::TempDir,
    process: Child,
}

impl Owned {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = |name: &str| format!("type=unixio,path={}", folder.path().join(name).display());
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={}", folder.path().display())])
            .args(["--server", &socket("tpm"), "--ctrl", &socket("tpm.ctrl")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let owned = Self { folder, process };
        let begin = Instant::now();
        while UnixStream::connect(owned.file("tpm.ctrl")).is_err() {
            assert!(begin.elapsed() < LIMIT, "swtpm does not start");
            std::thread::yield_now();
        }
        owned.tool("tpm2_changeauth", &["-c", "owner", VALUE]);
        owned
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn tool(&self, name: &str, arguments: &[&str]) -> String {
        let tcti = format!("swtpm:path={}", self.file("tpm").display());
        let output = Command::new(name).args(arguments).env("TPM2TOOLS_TCTI", tcti).output().unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// `dolmen provision` for a core of this digest and with more arguments; `value` stands on its standard input.
    fn provision(&self, core: &str, value: &str, more: &[&str]) -> Output {
        let launch = [1; 32];
        let launched = Sha256::digest([[0; 32], launch].concat());
        let pcr17 = Sha256::digest([&launched[..], &hex::decode(core).unwrap()].concat());
        let event =
            |name: &str, digest: &str| json!({ "pcr": 17, "event": name, "digests": { "sha256": digest } });
        let reference = json!({
            "format": "dolmen-reference-values-1", "launch_bytes": 1, "guests": [],
            "events": [event("SKINIT", &hex::encode(launch)), event("core", core)],
            "banks": [{ "bank": "sha256", "pcr17": hex::encode(pcr17) }],
        });
        let reference = reference.to_string();
        std::fs::write(self.file("reference.json"), reference).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_dolmen"))
            .args(["provision", "--handle", "0x81000100"])
            .arg("--reference")
            .arg(self.file("reference.json"))
            .arg("--tpm")
            .arg(self.file("tpm"))
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may have ended without reading.
        child.stdin.take().unwrap().write_all(value.as_bytes()).unwrap_or(());
        child.wait_with_output().unwrap()
    }

    /// The same, which must fail; its words.
    fn refused(&self, core: &str, value: &str, more: &[&str]) -> String {
        let output = self.provision(core, value, more);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

const FROM_INPUT: [&str; 2] = ["--owner-value", "-"];

#[test]
fn the_owner_makes_the_key_once_and_gets_the_table() {
    let owned = Owned::new();
    let core = "a5".repeat(32);
    let first = owned.provision(&core, &format!("{VALUE}\n"), &FROM_INPUT);
    assert!(first.status.success(), "{first:?}");
    let table = String::from_utf8(first.stdout).unwrap();
    assert!(table.contains("[sealing_root]\nhandle = 0x81000100\nname = \"000b"), "{table}");
    // A stock tool finds it by the same Name.
    let shown = owned.tool("tpm2_readpublic", &["-c", "0x81000100"]);
    let name = shown.lines().find_map(|line| line.strip_prefix("name: ")).unwrap();
    assert!(table.contains(&format!("name = \"{name}\"")), "{table}{shown}");
    std::fs::write(owned.file("value"), hex::encode(VALUE)).unwrap();
    let file = owned.file("value");
    let more = ["--owner-value", file.to_str().unwrap(), "--hex", "--json"];
    let again = owned.provision(&core, "", &more);
    let json: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((&json["was_there"], &json["name"]), (&true.into(), &name.into()));
    let other = owned.refused(&"a6".repeat(32), VALUE, &FROM_INPUT);
    assert!(other.contains("something else is at 0x81000100, and is left there"), "{other}");
}

#[test]
fn a_refusal_says_why_and_makes_nothing() {
    let owned = Owned::new();
    let core = "a5".repeat(32);
    for (value, more, want) in [
        ("", &[][..], "and none was given; give it with --owner-value"),
        ("above the door", &FROM_INPUT, "this is not the owner hierarchy's authorisation value"),
        (VALUE, &["--owner-value", "-", "--hex"], "the owner's value is not hexadecimal"),
    ] {
        let said = owned.refused(&core, value, more);
        assert!(said.contains(want), "want {want}\ngot  {said}");
    }
    let said = owned.refused("a5", VALUE, &FROM_INPUT);
    assert!(said.contains("an event has no digest of bank"), "{said}");
    assert_eq!(owned.tool("tpm2_getcap", &["handles-persistent"]).trim(), "");
}
