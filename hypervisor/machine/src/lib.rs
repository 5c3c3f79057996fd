//! The one crate with unsafe code.
#![no_std]
