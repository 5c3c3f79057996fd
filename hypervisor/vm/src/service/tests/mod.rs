//! Tests of the whole service through its one entry, by topic.

mod dispatch;
mod errands;
mod fairness;
mod managing;
mod quoting;
mod registers;
mod sealing;

use core::sync::atomic::AtomicPtr;
use std::sync::Mutex;

use dolmen_abi::{Call, CallInfo};
use zerocopy::{FromBytes, IntoBytes};

use super::fake::{FakeRam, FakeTpm, launched_config};
use super::*;

pub(super) const REQUEST: u64 = 0x1000;
pub(super) const REPLY: u64 = 0x8000;

/// A guest's service with all that it needs.
pub(super) struct Rig {
    pub(super) service: Service<'static>,
    pub(super) ram: Box<FakeRam>,
    pub(super) tpm: Box<FakeTpm>,
}

/// Cases of a property: few under Miri, where each takes a second.
pub(super) const fn cases(many: u32) -> u32 {
    if cfg!(miri) { 2 } else { many }
}

pub(super) fn slot(index: usize) -> GuestSlot {
    GuestSlot::new(index).unwrap()
}

pub(super) fn config() -> ServiceConfig {
    launched_config(slot(0))
}

/// Buffers that live for ever, as a real guest's do; remembered, so that Miri sees no leak in them.
fn buffers() -> &'static mut Scratch {
    static REMEMBERED: Mutex<Vec<AtomicPtr<Scratch>>> = Mutex::new(Vec::new());
    let buffers = Box::leak(Box::new(Scratch::new()));
    REMEMBERED.lock().unwrap().push(AtomicPtr::new(core::ptr::from_mut(buffers)));
    buffers
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(config())
    }

    pub(super) fn with(config: ServiceConfig) -> Self {
        Self { service: Service::new(config, buffers()), ram: Box::default(), tpm: Box::default() }
    }

    pub(super) fn raw(&mut self, number: u32, args: CallArgs) -> (Status, u64) {
        let result = self.service.call(number, args, true, &mut *self.ram, &mut *self.tpm);
        (Status::from_rax(result.status), result.reply_len)
    }

    /// Makes a call as a well-behaved guest does: the status, and the bytes of the reply.
    pub(super) fn bytes<C: Call>(&mut self, request: &[u8]) -> (Status, Vec<u8>) {
        self.ram.write(Gpa::new(REQUEST), request).unwrap();
        let args = CallArgs { rdi: REQUEST, rsi: request.len() as u64, rdx: REPLY, rcx: 0x6000 };
        let (status, length) = self.raw(C::NUMBER, args);
        let mut reply = vec![0; usize::try_from(length).unwrap()];
        self.ram.read(Gpa::new(REPLY), &mut reply).unwrap();
        (status, reply)
    }

    /// The same with a fixed reply that must come.
    pub(super) fn ask<C: Call>(&mut self, request: &C::Request) -> C::Reply {
        let (status, reply) = self.bytes::<C>(request.as_bytes());
        assert_eq!(status, Status::OK);
        C::Reply::read_from_bytes(&reply).unwrap()
    }

    /// The same with a status other than OK that must come, and nothing with it.
    pub(super) fn refused<C: Call>(&mut self, request: &[u8]) -> Status {
        let (status, reply) = self.bytes::<C>(request);
        assert!(reply.is_empty(), "{status} came with {} bytes", reply.len());
        status
    }
}

/// Every call with the shortest request that has its lengths right.
pub(super) fn every_call() -> impl Iterator<Item = (&'static CallInfo, CallArgs)> {
    CALLS.iter().map(|call| {
        (call, CallArgs { rdi: REQUEST, rsi: call.request_bytes as u64, rdx: REPLY, rcx: 0x6000 })
    })
}
