//! vesperd: encrypts the traffic of virtual machines.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    vesper_daemon::vesperd::main()
}
