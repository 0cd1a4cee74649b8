//! `vesper-verify pcap` and `vesper-verify encap`.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::path::Path;

use crate::capture::{CaptureReader, CaptureWriter};
use crate::opener::Opener;
use crate::seal::{self, SealError, Sealer};
use crate::unseal::{self, UnsealError};
use crate::xfrm::{self, Entry};
use comfy_table::Cell;
use indicatif::ProgressBar;
use vesper_esp::aead::Implementation;

use super::table::{number, table};
use super::{EncapArguments, PcapArguments, Stop, create, grouped, judged, print_json, progress};

/// What the progress bar of a capture shows.
const BYTES: &str = "{bar:40} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";

pub(super) fn open(arguments: &PcapArguments) -> Result<bool, Stop> {
    let entries = associations(&arguments.sa)?;
    let available: Vec<Implementation> = Implementation::available().collect();
    let mut opener = Opener::new(entries, &available).map_err(|e| at(&arguments.sa, e))?;
    let (mut capture, bar) = capture(&arguments.capture)?;
    let inputs = [arguments.capture.as_path(), arguments.sa.as_path()];
    let mut output = match &arguments.write {
        Some(path) => Some(create(path, &inputs)?),
        None => None,
    };
    let mut told = Ok(());
    let summary = unseal::unseal(
        &mut capture,
        &mut opener,
        output.as_mut(),
        |read| bar.set_position(read),
        |failure| {
            if !arguments.json && told.is_ok() {
                told = bar.suspend(|| writeln!(io::stdout(), "{failure}"));
            }
        },
    )
    .map_err(|error| match (error, &arguments.write) {
        (UnsealError::Opener(error), _) => at(&arguments.sa, error),
        (UnsealError::Output(error), Some(path)) => {
            Stop::Fault(format!("{}: {error}", path.display()))
        }
        (error, _) => Stop::fault(error),
    })?;
    bar.finish_and_clear();
    told?;
    if let (Some(output), Some(path)) = (output, &arguments.write) {
        finish(output, path)?;
    }
    if arguments.json {
        print_json(&summary)?;
    } else {
        print_opened(&summary)?;
    }
    Ok(summary.is_success())
}

pub(super) fn seal(arguments: &EncapArguments) -> Result<bool, Stop> {
    let entries = associations(&arguments.sa)?;
    let mut sealer = Sealer::new(entries).map_err(|e| at(&arguments.sa, e))?;
    let (mut capture, bar) = capture(&arguments.input)?;
    let inputs = [arguments.input.as_path(), arguments.sa.as_path()];
    let mut output = create(&arguments.output, &inputs)?;
    let mut told = Ok(());
    let summary = seal::seal(
        &mut capture,
        &mut sealer,
        &mut output,
        |read| bar.set_position(read),
        |refusal| {
            if !arguments.json && told.is_ok() {
                told = bar.suspend(|| writeln!(io::stdout(), "{refusal}"));
            }
        },
    )
    .map_err(|error| match error {
        SealError::Output(error) => Stop::Fault(format!("{}: {error}", arguments.output.display())),
        error => Stop::fault(error),
    })?;
    bar.finish_and_clear();
    told?;
    finish(output, &arguments.output)?;
    if arguments.json {
        print_json(&summary)?;
    } else {
        print_sealed(&summary)?;
    }
    Ok(summary.is_success())
}

fn associations(path: &Path) -> Result<Vec<Entry>, Stop> {
    xfrm::read(path).map_err(Stop::fault)
}

/// An error that begins with a line number, after the name of its file.
fn at(path: &Path, error: impl std::fmt::Display) -> Stop {
    Stop::Fault(format!("{}:{error}", path.display()))
}

fn capture(path: &Path) -> Result<(CaptureReader<BufReader<File>>, ProgressBar), Stop> {
    let capture = CaptureReader::open(path).map_err(Stop::fault)?;
    let len = fs::metadata(path).map_or(0, |metadata| metadata.len());
    Ok((capture, progress(len, BYTES)))
}

