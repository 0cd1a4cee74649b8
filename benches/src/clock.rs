//! Core cycles out of time-stamp ticks, and whether the core was ours alone while they
//! passed.
//!
//! The counter ticks at a constant rate while the core's clock wanders, so ticks are
//! converted by a loop of dependent additions: one a cycle, by definition of a core cycle.
//! On a shared host a neighbour may sit on the sibling thread of our core. It takes issue
//! slots, which a loop of dependent instructions does not notice but a loop that issues as
//! many as it can does; so each measurement stands between two *wide* probes, and counts
//! only if neither was slower than the quiet core is.

use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use crate::sys::{self, DEPENDENT_PER_TURN, WIDE_PER_TURN};

/// By how much a wide probe may exceed the quiet core's, as a factor.
const WIDE_TOLERANCE: f64 = 1.04;
/// By how much the clock may change between two probes, as a factor.
const CLOCK_TOLERANCE: f64 = 1.02;

const DEPENDENT_TURNS: u64 = 300;
const WIDE_TURNS: u64 = 400;

/// The clock of one core.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    ticks_per_second: f64,
    /// Cycles per instruction of the wide loop on the quiet core.
    quiet: f64,
}

/// The state of the core at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    /// Core cycles in one tick.
    cycles_per_tick: f64,
    /// Cycles per instruction of the wide loop.
    wide: f64,
    /// How often the scheduler has taken the core away from this thread so far.
    preemptions: i64,
}

/// A span between two probes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Span {
    /// Core cycles.
    pub(crate) cycles: f64,
    /// Whether nobody disturbed it.
    pub(crate) clean: bool,
}

impl Clock {
    /// Learns the rate of the counter and the pace of the quiet core. Takes a third of a
    /// second.
    pub(crate) fn calibrate() -> Self {
        let began = Instant::now();
        let first = sys::ticks();
        let mut wide = Vec::new();
        while began.elapsed() < Duration::from_millis(300) {
            wide.push(Probe::now().wide);
        }
        let ticks_per_second = (sys::ticks() - first) as f64 / began.elapsed().as_secs_f64();
        wide.sort_by(f64::total_cmp);
        Self {
            ticks_per_second,
            // Not the very least: a probe that the clock's change cut short would pass for
            // the pace of the core.
            quiet: wide[wide.len() / 10],
        }
    }

    /// The core's clock at a probe, in hertz.
    pub(crate) fn hertz(&self, probe: &Probe) -> f64 {
        self.ticks_per_second * probe.cycles_per_tick
    }

    /// Instructions that the quiet core issues in a cycle.
    pub(crate) fn quiet_width(&self) -> f64 {
        1.0 / self.quiet
    }

    /// What `ticks` between two probes were worth. `preempted` says that the scheduler is
    /// known to have interrupted.
    pub(crate) fn span(&self, before: &Probe, ticks: u64, after: &Probe, preempted: bool) -> Span {
        let drift = before.cycles_per_tick / after.cycles_per_tick;
        let quiet = |probe: &Probe| probe.wide < self.quiet * WIDE_TOLERANCE;
        Span {
            cycles: ticks as f64 * (before.cycles_per_tick + after.cycles_per_tick) / 2.0,
            clean: !preempted
                && before.preemptions == after.preemptions
                && quiet(before)
                && quiet(after)
                && (1.0 / CLOCK_TOLERANCE..CLOCK_TOLERANCE).contains(&drift),
        }
    }
}

impl Probe {
    /// Measures the core; takes some ten microseconds.
    pub(crate) fn now() -> Self {
        let dependent = (0..3)
            .map(|_| sys::dependent_adds(DEPENDENT_TURNS))
            .min()
            .unwrap_or(u64::MAX);
        let cycles_per_tick = (DEPENDENT_TURNS * DEPENDENT_PER_TURN) as f64 / dependent as f64;
        let wide = sys::wide_adds(WIDE_TURNS) as f64 * cycles_per_tick;
        Self {
            cycles_per_tick,
            wide: wide / (WIDE_TURNS * WIDE_PER_TURN) as f64,
            preemptions: preemptions(),
        }
    }
}

/// Involuntary context switches of this thread so far; 0 where the system does not tell.
pub(crate) fn preemptions() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.involuntary_context_switches())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: Clock = Clock {
        ticks_per_second: 2.5e9,
        quiet: 0.2,
    };

    fn probe(cycles_per_tick: f64, wide: f64, preemptions: i64) -> Probe {
        Probe {
            cycles_per_tick,
            wide,
            preemptions,
        }
    }

    #[test]
    fn ticks_become_cycles_at_the_mean_clock() {
        let span = CLOCK.span(&probe(1.40, 0.2, 3), 1000, &probe(1.42, 0.2, 3), false);
        assert!((span.cycles - 1410.0).abs() < 1e-6);
        assert!(span.clean);
        assert!((CLOCK.hertz(&probe(1.4, 0.2, 0)) - 3.5e9).abs() < 1.0);
        assert!((CLOCK.quiet_width() - 5.0).abs() < 1e-9);
    }

    #[test]
    fn every_disturbance_is_seen() {
        let quiet = probe(1.4, 0.2, 3);
        let cases = [
            ("neighbour before", probe(1.4, 0.22, 3), quiet, false),
            ("neighbour after", quiet, probe(1.4, 0.22, 3), false),
            ("clock fell", quiet, probe(1.3, 0.2, 3), false),
            ("clock rose", probe(1.3, 0.2, 3), quiet, false),
            ("switched out here", quiet, probe(1.4, 0.2, 4), false),
            ("switched out there", quiet, quiet, true),
        ];
        for (what, before, after, preempted) in cases {
            assert!(
                !CLOCK.span(&before, 1000, &after, preempted).clean,
                "{what}"
            );
        }
    }
}
