//! Calls through `/dev/dolmen`, the device of the Linux driver.
//!
//! UNSAFETY: one ioctl, whose structure holds addresses that the driver reads and writes.
#![expect(unsafe_code, reason = "an ioctl with addresses in its structure")]

use core::fmt;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{io, thread};

use dolmen_abi::Status;
use rustix::io::Errno;
use rustix::ioctl::{Updater, ioctl, opcode};

use crate::Transport;

/// Where the driver puts the device.
pub const DEVICE: &str = "/dev/dolmen";

/// What the driver takes: `struct dolmen_call` of its header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct DeviceCall {
    number: u32,
    reserved: u32,
    request: u64,
    reply: u64,
    request_length: u32,
    reply_capacity: u32,
    reply_length: u32,
    status: u32,
}

const _: () = {
    assert!(size_of::<DeviceCall>() == 40);
    assert!(core::mem::offset_of!(DeviceCall, request) == 8);
    assert!(core::mem::offset_of!(DeviceCall, reply_length) == 32);
};

/// `DOLMEN_CALL` of the driver's header: `_IOWR(0xd0, 1, struct dolmen_call)`.
const DOLMEN_CALL: u32 = opcode::read_write::<DeviceCall>(0xd0, 1);

/// Longest wait for the hypervisor to finish a request that it is busy with.
const PATIENCE: Duration = Duration::from_secs(60);

/// The driver's device.
#[derive(Debug)]
pub struct Device {
    file: File,
    path: PathBuf,
    /// When the request that is being repeated was first refused.
    waiting_since: Option<Instant>,
}

impl Device {
    /// Opens the device at `path`, usually [`DEVICE`].
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn open(path: &Path) -> Result<Self, DeviceError> {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Ok(Self { file, path: path.to_owned(), waiting_since: None }),
            Err(cause) => Err(DeviceError::Open { path: path.to_owned(), cause }),
        }
    }
}

/// What can go wrong between a program and the hypervisor.
#[derive(Debug)]
pub enum DeviceError {
    /// The device cannot be opened.
    Open {
        /// Its path.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The driver refused the call.
    Call {
        /// The device.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The hypervisor was busy for too long.
    Patience(Status),
}

impl DeviceError {
    /// Whether the same call may succeed later although nobody mends anything.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Open { .. } => false,
            Self::Call { cause, .. } => {
                matches!(errno(cause), Some(Errno::TIMEDOUT | Errno::INTR | Errno::NOMEM))
            }
            Self::Patience(_) => true,
        }
    }
}

fn errno(cause: &io::Error) -> Option<Errno> {
    cause.raw_os_error().map(Errno::from_raw_os_error)
}

/// What to do about an error that the driver answers (`guest-tools/driver/dolmen.h`).
fn remedy(cause: &io::Error) -> &'static str {
    match errno(cause) {
        Some(Errno::NOTTY) => "this is not the driver's device, or the driver is of another version",
        Some(Errno::PERM) => "the capability CAP_SYS_ADMIN is needed",
        Some(Errno::TIMEDOUT) => {
            "the TPM, or quotes that others wait for, took more than a minute; ask again: the answer may be there then"
        }
        Some(Errno::INTR) => "a signal broke it off; ask again",
        Some(Errno::NOMEM) => {
            "this guest has no memory left, or the program's control group may have none: free some, and ask again"
        }
        Some(_) | None => "driver, hypervisor and this program do not fit together: are they of one version?",
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { path, cause } => {
                let remedy = match errno(cause) {
                    Some(Errno::NOENT) => {
                        "load the driver: `insmod dolmen.ko` (or `modprobe dolmen`); it loads only in a guest of Dolmen"
                    }
                    Some(Errno::ACCESS | Errno::PERM) => "run as root: the device is for root only",
                    Some(_) | None => "is this the driver's device?",
                };
                write!(f, "cannot open {}: {cause}; {remedy}", path.display())
            }
            Self::Call { path, cause } => {
                write!(f, "{} refused the call: {cause}; {}", path.display(), remedy(cause))
            }
            Self::Patience(status) => write!(
                f,
                "the hypervisor still answers {status} after {} seconds; the TPM may be stuck, or another program \
                 asks for quotes all the time",
                PATIENCE.as_secs()
            ),
        }
    }
}

