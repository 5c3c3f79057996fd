//! Reads files, but no more of them than they can need.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// The content of a file. It is counted while it is read: a pipe or a device does not say before how long it is.
///
/// # Errors
/// Those of the file, and [`ErrorKind::FileTooLarge`] if it has more than `most` bytes.
pub fn read_at_most(path: &Path, most: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        let message = format!("it has more than {most} bytes, which is more than it can need");
        return Err(Error::new(ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_the_limit_and_no_further_even_if_it_never_ends() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1000).unwrap();
        assert_eq!(read_at_most(file.path(), 1000).unwrap(), [0; 1000]);
        for (path, most) in [(file.path(), 999), (Path::new("/dev/zero"), 1000)] {
            let error = read_at_most(path, most).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::FileTooLarge);
            assert!(error.to_string().contains(&format!("more than {most} bytes")), "{error}");
        }
        assert!(read_at_most(Path::new("/nonexistent"), 1000).is_err());
    }
}
