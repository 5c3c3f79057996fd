//! Hypercall numbers and structures, shared by the hypervisor and its guests.
//!
//! `VMMCALL`/`VMCALL` from CPL 0 in 64-bit mode, with
//! EAX = [`Call::NUMBER`], RDI = guest-physical address of the request, RSI = its length,
//! RDX = guest-physical address of the reply buffer, RCX = its capacity (bytes).
//! On return RAX = [`Status`] (zero-extended) and RDX = bytes written to the reply.
//! `docs/abi.md` specifies it.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests may overflow loudly")
)]
