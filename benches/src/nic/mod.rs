//! What offload saves: the cycles that host, adapter and machine spend on a packet, on every
//! path of a machine, with and without offload, beside the engine driven directly; and what a
//! second processor of the adapter adds.
//!
//! Two hosts with their adapters stand back to back. A pass is 1,024 packets from the machine
//! of one to the machine of the other, 32 at a time; what each party does with a batch is on
//! that party's clock. The harness in between (wire, refilling) is on nobody's.

mod mbuf;
mod node;
mod processors;
mod report;
mod track;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use vesper_esp::Suite;

use crate::case::{Case, Level, PACKETS, Size};
use crate::cli::{self, Place};
use crate::clock::Clock;
use crate::contest::Fault;
use crate::lanes::Cores;
use crate::samples::Samples;

use node::{Kind, Path};
use processors::Processors;
use track::{Bare, Spent, Track, Wired};

pub(crate) use report::{Figures, Pairs, csv, table, verdicts};

/// Tries for each undisturbed repetition that is wanted.
const TRIES: usize = 8;

/// What to measure, and where to write it.
#[derive(Args, Debug)]
pub(crate) struct Selection {
    /// Suite
    #[arg(long, value_name = "NAME", value_parser = cli::suite, default_value = "aes256gcm16")]
    suite: &'static Suite,
    /// Packet sizes in bytes (of the inner packet, 28 to 1500), or imix
    #[arg(long = "size", value_name = "BYTES", value_delimiter = ',', value_parser = size,
          default_value = "64,imix,1420")]
    sizes: Vec<Size>,
    /// Paths to compare with the engine
    #[arg(
        long = "path",
        value_name = "NAME",
        value_delimiter = ',',
        value_enum,
        default_value = "synthetic,queue,function"
    )]
    paths: Vec<Kind>,
    /// Do not measure a second processor, which needs a second core
    #[arg(long)]
    one_core: bool,
    /// Write all figures here
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    /// Undisturbed repetitions of each measurement
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repetitions: u32,
    #[command(flatten)]
    pub(crate) place: Place,
}

/// An inner packet with ESP around it fits an ordinary buffer.
fn size(text: &str) -> Result<Size, String> {
    match cli::size(text) {
        Ok(Size::Bytes(bytes)) if bytes > 1500 => {
            Err("a size is a number of bytes from 28 to 1500, or imix".into())
        }
        other => other,
    }
}

impl Selection {
    /// Whether a second core is wanted.
    pub(crate) fn threads(&self) -> usize {
        if self.one_core { 1 } else { 2 }
    }

    fn cases(&self) -> impl Iterator<Item = Case> {
        let suite = self.suite;
        self.sizes.iter().map(move |size| Case {
            level: Level::Esp,
            suite,
            size: *size,
            sas: 1,
        })
    }
}

/// Measures everything; `tick` is called with the name of what comes next.
pub(crate) fn measure(
    selection: &Selection,
    cores: &Arc<Cores>,
    mut tick: impl FnMut(&str),
) -> Result<(Vec<Figures>, Vec<Pairs>), Fault> {
    let repetitions = selection.repetitions as usize;
    let (mut figures, mut pairs) = (Vec::new(), Vec::new());
    for case in selection.cases() {
        tick(&case.to_string());
        let paths = Path::ALL.into_iter();
        let paths = paths.filter(|path| selection.paths.contains(&path.kind));
        figures.extend(compare(&case, paths, cores.clock(), repetitions)?);
        if cores.count() > 1 {
            pairs.push(processors(&case, cores, repetitions)?);
        }
    }
    Ok((figures, pairs))
}

/// One who takes part in the comparison of paths.
struct Runner {
    path: Option<Path>,
    track: Box<dyn Track>,
    /// Machine, host, adapter, all of them; out, then in.
    samples: [[Samples; 4]; 2],
}

