//! The same work on several cores at once, timed from the first start to the last end.

use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::clock::{Clock, Probe};
use crate::contest::Pass;

/// The cores that take part; the calling thread is on the first.
#[derive(Clone, Debug)]
pub(crate) struct Cores {
    cpus: Vec<usize>,
    clock: Clock,
}

/// Ticks at the first and after the last packet of one lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lap {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// Where lanes wait for each other before they start.
#[derive(Debug)]
pub(crate) struct Gate {
    missing: AtomicUsize,
}

impl Gate {
    /// Returns when all lanes have come.
    pub(crate) fn pass(&self) {
        self.missing.fetch_sub(1, Ordering::AcqRel);
        while self.missing.load(Ordering::Acquire) > 0 {
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

    /// Does `work` on each lane, each on its own core. The gate must be passed once by each,
    /// right before the clock is read.
    pub(crate) fn run<L: Send>(
        &self,
        lanes: &mut [L],
        work: impl Fn(&mut L, &Gate) -> Lap + Sync,
    ) -> Pass {
        let gate = Gate {
            missing: AtomicUsize::new(lanes.len()),
        };
        let mut lanes = lanes.iter_mut();
        let (Some(own), work, gate) = (lanes.next(), &work, &gate) else {
            return Pass {
                ticks: 0,
                disturbed: true,
            };
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = lanes
                .zip(&self.cpus[1..])
                .map(|(lane, &cpu)| {
                    scope.spawn(move || {
                        pin(cpu);
                        let before = Probe::now();
                        let lap = work(lane, gate);
                        let after = Probe::now();
                        let span = self.clock.span(&before, lap.end - lap.start, &after, false);
                        (lap, !span.clean)
                    })
                })
                .collect();
            let mut whole = work(own, gate);
            let mut disturbed = false;
            for other in others {
                match other.join() {
                    Ok((lap, shaken)) => {
                        whole.start = whole.start.min(lap.start);
                        whole.end = whole.end.max(lap.end);
                        disturbed |= shaken;
                    }
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Pass {
                ticks: whole.end - whole.start,
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
    use crate::sys;

    #[test]
    fn a_pass_lasts_from_the_first_start_to_the_last_end() {
        let cores = Cores {
            cpus: vec![0, 0],
            clock: Clock::calibrate(),
        };
        let mut lanes = [(10, 20), (5, 12)];
        let pass = cores.run(&mut lanes, |&mut (start, end), gate| {
            gate.pass();
            Lap { start, end }
        });
        assert_eq!(pass.ticks, 15);
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
            let start = sys::ticks();
            Lap {
                start,
                end: sys::ticks(),
            }
        });
        assert_eq!(lanes, [Some(here)]);
        assert!(Cores::claim(1, Some(100_000)).is_none());
    }
}
