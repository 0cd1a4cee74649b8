//! vesper-verify.
#![forbid(unsafe_code)]
fn main() {}
