//! From the command line to the results.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use crate::aead::{libraries, ours};
use crate::case::{Case, Level};
use crate::cli::{Cli, Command, Place, Selection};
use crate::contest::{self, Contestant, Fault};
use crate::esp::engines;
use crate::lanes::Cores;
use crate::limit::Limit;
use crate::nic;
use crate::peers::{self, PeersError};
use crate::report::{self, Machine, Row};

/// Runs the program: exit code 0, 1 if a contestant failed, 2 for wrong usage, missing
/// packages or files that can not be written.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    ask_for_huge_pages();
    let done = match &cli.command {
        Command::Aead(selection) => measure(Level::Aead, selection),
        Command::Esp(selection) => measure(Level::Esp, selection),
        Command::Nic(selection) => offload(selection),
        Command::Limit(place) => limit(place),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(RunError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            match error {
                RunError::Fault(_) | RunError::Peers(PeersError::Fault(_)) => ExitCode::from(1),
                _ => ExitCode::from(2),
            }
        }
    }
}

/// Starts this program again with an allocator that backs its memory with huge pages:
/// associations lie in memory of that kind in any serious deployment, and with small pages
/// translation misses would drown the rest. The peers inherit the setting.
fn ask_for_huge_pages() {
    const TUNABLES: &str = "GLIBC_TUNABLES";
    if std::env::var_os(TUNABLES).is_some() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        let error = std::process::Command::new(program)
            .args(std::env::args_os().skip(1))
            .env(TUNABLES, "glibc.malloc.hugetlb=1")
            .exec();
        eprintln!("note: no huge pages for keys: {error}");
    }
}

/// Why there are no results.
#[derive(Debug)]
enum RunError {
    /// The machine has not got these cores.
    Cores { threads: usize, cpu: Option<usize> },
    /// A contestant failed.
    Fault(Fault),
    /// The peers can not be measured.
    Peers(PeersError),
    /// Results can not be written to this file.
    File(PathBuf, Box<dyn std::error::Error>),
    /// Results can not be written to standard output.
    Output(io::Error),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cores { threads, cpu } => {
                write!(f, "this process may not use {threads} core(s)")?;
                cpu.map_or(Ok(()), |cpu| write!(f, " from core {cpu} down"))
            }
            Self::Fault(fault) => fault.fmt(f),
            Self::Peers(error) => error.fmt(f),
            Self::File(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Output(error) => write!(f, "standard output: {error}"),
        }
    }
}