fn finish(output: CaptureWriter<BufWriter<File>>, path: &Path) -> Result<(), Stop> {
    output
        .finish()
        .map_err(|error| Stop::Fault(format!("{}: {error}", path.display())))
}

fn print_opened(summary: &unseal::Summary) -> Result<(), Stop> {
    let mut out = io::stdout().lock();
    let mut lanes = table(&[
        " line",
        "SPI",
        "source > destination",
        "mode",
        "suite",
        "implementation",
        " accepted",
        " dropped",
        "why",
        " highest sequence",
    ]);
    for sa in &summary.sas {
        for (index, lane) in sa.implementations.iter().enumerate() {
            let first = |text: String| Cell::new(if index == 0 { text } else { String::new() });
            lanes.add_row([
                first(sa.line.to_string()),
                first(sa.spi.clone()),
                first(format!("{} > {}", sa.source, sa.destination)),
                first(sa.mode.unwrap_or("as packets show").to_owned()),
                first(sa.suite.to_owned()),
                Cell::new(lane.implementation),
                number(lane.accepted),
                number(lane.dropped.values().sum()),
                Cell::new(reasons(&lane.dropped)),
                number(lane.highest_sequence),
            ]);
        }
    }
    if !summary.sas.is_empty() {
        writeln!(out, "{lanes}")?;
    }
    let dropped: u64 = summary.dropped.values().sum();
    let mut total = format!(
        "{} ESP packets: {} accepted, {} dropped",
        grouped(summary.packets),
        grouped(summary.accepted),
        grouped(dropped)
    );
    if dropped > 0 {
        total = format!("{total} ({})", reasons(&summary.dropped));
    }
    writeln!(out, "{}", judged(&total, summary.is_success()))?;
    writeln!(
        out,
        "{} frames, {} of them not ESP",
        grouped(summary.frames),
        grouped(summary.not_esp)
    )?;
    if summary.incomplete_datagrams > 0 {
        writeln!(
            out,
            "{} datagrams of which fragments are missing",
            grouped(summary.incomplete_datagrams)
        )?;
    }
    if summary.disagreements > 0 {
        let line = format!(
            "the implementations disagree on {} packets",
            grouped(summary.disagreements)
        );
        writeln!(out, "{}", judged(&line, false))?;
    }
    if summary.accepted == 0 {
        writeln!(out, "{}", judged("no packet was accepted", false))?;
    }
    Ok(out.flush()?)
}

fn print_sealed(summary: &seal::Summary) -> Result<(), Stop> {
    let mut out = io::stdout().lock();
    let mut sas = table(&[
        " line",
        "SPI",
        "source > destination",
        "suite",
        "implementation",
        " sealed",
        " last sequence",
    ]);
    for sa in &summary.sas {
        sas.add_row([
            Cell::new(sa.line),
            Cell::new(&sa.spi),
            Cell::new(format!("{} > {}", sa.source, sa.destination)),
            Cell::new(sa.suite),
            Cell::new(sa.implementation),
            number(sa.sealed),
            number(sa.highest_sequence),
        ]);
    }
    writeln!(out, "{sas}")?;
    let total = format!(
        "{} IP packets: {} sealed, {} of no association, {} refused",
        grouped(summary.packets),
        grouped(summary.sealed),
        grouped(summary.not_selected),
        grouped(summary.refused.values().sum())
    );
    writeln!(out, "{}", judged(&total, summary.is_success()))?;
    if summary.not_ip > 0 {
        writeln!(out, "{} frames are not IP", grouped(summary.not_ip))?;
    }
    Ok(out.flush()?)
}

/// `3 replay, 1 icv`.
fn reasons(counts: &std::collections::BTreeMap<&'static str, u64>) -> String {
    let counted: Vec<String> = counts
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(name, count)| format!("{} {name}", grouped(*count)))
        .collect();
    counted.join(", ")
}
