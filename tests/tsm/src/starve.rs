//! Calls of the driver whose memory is refused, by the kernel's own account of a control group's memory.
//!
//! Everything that is needed is opened beforehand, and control groups with more and more memory are entered one after
//! the other: where a call needs more than there is, the driver must say so, and go on for the next one. Memory that
//! it forgot to free would still be charged to the group at the end.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use dolmen_guest::linux::{DEVICE, Device, DeviceError};
use dolmen_guest::{Transport as _, abi};

use super::{Outcome, REPORTS, check, report_data};

/// Groups: one without any memory, each next one with a page more.
const STEPS: usize = 14;
/// Bytes of a page.
const PAGE: usize = 4096;
/// The most bytes that the driver passes on.
const MOST: usize = 32768;
/// Linux: no memory.
const ENOMEM: i32 = 12;
/// How often a call that is refused is made, so that what it forgets to free adds up.
const REPEATS: usize = 12;
/// Longest wait for the kernel to settle a group's account.
const SETTLING: Duration = Duration::from_secs(5);

/// One group, with all that is done in it.
struct Step {
    folder: PathBuf,
    processes: File,
    inblob: Option<File>,
    outblob: File,
}

impl Step {
    /// A group with so much memory.
    fn open(groups: &Path, report: &Path, most: &str) -> io::Result<Self> {
        let folder = groups.join(format!("step-{most}"));
        fs::create_dir(&folder)?;
        fs::write(folder.join("memory.max"), most)?;
        Ok(Self {
            processes: OpenOptions::new().write(true).open(folder.join("cgroup.procs"))?,
            inblob: Some(OpenOptions::new().write(true).open(report.join("inblob"))?),
            outblob: File::open(report.join("outblob"))?,
            folder,
        })
    }
}

/// What a call brought: what it should, or the news that there is no memory.
#[derive(Clone, Copy, Default)]
struct Count {
    done: usize,
    refused: usize,
}

impl Count {
    fn add(&mut self, what: &str, outcome: Result<(), Option<i32>>) -> Outcome<()> {
        match outcome {
            Ok(()) => self.done += 1,
            Err(Some(ENOMEM)) => self.refused += 1,
            Err(other) => return Err(format!("{what} ended with error {other:?}").into()),
        }
        Ok(())
    }

    /// Both must have happened under a limit; once there was none.
    fn verdict(self, what: &str) -> Outcome<String> {
        if self.done < 2 || self.refused == 0 {
            return Err(format!("{what}: done {}, refused {}", self.done, self.refused).into());
        }
        Ok(format!("{what}={}/{}", self.done, self.refused))
    }
}

/// Runs the test in groups below `groups`.
pub(crate) fn run(groups: &Path) -> Outcome<String> {
    let report = Path::new(REPORTS).join("starved");
    fs::create_dir(&report)?;
    let mut device = Device::open(Path::new(DEVICE))?;
    let limits = (0..STEPS).map(|pages| (pages * PAGE).to_string());
    // The first without a limit, so that this program itself has all its memory before there is one.
    let mut steps: Vec<Step> = ["max".to_owned()]
        .into_iter()
        .chain(limits)
        .map(|most| Step::open(groups, &report, &most))
        .collect::<io::Result<_>>()?;
    if device.call(0, &[&[0; 72]], &mut []).is_ok() {
        return Err("the driver takes a call that is none".into());
    }
    let mut home = OpenOptions::new().write(true).open(groups.join("cgroup.procs"))?;
    let own = std::process::id().to_string();
    let mut memory = vec![1; MOST];
    let (mut quotes, mut large, mut reports) = (Count::default(), Count::default(), Count::default());
    for (number, step) in steps.iter_mut().enumerate() {
        let wanted = report_data(number as u64);
        step.processes.write_all(own.as_bytes())?;
        let quoted = insist(|| quote(&mut device, &wanted, &mut memory));
        let passed = insist(|| pass_most(&mut device, &mut memory));
        let read = read(step, &wanted, &mut memory);
        home.write_all(own.as_bytes())?;
        quotes.add("a quote", quoted)?;
        large.add("a large call", passed)?;
        if let Ok(length) = read {
            check(&memory[..length], Some(&wanted))?;
        }
        reports.add("a report", read.map(drop))?;
    }
    let kept: Vec<PathBuf> = steps.into_iter().map(|step| step.folder).collect();
    fs::remove_dir(&report)?;
    // The first is also charged with what this program itself still has.
    for folder in kept.iter().skip(1) {
        settle(folder)?;
    }
    Ok(format!("{} {} {}", quotes.verdict("quotes")?, large.verdict("large")?, reports.verdict("reports")?))
}

