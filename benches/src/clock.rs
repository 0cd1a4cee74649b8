//! Core cycles out of time-stamp ticks, and whether the core was ours alone while they
//! passed.
//!
//! The counter ticks at a constant rate while the core's clock wanders, so ticks are
//! converted by a loop of dependent additions: one a cycle, by definition of a core cycle.
//!
//! On a shared host two kinds of neighbour disturb. One sits on the sibling thread of our
//! core and takes issue slots, which a loop of dependent instructions does not notice but a
//! *wide* one does, that issues as many as the core can. The other sits on another core and
//! pushes our data out of the last cache that we share: a *chase* along a chain of cache
//! lines notices, which the contestant itself has pushed out of the private caches if it
//! needs the shared one at all. Each measurement stands between two probes of both kinds,
//! and counts only if neither found the core slower than it is when quiet.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use crate::case::Stream;
use crate::sys::{self, DEPENDENT_PER_TURN, WIDE_PER_TURN};

/// By which part a wide probe may exceed the quiet core's.
const WIDE_EXCESS: f64 = 0.04;
/// By which part a chase may exceed the quiet one.
const CHASE_EXCESS: f64 = 0.25;
/// By which part the clock may change between two probes.
const CLOCK_DRIFT: f64 = 0.02;

const DEPENDENT_TURNS: u64 = 300;
const WIDE_TURNS: u64 = 400;

/// Words in a cache line.
const LINE: usize = 16;
/// Words in a page; the chain has one line in each.
const PAGE: usize = 1024;
/// Links of the chain.
const LINKS: usize = 512;
/// What is written to empty the private caches before a calibrating chase, in words.
const FLUSH: usize = 2 << 20;

/// The clock of one core.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    ticks_per_second: f64,
    chain: Arc<Chain>,
    quiet: Quiet,
}

/// What the quiet core does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quiet {
    /// Cycles per instruction of the wide loop.
    wide: f64,
    /// Cycles per link of the chase through the shared cache.
    chase: f64,
}

/// The state of the core at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    /// Core cycles in one tick.
    cycles_per_tick: f64,
    /// Cycles per instruction of the wide loop.
    wide: f64,
    /// Cycles per link of the chase.
    chase: f64,
    /// How often the scheduler has taken the core away from this thread so far.
    preemptions: i64,
}

/// A span between two probes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Span {
    /// Core cycles.
    pub(crate) cycles: f64,
    /// What the worst of the probes was beyond the quiet core, in parts of what is tolerated;
    /// infinite if something interrupted.
    pub(crate) disturbance: f64,
}

impl Span {
    /// Whether nobody disturbed it.
    pub(crate) fn is_clean(&self) -> bool {
        self.disturbance < 1.0
    }
}

impl Clock {
    /// Learns the rate of the counter and the pace of the quiet core. Takes half a second.
    pub(crate) fn calibrate() -> Self {
        let chain = Arc::new(Chain::new());
        let mut flush = vec![0_u32; FLUSH];
        let began = Instant::now();
        let first = sys::ticks();
        let (mut wide, mut chase) = (Vec::new(), Vec::new());
        while began.elapsed() < Duration::from_millis(500) {
            flush
                .iter_mut()
                .for_each(|word| *word = word.wrapping_add(1));
            black_box(&flush);
            let probe = Probe::now(&chain);
            wide.push(probe.wide);
            chase.push(probe.chase);
        }
        let ticks_per_second = (sys::ticks() - first) as f64 / began.elapsed().as_secs_f64();
        Self {
            ticks_per_second,
            chain,
            quiet: Quiet {
                wide: low(wide),
                chase: low(chase),
            },
        }
    }

    /// The state of the core now; takes some twenty microseconds.
    pub(crate) fn probe(&self) -> Probe {
        Probe::now(&self.chain)
    }

    /// The core's clock at a probe, in hertz.
    pub(crate) fn hertz(&self, probe: &Probe) -> f64 {
        self.ticks_per_second * probe.cycles_per_tick
    }

    /// What the quiet core does.
    pub(crate) fn quiet(&self) -> Quiet {
        self.quiet
    }

    /// What `ticks` between two probes were worth. `disturbed` says that something is known
    /// to have interrupted.
    pub(crate) fn span(&self, before: &Probe, ticks: u64, after: &Probe, disturbed: bool) -> Span {
        let interrupted = disturbed || before.preemptions != after.preemptions;
        let drift = (before.cycles_per_tick / after.cycles_per_tick - 1.0).abs() / CLOCK_DRIFT;
        let probes = self.quiet.excess(before).max(self.quiet.excess(after));
        Span {
            cycles: ticks as f64 * (before.cycles_per_tick + after.cycles_per_tick) / 2.0,
            disturbance: if interrupted {
                f64::INFINITY
            } else {
                probes.max(drift)
            },
        }
    }
}