/// The engine alone and these paths, in turn, repetition by repetition.
fn compare(
    case: &Case,
    paths: impl Iterator<Item = Path>,
    clock: &Clock,
    repetitions: usize,
) -> Result<Vec<Figures>, Fault> {
    let mut runners = vec![Runner::new(None, Box::new(Bare::new(case)?))];
    for path in paths {
        runners.push(Runner::new(Some(path), Box::new(Wired::new(case, path)?)));
    }
    for _ in 0..repetitions * TRIES {
        let mut waiting = false;
        for runner in &mut runners {
            if runner.clean() < repetitions {
                waiting = true;
                runner.repeat(clock)?;
            }
        }
        if !waiting {
            break;
        }
    }
    let figures = runners.into_iter().flat_map(|runner| {
        let copies = runner.track.copies();
        let path = runner.path;
        let names = path.map_or(("engine", ""), |path| (path.name(), path.ipsec_name()));
        let directions = ["out", "in"].into_iter().zip(runner.samples);
        directions.map(move |(direction, samples)| {
            let doubtful = samples[3].are_doubtful();
            let [machine, host, adapter, total] =
                samples.map(|samples| samples.quartiles()[1] / PACKETS as f64);
            Figures {
                path: names.0,
                offload: names.1,
                suite: case.suite.name,
                size: case.size.to_string(),
                dir: direction,
                machine,
                host,
                adapter,
                total,
                copies: if direction == "in" { copies } else { 0.0 },
                doubtful,
            }
        })
    });
    Ok(figures.collect())
}

impl Runner {
    fn new(path: Option<Path>, track: Box<dyn Track>) -> Self {
        Self {
            path,
            track,
            samples: Default::default(),
        }
    }

    fn clean(&self) -> usize {
        self.samples[0][3].clean()
    }

    /// A pass to warm up, and one between two probes.
    fn repeat(&mut self, clock: &Clock) -> Result<(), Fault> {
        self.track.pass()?;
        let before = clock.probe();
        let spent = self.track.pass()?;
        let after = clock.probe();
        for (samples, spent) in self.samples.iter_mut().zip(spent) {
            let Spent {
                machine,
                host,
                adapter,
            } = spent;
            let ticks = [machine, host, adapter, machine + host + adapter];
            for (samples, ticks) in samples.iter_mut().zip(ticks) {
                samples.add(clock.span(&before, ticks, &after, false));
            }
        }
        Ok(())
    }
}

/// Two processors beside one, in turn.
fn processors(case: &Case, cores: &Arc<Cores>, repetitions: usize) -> Result<Pairs, Fault> {
    let alone = cores.alone();
    let mut both: Vec<(Processors, &Cores, [Samples; 2])> = vec![
        (Processors::new(case, 1)?, &alone, Default::default()),
        (Processors::new(case, 2)?, cores, Default::default()),
    ];
    for _ in 0..repetitions * TRIES {
        if both
            .iter()
            .all(|(.., samples)| samples[0].clean() >= repetitions)
        {
            break;
        }
        for (processors, cores, samples) in &mut both {
            processors.pass(cores)?;
            let before = cores.clock().probe();
            let repetition = processors.pass(cores)?;
            let after = cores.clock().probe();
            for (samples, ticks) in samples.iter_mut().zip(repetition.ticks) {
                let span = cores
                    .clock()
                    .span(&before, ticks, &after, repetition.disturbed);
                samples.add(span);
            }
        }
    }
    let doubtful = both.iter().any(|(.., samples)| samples[0].are_doubtful());
    let [one, two] = [&both[0], &both[1]].map(|(.., samples)| {
        samples
            .each_ref()
            .map(|samples| samples.quartiles()[1] / PACKETS as f64)
    });
    Ok(Pairs {
        suite: case.suite.name,
        size: case.size.to_string(),
        one,
        two,
        doubtful,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every path carries every packet. What comes through the default queue is copied once:
    /// all of the synthetic path, and ESP that software opens.
    #[test]
    fn all_paths_work() {
        let case = Case {
            level: Level::Esp,
            suite: Suite::by_name("aes256gcm16").unwrap(),
            size: Size::Imix,
            sas: 1,
        };
        for path in Path::ALL {
            let mut wired = Wired::new(&case, path).unwrap();
            for _ in 0..3 {
                wired
                    .pass()
                    .unwrap_or_else(|fault| panic!("{path:?}: {fault}"));
            }
            let through_default_queue = path.kind == node::Kind::Synthetic
                || path.kind == node::Kind::Queue && path.ipsec == node::Ipsec::Software;
            let expected = f64::from(u8::from(through_default_queue));
            assert_eq!(wired.copies(), expected, "{path:?}");
        }
        let mut bare = Bare::new(&case).unwrap();
        bare.pass().unwrap();
        for count in [1, 2] {
            let Some(cores) = Cores::claim(count, None) else {
                continue;
            };
            let mut processors = Processors::new(&case, count as u16).unwrap();
            for _ in 0..3 {
                processors.pass(&cores).unwrap();
            }
        }
    }
}