/// Makes a call that is refused for want of memory again and again.
fn insist<T>(mut call: impl FnMut() -> Result<T, Option<i32>>) -> Result<T, Option<i32>> {
    for _ in 1..REPEATS {
        match call() {
            Err(Some(ENOMEM)) => {}
            other => return other,
        }
    }
    call()
}

/// Waits until nothing is charged to the group any more. One page may be: the kernel counts small objects in bytes on
/// the processor that frees them, and gives back whole pages of them.
fn settle(folder: &Path) -> Outcome<()> {
    // Each processor keeps a stock of pages that a group has paid for; this makes them give it back.
    fs::write(folder.join("memory.high"), "0")?;
    let start = Instant::now();
    loop {
        let charged = fs::read_to_string(folder.join("memory.current"))?;
        if charged.trim().parse::<usize>()? <= PAGE {
            return Ok(());
        }
        if start.elapsed() > SETTLING {
            return Err(format!("{}: {} bytes are not freed", folder.display(), charged.trim()).into());
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn errno(error: &DeviceError) -> Option<i32> {
    match error {
        DeviceError::Open { cause, .. } | DeviceError::Call { cause, .. } => cause.raw_os_error(),
        DeviceError::Patience(_) => None,
    }
}

/// Asks for a quote until it is there, or there is no memory.
fn quote(device: &mut Device, wanted: &[u8; 64], memory: &mut [u8]) -> Result<(), Option<i32>> {
    let request = [&[0; 8], wanted.as_slice()];
    for attempt in 1.. {
        match device.call(0x444c_0030, &request, &mut memory[..1440]) {
            Ok((abi::Status::OK, 1440)) => return Ok(()),
            Ok((status @ (abi::Status::AGAIN | abi::Status::BUSY), _)) => {
                device.wait(status, attempt).map_err(|error| errno(&error))?;
            }
            Ok((status, _)) => return Err(Some(status.0 as i32)),
            Err(error) => return Err(errno(&error)),
        }
    }
    Err(None)
}

/// A call that no hypervisor takes, with room for as many bytes as the driver passes on.
fn pass_most(device: &mut Device, memory: &mut [u8]) -> Result<(), Option<i32>> {
    match device.call(0x444c_0030, &[], memory) {
        Ok((abi::Status::BAD_LENGTH, 0)) => Ok(()),
        Ok((status, _)) => Err(Some(status.0 as i32)),
        Err(error) => Err(errno(&error)),
    }
}

/// Gives the report new report data and reads it; its length.
fn read(step: &mut Step, wanted: &[u8; 64], memory: &mut [u8]) -> Result<usize, Option<i32>> {
    let raw = |error: io::Error| error.raw_os_error();
    let mut inblob = step.inblob.take().ok_or(None)?;
    inblob.write_all(wanted).map_err(raw)?;
    // The kernel takes it when it is closed.
    drop(inblob);
    insist(|| {
        let mut length = 0;
        loop {
            match step.outblob.read(&mut memory[length..]).map_err(raw)? {
                0 => return Ok(length),
                more => length += more,
            }
        }
    })
}
