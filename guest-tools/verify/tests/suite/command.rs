//! The command itself: exit status and output.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use dolmen_abi::evidence::host::MAX_HOST_EVIDENCE;
use dolmen_verify::MAX_POLICY;

use crate::forge::{Forge, NONCE};

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn of(forge: &Forge, policy: &str) -> Self {
        let files = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::write(files.path("evidence"), forge.bytes()).unwrap();
        std::fs::write(files.path("policy.toml"), policy).unwrap();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dolmen-verify"));
        command.args(arguments.split(' ')).current_dir(self.folder.path());
        command
    }

    fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// As [`Self::run`], with these bytes in a pipe as standard input.
    fn run_with(&self, arguments: &str, input: Vec<u8>) -> Output {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut pipe = child.stdin.take().unwrap();
        // It may stop reading before the end.
        let writer = std::thread::spawn(move || pipe.write_all(&input).is_ok());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    fn check(&self, arguments: &str) -> (Option<i32>, String) {
        let nonce = hex::encode(NONCE);
        let output = self.run(&format!("check evidence --policy policy.toml --nonce {nonce}{arguments}"));
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }
}

#[test]
fn trusted_evidence_ends_with_status_0_and_a_line_for_each_check() {
    let honest = Forge::honest();
    let (status, text) = Files::of(&honest, &honest.policy_text()).check("");
    assert_eq!(status, Some(0), "{text}");
    assert!(text.starts_with("✓ format ") && text.contains("\nTRUSTED: guest demo"), "{text}");
}

#[test]
fn refused_evidence_ends_with_status_1_and_says_why() {
    let mut forge = Forge::honest();
    forge.events[1].2 = b"another core";
    let (status, text) = Files::of(&forge, &Forge::honest().policy_text()).check("");
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("✗ pcrs") && text.contains("another launch image or core runs"), "{text}");
}

#[test]
fn json_has_the_same_verdict() {
    let honest = Forge::honest();
    let (status, text) = Files::of(&honest, &honest.policy_text()).check(" --json");
    assert_eq!(status, Some(0));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["verdict"], &json["accepted"]), (&"TRUSTED".into(), &true.into()));
    assert_eq!((&json["subject"], &json["guest"]), (&"guest".into(), &"demo".into()));
    assert_eq!(json["checks"][0]["outcome"], "pass");
}

#[test]
fn evidence_about_a_host_has_a_verdict_about_the_host() {
    let forge = Forge::of_host();
    let files = Files::of(&forge, &forge.policy_text());
    std::fs::write(files.path("host"), forge.host_bytes()).unwrap();
    let line = format!("check-host host --policy policy.toml --nonce {}", hex::encode(NONCE));
    let output = files.run(&line);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("\nTRUSTED: the host runs the reference hypervisor"), "{text}");
    let json: serde_json::Value =
        serde_json::from_slice(&files.run(&format!("{line} --json")).stdout).unwrap();
    assert_eq!((&json["subject"], &json["verdict"]), (&"host".into(), &"TRUSTED".into()));
    assert!(json["guest"].is_null());
}

#[test]
fn what_cannot_be_looked_at_ends_with_status_2() {
    let honest = Forge::honest();
    let files = Files::of(&honest, "pcr17 = 3");
    assert_eq!(files.check("").0, Some(2));
    assert_eq!(files.run("check nothing --policy policy.toml --any-report-data").status.code(), Some(2));
    let files = Files::of(&honest, &honest.policy_text());
    let without = files.run("check evidence --policy policy.toml");
    assert_eq!(without.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&without.stderr).contains("--nonce"));
}

#[test]
fn a_key_is_trusted_from_its_first_use_on_and_the_user_is_told_what_that_proves() {
    let honest = Forge::honest();
    let text = honest.policy_text();
    let (unenrolled, _) = text.split_once("[[keys]]").unwrap();
    let files = Files::of(&honest, unenrolled);
    assert_eq!(files.check("").0, Some(1));
    let nonce = hex::encode(NONCE);
    let entry = files.run(&format!("trust evidence --policy policy.toml --nonce {nonce}"));
    assert!(entry.status.success());
    let warning = String::from_utf8(entry.stderr).unwrap();
    assert!(warning.contains("on first use") && warning.contains("`dolmen-verify enrol`"), "{warning}");
    // Told apart from enrolment: there is no other spelling of that to fall for.
    assert_eq!(files.run("enroll evidence --policy policy.toml").status.code(), Some(2));
    // It prints an entry for a policy, which is no JSON.
    let json = files.run(&format!("trust evidence --policy policy.toml --nonce {nonce} --json"));
    assert_eq!(json.status.code(), Some(2));
    assert!(String::from_utf8(json.stderr).unwrap().contains("--json") && json.stdout.is_empty());
    let enrolled = format!("{unenrolled}{}", String::from_utf8(entry.stdout).unwrap());
    assert_eq!(Files::of(&honest, &enrolled).check("").0, Some(0));
}

#[test]
fn binding_explain_and_export_say_the_same_extra_data() {
    let honest = Forge::honest();
    let files = Files::of(&honest, "");
    let binding = String::from_utf8(files.run("binding evidence").stdout).unwrap();
    let explained = String::from_utf8(files.run("explain evidence").stdout).unwrap();
    assert!(explained.contains(binding.trim()), "{explained}");
    let exported = files.run("export evidence parts");
    assert!(String::from_utf8(exported.stdout).unwrap().contains(binding.trim()));
    assert_eq!(std::fs::read_to_string(files.path("parts/extra-data")).unwrap(), binding);
}

