//! What Vesper costs, side by side with its peers: `vesper-bench` measures core cycles per
//! packet of our engine, of the AEAD libraries and, with `--peers`, of ipsec-mb, OpenSSL and
//! DPDK's librte_ipsec, in turn on one core, and compares all of them with what the core can
//! do at all. `docs/benchmarks.md` explains how, and holds results.
#![deny(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod aead;
#[cfg(target_arch = "x86_64")]
mod arena;
#[cfg(target_arch = "x86_64")]
mod case;
#[cfg(target_arch = "x86_64")]
mod cli;
#[cfg(target_arch = "x86_64")]
mod clock;
#[cfg(target_arch = "x86_64")]
mod contest;
#[cfg(target_arch = "x86_64")]
mod esp;
#[cfg(target_arch = "x86_64")]
mod lanes;
#[cfg(target_arch = "x86_64")]
mod limit;
#[cfg(target_arch = "x86_64")]
mod nic;
#[cfg(target_arch = "x86_64")]
mod peers;
#[cfg(target_arch = "x86_64")]
mod report;
#[cfg(target_arch = "x86_64")]
mod run;
#[cfg(target_arch = "x86_64")]
mod samples;
#[cfg(target_arch = "x86_64")]
mod sys;

use std::process::ExitCode;

#[cfg(target_arch = "x86_64")]
fn main() -> ExitCode {
    run::main()
}

#[cfg(not(target_arch = "x86_64"))]
fn main() -> ExitCode {
    eprintln!("vesper-bench counts cycles of x86-64 cores; this is another processor");
    ExitCode::from(2)
}