impl core::error::Error for DeviceError {}

impl Transport for Device {
    type Error = DeviceError;

    fn call(
        &mut self,
        number: u32,
        request: &[&[u8]],
        reply: &mut [u8],
    ) -> Result<(Status, usize), DeviceError> {
        let request: Vec<u8> = request.concat();
        let short = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let mut call = DeviceCall {
            number,
            request: u64::try_from(request.as_ptr().addr()).unwrap_or(0),
            reply: u64::try_from(reply.as_mut_ptr().expose_provenance()).unwrap_or(0),
            request_length: short(request.len()),
            reply_capacity: short(reply.len()),
            ..DeviceCall::default()
        };
        request.as_ptr().expose_provenance();
        // SAFETY: DOLMEN_CALL is the driver's number for this structure, which it reads and writes as such.
        let update = unsafe { Updater::<DOLMEN_CALL, DeviceCall>::new(&mut call) };
        // SAFETY: the driver reads at most `request_length` bytes of `request` and writes at most
        // `reply_capacity` bytes of `reply`; both live and are borrowed until after the call. Another device
        // that knows the number would do the same to its own structure of the same size.
        let outcome = unsafe { ioctl(&self.file, update) };
        let status = Status(call.status);
        let is_unfinished = outcome.is_ok() && [Status::AGAIN, Status::BUSY].contains(&status);
        if !is_unfinished {
            self.waiting_since = None;
        }
        outcome.map_err(|errno| DeviceError::Call { path: self.path.clone(), cause: errno.into() })?;
        let filled = usize::try_from(call.reply_length).unwrap_or(usize::MAX);
        Ok((status, filled))
    }

    fn wait(&mut self, status: Status, attempt: u32) -> Result<(), DeviceError> {
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        if since.elapsed() > PATIENCE {
            self.waiting_since = None;
            return Err(DeviceError::Patience(status));
        }
        thread::sleep(Duration::from_millis(u64::from(attempt.min(10)).saturating_mul(10)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_names_the_remedy() {
        let error = Device::open(Path::new("/nonexistent/dolmen")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/dolmen"), "{error}");
        assert!(error.contains("load the driver"), "{error}");
    }

    #[test]
    fn another_device_is_told_from_the_drivers() {
        let mut device = Device::open(Path::new("/dev/null")).unwrap();
        let error = device.call(0x444c_0001, &[], &mut [0; 64]).unwrap_err().to_string();
        assert!(error.contains("not the driver's device"), "{error}");
    }

    #[test]
    fn what_the_driver_answers_names_a_remedy_and_whether_it_passes() {
        for (cause, want, passes) in [
            (Errno::TIMEDOUT, "ask again: the answer may be there", true),
            (Errno::INTR, "a signal broke it off; ask again", true),
            (Errno::NOMEM, "free some, and ask again", true),
            (Errno::NOTTY, "not the driver's device", false),
            (Errno::PERM, "CAP_SYS_ADMIN", false),
            (Errno::IO, "are they of one version?", false),
        ] {
            let error = DeviceError::Call { path: PathBuf::from(DEVICE), cause: cause.into() };
            assert!(error.to_string().contains(want), "{error}");
            assert_eq!(error.is_passing(), passes, "{error}");
        }
        assert!(DeviceError::Patience(Status::BUSY).is_passing());
        assert!(!Device::open(Path::new("/nonexistent/dolmen")).unwrap_err().is_passing());
    }

    #[test]
    fn a_call_that_fails_ends_the_wait_too() {
        let mut device = Device::open(Path::new("/dev/null")).unwrap();
        device.wait(Status::AGAIN, 0).unwrap();
        assert!(device.waiting_since.is_some());
        assert!(device.call(0x444c_0001, &[], &mut [0; 64]).is_err());
        assert_eq!(device.waiting_since, None, "the next BUSY would be one for too long");
    }

    #[test]
    fn the_ioctl_number_is_the_drivers() {
        assert_eq!(DOLMEN_CALL, (3 << 30) | (40 << 16) | (0xd0 << 8) | 1);
    }
}
