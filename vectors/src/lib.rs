//! Checks test vectors and packet captures against every ESP implementation.
#![forbid(unsafe_code)]

pub mod capture;
pub mod formats;
pub mod frame;
pub mod ingress;
pub mod opener;
pub mod seal;
pub mod unseal;
pub mod verify;
pub mod xfrm;
