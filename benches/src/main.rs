//! vesper-bench.
#![deny(unsafe_code)]
fn main() {}
