//! `vesper-verify [--impl NAME]... [--list] [--json] [PATH]...`

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::verify::{Report, Source, builtin, find};
use comfy_table::Cell;
use serde::Serialize;
use vesper_esp::Suite;
use vesper_esp::aead::Implementation;

use super::table::{number, table};
use super::{Stop, VectorArguments, grouped, judged, print_json, progress};

/// What `--list` prints as JSON.
#[derive(Serialize)]
struct Listing {
    implementations: Vec<ImplementationEntry>,
    sources: Vec<SourceEntry>,
}

#[derive(Serialize)]
struct ImplementationEntry {
    name: &'static str,
    available: bool,
    suites: Vec<&'static str>,
}

#[derive(Serialize)]
struct SourceEntry {
    name: String,
    format: &'static str,
    tests: u64,
}

/// What a run prints as JSON.
#[derive(Serialize)]
struct Output<'a> {
    #[serde(flatten)]
    report: &'a Report,
    /// Chosen implementations that this CPU cannot run.
    unavailable: Vec<&'static str>,
    /// Files found in directories that are no vectors.
    ignored: Vec<String>,
}

pub(super) fn run(arguments: &VectorArguments) -> Result<bool, Stop> {
    let sources = sources(arguments)?;
    if arguments.list {
        return list(&sources, arguments.json);
    }
    let chosen: Vec<Implementation> = match arguments.implementations.as_slice() {
        [] => Implementation::available().collect(),
        chosen => chosen.to_vec(),
    };
    let (available, unavailable): (Vec<Implementation>, Vec<Implementation>) = chosen
        .into_iter()
        .partition(|implementation| implementation.is_available());

    let mut report = Report::default();
    let mut ignored = Vec::new();
    let bar = progress(sources.len() as u64, "{bar:40} {pos}/{len} {msg}");
    for source in sources {
        bar.set_message(source.name.clone());
        match source.load().map_err(Stop::fault)? {
            Some(vectors) => report.run(&vectors, &available),
            None => ignored.push(source.name),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();

    let success = report.is_success();
    let unavailable = unavailable.iter().map(|other| other.name()).collect();
    let output = Output {
        report: &report,
        unavailable,
        ignored,
    };
    if arguments.json {
        print_json(&output)?;
    } else {
        print(&output)?;
    }
    Ok(success)
}

fn sources(arguments: &VectorArguments) -> Result<Vec<Source>, Stop> {
    if arguments.paths.is_empty() {
        return Ok(builtin());
    }
    let mut sources = Vec::new();
    for path in &arguments.paths {
        sources.extend(find(path).map_err(Stop::fault)?);
    }
    Ok(sources)
}

fn list(sources: &[Source], json: bool) -> Result<bool, Stop> {
    let implementations: Vec<ImplementationEntry> = Implementation::ALL
        .iter()
        .map(|implementation| ImplementationEntry {
            name: implementation.name(),
            available: implementation.is_available(),
            suites: Suite::ALL
                .iter()
                .filter(|suite| implementation.supports(suite))
                .map(|suite| suite.name)
                .collect(),
        })
        .collect();
    let mut entries = Vec::new();
    for source in sources {
        if let Some(vectors) = source.load().map_err(Stop::fault)? {
            entries.push(SourceEntry {
                name: vectors.name.clone(),
                format: vectors.format.name(),
                tests: vectors.count(),
            });
        }
    }
    if json {
        print_json(&Listing {
            implementations,
            sources: entries,
        })?;
        return Ok(true);
    }
    let mut out = io::stdout().lock();
    let mut known = table(&["implementation", "on this CPU", " suites", "which"]);
    for entry in implementations {
        known.add_row([
            Cell::new(entry.name),
            Cell::new(if entry.available { "yes" } else { "no" }),
            number(entry.suites.len() as u64),
            Cell::new(match entry.suites.len() {
                all if all == Suite::ALL.len() => "all".to_owned(),
                _ => entry.suites.join("\n"),
            }),
        ]);
    }
    writeln!(out, "{known}")?;
    let mut found = table(&["source", "format", " tests"]);
    for entry in &entries {
        found.add_row([
            Cell::new(&entry.name),
            Cell::new(entry.format),
            number(entry.tests),
        ]);
    }
    writeln!(out, "{found}")?;
    let tests: u64 = entries.iter().map(|entry| entry.tests).sum();
    writeln!(out, "{} tests in {} files", grouped(tests), entries.len())?;
    Ok(true)
}

fn print(output: &Output<'_>) -> Result<(), Stop> {
    let report = output.report;
    let mut out = io::stdout().lock();
    if let Some(first) = report.sources.first() {
        let mut columns = vec!["source".to_owned(), " tests".to_owned()];
        let names = first.results.iter().map(|score| score.implementation);
        columns.extend(names.map(|name| format!(" {name}")));
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        let mut scores = table(&columns);
        for source in &report.sources {
            let mut row = vec![Cell::new(&source.name), number(source.tests)];
            row.extend(source.results.iter().map(|score| {
                Cell::new(match (score.passed, score.failed) {
                    (0, 0) => "-".to_owned(),
                    (passed, 0) => grouped(passed),
                    (passed, failed) => format!("{}, {} FAILED", grouped(passed), grouped(failed)),
                })
            }));
            scores.add_row(row);
        }
        writeln!(out, "{scores}")?;
    }
    for (implementation, reasons) in skips(report) {
        let total: u64 = reasons.values().sum();
        writeln!(out, "{implementation} skipped {} tests:", grouped(total))?;
        let mut reasons: Vec<(&str, u64)> = reasons.into_iter().collect();
        reasons.sort_by_key(|&(_, tests)| std::cmp::Reverse(tests));
        for (reason, tests) in reasons {
            writeln!(out, "{:>8} {reason}", grouped(tests))?;
        }
    }
    for name in &output.unavailable {
        writeln!(out, "skipped everything on {name}: this CPU cannot run it")?;
    }
    for name in &output.ignored {
        writeln!(out, "ignored {name}: no file of vectors")?;
    }
    for failure in &report.failures {
        let line = format!(
            "FAILED {}: {} on {}: {}",
            failure.source, failure.test, failure.implementation, failure.reason
        );
        writeln!(out, "{}", judged(&line, false))?;
    }
    let total = format!(
        "{} passed, {} failed, {} skipped",
        grouped(report.passed),
        grouped(report.failed),
        grouped(report.skipped)
    );
    writeln!(out, "{}", judged(&total, report.is_success()))?;
    if report.passed + report.failed == 0 {
        writeln!(out, "{}", judged("nothing ran", false))?;
    }
    Ok(out.flush()?)
}

/// What each implementation has skipped, by reason.
fn skips(report: &Report) -> BTreeMap<&str, BTreeMap<&str, u64>> {
    let mut skips: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
    for score in report.sources.iter().flat_map(|source| &source.results) {
        for (reason, tests) in &score.skipped {
            *skips
                .entry(score.implementation)
                .or_default()
                .entry(reason)
                .or_default() += tests;
        }
    }
    skips
}
