//! The threads that drive nodes: poll while there is something to do, sleep when there is
//! not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use vesper_esp::PacketBuf;
use vesper_offload::Nic;
use vesper_sa::Timestamp;

use super::driver::Driver;
use super::statistics::WorkerStatistics;
use super::sys::set_time_slice;
use super::waker::Waker;

/// Packets that a processor moves in one round.
const BUDGET: usize = 512;

/// How long a worker polls without success before it sleeps, at least and at most; it learns
/// from how long it then sleeps.
const SPIN: [Duration; 2] = [Duration::from_micros(5), Duration::from_micros(100)];

/// The longest sleep: time itself is something that happens (lifetimes, time-outs).
const NAP: Duration = Duration::from_millis(100);

/// The longest sleep on a port that can not wake anybody.
const POLLED_NAP: Duration = Duration::from_micros(50);

/// How long packets may be expected to wait for a rate limit or interrupt moderation.
const WAITING: Duration = Duration::from_secs(1);

/// What a worker asks for when others want its processor too: packets that come while something
/// else of its kind runs do not wait for the end of that one's slice, which is longer.
const SLICE: Duration = Duration::from_micros(100);

/// How often a busy worker shows how its nodes stand.
const SHOW_EVERY: Duration = Duration::from_millis(20);

/// The clock that all workers share. Its origin is the start of the process.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

/// A thread's work.
#[derive(Debug)]
pub(super) struct Worker {
    drivers: Vec<Driver>,
    processors: Vec<Processor>,
    clock: Clock,
    shared: Arc<Shared>,
    spin: Duration,
}

/// A processor of an adapter whose host another worker drives.
#[derive(Debug)]
struct Processor {
    nic: Arc<Nic<PacketBuf>>,
    number: usize,
    host: Arc<Waker>,
}

/// What others see of a worker.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) waker: Arc<Waker>,
    pub(super) stop: AtomicBool,
    pub(super) cpu: Option<usize>,
    busy: AtomicU64,
    elapsed: AtomicU64,
    sleeps: AtomicU64,
}

