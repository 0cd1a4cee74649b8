//! Contestants, and the rule by which they are measured: repetition by repetition in turn,
//! on one core, so that whatever the host does it does to all of them.

use std::fmt;

use crate::case::{Case, Digest, Direction, PACKETS};
use crate::clock::{Clock, Probe, Span};

/// Clean repetitions below which a figure is marked as doubtful.
const FEW: usize = 5;
/// Tries for each clean repetition that is wanted.
const TRIES: usize = 8;

/// Somebody who can seal and open the packets of a case.
pub(crate) trait Contestant {
    /// The name in results.
    fn name(&self) -> &str;

    /// Makes keys and packets, and seals and opens them once to prove that it can. What it
    /// sealed must be the same for all; `None` where the suite's IVs are random.
    fn prepare(&mut self, case: &Case) -> Result<Option<Digest>, Refusal>;

    /// Sends all packets of the case one way, which must be the other way than before,
    /// beginning with [`Direction::Out`].
    fn pass(&mut self, direction: Direction) -> Result<Pass, Fault>;

    /// Frees what `prepare` made.
    fn finish(&mut self) -> Result<(), Fault>;
}

/// One measured pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass {
    /// Ticks of the time-stamp counter from the first packet to the last.
    pub(crate) ticks: u64,
    /// Something interrupted that the caller's probes can not have seen.
    pub(crate) disturbed: bool,
}

/// Why a contestant does not take part in a case.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It does not have this suite or can not do this many associations.
    Declined(String),
    /// It tried and failed.
    Fault(Fault),
}

/// What went wrong, by whom.
#[derive(Debug)]
pub(crate) struct Fault {
    who: String,
    what: String,
}

/// The result of one contestant in one direction.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    pub(crate) who: String,
    pub(crate) direction: Direction,
    /// Core cycles per packet, median of the clean repetitions.
    pub(crate) cycles: f64,
    /// Core cycles per packet from the first to the third quartile.
    pub(crate) spread: f64,
    /// The core's clock meanwhile, in hertz.
    pub(crate) hertz: f64,
    /// Fewer than [`FEW`] repetitions were clean, so all were taken.
    pub(crate) doubtful: bool,
}

impl Fault {
    /// `who` failed by doing `what`.
    pub(crate) fn new(who: impl Into<String>, what: impl fmt::Display) -> Self {
        Self {
            who: who.into(),
            what: what.to_string(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.who, self.what)
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// What a case came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) figures: Vec<Figure>,
    /// Who stayed away, and why.
    pub(crate) declined: Vec<(String, String)>,
}

/// Measures all contestants in a case. `tick` is called after each round.
pub(crate) fn hold(
    clock: &Clock,
    case: &Case,
    contestants: &mut [Box<dyn Contestant>],
    repetitions: usize,
    mut tick: impl FnMut(),
) -> Result<Outcome, Fault> {
    let mut outcome = Outcome::default();
    let mut runners = Vec::new();
    let mut agreed: Option<(String, Digest)> = None;
    for contestant in contestants {
        match contestant.prepare(case) {
            Ok(digest) => {
                agree(&mut agreed, contestant.name(), digest)?;
                runners.push(Runner {
                    contestant,
                    records: Direction::ALL.map(|_| Record::default()),
                });
            }
            Err(Refusal::Declined(reason)) => {
                outcome.declined.push((contestant.name().into(), reason));
            }
            Err(Refusal::Fault(fault)) => return Err(fault),
        }
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
        tick();
    }
    for runner in runners {
        runner.contestant.finish()?;
        for (direction, record) in Direction::ALL.into_iter().zip(&runner.records) {
            outcome
                .figures
                .push(record.figure(runner.contestant.name(), direction));
        }
    }
    Ok(outcome)
}

/// Compares what a contestant sealed with what those before it did.
fn agree(
    agreed: &mut Option<(String, Digest)>,
    who: &str,
    digest: Option<Digest>,
) -> Result<(), Fault> {
    match (&*agreed, digest) {
        (Some((other, theirs)), Some(ours)) if *theirs != ours => Err(Fault::new(
            who,
            format_args!("its packets ({ours}) are not those of {other} ({theirs})"),
        )),
        (None, Some(ours)) => {
            *agreed = Some((who.into(), ours));
            Ok(())
        }
        _ => Ok(()),
    }
}

struct Runner<'a> {
    contestant: &'a mut Box<dyn Contestant>,
    records: [Record; 2],
}

impl Runner<'_> {
    fn clean(&self) -> usize {
        self.records
            .iter()
            .map(|record| record.clean.len())
            .min()
            .unwrap_or(0)
    }

    /// Once there and back to warm up, once to measure.
    fn repeat(&mut self, clock: &Clock) -> Result<(), Fault> {
        for direction in Direction::ALL {
            self.contestant.pass(direction)?;
        }
        let mut before = Probe::now();
        for (direction, record) in Direction::ALL.into_iter().zip(&mut self.records) {
            let pass = self.contestant.pass(direction)?;
            let after = Probe::now();
            record.add(
                clock.span(&before, pass.ticks, &after, pass.disturbed),
                clock.hertz(&after),
            );
            before = after;
        }
        Ok(())
    }
}

