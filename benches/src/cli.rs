//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use vesper_esp::Suite;
use vesper_esp::aead::Implementation;

use crate::case::{Direction, Size};
use crate::nic;

/// What is measured when `--suite` is not given.
const SUITES: [&str; 3] = ["aes128gcm16", "aes256gcm16", "chacha20poly1305"];

/// What Vesper costs, side by side with its peers.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Whole ESP in tunnel mode: sequence, window, headers, padding, lifetimes and all
    Esp(Selection),
    /// Cipher and ICV alone
    Aead(Selection),
    /// What offload saves: host, adapter and machine on every path of a packet
    Nic(nic::Selection),
    /// What this core can do at all, from the throughput of its instructions
    Limit(Place),
}

/// What to measure, and where to write it.
#[derive(Args, Debug)]
pub(crate) struct Selection {
    /// Suite, more than once if wanted [default: aes128gcm16, aes256gcm16, chacha20poly1305]
    #[arg(long = "suite", value_name = "NAME", value_parser = suite)]
    suites: Vec<&'static Suite>,
    /// Packet sizes in bytes (of the inner packet, or of the text), or imix
    #[arg(long = "size", value_name = "BYTES", value_delimiter = ',', value_parser = size,
          default_value = "64,128,256,512,1024,1420,4096,9000,imix")]
    pub(crate) sizes: Vec<Size>,
    /// Numbers of security associations, used round robin
    #[arg(long, value_delimiter = ',', value_parser = sas, default_value = "1,1024")]
    pub(crate) sas: Vec<usize>,
    /// Directions
    #[arg(long = "dir", value_delimiter = ',', value_parser = direction, default_value = "out,in")]
    pub(crate) directions: Vec<Direction>,
    /// Implementation of ours, more than once if wanted [default: all that this CPU has]
    #[arg(long = "impl", value_name = "NAME", value_parser = implementation)]
    implementations: Vec<Implementation>,
    /// Cores of ours that work at once; everybody else has one
    #[arg(long, default_value_t = 1, value_parser = threads)]
    pub(crate) threads: usize,
    /// Build and measure the peers as well
    #[arg(long)]
    pub(crate) peers: bool,
    /// Write all figures here
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    /// Write plots into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) svg: Option<PathBuf>,
    /// Undisturbed repetitions of each measurement
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) repetitions: u32,
    #[command(flatten)]
    pub(crate) place: Place,
}

/// Where to measure.
#[derive(Args, Debug)]
pub(crate) struct Place {
    /// Core to measure on [default: the last one]
    #[arg(long)]
    pub(crate) cpu: Option<usize>,
}

impl Selection {
    /// The suites, in the order in which they were asked for.
    pub(crate) fn suites(&self) -> Vec<&'static Suite> {
        if self.suites.is_empty() {
            SUITES.into_iter().filter_map(Suite::by_name).collect()
        } else {
            self.suites.clone()
        }
    }

    /// Whether no implementation was named, so that what a user gets without a choice is
    /// wanted as well.
    pub(crate) fn wants_default(&self) -> bool {
        self.implementations.is_empty()
    }

    /// Our implementations.
    pub(crate) fn implementations(&self) -> Vec<Implementation> {
        if self.implementations.is_empty() {
            Implementation::available().collect()
        } else {
            self.implementations.clone()
        }
    }
}

pub(crate) fn suite(name: &str) -> Result<&'static Suite, String> {
    let known = Suite::ALL.iter().map(|suite| suite.name);
    Suite::by_name(name).ok_or_else(|| unknown("suite", known))
}

fn implementation(name: &str) -> Result<Implementation, String> {
    let known = Implementation::available().map(Implementation::name);
    Implementation::available()
        .find(|implementation| implementation.name() == name)
        .ok_or_else(|| unknown("implementation on this CPU", known))
}

fn direction(name: &str) -> Result<Direction, String> {
    let known = Direction::ALL.into_iter().map(Direction::name);
    Direction::ALL
        .into_iter()
        .find(|direction| direction.name() == name)
        .ok_or_else(|| unknown("direction", known))
}

fn unknown<'a>(what: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<_> = known.collect();
    format!("no such {what}; there are: {}", known.join(", "))
}

/// The smallest inner packet has an IPv4 and a UDP header, the largest fits an IP packet
/// with all that ESP adds.
pub(crate) fn size(text: &str) -> Result<Size, String> {
    match text.parse() {
        Ok(bytes @ 28..=16_000) => Ok(Size::Bytes(bytes)),
        _ if text == "imix" => Ok(Size::Imix),
        _ => Err("a size is a number of bytes from 28 to 16000, or imix".into()),
    }
}

fn sas(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=4_000_000) => Ok(count),
        _ => Err("a number of associations is from 1 to 4000000".into()),
    }
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=1024) => Ok(count),
        _ => Err("a number of threads is from 1 to 1024".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn contract_of_the_command_line() {
        let line = "vesper-bench esp --suite aes256gcm16 --suite chacha20poly1305 --size 64,imix \
                    --sas 1,1024 --dir in --threads 2 --peers --csv a.csv --svg plots";
        let Command::Esp(selection) = parse(line).unwrap().command else {
            panic!("not esp");
        };
        let names: Vec<_> = selection.suites().iter().map(|suite| suite.name).collect();
        assert_eq!(names, ["aes256gcm16", "chacha20poly1305"]);
        assert_eq!(selection.sizes, [Size::Bytes(64), Size::Imix]);
        assert_eq!(selection.sas, [1, 1024]);
        assert_eq!(selection.directions, [Direction::In]);
        assert_eq!((selection.threads, selection.peers), (2, true));
    }

    #[test]
    fn defaults() {
        let Command::Aead(selection) = parse("vesper-bench aead").unwrap().command else {
            panic!("not aead");
        };
        assert_eq!(selection.suites().len(), SUITES.len());
        assert_eq!(selection.sizes.len(), 9);
        assert_eq!(selection.sas, [1, 1024]);
        assert_eq!(selection.directions, Direction::ALL);
        assert!(!selection.implementations().is_empty());
    }

    #[test]
    fn unknown_names_list_the_known_ones() {
        for (line, known) in [
            ("vesper-bench aead --suite des", "aes256gcm16"),
            ("vesper-bench aead --impl abacus", "rustcrypto"),
            ("vesper-bench esp --dir up", "out, in"),
            ("vesper-bench esp --size huge", "imix"),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ValueValidation, "{line}");
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(known), "{error}");
        }
    }
}
