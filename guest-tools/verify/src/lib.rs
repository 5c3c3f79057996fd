//! Evidence verifier.