impl Clock {
    /// A clock that begins now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The moment.
    pub fn now(self) -> Timestamp {
        Timestamp::from_nanos(u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

impl Worker {
    pub(super) fn new(clock: Clock, shared: Arc<Shared>) -> Self {
        Self {
            drivers: Vec::new(),
            processors: Vec::new(),
            clock,
            shared,
            spin: SPIN[1],
        }
    }

    pub(super) fn drive(&mut self, driver: Driver) {
        driver.commands.set_worker(Arc::clone(&self.shared.waker));
        self.drivers.push(driver);
    }

    pub(super) fn run_processor(
        &mut self,
        nic: Arc<Nic<PacketBuf>>,
        number: usize,
        host: Arc<Waker>,
    ) {
        self.processors.push(Processor { nic, number, host });
    }

    /// Works until it is told to stop.
    pub(super) fn run(mut self) {
        if let Some(cpu) = self.shared.cpu {
            pin(cpu);
        }
        // Where it can not be had, packets wait longer for a busy processor.
        let _ = set_time_slice(SLICE);
        let start = self.clock.now();
        let (mut now, mut shown, mut active) = (start, start, start);
        loop {
            let moved = self.round(now);
            let end = self.clock.now();
            if moved > 0 {
                let busy = end.since(now).as_nanos() as u64;
                self.shared.busy.fetch_add(busy, Ordering::Relaxed);
                active = end;
                if end.since(shown) >= SHOW_EVERY {
                    shown = end;
                    self.show(start, end);
                }
            } else if self.shared.stop.load(Ordering::Acquire) {
                self.show(start, end);
                return;
            } else if end.since(active) >= self.spin {
                self.sleep(start, active);
                now = self.clock.now();
                active = now;
                continue;
            } else {
                std::hint::spin_loop();
            }
            now = end;
        }
    }

    fn round(&mut self, now: Timestamp) -> usize {
        let mut moved = 0;
        for driver in &mut self.drivers {
            moved += driver.round(now);
        }
        for processor in &self.processors {
            let done = processor.nic.run_processor(processor.number, now, BUDGET);
            if done > 0 {
                processor.host.wake();
            }
            moved += done;
        }
        moved
    }

    /// Sleeps until a port, a command or another worker has something, or a while is over.
    fn sleep(&mut self, start: Timestamp, active: Timestamp) {
        self.shared.waker.set_asleep(true);
        let mut ready = false;
        for driver in &mut self.drivers {
            ready |= driver.prepare_sleep(true);
        }
        let now = self.clock.now();
        // What came before everybody knew that this worker sleeps.
        if !ready && self.round(now) == 0 {
            let is_shown = self.show(start, now);
            let nap = match is_shown {
                true => self.nap(now.since(active)),
                false => POLLED_NAP,
            };
            self.poll(nap);
            self.shared.sleeps.fetch_add(1, Ordering::Relaxed);
            let slept = self.clock.now().since(now);
            self.spin = match slept < SPIN[1] {
                true => self.spin * 2,
                false => self.spin / 2,
            }
            .clamp(SPIN[0], SPIN[1]);
        }
        self.shared.waker.set_asleep(false);
        for driver in &mut self.drivers {
            driver.prepare_sleep(false);
        }
    }

    fn poll(&self, nap: Duration) {
        let own = PollFd::new(&*self.shared.waker, PollFlags::IN);
        let ports = self.drivers.iter().flat_map(Driver::ports);
        let wakes = ports.filter_map(|port| port.wake());
        let mut descriptors: Vec<PollFd<'_>> = wakes
            .map(|wake| PollFd::from_borrowed_fd(wake, PollFlags::IN))
            .chain([own])
            .collect();
        let timeout = Timespec {
            tv_sec: nap.as_secs() as i64,
            tv_nsec: nap.subsec_nanos().into(),
        };
        // A signal ends it early, which does no harm.
        let _ = poll(&mut descriptors, Some(&timeout));
    }

    /// How long it may sleep when nobody wakes it.
    fn nap(&self, idle: Duration) -> Duration {
        let ports = self.drivers.iter().flat_map(Driver::ports);
        let mut polled = ports.filter(|port| port.wake().is_none());
        if polled.next().is_some() {
            return POLLED_NAP;
        }
        let patience = self.drivers.iter().filter_map(Driver::patience).min();
        match patience.filter(|_| idle < WAITING) {
            Some(patience) => patience.clamp(POLLED_NAP, NAP),
            None => NAP,
        }
    }

    /// Whether everything could be shown.
    fn show(&self, start: Timestamp, now: Timestamp) -> bool {
        let elapsed = now.since(start).as_nanos() as u64;
        self.shared.elapsed.store(elapsed, Ordering::Relaxed);
        let mut all = true;
        for driver in &self.drivers {
            all &= driver.publish(now);
        }
        all
    }
}

impl Shared {
    pub(super) fn new(waker: Waker, cpu: Option<usize>) -> Self {
        Self {
            waker: Arc::new(waker),
            stop: AtomicBool::new(false),
            cpu,
            busy: AtomicU64::new(0),
            elapsed: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
        }
    }

    pub(super) fn statistics(&self, roles: &Arc<str>) -> WorkerStatistics {
        WorkerStatistics {
            roles: Arc::clone(roles),
            cpu: self.cpu,
            busy: self.busy.load(Ordering::Relaxed),
            elapsed: self.elapsed.load(Ordering::Relaxed),
            sleeps: self.sleeps.load(Ordering::Relaxed),
        }
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// The CPUs that this process may use; none if the system does not say.
pub(super) fn cpus() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(None) else {
        return Vec::new();
    };
    (0..CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect()
}

/// A worker that can not be pinned works all the same.
fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    let _ = sched_setaffinity(None, &set);
}
