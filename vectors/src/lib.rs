//! Checks ESP against independent truth: published test vectors and captures of real peers, on
//! every implementation that `vesper-esp` has.
//!
//! The program `vesper-verify` is a thin shell around this library; `docs/verify.md` is its
//! manual.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`xfrm`] | reads associations and policies: `ip xfrm` lines and Wireshark's `esp_sa` rows |
//! | [`capture`], [`frame`], [`ingress`] | from a capture file to whole IP packets |
//! | [`opener`], [`unseal`] | opens packets, and captures of them |
//! | [`seal`] | seals the packets of a capture |
//! | [`formats`], [`verify`] | reads vectors, runs them, keeps the score |
//! | [`cli`] | the command line |
//!
//! Not here: the cryptography and the engine (`vesper-esp`), sockets, live interfaces.
#![forbid(unsafe_code)]

pub mod capture;
pub mod cli;
pub mod formats;
pub mod frame;
pub mod ingress;
pub mod opener;
pub mod seal;
pub mod unseal;
pub mod verify;
pub mod xfrm;
