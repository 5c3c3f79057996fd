//! Where requests are copied to and replies are made: private to the hypervisor, wiped after each call.

use core::fmt;

use dolmen_abi::{MAX_REPLY, MAX_REQUEST};
use zeroize::Zeroize;

/// Buffers of one guest's service. Large: belongs into a static or the boot-time heap, not on a stack.
#[derive(Clone)]
pub struct Scratch {
    request: [u8; MAX_REQUEST],
    reply: [u8; MAX_REPLY],
    /// Bytes of each that this call has used.
    request_used: usize,
    reply_used: usize,
}

impl Scratch {
    /// Empty buffers.
    pub const fn new() -> Self {
        Self { request: [0; MAX_REQUEST], reply: [0; MAX_REPLY], request_used: 0, reply_used: 0 }
    }

    /// Wipes everything.
    pub fn wipe(&mut self) {
        self.request.zeroize();
        self.reply.zeroize();
        (self.request_used, self.reply_used) = (0, 0);
    }

    /// Room for a request of `length` bytes, which [`Self::request`] then is.
    pub(super) fn request_mut(&mut self, length: usize) -> Option<&mut [u8]> {
        let request = self.request.get_mut(..length)?;
        self.request_used = length;
        Some(request)
    }

    /// The request.
    pub(super) fn request(&self) -> &[u8] {
        self.request.get(..self.request_used).unwrap_or_default()
    }

    /// Room for a reply of `length` bytes.
    pub(super) fn reply_mut(&mut self, length: usize) -> Option<&mut [u8]> {
        self.request_and_reply(length).map(|(_, reply)| reply)
    }

    /// The request, and room for a reply of `length` bytes.
    pub(super) fn request_and_reply(&mut self, length: usize) -> Option<(&[u8], &mut [u8])> {
        let reply = self.reply.get_mut(..length)?;
        self.reply_used = self.reply_used.max(length);
        Some((self.request.get(..self.request_used)?, reply))
    }

    /// The first `length` bytes of the reply.
    pub(super) fn reply(&self, length: usize) -> Option<&[u8]> {
        self.reply.get(..length)
    }

    /// Wipes what this call has used.
    pub(super) fn wipe_used(&mut self) {
        self.request.iter_mut().take(self.request_used).for_each(Zeroize::zeroize);
        self.reply.iter_mut().take(self.reply_used).for_each(Zeroize::zeroize);
        (self.request_used, self.reply_used) = (0, 0);
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<scratch>")
    }
}
