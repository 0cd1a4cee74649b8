//! vesper-bench.
fn main() {}
