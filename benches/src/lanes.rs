//! The same work on several cores at once, timed from the first start to the last end.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::clock::Clock;
use crate::contest::Repetition;

/// The cores that take part; the calling thread is on the first.
#[derive(Clone, Debug)]
pub(crate) struct Cores {
    cpus: Vec<usize>,
    clock: Clock,
}

/// Ticks at the first and after the last packet of one lane.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lap {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// Where lanes wait for each other before each pass.
#[derive(Debug)]
pub(crate) struct Gate {
    lanes: usize,
    arrivals: AtomicUsize,
}

impl Gate {
    /// Returns when all lanes have come.
    pub(crate) fn pass(&self) {
        let arrived = self.arrivals.fetch_add(1, Ordering::AcqRel);
        let all = (arrived / self.lanes + 1) * self.lanes;
        while self.arrivals.load(Ordering::Acquire) < all {
            std::hint::spin_loop();
        }
    }
}

impl Cores {
    /// The last `threads` cores that this process may use, or exactly `cpu` and those below
    /// it; `None` if there are not as many. Pins the calling thread to the first of them and
    /// learns its clock.
    pub(crate) fn claim(threads: usize, cpu: Option<usize>) -> Option<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
        let last = cpu.unwrap_or(CpuSet::count() - 1);
        let cpus: Vec<_> = (0..=last)
            .rev()
            .filter(|&cpu| allowed.is_set(cpu).unwrap_or(false))
            .take(threads)
            .collect();
        let first = *cpus.first()?;
        if cpus.len() < threads || cpu.is_some_and(|cpu| cpu != first) {
            return None;
        }
        pin(first);
        Some(Self {
            cpus,
            clock: Clock::calibrate(),
        })
    }

    /// The first core alone.
    pub(crate) fn alone(&self) -> Self {
        Self {
            cpus: self.cpus[..1].to_vec(),
            clock: self.clock.clone(),
        }
    }

    /// The core of the calling thread.
    pub(crate) fn first(&self) -> usize {
        self.cpus[0]
    }

    /// How many cores.
    pub(crate) fn count(&self) -> usize {
        self.cpus.len()
    }

    /// The clock of the first core.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Does `work` on each lane, each on its own core, and takes the time of its two laps. The
    /// gate must be passed equally often by all, right before the clock is read.
    pub(crate) fn run<L: Send>(
        &self,
        lanes: &mut [L],
        work: impl Fn(&mut L, &Gate) -> [Lap; 2] + Sync,
    ) -> Repetition {
        let gate = Gate {
            lanes: lanes.len(),
            arrivals: AtomicUsize::new(0),
        };
        let pinned = Barrier::new(lanes.len());
        let mut lanes = lanes.iter_mut();
        let (Some(own), work, gate, pinned) = (lanes.next(), &work, &gate, &pinned) else {
            return Repetition {
                ticks: [0; 2],
                disturbed: true,
            };
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = lanes
                .zip(&self.cpus[1..])
                .map(|(lane, &cpu)| {
                    scope.spawn(move || {
                        pin(cpu);
                        pinned.wait();
                        let before = self.clock.probe();
                        let laps = work(lane, gate);
                        let after = self.clock.probe();
                        (laps, !self.clock.span(&before, 0, &after, false).is_clean())
                    })
                })
                .collect();
            // A thread begins on the core of its parent, which must not spin at the gate until
            // all have left it.
            pinned.wait();
            let mut whole = work(own, gate);
            let mut disturbed = false;
            for other in others {
                match other.join() {
                    Ok((laps, shaken)) => {
                        for (whole, lap) in whole.iter_mut().zip(laps) {
                            whole.start = whole.start.min(lap.start);
                            whole.end = whole.end.max(lap.end);
                        }
                        disturbed |= shaken;
                    }
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Repetition {
                ticks: whole.map(|lap| lap.end - lap.start),
                disturbed,
            }
        })
    }
}

/// Keeps the calling thread, and the processes that it starts, on one core. Where the system
/// refuses, the probes see the thread being moved.
fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    if set.set(cpu).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_lasts_from_the_first_start_to_the_last_end() {
        let cores = Cores {
            cpus: vec![0, 0],
            clock: Clock::calibrate(),
        };
        let mut lanes = [[(10, 20), (31, 32)], [(5, 12), (30, 40)]];
        let repetition = cores.run(&mut lanes, |lane, gate| {
            lane.map(|(start, end)| {
                gate.pass();
                Lap { start, end }
            })
        });
        assert_eq!(repetition.ticks, [15, 10]);
    }

    #[test]
    fn one_lane_runs_here() {
        let cores = Cores::claim(1, None).unwrap();
        assert_eq!(cores.count(), 1);
        let here = std::thread::current().id();
        let mut lanes = [None];
        cores.run(&mut lanes, |lane, gate| {
            *lane = Some(std::thread::current().id());
            gate.pass();
            [Lap { start: 1, end: 2 }; 2]
        });
        assert_eq!(lanes, [Some(here)]);
        assert!(Cores::claim(1, Some(100_000)).is_none());
    }
}