/// The repetitions of one contestant in one direction, in core cycles.
#[derive(Default)]
struct Record {
    clean: Vec<f64>,
    all: Vec<f64>,
    hertz: Vec<f64>,
}

impl Record {
    fn add(&mut self, span: Span, hertz: f64) {
        self.all.push(span.cycles);
        self.hertz.push(hertz);
        if span.clean {
            self.clean.push(span.cycles);
        }
    }

    fn figure(&self, who: &str, direction: Direction) -> Figure {
        let doubtful = self.clean.len() < FEW;
        let [low, middle, high] = quartiles(if doubtful { &self.all } else { &self.clean });
        let [_, hertz, _] = quartiles(&self.hertz);
        let per_packet = PACKETS as f64;
        Figure {
            who: who.into(),
            direction,
            cycles: middle / per_packet,
            spread: (high - low) / per_packet,
            hertz,
            doubtful,
        }
    }
}

/// First quartile, median and third quartile; the lower neighbour where they fall between
/// two values; not-a-number of nothing.
pub(crate) fn quartiles(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| {
        let last = sorted.len().saturating_sub(1);
        sorted.get(last * quarter / 4).copied().unwrap_or(f64::NAN)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{Level, Size};
    use vesper_esp::Suite;

    #[test]
    fn quartiles_of_known_values() {
        assert_eq!(quartiles(&[5.0, 1.0, 3.0, 2.0, 4.0]), [2.0, 3.0, 4.0]);
        assert_eq!(quartiles(&[7.0]), [7.0; 3]);
        assert!(quartiles(&[]).iter().all(|value| value.is_nan()));
    }

    #[test]
    fn disturbed_repetitions_do_not_count_while_enough_are_clean() {
        let mut record = Record::default();
        for cycles in [100.0, 101.0, 102.0, 103.0, 104.0] {
            record.add(
                Span {
                    cycles: cycles * PACKETS as f64,
                    clean: true,
                },
                3e9,
            );
        }
        for _ in 0..20 {
            record.add(
                Span {
                    cycles: 900.0 * PACKETS as f64,
                    clean: false,
                },
                3e9,
            );
        }
        let figure = record.figure("x", Direction::Out);
        assert_eq!((figure.cycles, figure.spread), (102.0, 2.0));
        assert!(!figure.doubtful);
        record.clean.pop();
        assert!(record.figure("x", Direction::Out).doubtful);
    }

    /// Seals nothing, declines or fails on demand.
    struct Scripted {
        name: &'static str,
        answer: Result<Option<&'static str>, &'static str>,
        passes: Vec<Direction>,
    }

    impl Contestant for Scripted {
        fn name(&self) -> &str {
            self.name
        }
        fn prepare(&mut self, _: &Case) -> Result<Option<Digest>, Refusal> {
            match self.answer {
                Ok(digest) => Ok(digest.and_then(Digest::parse)),
                Err(reason) => Err(Refusal::Declined(reason.into())),
            }
        }
        fn pass(&mut self, direction: Direction) -> Result<Pass, Fault> {
            assert_ne!(self.passes.last(), Some(&direction));
            self.passes.push(direction);
            Ok(Pass {
                ticks: 1000,
                disturbed: false,
            })
        }
        fn finish(&mut self) -> Result<(), Fault> {
            assert_eq!(self.passes.len() % 4, 0);
            Ok(())
        }
    }

    fn contest(answers: &[Result<Option<&'static str>, &'static str>]) -> Result<Outcome, Fault> {
        let case = Case {
            level: Level::Aead,
            suite: &Suite::ALL[0],
            size: Size::Bytes(64),
            sas: 1,
        };
        let mut contestants: Vec<Box<dyn Contestant>> = Vec::new();
        for (answer, name) in answers.iter().zip(["a", "b", "c"]) {
            contestants.push(Box::new(Scripted {
                name,
                answer: *answer,
                passes: Vec::new(),
            }));
        }
        hold(&Clock::calibrate(), &case, &mut contestants, 2, || ())
    }

    #[test]
    fn figures_for_both_directions_of_all_who_take_part() {
        let outcome = contest(&[Ok(Some("1")), Err("no such suite"), Ok(None)]).unwrap();
        let who: Vec<_> = outcome
            .figures
            .iter()
            .map(|figure| (figure.who.as_str(), figure.direction))
            .collect();
        let expected = [("a", Direction::Out), ("a", Direction::In)];
        assert_eq!(who[..2], expected);
        assert_eq!(who.len(), 4);
        assert_eq!(
            outcome.declined,
            [("b".to_owned(), "no such suite".to_owned())]
        );
    }

    #[test]
    fn different_packets_are_a_fault() {
        let fault = contest(&[Ok(Some("1")), Ok(Some("2"))]).unwrap_err();
        assert!(fault.to_string().starts_with("b: its packets"), "{fault}");
    }
}
