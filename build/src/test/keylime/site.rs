//! A site with Keylime: registrar and verifier on loopback, the tenant's command, and their configuration.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::machine::child;
use crate::{place, process, ui};

/// The version that is tested.
const KEYLIME: &str = "keylime==7.14.3";
/// Debian's own interpreter, whose bindings for gpg Keylime wants.
const PYTHON: &str = "/usr/bin/python3";
/// Longest wait for a server to listen.
const START: Duration = Duration::from_secs(180);
/// Seconds between two attestations of a host; after five times as many it counts as silent.
pub(super) const INTERVAL: u64 = 4;
/// The site's machine as guests see it, behind slirp.
pub(super) const ADDRESS: &str = "10.0.2.2";

/// Installs Keylime beside the emulator, once.
pub(super) fn install() -> Result<PathBuf> {
    let home = place::cache()?.join(KEYLIME.replace("==", "-"));
    let ready = home.join("ready");
    let wanted = place::read(&requirements())?;
    if std::fs::read(&ready).is_ok_and(|installed| installed == wanted) {
        return Ok(home);
    }
    if home.exists() {
        std::fs::remove_dir_all(&home).with_context(|| format!("cannot empty {}", home.display()))?;
    }
    place::make(&home)?;
    let environment = home.join("environment");
    let mut make = Command::new(PYTHON);
    process::run(
        "Making a Python environment",
        make.args(["-m", "venv", "--system-site-packages"]).arg(&environment),
    )?;
    let pip = |arguments: &[&str]| {
        let mut command = Command::new(environment.join("bin/pip"));
        command.arg("--quiet").args(arguments).current_dir(&home);
        command
    };
    process::run("Installing Keylime", pip(&["install", "--no-deps", "--requirement"]).arg(requirements()))?;
    // Templates of its configuration are in the source package alone.
    process::run(
        "Getting Keylime's templates",
        &mut pip(&["download", "--no-deps", "--no-binary", ":all:", KEYLIME]),
    )?;
    let source = format!("{}.tar.gz", KEYLIME.replace("==", "-"));
    process::output(Command::new("tar").args(["-xf", &source]).current_dir(&home))?;
    place::write(&ready, &wanted)?;
    Ok(home)
}

fn requirements() -> PathBuf {
    place::root().join("tests/keylime/requirements.txt")
}

/// A server of Keylime, until this is dropped.
#[derive(Debug)]
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        child::end(&mut self.0);
    }
}

/// Both servers, and what they were told.
#[derive(Debug)]
pub(super) struct Site {
    bin: PathBuf,
    work: PathBuf,
    /// Where the verifier takes requests.
    pub(super) verifier: u16,
    /// Where the registrar takes them by TLS.
    pub(super) registrar: u16,
    servers: Vec<Server>,
}

impl Site {
    /// Starts the servers of the Keylime in `home` with fresh state in `work`.
    pub(super) fn open(home: &Path, work: &Path) -> Result<Self> {
        for folder in ["configuration", "state", "tpm-makers"].map(|name| work.join(name)) {
            if folder.exists() {
                std::fs::remove_dir_all(&folder)
                    .with_context(|| format!("cannot empty {}", folder.display()))?;
            }
            place::make(&folder)?;
        }
        std::fs::set_permissions(work.join("state"), std::fs::Permissions::from_mode(0o700))?;
        let (bin, work) = (home.join("environment/bin"), work.to_owned());
        let mut site = Self { bin, work, verifier: port()?, registrar: port()?, servers: Vec::new() };
        site.configure(home)?;
        // The verifier makes the certificates of both.
        site.start("verifier", site.verifier)?;
        site.start("registrar", site.registrar)?;
        Ok(site)
    }

    /// Folder for the certificates of TPMs' makers that the tenant trusts.
    pub(super) fn makers(&self) -> PathBuf {
        self.work.join("tpm-makers")
    }

    /// The certificate that vouches for both servers.
    pub(super) fn authority(&self) -> PathBuf {
        self.work.join("state/cv_ca/cacert.crt")
    }

