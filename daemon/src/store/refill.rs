//! The thread that renews leases and raises marks before they are used up.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use vesper_esp::EspSa;
use vesper_sa::{
    Direction, Event, LeaseError, ReplayProtection, SaIdentity, SaSnapshot, SaState, Timestamp,
};

use super::record::Usage;
use super::{Granted, Need, NeedKind, SaName, Standing, Store, StoreError};

/// How many numbers are granted at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefillSettings {
    /// Outbound numbers in the first lease of an association. Later ones are for about two
    /// seconds at the rate that it has, at least 4,096, at most 2^20 with extended sequence
    /// numbers and 2^16 without.
    pub first_lease: u32,
    /// How far inbound marks are ahead at most, in packets: so many genuine ones may be lost
    /// by a crash. Associations with few packets have their mark nearer.
    pub inbound_block: u32,
}

impl Default for RefillSettings {
    fn default() -> Self {
        Self {
            first_lease: 1 << 14,
            inbound_block: 4096,
        }
    }
}

/// An association whose leases or marks are to be kept ahead.
#[derive(Clone, Debug)]
pub struct Watched {
    node: String,
    sa: Arc<EspSa>,
    /// The first mark is where the association is: it accepts nothing until the first authentic
    /// packet has asked for a higher one. So a daemon that crashes again and again does not
    /// move the mark away from where the peer is.
    at_mark: bool,
}

impl Watched {
    /// The association `sa` of `node`, which is in the store and was resumed by this standing.
    pub fn new(node: &str, sa: Arc<EspSa>, standing: &Standing) -> Self {
        Self {
            node: node.to_owned(),
            sa,
            at_mark: matches!(standing, Standing::After { .. }),
        }
    }
}

/// What an operator has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// Nothing can be made durable. Associations go on within what they were granted, then
    /// they stop.
    Failing {
        /// Why.
        reason: String,
    },
    /// The store works again.
    Mended,
    /// An association gets no further numbers, and stops when it has used those that it has.
    NeedsRekey {
        /// The association.
        name: SaName,
        /// Why.
        reason: String,
    },
}

/// A handle of the thread that renews leases and raises marks, which ends when the last handle is
/// dropped.
#[derive(Clone, Debug)]
pub struct Refill {
    orders: Sender<Order>,
}

enum Order {
    Watch(Vec<Watched>, Sender<Result<(), WatchError>>),
    Unwatch(SaName),
    Low(SaName),
    Finish(Sender<Result<(), StoreError>>, Timestamp),
}

/// Why an association may not be used.
#[derive(Debug)]
pub enum WatchError {
    /// Nothing could be made durable.
    Store(StoreError),
    /// One association gets no numbers; the others of the call were granted theirs.
    Refused {
        /// The association.
        name: SaName,
        /// Why.
        error: LeaseError,
    },
}

impl Refill {
    /// Starts the thread. `alarm` is called from it and must not block.
    pub fn start(
        store: Store,
        settings: RefillSettings,
        alarm: impl FnMut(Alarm) + Send + 'static,
    ) -> io::Result<(Self, JoinHandle<()>)> {
        let (orders, receiver) = unbounded();
        let worker = Worker {
            store,
            settings,
            alarm: Box::new(alarm),
            watched: HashMap::new(),
            failing: false,
        };
        let thread = thread::Builder::new()
            .name("vesper-store".to_owned())
            .spawn(move || {
                // Every association waits for this thread, and it has little to do. Who may not
                // do this shares the processor with the workers as equals.
                let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), -15);
                worker.run(&receiver);
            })?;
        Ok((Self { orders }, thread))
    }

    /// Gives associations their first leases and marks, and keeps them ahead from now on.
    /// Returns after they are durable and in force: only then may the associations be used.
    ///
    /// An association that is watched under the same name already is replaced by the new one.
    pub fn watch(&self, sas: Vec<Watched>) -> Result<(), WatchError> {
        let (answer, answered) = bounded(1);
        self.orders
            .send(Order::Watch(sas, answer))
            .map_err(|_| WatchError::Store(StoreError::Stopped))?;
        answered
            .recv()
            .unwrap_or(Err(WatchError::Store(StoreError::Stopped)))
    }

    /// Takes no more care of an association.
    pub fn unwatch(&self, name: SaName) {
        // If the thread has ended, it takes care of none.
        let _ = self.orders.send(Order::Unwatch(name));
    }

    /// To be called with every event of a node's associations; does not block.
    pub fn notice(&self, node: &str, event: &Event) {
        if let Event::LeaseLow(sa) = event {
            // If the thread has ended, the association stops at the end of its lease.
            let _ = self.orders.send(Order::Low(SaName {
                node: node.to_owned(),
                sa: *sa,
            }));
        }
    }

    /// Ends all associations that are watched, and keeps their state so that the next start
    /// goes on without a gap. For a daemon that stops in order, after its workers have.
    pub fn finish(&self, now: Timestamp) -> Result<(), StoreError> {
        let (answer, answered) = bounded(1);
        self.orders
            .send(Order::Finish(answer, now))
            .map_err(|_| StoreError::Stopped)?;
        answered.recv().unwrap_or(Err(StoreError::Stopped))
    }
}

