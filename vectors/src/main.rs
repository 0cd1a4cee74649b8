//! `vesper-verify`: checks test vectors, opens and seals captures. `docs/verify.md` is its
//! manual.
#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cli::run(cli::Arguments::parse())
}