impl From<io::Error> for RunError {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

fn claim(threads: usize, place: &Place) -> Result<Arc<Cores>, RunError> {
    let cpu = place.cpu;
    Cores::claim(threads, cpu)
        .map(Arc::new)
        .ok_or(RunError::Cores { threads, cpu })
}

fn limit(place: &Place) -> Result<(), RunError> {
    let cores = claim(1, place)?;
    let limit = Limit::measure(cores.clock());
    let machine = Machine::here(cores.clock().hertz(&cores.clock().probe()));
    Ok(writeln!(io::stdout(), "{machine}\n\n{limit}")?)
}

fn offload(selection: &nic::Selection) -> Result<(), RunError> {
    check_outputs(selection.csv.as_deref(), None)?;
    let cores = claim(selection.threads(), &selection.place)?;
    let machine = Machine::here(cores.clock().hertz(&cores.clock().probe()));
    let mut out = io::stdout();
    writeln!(out, "{machine}")?;
    let progress = progress_bar(1);
    let measured = nic::measure(selection, &cores, |what| {
        progress.set_message(what.to_owned())
    });
    progress.finish_and_clear();
    let (figures, pairs) = measured.map_err(RunError::Fault)?;
    writeln!(out, "\n{}", nic::table(&figures, &pairs))?;
    writeln!(
        out,
        "* too few undisturbed repetitions: the machine was busy\n"
    )?;
    for line in nic::verdicts(&figures, &pairs) {
        writeln!(out, "{line}")?;
    }
    if let Some(path) = &selection.csv {
        nic::csv(path, &figures, &pairs)
            .map_err(|error| RunError::File(path.clone(), error.into()))?;
    }
    Ok(())
}

/// Makes sure, before anything is measured, that results can be written where they are wanted.
fn check_outputs(csv: Option<&Path>, svg: Option<&Path>) -> Result<(), RunError> {
    let fault = |path: &Path, error: io::Error| RunError::File(path.into(), error.into());
    if let Some(path) = csv {
        File::create(path).map_err(|error| fault(path, error))?;
    }
    if let Some(path) = svg {
        std::fs::create_dir_all(path).map_err(|error| fault(path, error))?;
    }
    Ok(())
}

fn measure(level: Level, selection: &Selection) -> Result<(), RunError> {
    check_outputs(selection.csv.as_deref(), selection.svg.as_deref())?;
    let cores = claim(selection.threads, &selection.place)?;
    let mut notes = Vec::new();
    let mut contestants = contestants(level, selection, &cores, &mut notes)?;
    let limit = Limit::measure(cores.clock());
    let hertz = cores.clock().hertz(&cores.clock().probe());
    let machine = Machine::here(hertz);
    let quiet = cores.clock().quiet();
    writeln!(
        io::stdout(),
        "{machine}\ncore {} when quiet: {:.2} instructions a cycle, shared cache in {:.0} cycles",
        cores.first(),
        quiet.width(),
        quiet.latency(),
    )?;

    let cases = cases(level, selection);
    let progress = progress_bar(cases.len());
    let mut rows = Vec::new();
    let mut absences = Absences::default();
    for (done, case) in cases.iter().enumerate() {
        progress.set_position(done as u64);
        progress.set_message(case.to_string());
        let repetitions = selection.repetitions as usize;
        let outcome = contest::hold(cores.clock(), case, &mut contestants, repetitions, || {
            progress.tick();
        })
        .map_err(RunError::Fault)?;
        absences.add(case, outcome.declined);
        for &direction in &selection.directions {
            let figures = outcome.figures.iter();
            let figures = figures.filter(|figure| figure.direction == direction);
            rows.extend(figures.map(|figure| {
                let alone = !figure.who.starts_with(report::OURS);
                Row::new(case, if alone { 1 } else { cores.count() }, figure)
            }));
            let bound = limit.cycles(case);
            rows.extend(bound.map(|cycles| Row::limit(case, direction, cycles, hertz)));
        }
    }
    progress.finish_and_clear();
    notes.extend(absences.notes());
    write_results(selection, &machine, &rows, &notes)
}

/// Who stayed away from which suite, and why.
#[derive(Default)]
struct Absences(Vec<(&'static str, String, Vec<String>)>);

impl Absences {
    fn add(&mut self, case: &Case, declined: Vec<(String, String)>) {
        for (name, why) in declined {
            let mut known = self.0.iter_mut();
            match known.find(|(suite, reason, _)| *suite == case.suite.name && *reason == why) {
                Some((_, _, who)) if who.contains(&name) => {}
                Some((_, _, who)) => who.push(name),
                None => self.0.push((case.suite.name, why, vec![name])),
            }
        }
    }

    fn notes(self) -> impl Iterator<Item = String> {
        let absences = self.0.into_iter();
        absences.map(|(suite, why, who)| format!("{suite} without {}: {why}", who.join(", ")))
    }
}

/// Ours, and who else is wanted.
fn contestants(
    level: Level,
    selection: &Selection,
    cores: &Arc<Cores>,
    notes: &mut Vec<String>,
) -> Result<Vec<Box<dyn Contestant>>, RunError> {
    let implementations = selection.implementations();
    let mut contestants = match level {
        Level::Aead => ours(&implementations, cores),
        Level::Esp => engines(&implementations, selection.wants_default(), cores),
    };
    if level == Level::Aead {
        contestants.extend(libraries(&Arc::new(cores.alone())));
    }
    if selection.peers {
        contestants.extend(peers::start(level, notes).map_err(RunError::Peers)?);
    }
    Ok(contestants)
}

fn cases(level: Level, selection: &Selection) -> Vec<Case> {
    let mut cases = Vec::new();
    for suite in selection.suites() {
        for &sas in &selection.sas {
            cases.extend(selection.sizes.iter().map(|&size| Case {
                level,
                suite,
                size,
                sas,
            }));
        }
    }
    cases
}

fn progress_bar(cases: usize) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = "{spinner} {wide_bar} {pos}/{len} {msg}";
    ProgressBar::new(cases as u64).with_style(
        ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
    )
}

fn write_results(
    selection: &Selection,
    machine: &Machine,
    rows: &[Row],
    notes: &[String],
) -> Result<(), RunError> {
    let mut out = io::stdout();
    for group in report::groups(rows) {
        let first = group[0];
        let (level, suite, sas, dir) = (first.level, first.suite, first.sas, first.dir);
        writeln!(out, "\n{level} {suite}, {sas} SA, {dir}bound")?;
        writeln!(out, "{}", report::table(&group))?;
        if let Some(directory) = &selection.svg {
            report::plot(directory, machine, &group)
                .map_err(|error| RunError::File(directory.clone(), error))?;
        }
    }
    if rows.iter().any(|row| row.doubtful) {
        writeln!(
            out,
            "* too few undisturbed repetitions: the machine was busy"
        )?;
    }
    for note in notes {
        writeln!(out, "note: {note}")?;
    }
    if let Some(path) = &selection.csv {
        report::write_csv(path, rows)
            .map_err(|error| RunError::File(path.clone(), error.into()))?;
    }
    Ok(())
}