/// Events come late or not at all where much happens at once: every association is looked at
/// this often ...
const SWEEP: Duration = Duration::from_millis(100);
/// ... and so often those that have few numbers left for the packets that they carry.
const GLANCE: Duration = Duration::from_millis(1);
/// How soon something is tried again that failed.
const RETRY: Duration = Duration::from_millis(100);
/// Packets that a lease should last for are counted over this time.
const LEASE_TIME: Duration = Duration::from_secs(2);
const SMALLEST_LEASE: u64 = 1 << 12;
const LARGEST_LEASE: u64 = 1 << 20;
const LARGEST_LEASE_32: u64 = 1 << 16;

struct Worker {
    store: Store,
    settings: RefillSettings,
    alarm: Box<dyn FnMut(Alarm) + Send>,
    watched: HashMap<SaName, State>,
    failing: bool,
}

/// What is known of one association.
struct State {
    sa: Arc<EspSa>,
    /// The number that it began with here, which is not known to have been used.
    begun: u64,
    /// From this number on more is needed.
    low: u64,
    /// The last number granted, or the mark.
    end: u64,
    /// Packets in a second, as of late; `None` while nobody knows.
    rate: Option<u64>,
    /// When the rate was measured, and the number at that time.
    measured: (Instant, u64),
    /// It gets nothing more.
    refused: bool,
}

