//! Torments the driver: many callers at once, and memory that is refused.
//!
//! - `tsm-torment device SECONDS`: evidence through `/dev/dolmen`, again and again.
//! - `tsm-torment own NAME SECONDS`: evidence through a report of configfs-tsm of its own.
//! - `tsm-torment shared NAME SECONDS`: the same through a report that others use at the same time.
//! - `tsm-torment starve CGROUP`: calls while the control group has no memory left, or a little.
//!
//! Each says at its end how often it got what it wanted: `done=N away=M`. `away` counts the times at which there was
//! no provider of reports, since somebody had just unloaded it, or no report, since another one that shared it had
//! removed it for that reason. Anything else that goes wrong ends it.
#![forbid(unsafe_code)]

mod starve;

use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use dolmen_abi::evidence::Evidence;
use dolmen_guest::Client;
use dolmen_guest::linux::{DEVICE, Device};

/// Where the kernel has its reports.
const REPORTS: &str = "/sys/kernel/config/tsm/report";
/// Linux: no such device or address. There is no provider.
const ENXIO: i32 = 6;
/// Linux: no such file. The report has been removed.
const ENOENT: i32 = 2;
/// Linux: invalid argument. The report has been removed and made anew since, and has no report data yet.
const EINVAL: i32 = 22;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["device", seconds] => device(seconds),
        ["own", name, seconds] => configfs(name, seconds, true),
        ["shared", name, seconds] => configfs(name, seconds, false),
        ["starve", group] => starve::run(Path::new(group)),
        _ => Err("what shall it do?".into()),
    };
    match outcome {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("tsm-torment {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

/// Report data that no other process and no other round has.
fn report_data(round: u64) -> [u8; 64] {
    let mut data = [0; 64];
    data[..8].copy_from_slice(&round.to_le_bytes());
    data[8..12].copy_from_slice(&std::process::id().to_le_bytes());
    data[63] = 1;
    data
}

/// Whether these bytes are evidence, and about this report data if it matters.
fn check(bytes: &[u8], wanted: Option<&[u8; 64]>) -> Outcome<()> {
    let evidence = Evidence::decode(bytes).map_err(|error| format!("{} bytes: {error}", bytes.len()))?;
    if wanted.is_some_and(|wanted| evidence.binding.report_data != *wanted) {
        return Err("evidence about somebody else's report data".into());
    }
    Ok(())
}

fn end(seconds: &str) -> Outcome<Instant> {
    Ok(Instant::now() + Duration::from_secs(seconds.parse()?))
}

fn device(seconds: &str) -> Outcome<String> {
    let end = end(seconds)?;
    let mut done = 0;
    while Instant::now() < end {
        // Opened anew each time, as by programs that come and go.
        let mut client = Client::new(Device::open(Path::new(DEVICE))?);
        let wanted = report_data(done);
        check(&client.evidence(&wanted)?, Some(&wanted))?;
        done += 1;
    }
    Ok(format!("done={done} away=0"))
}

fn configfs(name: &str, seconds: &str, alone: bool) -> Outcome<String> {
    let end = end(seconds)?;
    let report = Path::new(REPORTS).join(name);
    let (mut done, mut away) = (0, 0);
    while Instant::now() < end {
        let wanted = report_data(done);
        match read(&report, &wanted) {
            Ok(bytes) => {
                check(&bytes, alone.then_some(&wanted))?;
                done += 1;
            }
            Err(error) if is_away(&error, alone) || is_bare(&error, &report) => {
                away += 1;
                // The provider comes back once all reports of the old one are gone; who is first removes a shared one.
                drop(fs::remove_dir(&report));
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(format!("{}: {error}", report.display()).into()),
        }
    }
    drop(fs::remove_dir(&report));
    Ok(format!("done={done} away={away}"))
}

/// Whether there is no provider; or no report, since another one that shares it has removed it.
fn is_away(error: &std::io::Error, alone: bool) -> bool {
    match error.raw_os_error() {
        Some(ENXIO) => true,
        Some(ENOENT | EINVAL) => !alone,
        _ => false,
    }
}

/// Whether it is a report without attributes: the provider went after the kernel had looked for one to make the report, and
/// before it looked for one to say which attributes it has.
fn is_bare(error: &std::io::Error, report: &Path) -> bool {
    error.raw_os_error() == Some(ENOENT) && report.exists() && !report.join("inblob").exists()
}

/// Makes the report, if it is not there, and reads it.
fn read(report: &PathBuf, wanted: &[u8; 64]) -> std::io::Result<Vec<u8>> {
    if !report.exists() {
        match fs::create_dir(report) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    // The kernel takes it when it is closed.
    fs::OpenOptions::new().write(true).open(report.join("inblob"))?.write_all(wanted)?;
    fs::read(report.join("outblob"))
}
