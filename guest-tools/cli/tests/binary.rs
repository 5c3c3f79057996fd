//! The program as a whole, where no hypervisor is needed.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests may fail loudly"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

const FRAME: &str = "=== dolmen begin blob 3 352441c2 ===\nYWJj\n=== dolmen end blob ===\n";

fn dolmen() -> Command {
    Command::new(env!("CARGO_BIN_EXE_dolmen"))
}

fn receive(input: &str, file: &std::path::Path) -> Output {
    let mut child =
        dolmen().arg("receive").arg(file).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_missing_device_names_cause_and_remedy() {
    let output = dolmen().args(["--device", "/nonexistent/dolmen", "status"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("cannot open /nonexistent/dolmen") && text.contains("load the driver"), "{text}");
}

#[test]
fn a_device_that_is_not_the_drivers_is_told() {
    let output = dolmen().args(["--device", "/dev/null", "registers"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("not the driver's device"), "{text}");
}

#[test]
fn wrong_usage_has_its_own_exit_status() {
    let lines = [
        &["extend", "9", "--data", "x"][..],
        &["quote"],
        &["seal", "--policy", "pcr17", "x"],
        &["top", "-o", "x"],
        &[],
    ];
    for line in lines {
        assert_eq!(dolmen().args(line).output().unwrap().status.code(), Some(2), "{line:?}");
    }
}

#[test]
fn a_frame_from_a_pipe_becomes_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("blob");
    let output = receive(&format!("noise\n{FRAME}"), &file);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(std::fs::read(&file).unwrap(), b"abc");
}

#[test]
fn a_damaged_or_unfinished_frame_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("blob");
    for (input, want) in
        [(FRAME.replace("YWJj", "YWJk"), "damaged"), (FRAME[..40].to_owned(), "ended before")]
    {
        let output = receive(&input, &file);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(want), "{text}");
        assert!(!file.exists());
    }
}

/// Runs `dolmen receive` on a terminal and types `input`; its exit status, and what the terminal showed.
fn receive_on_a_terminal(input: &[u8], file: &std::path::Path) -> (Option<i32>, String) {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let side = File::options().read(true).write(true).open(name).unwrap();
    let before = tcgetattr(&side).unwrap();
    let mut child = dolmen()
        .arg("receive")
        .arg(file)
        .stdin(side.try_clone().unwrap())
        .stderr(side.try_clone().unwrap())
        .spawn()
        .unwrap();
    let mut terminal = File::from(terminal);
    let mut shown = Vec::new();
    while !shown.ends_with(b"waiting for a frame\r\n") {
        let mut byte = [0];
        terminal.read_exact(&mut byte).unwrap();
        shown.push(byte[0]);
    }
    shown.clear();
    terminal.write_all(input).unwrap();
    let code = child.wait().unwrap().code();
    let after = tcgetattr(&side).unwrap();
    assert_eq!(after.local_modes, before.local_modes, "the terminal was not put back");
    assert!(after.local_modes.contains(LocalModes::ECHO));
    drop(side);
    // The terminal reports an error, not an end, once nobody has it open.
    let mut byte = [0];
    while matches!(terminal.read(&mut byte), Ok(1)) {
        shown.push(byte[0]);
    }
    (code, String::from_utf8(shown).unwrap())
}

#[test]
fn a_frame_on_a_terminal_is_not_echoed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("blob");
    let (code, shown) = receive_on_a_terminal(FRAME.replace('\n', "\r").as_bytes(), &file);
    assert_eq!(code, Some(0), "{shown}");
    assert!(!shown.contains("YWJj"), "{shown}");
    assert_eq!(std::fs::read(&file).unwrap(), b"abc");
}

#[test]
fn control_c_gives_up_and_puts_the_terminal_back() {
    let folder = tempfile::tempdir().unwrap();
    let (code, shown) = receive_on_a_terminal(b"=== dol\x03", &folder.path().join("blob"));
    assert_eq!(code, Some(1));
    assert!(shown.contains("given up"), "{shown}");
}

#[test]
fn silence_is_not_waited_for_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = dolmen()
        .args(["receive", "--timeout", "1"])
        .arg(folder.path().join("blob"))
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let open = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(open);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("nothing came for 1 seconds"), "{text}");
}
