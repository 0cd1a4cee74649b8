//! The program `vesper`: the control interface for people and scripts.

mod adapter;
mod answer;
mod doctor;
mod events;
mod pages;
mod policy;
mod sa;
mod stat;
mod table;
mod top;
mod vm;
mod words;
mod xfrm;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::control::ControlSettings;
use crate::control::client::Client;
use answer::Stop;

/// What the exit status says, for --help and the manual.
const EXIT_STATUS: &str = "Exit status: 0 done; 1 failed; 2 usage, or words that make no sense; \
    3 vesperd is not reachable; 4 not found; 5 not permitted.";

/// Controls vesperd: security associations, policies, virtual machines, counters.
///
/// `sa` and `policy` take the very words of `ip xfrm state` and `ip xfrm policy`, with
/// `vm NAME` (and `host NAME`, if there are several hosts) in front.
#[derive(Debug, Parser)]
#[command(name = "vesper", version, after_help = EXIT_STATUS)]
pub struct Arguments {
    /// The control socket, or that of a machine [default: $VESPER_SOCKET, else the daemon's own]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Security associations, in the words of `ip xfrm state`
    #[command(subcommand)]
    Sa(sa::Command),
    /// Policies, in the words of `ip xfrm policy`
    #[command(subcommand)]
    Policy(policy::Command),
    /// Virtual machines
    #[command(subcommand)]
    Vm(vm::Command),
    /// The NIC switches of the adapters, with their virtual functions
    #[command(subcommand)]
    Switch(adapter::SwitchCommand),
    /// Ports of machines and uplinks
    #[command(subcommand)]
    Port(stat::PortCommand),
    /// What the adapters can do, and why not
    #[command(subcommand)]
    Adapter(adapter::Command),
    /// Counters
    Stat(stat::Stat),
    /// What happens, as it happens
    Events(events::Follow),
    /// A live view of machines and workers
    Top,
    /// Checks test vectors and captures (vesper-verify)
    Verify(vesper_verify::cli::Arguments),
    /// What is wrong here, and how to mend it
    Doctor(Format),
    /// Puts the configuration in force as it is now, as a whole or not at all
    Reload(Reload),
    /// Prints the completions of a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Prints the manual page, or writes those of all commands
    Man {
        /// The directory that the pages are written to
        directory: Option<PathBuf>,
    },
}

/// For people or for programs.
#[derive(Clone, Copy, Debug, Args)]
struct Format {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Reload {
    /// Only tell what would change
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    format: Format,
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Command::Verify(verify) = arguments.command {
        return vesper_verify::cli::run(verify);
    }
    let mut out = io::stdout().lock();
    let done = run(arguments, &mut out).and_then(|()| Ok(out.flush()?));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(stop) => stop.tell(),
    }
}

fn run(arguments: Arguments, out: &mut dyn Write) -> Result<(), Stop> {
    match &arguments.command {
        Command::Completions { shell } => return pages::completions(*shell, out),
        Command::Man { directory } => return pages::manual(directory.as_deref(), out),
        _ => {}
    }
    let socket = arguments
        .socket
        .or_else(|| std::env::var_os("VESPER_SOCKET").map(PathBuf::from))
        .unwrap_or_else(ControlSettings::default_socket);
    let client = Client::new(&socket)?;
    match arguments.command {
        Command::Sa(command) => sa::run(&client, command, out),
        Command::Policy(command) => policy::run(&client, command, out),
        Command::Vm(command) => vm::run(&client, command, out),
        Command::Switch(command) => adapter::run_switch(&client, command, out),
        Command::Port(command) => stat::run_port(&client, command, out),
        Command::Adapter(command) => adapter::run(&client, command, out),
        Command::Stat(stat) => stat::run(&client, &stat, out),
        Command::Events(follow) => events::run(&client, &follow, out),
        Command::Top => top::run(&client),
        Command::Doctor(format) => doctor::run(&client, &socket, format, out),
        Command::Reload(reload) => doctor::reload(&client, &reload, out),
        // Answered before there was a client.
        Command::Verify(_) | Command::Completions { .. } | Command::Man { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }
}
