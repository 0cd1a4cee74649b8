//! `vesper`: controls vesperd. `docs/control.md` is its manual.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    vesper_daemon::cli::main()
}