impl Worker {
    fn run(mut self, orders: &Receiver<Order>) {
        let mut swept = Instant::now();
        // Those that may be low before the next sweep.
        let mut busy: Vec<SaName> = Vec::new();
        loop {
            let mut low = Vec::new();
            let wait = if busy.is_empty() { SWEEP } else { GLANCE };
            match orders.recv_timeout(wait.min(SWEEP.saturating_sub(swept.elapsed()))) {
                Ok(order) => self.obey(order, &mut low),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            for order in orders.try_iter() {
                self.obey(order, &mut low);
            }
            if swept.elapsed() >= SWEEP {
                swept = Instant::now();
                busy = self.sweep(swept, &mut low);
            } else {
                low.extend(self.glance(&busy));
            }
            low.sort_unstable();
            low.dedup();
            if !low.is_empty() && self.refill(low).is_err() {
                // The sweep finds them again.
                thread::sleep(RETRY);
            }
        }
    }

    fn obey(&mut self, order: Order, low: &mut Vec<SaName>) {
        match order {
            Order::Watch(sas, answer) => {
                // Nobody waits any more if the asker has ended.
                let _ = answer.send(self.watch(sas));
            }
            Order::Unwatch(name) => {
                self.watched.remove(&name);
            }
            Order::Low(name) => low.push(name),
            Order::Finish(answer, now) => {
                let _ = answer.send(self.finish(now));
            }
        }
    }

    fn watch(&mut self, sas: Vec<Watched>) -> Result<(), WatchError> {
        let now = Instant::now();
        let mut names = Vec::with_capacity(sas.len());
        let mut new = Vec::new();
        for Watched { node, sa, at_mark } in sas {
            let without_replay_protection = sa.params().replay == ReplayProtection::Off;
            if sa.direction() == Direction::Inbound && without_replay_protection {
                continue;
            }
            let name = SaName {
                node,
                sa: sa.identity(),
            };
            let sequence = sa.sequence();
            let is_inbound = sa.direction() == Direction::Inbound;
            let before = self.watched.get(&name).map(|before| before.end);
            if before.is_none() {
                new.push(name.clone());
                if is_inbound {
                    // Until a mark is durable nothing is accepted.
                    sa.set_mark(sequence).map_err(|error| WatchError::Refused {
                        name: name.clone(),
                        error,
                    })?;
                }
            }
            let waits = is_inbound && at_mark && before.is_none();
            let state = State {
                rate: self.rate_of_predecessor(&name),
                sa,
                begun: sequence,
                low: sequence + u64::from(waits),
                end: before.unwrap_or(sequence),
                measured: (now, sequence),
                refused: false,
            };
            self.watched.insert(name.clone(), state);
            if !waits {
                names.push(name);
            }
        }
        match self.refill(names) {
            Ok(refused) => {
                for (name, _) in &refused {
                    self.watched.remove(name);
                }
                match refused.into_iter().next() {
                    None => Ok(()),
                    Some((name, error)) => Err(WatchError::Refused { name, error }),
                }
            }
            Err(error) => {
                for name in new {
                    self.watched.remove(&name);
                }
                Err(WatchError::Store(error))
            }
        }
    }

    /// An association that replaces another one will have the same rate.
    fn rate_of_predecessor(&self, name: &SaName) -> Option<u64> {
        let same_path = |other: &SaName| {
            other.node == name.node
                && (other.sa.owner, other.sa.direction, other.sa.destination)
                    == (name.sa.owner, name.sa.direction, name.sa.destination)
        };
        // Those of ten thousand associations are not worth a search each.
        if self.watched.len() > 1000 {
            return None;
        }
        self.watched
            .iter()
            .filter(|(other, _)| same_path(other))
            .filter_map(|(_, state)| state.rate)
            .max()
    }

    /// Finds which associations need more, and returns those that may before the next sweep.
    /// Measures their rates.
    fn sweep(&mut self, now: Instant, low: &mut Vec<SaName>) -> Vec<SaName> {
        let mut busy = Vec::new();
        for (name, state) in &mut self.watched {
            state.measure(now);
            if state.refused {
                continue;
            }
            let wanted = state.sa.highest_wanted();
            let too_far = wanted.saturating_add(2 * state.block(&self.settings));
            let is_inbound = name.sa.direction == Direction::Inbound;
            if wanted >= state.low || is_inbound && state.end > too_far {
                low.push(name.clone());
            }
            if wanted.saturating_add(state.before_next_sweep()) >= state.low {
                busy.push(name.clone());
            }
        }
        busy
    }

    /// Which of these need more.
    fn glance(&self, names: &[SaName]) -> impl Iterator<Item = SaName> {
        names.iter().filter_map(|name| {
            let state = self.watched.get(name)?;
            let is_low = !state.refused && state.sa.highest_wanted() >= state.low;
            is_low.then(|| name.clone())
        })
    }

    /// Makes more numbers durable and puts them in force. Returns the associations that get
    /// none.
    fn refill(&mut self, names: Vec<SaName>) -> Result<Vec<(SaName, LeaseError)>, StoreError> {
        let needs: Vec<(SaName, Need)> = names
            .into_iter()
            .filter_map(|name| {
                let state = self.watched.get_mut(&name)?;
                let need = state.need(name.sa, &self.settings)?;
                Some((name, need))
            })
            .collect();
        if needs.is_empty() {
            return Ok(Vec::new());
        }
        let granted = match self.store.grant(&needs) {
            Ok(granted) => granted,
            Err(error) => {
                if !self.failing {
                    self.failing = true;
                    let reason = error.to_string();
                    (self.alarm)(Alarm::Failing { reason });
                }
                return Err(error);
            }
        };
        let mut refused = Vec::new();
        for ((name, _), granted) in needs.into_iter().zip(granted) {
            let Some(state) = self.watched.get_mut(&name) else {
                continue;
            };
            let outcome = granted.and_then(|granted| state.put_in_force(granted));
            if let Err(error) = outcome {
                state.refused = true;
                // One that is being deleted is gone from the store first: it ends with what it
                // has, and nobody has to do anything.
                if !is_unknown(&error) {
                    let reason = error.to_string();
                    (self.alarm)(Alarm::NeedsRekey {
                        name: name.clone(),
                        reason,
                    });
                }
                refused.push((name, error));
            }
        }
        if self.failing {
            self.failing = false;
            (self.alarm)(Alarm::Mended);
        }
        Ok(refused)
    }

    fn finish(&mut self, now: Timestamp) -> Result<(), StoreError> {
        let snapshots: Vec<(SaName, SaSnapshot)> = self
            .watched
            .drain()
            .filter(|(_, state)| state.sa.state() != SaState::Deleted)
            .map(|(name, state)| {
                // From now on nobody gets a number that the snapshot does not know of.
                state.sa.close();
                (name, state.sa.snapshot(now))
            })
            .collect();
        self.store.finish(&snapshots)
    }
}

impl State {
    /// What the association needs; `None` if it needs nothing.
    fn need(&mut self, sa: SaIdentity, settings: &RefillSettings) -> Option<Need> {
        if self.refused || self.sa.state() == SaState::Deleted {
            return None;
        }
        self.measure(Instant::now());
        let statistics = self.sa.statistics();
        let sequence = self.sa.sequence();
        let block = self.block(settings);
        let kind = match sa.direction {
            Direction::Outbound => {
                if sequence < self.low {
                    return None;
                }
                NeedKind::Lease {
                    used: if sequence > self.begun { sequence } else { 0 },
                    size: u32::try_from(block).unwrap_or(u32::MAX),
                    end: end_of_space(self.sa.esn()),
                }
            }
            Direction::Inbound => {
                let mark = self.sa.highest_wanted().saturating_add(block);
                let mark = mark.min(end_of_space(self.sa.esn()));
                if mark < self.end {
                    // Taken back before the store hears of it: numbers between the two are not
                    // accepted from now on.
                    self.end = self.sa.set_mark(mark).ok()?;
                    self.low = sequence + (self.end - sequence.min(self.end)) / 2;
                    NeedKind::Mark(self.end)
                } else {
                    NeedKind::Mark(mark)
                }
            }
        };
        Some(Need {
            sa,
            kind,
            usage: Usage {
                sequence,
                packets: statistics.packets,
                bytes: statistics.bytes,
            },
        })
    }