    /// What the verifier says while it judges.
    pub(super) fn verifiers_log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&place::read(&self.log("verifier"))?).into_owned())
    }

    /// Runs the tenant's command.
    pub(super) fn tenant(&self, arguments: &[&str]) -> Result<String> {
        process::output(self.command("tenant").args(arguments))
    }

    /// The verifier's answer to a question about evidence.
    pub(super) fn judge(&self, question: &Value) -> Result<Value> {
        let body = self.work.join("request.json");
        place::write(&body, question.to_string().as_bytes())?;
        self.ask(&["/v2.5/verify/evidence", &body.display().to_string()])
    }

    /// What the verifier has on an agent.
    pub(super) fn agent(&self, name: &str) -> Result<Value> {
        let answer = self.ask(&[&format!("/v2.5/agents/{name}")])?;
        answer.get("results").cloned().with_context(|| format!("the verifier says {answer}"))
    }

    fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let script = place::root().join("tests/keylime/ask.py");
        let mut ask = Command::new(self.bin.join("python"));
        ask.arg(script).arg(self.verifier.to_string()).arg(self.work.join("state/cv_ca")).args(arguments);
        serde_json::from_str(&process::output(&mut ask)?).context("the verifier answers no JSON")
    }

    /// A program of Keylime's, with its configuration.
    fn command(&self, name: &str) -> Command {
        let mut command = child::bound_to_us(self.bin.join(format!("keylime_{name}")));
        command
            .env("KEYLIME_DIR", self.work.join("state"))
            .env("PYTHONPATH", place::root().join("guest-tools/keylime"));
        for name in ["verifier", "registrar", "tenant", "ca", "logging"] {
            let file = self.work.join("configuration").join(format!("{name}.conf"));
            command.env(format!("KEYLIME_{}_CONFIG", name.to_uppercase()), file);
        }
        command
    }

    fn log(&self, name: &str) -> PathBuf {
        self.work.join(format!("{name}.log"))
    }

    /// Sets what of the usual configuration is otherwise here.
    fn configure(&self, home: &Path) -> Result<()> {
        let templates = home.join(KEYLIME.replace("==", "-")).join("templates");
        let configuration = self.work.join("configuration");
        let mut write = Command::new(self.bin.join("keylime_upgrade_config"));
        process::output(
            write.args(["--defaults", "--out"]).arg(&configuration).arg("--templates").arg(templates),
        )?;
        let (verifier, registrar) = (self.verifier.to_string(), self.registrar.to_string());
        let (makers, interval) = (self.makers().display().to_string(), INTERVAL.to_string());
        let in_the_clear = port()?.to_string();
        let of_verifier = [
            ("port", verifier.as_str()),
            ("registrar_port", &registrar),
            ("cert_subject_alternative_names", ADDRESS),
            ("mode", "push"),
            ("quote_interval", &interval),
            ("measured_boot_policy_name", "dolmen"),
            ("measured_boot_imports", "[\"dolmen_policy\"]"),
            ("measured_boot_evaluate", "always"),
        ];
        set(&configuration.join("verifier.conf"), &of_verifier)?;
        let of_registrar = [("port", in_the_clear.as_str()), ("tls_port", &registrar)];
        set(&configuration.join("registrar.conf"), &of_registrar)?;
        let of_tenant = [
            ("verifier_port", verifier.as_str()),
            ("registrar_port", &registrar),
            ("tpm_cert_store", &makers),
        ];
        set(&configuration.join("tenant.conf"), &of_tenant)
    }

    fn start(&mut self, name: &str, port: u16) -> Result<()> {
        let progress = ui::Progress::start(&format!("Starting the Keylime {name}"));
        let path = self.log(name);
        let log = File::create(&path).context("no place for the server's log")?;
        let mut command = self.command(name);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start the Keylime {name}"))?;
        let mut server = Server(child);
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = server.0.try_wait()? {
                bail!("the Keylime {name} ended with {status}: {}", path.display());
            }
            if start.elapsed() > START {
                bail!("the Keylime {name} does not listen: {}", path.display());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        self.servers.push(server);
        progress.done();
        Ok(())
    }
}

/// A port that is free.
fn port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Sets these values in a configuration, which must have them.
fn set(file: &Path, values: &[(&str, &str)]) -> Result<()> {
    let mut text = String::from_utf8(place::read(file)?)?;
    for (name, value) in values {
        let start = format!("\n{name} = ");
        let at = text.find(&start).with_context(|| format!("the configuration has no {name}"))?;
        let after = at.saturating_add(start.len());
        let length = text.get(after..).and_then(|rest| rest.find('\n')).context("a cut configuration")?;
        text.replace_range(after..after.saturating_add(length), value);
    }
    place::write(file, text.as_bytes())
}
