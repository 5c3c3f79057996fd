//! Hypercall client.
#![no_std]
