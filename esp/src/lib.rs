//! IPsec ESP (RFC 4303), many packets at a time.
#![deny(unsafe_code)]

pub mod aead;
mod buffer;
mod suite;
pub mod wire;

pub use buffer::{Buffer, PacketBuf};
pub use suite::{Encryption, Integrity, Suite};
