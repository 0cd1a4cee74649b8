//! `vesper-verify`: checks test vectors, opens and seals captures. `docs/verify.md` is its
//! manual.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use vesper_verify::cli;

fn main() -> ExitCode {
    cli::run(cli::Arguments::parse())
}
