//! Big-endian wire format of the TPM: one writer that counts, one reader that always shrinks.
//!
//! The reader's input comes over a bus that others share, so each length is checked before it is used
//! and nothing here can panic. Specification: TPM 2.0 library, part 1, "Data structure conventions".

/// A command does not fit its buffer, or a field does not fit its size field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodeError {
    /// The buffer is too short.
    Full,
    /// A field is longer than its size field can say, or than the TPM allows.
    TooLong,
}

/// A response is not what the specification says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// It ends before the field does.
    Truncated,
    /// Bytes are left over after the last field.
    Trailing,
    /// The header's length is not the number of bytes received.
    Length(u32),
    /// The tag is none that this command's answer may carry.
    Tag(u16),
    /// A field holds a value that cannot be meant: which TPM constant or size it was.
    Value(u32),
}

/// Writes fields into a buffer; a short buffer is an error, never a cut.
#[derive(Debug)]
pub struct Writer<'b> {
    buf: &'b mut [u8],
    len: usize,
}

impl<'b> Writer<'b> {
    /// An empty writer over `buf`.
    pub const fn new(buf: &'b mut [u8]) -> Self {
        Self { buf, len: 0 }
    }

    /// Bytes written so far.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What was written so far.
    #[must_use]
    pub fn written(&self) -> &[u8] {
        self.buf.get(..self.len).unwrap_or(&[])
    }

    /// Raw bytes.
    ///
    /// # Errors
    /// [`EncodeError::Full`]; nothing is written then. The same holds for all the others.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        let end = self.len.checked_add(bytes.len()).ok_or(EncodeError::Full)?;
        self.buf.get_mut(self.len..end).ok_or(EncodeError::Full)?.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    /// A UINT8.
    ///
    /// # Errors
    /// As [`Writer::bytes`].
    pub fn u8(&mut self, value: u8) -> Result<(), EncodeError> {
        self.bytes(&[value])
    }

    /// A UINT16.
    ///
    /// # Errors
    /// As [`Writer::bytes`].
    pub fn u16(&mut self, value: u16) -> Result<(), EncodeError> {
        self.bytes(&value.to_be_bytes())
    }

    /// A UINT32.
    ///
    /// # Errors
    /// As [`Writer::bytes`].
    pub fn u32(&mut self, value: u32) -> Result<(), EncodeError> {
        self.bytes(&value.to_be_bytes())
    }

    /// A TPM2B: 16-bit size, then the bytes.
    ///
    /// # Errors
    /// As [`Writer::bytes`]; [`EncodeError::TooLong`] above 65535 bytes.
    pub fn tpm2b(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.u16(u16::try_from(bytes.len()).map_err(|_| EncodeError::TooLong)?)?;
        self.bytes(bytes)
    }

    /// Overwrites the UINT16 at offset `at` with the number of bytes written after it.
    ///
    /// # Errors
    /// [`EncodeError::TooLong`] if that is more than 65535; [`EncodeError::Full`] if `at` was not written.
    pub fn close_u16(&mut self, at: usize) -> Result<(), EncodeError> {
        let start = at.checked_add(2).ok_or(EncodeError::Full)?;
        let size = self.len.checked_sub(start).ok_or(EncodeError::Full)?;
        let size = u16::try_from(size).map_err(|_| EncodeError::TooLong)?;
        self.overwrite(at, &size.to_be_bytes())
    }

    /// Overwrites the UINT32 at offset `at` with the number of bytes written after it.
    ///
    /// # Errors
    /// [`EncodeError::TooLong`] if that is more than 32 bits hold; [`EncodeError::Full`] if `at` was not written.
    pub fn close_u32(&mut self, at: usize) -> Result<(), EncodeError> {
        let start = at.checked_add(4).ok_or(EncodeError::Full)?;
        let size = self.len.checked_sub(start).ok_or(EncodeError::Full)?;
        let size = u32::try_from(size).map_err(|_| EncodeError::TooLong)?;
        self.overwrite(at, &size.to_be_bytes())
    }

    /// Overwrites bytes that were written before.
    ///
    /// # Errors
    /// [`EncodeError::Full`] if they were not.
    pub fn overwrite(&mut self, at: usize, bytes: &[u8]) -> Result<(), EncodeError> {
        let end = at.checked_add(bytes.len()).filter(|end| *end <= self.len).ok_or(EncodeError::Full)?;
        self.buf.get_mut(at..end).ok_or(EncodeError::Full)?.copy_from_slice(bytes);
        Ok(())
    }

    /// Gives back the written part.
    ///
    /// # Errors
    /// None in practice: the length was checked by each write.
    pub fn finish(self) -> Result<&'b [u8], EncodeError> {
        self.buf.get(..self.len).ok_or(EncodeError::Full)
    }
}

/// Reads fields from received bytes.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader over `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not yet read.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] if there are fewer. The same holds for all the others.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    /// A UINT8.
    ///
    /// # Errors
    /// As [`Reader::take`].
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(u8::from_be_bytes)
    }

    /// A UINT16.
    ///
    /// # Errors
    /// As [`Reader::take`].
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    /// A UINT32.
    ///
    /// # Errors
    /// As [`Reader::take`].
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    /// A UINT64.
    ///
    /// # Errors
    /// As [`Reader::take`].
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    /// The contents of a TPM2B.
    ///
    /// # Errors
    /// As [`Reader::take`].
    pub fn tpm2b(&mut self) -> Result<&'a [u8], DecodeError> {
        let size = self.u16()?;
        self.take(usize::from(size))
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`DecodeError::Trailing`] if bytes are left.
    pub const fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_filled_in_after_the_fields_they_count() {
        let mut buf = [0; 16];
        let mut w = Writer::new(&mut buf);
        w.u32(0).unwrap();
        w.u16(0).unwrap();
        w.bytes(b"abc").unwrap();
        w.close_u16(4).unwrap();
        w.close_u32(0).unwrap();
        assert_eq!(w.finish().unwrap(), b"\0\0\0\x05\0\x03abc");
    }

    #[test]
    fn a_short_buffer_is_an_error_and_leaves_what_was_written() {
        let mut buf = [0; 5];
        let mut w = Writer::new(&mut buf);
        w.u32(0x0102_0304).unwrap();
        assert_eq!(w.u16(7), Err(EncodeError::Full));
        assert_eq!(w.tpm2b(b""), Err(EncodeError::Full));
        assert_eq!(w.written(), [1, 2, 3, 4]);
        assert_eq!(w.overwrite(3, &[0, 0]), Err(EncodeError::Full));
        assert_eq!(w.close_u16(3), Err(EncodeError::Full));
    }

    #[test]
    fn a_tpm2b_longer_than_its_size_field_is_refused() {
        let mut buf = vec![0; 0x2_0000];
        assert_eq!(Writer::new(&mut buf).tpm2b(&[0; 0x1_0000]), Err(EncodeError::TooLong));
    }

    #[test]
    fn the_reader_refuses_to_read_past_the_end_and_to_leave_bytes() {
        let mut r = Reader::new(&[0, 3, 1, 2]);
        assert_eq!(r.tpm2b(), Err(DecodeError::Truncated));
        let mut r = Reader::new(&[0, 1, 9, 9]);
        assert_eq!(r.tpm2b().unwrap(), [9]);
        assert_eq!(r.finish(), Err(DecodeError::Trailing));
        assert_eq!(Reader::new(&[1, 2, 3]).u32(), Err(DecodeError::Truncated));
    }
}
