//! vesper-verify.
fn main() {}