#[test]
fn a_mistake_in_the_policy_is_pointed_at() {
    let honest = Forge::honest();
    let files = Files::of(&honest, &honest.policy_text().replace("reset_count = 7", "reset_count = true"));
    let output = files.run("check evidence --policy policy.toml --any-report-data");
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains(
            "policy.toml is no policy: line 7, column 15: `keys.reset_count` is true; expected a count"
        ),
        "{text}"
    );
}

#[test]
fn files_that_the_policy_names_are_looked_for_beside_it() {
    let honest = Forge::honest();
    let text = honest.policy_text();
    let (_, keys) = text.split_once("[[keys]]").unwrap();
    let files = Files::of(&honest, "");
    std::fs::create_dir(files.path("trust")).unwrap();
    std::fs::write(files.path("trust/values.json"), crate::reference::values(&honest).to_string()).unwrap();
    std::fs::write(files.path("trust/policy.toml"), format!("releases = \"values.json\"\n[[keys]]{keys}"))
        .unwrap();
    let nonce = hex::encode(NONCE);
    let output = files.run(&format!("check evidence --policy trust/policy.toml --nonce {nonce}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn no_file_is_longer_than_it_can_need_even_from_a_pipe() {
    let honest = Forge::honest();
    let files = Files::of(&honest, &honest.policy_text());
    let refuses = |output: Output, most: usize| {
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(&format!("more than {most} bytes")), "{said}");
    };
    let check = "check /dev/stdin --policy policy.toml --any-report-data";
    assert!(files.run_with(check, honest.bytes()).status.success());
    refuses(files.run_with(check, vec![0; MAX_HOST_EVIDENCE + 1]), MAX_HOST_EVIDENCE);
    let policy = "check evidence --policy /dev/stdin --any-report-data";
    assert!(files.run_with(policy, honest.policy_text().into()).status.success());
    refuses(files.run_with(policy, vec![b'\n'; MAX_POLICY + 1]), MAX_POLICY);
    let named = "releases = \"/dev/stdin\"\n";
    std::fs::write(files.path("named.toml"), named).unwrap();
    let named = "check evidence --policy named.toml --any-report-data";
    refuses(files.run_with(named, vec![b'\n'; MAX_POLICY + 1]), MAX_POLICY);
    let begin = "enrol begin none --policy policy.toml --roots /dev/stdin --state state";
    refuses(files.run_with(begin, vec![b'\n'; 256 * 1024 + 1]), 256 * 1024);
}

#[test]
fn a_file_without_a_certificate_is_no_file_of_roots() {
    let honest = Forge::honest();
    let files = Files::of(&honest, &honest.policy_text());
    let output = files.run("enrol begin none --policy policy.toml --roots policy.toml --state state");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("policy.toml holds no certificates in PEM"), "{said}");
}

/// A finished enrolment but for its last step, which is given.
fn finish_enrolment(run: impl Fn(&Files, &str) -> Output) -> (Files, Output) {
    let honest = Forge::honest();
    let files = Files::of(&honest, &honest.policy_text());
    let state = crate::enrolling::state(&honest, &[0x30, 0]);
    std::fs::write(files.path("state"), serde_json::to_vec(&state).unwrap()).unwrap();
    let output = run(&files, "enrol finish evidence --policy policy.toml --state");
    (files, output)
}

#[test]
fn the_state_of_an_enrolment_is_removed_once_the_record_is_out() {
    let (files, output) = finish_enrolment(|files, step| files.run(&format!("{step} state")));
    let record: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &record["format"]), (Some(0), &"dolmen-enrolment-1".into()));
    assert!(output.stderr.is_empty() && !files.path("state").exists());

    // Where nothing can be written.
    let (files, output) = finish_enrolment(|files, step| {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        files.command(&format!("{step} state")).stdout(full).output().unwrap()
    });
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(files.path("state").exists(), "neither record nor state is left");
}

#[test]
fn a_key_is_enrolled_even_if_the_state_cannot_be_removed() {
    let (_files, output) = finish_enrolment(|files, step| {
        // A name that nobody can remove, by which the file can be read.
        let state = std::fs::File::open(files.path("state")).unwrap();
        files.command(&format!("{step} /proc/self/fd/0")).stdin(state).output().unwrap()
    });
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(serde_json::from_slice::<serde_json::Value>(&output.stdout).is_ok());
    assert!(said.contains("/proc/self/fd/0 cannot be removed") && said.contains("remove it"), "{said}");
}

#[test]
fn throughput_counts_accepted_evidence_only() {
    let honest = Forge::honest();
    let files = Files::of(&honest, &honest.policy_text());
    let nonce = hex::encode(NONCE);
    let counted =
        files.run(&format!("throughput evidence --policy policy.toml --nonce {nonce} --seconds 1 --json"));
    assert!(counted.status.success());
    let json: serde_json::Value = serde_json::from_slice(&counted.stdout).unwrap();
    assert!(json["checks"].as_u64().unwrap() > 0 && json["per_second"].as_f64().unwrap() > 0.0, "{json}");
    let refused = files.run("throughput evidence --policy policy.toml --nonce 00 --seconds 1");
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0));
}
