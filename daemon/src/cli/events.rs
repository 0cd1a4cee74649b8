//! `vesper events`, and the event part of `vesper sa monitor`.

use std::io::Write;

use clap::Args;

use super::Format;
use super::answer::Stop;
use crate::control::client::{Client, ClientError};
use crate::control::types;

#[derive(Debug, Args)]
pub(super) struct Follow {
    #[command(flatten)]
    format: Format,
    /// End after this many events
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

pub(super) fn run(client: &Client, wanted: &Follow, out: &mut dyn Write) -> Result<(), Stop> {
    stream(client, wanted.format, wanted.count, out, |_| true)
}

/// Prints the events that are of interest until the daemon ends.
pub(super) fn follow(
    client: &Client,
    format: Format,
    out: &mut dyn Write,
    is_wanted: impl Fn(&types::Event) -> bool,
) -> Result<(), Stop> {
    stream(client, format, None, out, is_wanted)
}

fn stream(
    client: &Client,
    format: Format,
    count: Option<u64>,
    out: &mut dyn Write,
    is_wanted: impl Fn(&types::Event) -> bool,
) -> Result<(), Stop> {
    let mut left = count.unwrap_or(u64::MAX);
    let mut failed = None;
    client.follow("/v1/events", |line| {
        let event: types::Event = match serde_json::from_str(line) {
            Ok(event) => event,
            Err(error) => {
                failed = Some(Stop::Client(ClientError::Answer(error.to_string())));
                return false;
            }
        };
        if !is_wanted(&event) {
            return true;
        }
        let printed = match format.json {
            true => writeln!(out, "{line}"),
            false => print(out, &event),
        };
        if let Err(error) = printed.and_then(|()| out.flush()) {
            failed = Some(Stop::System(error));
            return false;
        }
        left -= 1;
        left > 0
    })?;
    match failed {
        Some(stop) => Err(stop),
        None => Ok(()),
    }
}

fn print(out: &mut dyn Write, event: &types::Event) -> std::io::Result<()> {
    let seconds = event.time.split('.').next().unwrap_or_default();
    let seconds: u64 = seconds.parse().unwrap_or(0);
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    let host = match event.host.is_empty() {
        true => "-",
        false => &event.host,
    };
    writeln!(
        out,
        "{hours:02}:{minutes:02}:{:02}Z {host} {}: {}",
        seconds % 60,
        event.kind,
        event.text
    )
}
