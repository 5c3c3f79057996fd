//! swtpm as a child process with its state in a temporary folder. A test that cannot have it fails.

use dolmen_tpm::{PolledTransport, Transport, TransportError};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(20);

/// A started TPM at locality 0; killed when dropped.
pub(crate) struct Swtpm {
    state: tempfile::TempDir,
    process: Option<Child>,
    data: Option<UnixStream>,
    control: Option<UnixStream>,
}

impl Swtpm {
    /// A new TPM with all banks that swtpm activates by default.
    pub(crate) fn new() -> Self {
        let state = tempfile::tempdir().expect("a temporary folder");
        let mut tpm = Self { state, process: None, data: None, control: None };
        tpm.power_on();
        tpm
    }

    /// A new TPM with only the banks named, such as `sha1` or `sha256,sha384`.
    pub(crate) fn with_banks(banks: &str) -> Self {
        let mut tpm = Self {
            state: tempfile::tempdir().expect("a temporary folder"),
            process: None,
            data: None,
            control: None,
        };
        let output = Command::new("swtpm_setup")
            .args(["--tpm2", "--overwrite", "--pcr-banks", banks, "--tpmstate"])
            .arg(tpm.state.path())
            .output()
            .expect("swtpm_setup is missing: install the package swtpm-tools");
        assert!(output.status.success(), "swtpm_setup: {}", String::from_utf8_lossy(&output.stdout));
        tpm.power_on();
        tpm
    }

    /// A folder for the test's own files.
    pub(crate) fn folder(&self) -> &Path {
        self.state.path()
    }

    fn power_on(&mut self) {
        let at = |name: &str| self.state.path().join(name);
        let show = |name: &str| format!("type=unixio,path={}", at(name).display());
        let log = File::create(at("output")).expect("a log file");
        let child = Command::new("swtpm")
            .args([
                "socket",
                "--tpm2",
                "--flags",
                "not-need-init,startup-clear",
                "--locality",
                "allow-set-locality",
            ])
            .args(["--tpmstate", &format!("dir={}", self.state.path().display())])
            .args(["--ctrl", &show("data.ctrl"), "--server", &show("data")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn()
            .expect("swtpm is missing: install the package swtpm");
        self.process = Some(child);
        self.control = Some(connect(&at("data.ctrl")));
        self.data = Some(connect(&at("data")));
    }

    fn power_off(&mut self) {
        self.data = None;
        self.control = None;
        if let Some(mut process) = self.process.take() {
            process.kill().expect("swtpm can be killed");
            process.wait().expect("swtpm ends");
        }
        for name in ["data.ctrl", "data"] {
            std::fs::remove_file(self.state.path().join(name)).unwrap_or(());
        }
    }

    /// Power off and on again, with the same non-volatile state.
    pub(crate) fn restart(&mut self) {
        self.power_off();
        self.power_on();
    }

    /// Lets the tools of the package tpm2-tools speak to the TPM, one after the other, at locality 0.
    pub(crate) fn with_tools(&mut self, run: impl FnOnce(&Tools<'_>)) {
        self.data = None;
        self.control = None;
        run(&Tools { folder: self.state.path() });
        self.control = Some(connect(&self.state.path().join("data.ctrl")));
        self.data = Some(connect(&self.state.path().join("data")));
    }

    /// What the CPU does at SKINIT: PCR 17 := H(0 ‖ H(image)), PCR 18 to 22 := 0.
    pub(crate) fn dynamic_launch(&mut self, image: &[u8]) {
        self.control(&[6]);
        for chunk in image.chunks(1024) {
            let length = u32::try_from(chunk.len()).unwrap().to_be_bytes();
            self.control_bytes(7, &[&length, chunk].concat());
        }
        self.control(&[8]);
    }

    /// Sets the locality of what follows.
    pub(crate) fn set_locality(&mut self, locality: u8) {
        self.control_bytes(5, &[locality]);
    }

    fn control(&mut self, code: &[u8]) {
        self.control_bytes(code[0], &[]);
    }

    fn control_bytes(&mut self, code: u8, bytes: &[u8]) {
        let control = self.control.as_mut().expect("swtpm runs");
        control.write_all(&[&[0, 0, 0, code], bytes].concat()).expect("swtpm takes control commands");
        let mut result = [0; 4];
        control.read_exact(&mut result).expect("swtpm answers control commands");
        assert_eq!(u32::from_be_bytes(result), 0, "swtpm refused control command {code}");
    }
}

/// Runs stock tools in the TPM's folder.
pub(crate) struct Tools<'a> {
    pub(crate) folder: &'a Path,
}

impl Tools<'_> {
    /// Runs a command line; ends the test if it fails.
    pub(crate) fn run(&self, line: &str) {
        let output = self.output(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs a command line that must fail.
    pub(crate) fn run_refused(&self, line: &str) {
        assert!(!self.output(line).status.success(), "{line}");
    }

    /// Brings the TPM into lockout: one failed authorisation is too many.
    pub(crate) fn lock_out(&self) {
        self.run("tpm2_dictionarylockout -Q -s -n 1 -t 1000 -l 1000");
        self.run("tpm2_createprimary -Q -C o -c locked.ctx -p right");
        self.run("tpm2_flushcontext -t");
        for _ in 0..2 {
            // The first protected use after a start is answered with RETRY, before anything is looked at.
            self.run_refused("tpm2_create -Q -C locked.ctx -P wrong -u locked.pub -r locked.priv");
            self.run("tpm2_flushcontext -t");
        }
    }

    fn output(&self, line: &str) -> Output {
        let mut words = line.split_whitespace();
        Command::new(words.next().unwrap())
            .args(words)
            .current_dir(self.folder)
            .env("TPM2TOOLS_TCTI", format!("swtpm:path={}", self.folder.join("data").display()))
            .output()
            .expect("tpm2-tools are missing: install the package tpm2-tools")
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.join(name)).expect("the tool wrote it")
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.folder.join(name), bytes).expect("a file");
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        self.power_off();
    }
}

fn connect(path: &Path) -> UnixStream {
    let begin = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(DEADLINE)).expect("a time-out");
                return stream;
            }
            Err(error) if begin.elapsed() > DEADLINE => {
                panic!("swtpm did not open {}: {error}", path.display())
            }
            Err(_) => std::thread::yield_now(),
        }
    }
}

impl Transport for Swtpm {
    fn transmit(&mut self, command: &[u8], response: &mut [u8]) -> Result<usize, TransportError> {
        self.start(command)?;
        self.poll(command, response)?.ok_or(TransportError::Disconnected)
    }
}

impl PolledTransport for Swtpm {
    fn start(&mut self, command: &[u8]) -> Result<(), TransportError> {
        let data = self.data.as_mut().ok_or(TransportError::Disconnected)?;
        data.write_all(command).map_err(|_| TransportError::Disconnected)
    }

    fn poll(&mut self, _: &[u8], response: &mut [u8]) -> Result<Option<usize>, TransportError> {
        let data = self.data.as_mut().ok_or(TransportError::Disconnected)?;
        data.read_exact(&mut response[..10]).map_err(|_| TransportError::Disconnected)?;
        let size = u32::from_be_bytes(response[2..6].try_into().unwrap());
        let rest = response.get_mut(10..size as usize).ok_or(TransportError::ResponseLength(size))?;
        data.read_exact(rest).map_err(|_| TransportError::Disconnected)?;
        Ok(Some(size as usize))
    }

    fn abort(&mut self) {}
}
