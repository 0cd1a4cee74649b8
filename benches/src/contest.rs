//! Contestants, and the rule by which they are measured: repetition by repetition in turn,
//! on one core, so that whatever the host does it does to all of them.

use std::fmt;
use std::time::Duration;

use crate::case::{Case, Digest, Direction, PACKETS};
use crate::clock::Clock;
use crate::samples::{Samples, quartiles};

/// Tries for each clean repetition that is wanted.
const TRIES: usize = 8;
/// How long to wait for a neighbour to go after a round in which nobody was undisturbed.
const PAUSE: Duration = Duration::from_millis(10);

/// Somebody who can seal and open the packets of a case.
pub(crate) trait Contestant {
    /// The name in results.
    fn name(&self) -> &str;

    /// Makes keys and packets, and seals and opens them once to prove that it can. What it
    /// sealed must be the same for all; `None` where the suite's IVs are random.
    fn prepare(&mut self, case: &Case) -> Result<Option<Digest>, Refusal>;

    /// Seals and opens all packets of the case twice without a pause: once to warm up, once
    /// to be measured.
    fn repeat(&mut self) -> Result<Repetition, Fault>;

    /// Frees what `prepare` made.
    fn finish(&mut self) -> Result<(), Fault>;
}

/// The passes of a repetition.
pub(crate) const REPETITION: [Direction; 4] =
    [Direction::Out, Direction::In, Direction::Out, Direction::In];

/// One measured repetition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Repetition {
    /// Ticks of the time-stamp counter from the first packet to the last, out and in.
    pub(crate) ticks: [u64; 2],
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
    /// Too few repetitions were clean, so the least disturbed ones were taken.
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
                runners.push((contestant, Direction::ALL.map(|_| Record::default())));
            }
            Err(Refusal::Declined(reason)) => {
                outcome.declined.push((contestant.name().into(), reason));
            }
            Err(Refusal::Fault(fault)) => return Err(fault),
        }
    }
    for _ in 0..repetitions * TRIES {
        let (mut waiting, mut quiet) = (false, false);
        for (contestant, records) in &mut runners {
            if records[0].samples.clean() < repetitions {
                waiting = true;
                quiet |= repeat(clock, contestant.as_mut(), records)?;
            }
        }
        if !waiting {
            break;
        }
        if !quiet {
            std::thread::sleep(PAUSE);
        }
        tick();
    }
    for (contestant, records) in runners {
        contestant.finish()?;
        for (direction, record) in Direction::ALL.into_iter().zip(records) {
            let figure = record.figure(contestant.name(), direction);
            outcome.figures.push(figure);
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

/// One repetition between two probes; whether it was clean.
fn repeat(
    clock: &Clock,
    contestant: &mut dyn Contestant,
    records: &mut [Record; 2],
) -> Result<bool, Fault> {
    let before = clock.probe();
    let repetition = contestant.repeat()?;
    let after = clock.probe();
    let mut clean = true;
    for (record, ticks) in records.iter_mut().zip(repetition.ticks) {
        let span = clock.span(&before, ticks, &after, repetition.disturbed);
        clean &= span.is_clean();
        record.samples.add(span);
        record.hertz.push(clock.hertz(&after));
    }
    Ok(clean)
}

/// The repetitions of one contestant in one direction.
#[derive(Default)]
struct Record {
    samples: Samples,
    hertz: Vec<f64>,
}

impl Record {
    fn figure(self, who: &str, direction: Direction) -> Figure {
        let [low, middle, high] = self.samples.quartiles();
        let [_, hertz, _] = quartiles(self.hertz);
        let per_packet = PACKETS as f64;
        Figure {
            who: who.into(),
            direction,
            cycles: middle / per_packet,
            spread: (high - low) / per_packet,
            hertz,
            doubtful: self.samples.are_doubtful(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{Level, Size};
    use vesper_esp::Suite;

    /// Seals nothing, declines or fails on demand.
    struct Scripted {
        name: &'static str,
        answer: Result<Option<&'static str>, &'static str>,
        finished: bool,
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
        fn repeat(&mut self) -> Result<Repetition, Fault> {
            assert!(!self.finished);
            Ok(Repetition {
                ticks: [1000, 2000],
                disturbed: false,
            })
        }
        fn finish(&mut self) -> Result<(), Fault> {
            self.finished = true;
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
                finished: false,
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
        assert!(outcome.figures[0].cycles < outcome.figures[1].cycles);
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