impl Quiet {
    /// Instructions that the core issues in a cycle.
    pub(crate) fn width(&self) -> f64 {
        1.0 / self.wide
    }

    /// Cycles in which the shared cache answers.
    pub(crate) fn latency(&self) -> f64 {
        self.chase
    }

    /// By how much a probe exceeds the quiet core, in parts of what is tolerated.
    fn excess(&self, probe: &Probe) -> f64 {
        let wide = (probe.wide / self.wide - 1.0) / WIDE_EXCESS;
        let chase = (probe.chase / self.chase - 1.0) / CHASE_EXCESS;
        wide.max(chase)
    }
}

impl Probe {
    fn now(chain: &Chain) -> Self {
        let chase = chain.ticks();
        let dependent = (0..3)
            .map(|_| sys::dependent_adds(DEPENDENT_TURNS))
            .min()
            .unwrap_or(u64::MAX);
        let cycles_per_tick = (DEPENDENT_TURNS * DEPENDENT_PER_TURN) as f64 / dependent as f64;
        let wide = sys::wide_adds(WIDE_TURNS) as f64 * cycles_per_tick;
        Self {
            cycles_per_tick,
            wide: wide / (WIDE_TURNS * WIDE_PER_TURN) as f64,
            chase: chase as f64 * cycles_per_tick / LINKS as f64,
            preemptions: preemptions(),
        }
    }
}

/// Cache lines that name each other in a shuffled order.
#[derive(Debug)]
struct Chain {
    words: Vec<u32>,
    first: usize,
}

impl Chain {
    fn new() -> Self {
        let mut stream = Stream::new(0);
        let mut places: Vec<_> = (0..LINKS)
            .map(|page| page * PAGE + stream.below(PAGE / LINE) * LINE)
            .collect();
        stream.shuffle(&mut places);
        let mut words = vec![0; LINKS * PAGE];
        for (&from, &to) in places.iter().zip(places.iter().cycle().skip(1)) {
            words[from] = to as u32;
        }
        let first = places[0];
        Self { words, first }
    }

    /// Ticks that it takes to go round once.
    fn ticks(&self) -> u64 {
        let start = sys::ticks();
        let mut at = self.first;
        for _ in 0..LINKS {
            at = self.words[at] as usize;
        }
        black_box(at);
        sys::ticks() - start
    }
}

/// Not the very least: a probe that the clock's change cut short would pass for the pace of
/// the core.
fn low(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 10).copied().unwrap_or(f64::NAN)
}

/// Involuntary context switches of this thread so far; 0 where the system does not tell.
fn preemptions() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.involuntary_context_switches())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> Clock {
        Clock {
            ticks_per_second: 2.5e9,
            chain: Arc::new(Chain::new()),
            quiet: Quiet {
                wide: 0.2,
                chase: 50.0,
            },
        }
    }

    const QUIET: Probe = Probe {
        cycles_per_tick: 1.4,
        wide: 0.2,
        chase: 20.0,
        preemptions: 3,
    };

    #[test]
    fn ticks_become_cycles_at_the_mean_clock() {
        let faster = Probe {
            cycles_per_tick: 1.42,
            ..QUIET
        };
        let span = clock().span(&QUIET, 1000, &faster, false);
        assert!((span.cycles - 1410.0).abs() < 1e-6);
        assert!(span.is_clean());
        assert!((clock().hertz(&QUIET) - 3.5e9).abs() < 1.0);
    }

    #[test]
    fn every_disturbance_is_seen() {
        let changed = |change: fn(&mut Probe)| {
            let mut probe = QUIET;
            change(&mut probe);
            probe
        };
        for (what, other) in [
            ("neighbour", changed(|probe| probe.wide = 0.22)),
            ("cache", changed(|probe| probe.chase = 70.0)),
            ("slower", changed(|probe| probe.cycles_per_tick = 1.3)),
            ("switched out", changed(|probe| probe.preemptions = 4)),
        ] {
            let clock = clock();
            assert!(
                !clock.span(&QUIET, 1000, &other, false).is_clean(),
                "{what}"
            );
            assert!(
                !clock.span(&other, 1000, &QUIET, false).is_clean(),
                "{what}"
            );
        }
        assert!(!clock().span(&QUIET, 1000, &QUIET, true).is_clean());
    }

    #[test]
    fn the_chain_visits_every_page_once() {
        let chain = Chain::new();
        let mut at = chain.first;
        let mut pages: Vec<_> = (0..LINKS)
            .map(|_| {
                at = chain.words[at] as usize;
                at / PAGE
            })
            .collect();
        pages.sort_unstable();
        assert!(pages.into_iter().eq(0..LINKS));
    }
}
