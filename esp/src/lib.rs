//! IPsec ESP (RFC 4303), many packets at a time.
#![deny(unsafe_code)]

pub mod aead;
mod suite;

pub use suite::{Encryption, Integrity, Refused, Role, Suite, SuiteError, Xfrm};