    /// What was granted is durable.
    fn put_in_force(&mut self, granted: Granted) -> Result<(), LeaseError> {
        match granted {
            Granted::Lease(lease) => {
                self.sa.set_lease(lease)?;
                self.low = lease.first() + (lease.last() - lease.first()) / 2;
                self.end = lease.last();
            }
            Granted::Mark(mark) => {
                self.end = self.sa.set_mark(mark)?;
                let sequence = self.sa.sequence();
                self.low = sequence + (self.end - sequence) / 2;
            }
        }
        Ok(())
    }

    /// How many numbers the association should get at a time.
    fn block(&self, settings: &RefillSettings) -> u64 {
        match self.sa.direction() {
            Direction::Outbound => {
                let largest = match self.sa.esn() {
                    true => LARGEST_LEASE,
                    false => LARGEST_LEASE_32,
                };
                let wanted = match self.rate {
                    None => u64::from(settings.first_lease),
                    Some(rate) => rate.saturating_mul(LEASE_TIME.as_secs()),
                };
                wanted.clamp(SMALLEST_LEASE, largest)
            }
            Direction::Inbound => {
                // A second's worth, but enough for what comes in while the disk is at work.
                let most = u64::from(settings.inbound_block);
                self.rate.unwrap_or(most).clamp((most / 8).max(1), most)
            }
        }
    }

    /// How many packets there may be until the next sweep, at twice the rate so far.
    fn before_next_sweep(&self) -> u64 {
        let sweeps_per_second = 1000 / SWEEP.as_millis() as u64;
        self.rate.unwrap_or(u64::MAX / 2).saturating_mul(2) / sweeps_per_second
    }

    /// Measures the rate, if enough time has passed since the last time.
    fn measure(&mut self, now: Instant) {
        let (then, number) = self.measured;
        let passed = now.saturating_duration_since(then);
        let sequence = self.sa.highest_wanted();
        let packets = sequence.saturating_sub(number);
        // Few milliseconds say nothing, except that a block was used up in them.
        if passed >= SWEEP || packets >= SMALLEST_LEASE / 2 {
            let micros = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX).max(1);
            let rate = packets.saturating_mul(1_000_000) / micros;
            // Up at once, down slowly.
            let before = self.rate.unwrap_or(0);
            self.rate = Some(rate.max(before - before / 8));
            self.measured = (now, sequence);
        }
    }
}

const fn end_of_space(esn: bool) -> u64 {
    if esn { u64::MAX } else { u32::MAX as u64 }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Watch(..) => "Watch",
            Self::Unwatch(_) => "Unwatch",
            Self::Low(_) => "Low",
            Self::Finish(..) => "Finish",
        })
    }
}

/// Whether the store does not have the association.
fn is_unknown(error: &LeaseError) -> bool {
    match error {
        LeaseError::Store(error) => matches!(
            error.downcast_ref::<StoreError>(),
            Some(StoreError::NotFound)
        ),
        _ => false,
    }
}

impl fmt::Display for WatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Refused { name, error } => write!(f, "{name}: {error}"),
        }
    }
}

impl std::error::Error for WatchError {}
