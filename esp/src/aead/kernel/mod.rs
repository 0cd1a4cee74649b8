//! Multi-packet kernels for x86-64: the only module of the crate with `unsafe` code.
//!
//! Each kernel takes all jobs of a batch that have a key of its kind and works on several
//! packets at once, whatever their keys and lengths. A kernel can be reached only through a
//! token that CPU detection makes and that is stored in the key, so that no instruction is
//! executed which the CPU lacks.
//!
//! Nothing depends on secrets but data: no branch, no address. Memory temporaries that hold key
//! material are wiped before a call returns.

pub(crate) mod chacha20poly1305;
pub(crate) mod composed;

use super::Job;

/// Seals the packets of all jobs that have a key of a kernel.
pub(super) fn seal(jobs: &mut [Job<'_>]) {
    chacha20poly1305::seal(jobs);
    composed::seal(jobs);
}

/// Opens the packets of all jobs that have a key of a kernel.
pub(super) fn open(jobs: &mut [Job<'_>]) {
    chacha20poly1305::open(jobs);
    composed::open(jobs);
}

#[cfg(test)]
mod against_libraries;
