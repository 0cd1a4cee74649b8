//! The command line of `vesper-verify`: arguments, exit codes, and where output goes.

mod captures;
mod table;
mod vectors;

use std::fmt::{Display, Write as _};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::capture::CaptureWriter;
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use owo_colors::{OwoColorize, Stream};
use serde::Serialize;
use vesper_esp::aead::Implementation;

/// Checks IPsec ESP test vectors on every implementation, and opens and seals captures.
#[derive(Debug, Parser)]
#[command(
    name = "vesper-verify",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Exit status: 0 something ran and all of it passed; 1 a failure, or nothing ran; \
                  2 usage, or an unreadable or malformed file."
)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    vectors: VectorArguments,
}

#[derive(Debug, Args)]
struct VectorArguments {
    /// Run on this implementation only; may be given several times
    #[arg(long = "impl", value_name = "NAME", value_parser = implementation)]
    implementations: Vec<Implementation>,
    /// List implementations and sources instead of running
    #[arg(long)]
    list: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Files of vectors, or directories of them [default: the built-in set]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Open every ESP packet of a capture
    Pcap(PcapArguments),
    /// Seal every IP packet of a capture
    Encap(EncapArguments),
}

#[derive(Debug, Args)]
struct PcapArguments {
    /// The associations, as `ip xfrm state add` or Wireshark `esp_sa` lines
    #[arg(long, value_name = "FILE")]
    sa: PathBuf,
    /// Write the inner IP packets to this pcap file
    #[arg(long, value_name = "OUT.pcap")]
    write: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The capture, pcap or pcapng
    capture: PathBuf,
}

#[derive(Debug, Args)]
struct EncapArguments {
    /// The associations, as `ip xfrm state add` lines
    #[arg(long, value_name = "FILE")]
    sa: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The capture of clear packets, pcap or pcapng
    #[arg(value_name = "IN.pcap")]
    input: PathBuf,
    /// Where the sealed packets go
    #[arg(value_name = "OUT.pcap")]
    output: PathBuf,
}

fn implementation(name: &str) -> Result<Implementation, String> {
    Implementation::by_name(name).ok_or_else(|| {
        let names: Vec<&str> = Implementation::ALL
            .iter()
            .map(|known| known.name())
            .collect();
        format!("there are {}", names.join(", "))
    })
}

/// How a command ends when it does not succeed.
#[derive(Debug)]
enum Stop {
    /// A file or the usage is at fault.
    Fault(String),
    /// Standard output is closed or full.
    Output(io::Error),
}

impl Stop {
    fn fault(error: impl Display) -> Self {
        Self::Fault(error.to_string())
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Runs the command; `true` of it is exit status 0, `false` 1, an error 2.
pub fn run(arguments: Arguments) -> ExitCode {
    let result = match &arguments.command {
        Some(Command::Pcap(pcap)) => captures::open(pcap),
        Some(Command::Encap(encap)) => captures::seal(encap),
        None => vectors::run(&arguments.vectors),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        // Who closed the pipe has seen enough, and will not look at the status.
        Err(Stop::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(1),
        Err(stop) => {
            let message = match stop {
                Stop::Fault(message) => message,
                Stop::Output(error) => format!("standard output: {error}"),
            };
            // There is nobody left to tell if this fails.
            let _ = writeln!(io::stderr(), "vesper-verify: {message}");
            ExitCode::from(2)
        }
    }
}

/// Prints a value as JSON.
fn print_json(value: &impl Serialize) -> Result<(), Stop> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value).map_err(|error| Stop::Output(error.into()))?;
    writeln!(out)?;
    Ok(out.flush()?)
}

/// A progress bar on standard error; invisible unless that is a terminal.
fn progress(total: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Creates an output file, unless it is one of the inputs.
fn create(path: &Path, inputs: &[&Path]) -> Result<CaptureWriter<BufWriter<File>>, Stop> {
    let same = |input: &&Path| match (path.canonicalize(), input.canonicalize()) {
        (Ok(output), Ok(input)) => output == input,
        _ => false,
    };
    if inputs.iter().any(same) {
        return Err(Stop::Fault(format!(
            "{}: is read from; write to another file",
            path.display()
        )));
    }
    File::create(path)
        .and_then(|file| CaptureWriter::new(BufWriter::with_capacity(1 << 18, file)))
        .map_err(|error| Stop::Fault(format!("{}: {error}", path.display())))
}

/// A number with its thousands apart: `12,345`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Text in green or red, if standard output shows colours.
fn judged(text: &str, good: bool) -> String {
    let mut coloured = String::new();
    let result = if good {
        write!(
            coloured,
            "{}",
            text.if_supports_color(Stream::Stdout, |text| text.green())
        )
    } else {
        write!(
            coloured,
            "{}",
            text.if_supports_color(Stream::Stdout, |text| text.red())
        )
    };
    match result {
        Ok(()) => coloured,
        Err(_) => text.to_owned(),
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

    #[test]
    fn thousands_are_apart() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
