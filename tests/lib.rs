//! Promises that hold across the crates, one file per promise. Run with `cargo test -p vesper-tests`.
