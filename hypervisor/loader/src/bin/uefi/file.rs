//! Files of the volume that the loader was started from, into pages of their own.
#![expect(unsafe_code, reason = "pages come from firmware as an address")]
// UNSAFETY: pages are used for one file each, and never given back.

use super::problem::Problem;
use super::say;
use core::slice;
use dolmen_drtm::handoff::Extent;
use dolmen_loader::config::MAX_PATH;
use dolmen_loader::console::fact;
use dolmen_loader::plan::LIMIT_MAPPED;
use dolmen_memory::PAGE_SIZE;
use uefi::boot::{self, AllocateType, MemoryType, ScopedProtocol};
use uefi::proto::media::file::{Directory, File, FileAttribute, FileMode, RegularFile};
use uefi::proto::media::fs::SimpleFileSystem;
use uefi::{CStr16, Status};

/// Bytes read at once; progress is shown after each.
const CHUNK: usize = 1 << 20;

/// The volume that the loader was started from.
pub(crate) struct Volume {
    root: Directory,
    _open: ScopedProtocol<SimpleFileSystem>,
}

impl Volume {
    /// Opens the volume.
    pub(crate) fn open() -> Result<Self, Problem> {
        let no_volume = |error: uefi::Error| Problem::NoVolume(error.status());
        let mut system = boot::get_image_file_system(boot::image_handle()).map_err(no_volume)?;
        let root = system.open_volume().map_err(no_volume)?;
        Ok(Self { root, _open: system })
    }

    /// Reads a whole file into pages of its own.
    pub(crate) fn load(&mut self, path: &'static str) -> Result<&'static mut [u8], Problem> {
        let mut file = self.open_file(path)?;
        let unreadable = |error: uefi::Error| Problem::Read(path, error.status());
        file.set_position(RegularFile::END_OF_FILE).map_err(unreadable)?;
        let bytes = file.get_position().map_err(unreadable)?;
        file.set_position(0).map_err(unreadable)?;
        let pages = allocate(bytes, LIMIT_MAPPED)?;
        let target = usize::try_from(bytes).ok().and_then(|n| pages.get_mut(..n));
        let target = target.ok_or(Problem::NoMemory(bytes))?;
        read(&mut file, path, target)?;
        say!("\r  {path}: {bytes} bytes");
        fact(format_args!("read file={path} bytes={bytes}"));
        Ok(target)
    }

    fn open_file(&mut self, path: &'static str) -> Result<RegularFile, Problem> {
        let mut wide = [0; MAX_PATH + 1];
        let mut narrow = [0; MAX_PATH * 4];
        let name = with_backslashes(path, &mut narrow)
            .and_then(|name| CStr16::from_str_with_buf(name, &mut wide).ok())
            .ok_or(Problem::Open(path, Status::INVALID_PARAMETER))?;
        self.root
            .open(name, FileMode::Read, FileAttribute::empty())
            .map_err(|error| Problem::Open(path, error.status()))?
            .into_regular_file()
            .ok_or(Problem::Open(path, Status::NOT_FOUND))
    }
}

/// Where the bytes lie.
pub(crate) fn extent(bytes: &[u8]) -> Extent {
    let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    Extent { base: wide(bytes.as_ptr().expose_provenance()), length: wide(bytes.len()) }
}

/// Zeroed pages for `bytes` bytes below `limit`, for good.
pub(crate) fn allocate(bytes: u64, limit: u64) -> Result<&'static mut [u8], Problem> {
    let no_memory = Problem::NoMemory(bytes);
    let Ok(count) = usize::try_from(bytes.max(1).div_ceil(PAGE_SIZE)) else { return Err(no_memory) };
    let below = AllocateType::MaxAddress(limit.saturating_sub(1));
    let Ok(pages) = boot::allocate_pages(below, MemoryType::LOADER_DATA, count) else {
        return Err(no_memory);
    };
    let length = count.saturating_mul(usize::try_from(PAGE_SIZE).unwrap_or(0));
    // SAFETY: firmware gave these pages, writable, to us alone.
    unsafe { pages.write_bytes(0, length) };
    // SAFETY: as above; they are initialised now, and are never given back.
    Ok(unsafe { slice::from_raw_parts_mut(pages.as_ptr(), length) })
}

fn read(file: &mut RegularFile, path: &'static str, mut target: &mut [u8]) -> Result<(), Problem> {
    let total = target.len().max(1);
    while !target.is_empty() {
        let chunk = target.len().min(CHUNK);
        let (now, rest) = target.split_at_mut(chunk);
        let got = file.read(now).map_err(|error| Problem::Read(path, error.status()))?;
        if got != chunk {
            return Err(Problem::Read(path, Status::END_OF_FILE));
        }
        target = rest;
        if total > CHUNK {
            let done =
                total.saturating_sub(target.len()).saturating_mul(100).checked_div(total).unwrap_or(100);
            crate::show(format_args!("\r  {path}: {done} %"));
        }
    }
    Ok(())
}

fn with_backslashes<'b>(path: &str, buffer: &'b mut [u8]) -> Option<&'b str> {
    let target = buffer.get_mut(..path.len())?;
    for (place, byte) in target.iter_mut().zip(path.bytes()) {
        *place = if byte == b'/' { b'\\' } else { byte };
    }
    core::str::from_utf8(target).ok()
}
