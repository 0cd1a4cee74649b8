//! The adapter.
#![forbid(unsafe_code)]
