//! The thread that renews leases and raises marks before they are used up.

use std::fmt;
use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use vesper_esp::EspSa;
use vesper_sa::{Direction, Event, LeaseError, ReplayProtection, SaSnapshot, SaState, Timestamp};

use super::supply::Supply;
use super::watch_list::WatchList;
use super::{Need, SaName, Standing, Store, StoreError};
use crate::node::set_time_slice;

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
            watched: WatchList::new(Instant::now()),
            failing: false,
        };
        let thread = thread::Builder::new()
            .name("vesper-store".to_owned())
            .spawn(move || {
                // Every association waits for this thread, and it has little to do. Who may not
                // do this shares the processor with the workers as equals.
                let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), -15);
                // It wakes at once, and nobody waits for it for long.
                let _ = set_time_slice(SLICE);
                // What it waits for is less than a millisecond away.
                let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1_000));
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

/// The time slice that its thread asks for, see [`set_time_slice`].
const SLICE: Duration = Duration::from_micros(100);
/// First numbers that are made durable in one go: what carries packets already waits for no more.
const PART: usize = 512;
/// How soon something is tried again that failed.
const RETRY: Duration = Duration::from_millis(100);

struct Worker {
    store: Store,
    settings: RefillSettings,
    alarm: Box<dyn FnMut(Alarm) + Send>,
    watched: WatchList,
    failing: bool,
}

impl Worker {
    fn run(mut self, orders: &Receiver<Order>) {
        loop {
            let mut low = Vec::new();
            match orders.recv_timeout(self.watched.patience(Instant::now())) {
                Ok(order) => self.obey(order, &mut low),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            for order in orders.try_iter() {
                self.obey(order, &mut low);
            }
            self.look(low);
        }
    }

    /// Gives more to those that need more, and to those that were said to be low.
    fn look(&mut self, mut low: Vec<SaName>) {
        self.watched.look(Instant::now(), &self.settings, &mut low);
        low.sort_unstable();
        low.dedup();
        if !low.is_empty() && self.refill(low).is_err() {
            // The sweep finds them again.
            thread::sleep(RETRY);
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
        let mut supplies = Vec::with_capacity(sas.len());
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
            let is_inbound = sa.direction() == Direction::Inbound;
            let before = self.watched.get(&name);
            let is_new = before.is_none();
            if is_new {
                new.push(name.clone());
                if is_inbound {
                    // Until a mark is durable nothing is accepted.
                    sa.set_mark(sa.sequence())
                        .map_err(|error| WatchError::Refused {
                            name: name.clone(),
                            error,
                        })?;
                }
            }
            let waits = is_inbound && at_mark && is_new;
            let rate = self.rate_of_predecessor(&name);
            let supply = Supply::new(sa, before, rate, waits, now);
            supplies.push((name, supply, waits));
        }
        let outcome = self.begin(supplies);
        if let Err(WatchError::Store(_)) = &outcome {
            new.iter().for_each(|name| self.watched.remove(name));
        }
        outcome
    }

    /// Gives associations their first numbers. Those that carry packets already do not wait for
    /// all of them.
    fn begin(&mut self, supplies: Vec<(SaName, Supply, bool)>) -> Result<(), WatchError> {
        let mut outcome = Ok(());
        let mut names = Vec::with_capacity(supplies.len());
        // All of them at once: whoever had the name before gets nothing more under it.
        for (name, supply, waits) in supplies {
            self.watched.insert(name.clone(), supply);
            if !waits {
                names.push(name);
            }
        }
        let mut parts = names.chunks(PART);
        while let Some(part) = parts.next() {
            self.let_ask(part);
            let refused = match self.refill(part.to_vec()) {
                Ok(refused) => refused,
                Err(error) => {
                    // Those that are not taken back ask again later.
                    parts.for_each(|part| self.let_ask(part));
                    return Err(WatchError::Store(error));
                }
            };
            for (name, error) in refused {
                self.watched.remove(&name);
                if outcome.is_ok() {
                    outcome = Err(WatchError::Refused { name, error });
                }
            }
            if part.len() == PART {
                self.look(Vec::new());
            }
        }
        outcome
    }

    /// From now on these ask for numbers when they need some.
    fn let_ask(&mut self, names: &[SaName]) {
        for name in names {
            if let Some(supply) = self.watched.get_mut(name) {
                supply.is_new = false;
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
        let others = self.watched.iter().filter(|(other, _)| same_path(other));
        others.filter_map(|(_, supply)| supply.rate()).max()
    }

    /// Makes more numbers durable and puts them in force. Returns the associations that get
    /// none.
    fn refill(&mut self, names: Vec<SaName>) -> Result<Vec<(SaName, LeaseError)>, StoreError> {
        let needs: Vec<(SaName, Need)> = names
            .into_iter()
            .filter_map(|name| {
                let supply = self.watched.get_mut(&name)?;
                let need = supply.need(name.sa, &self.settings)?;
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
            let Some(supply) = self.watched.get_mut(&name) else {
                continue;
            };
            let outcome = granted.and_then(|(granted, key)| supply.put_in_force(granted, key));
            if let Err(error) = outcome {
                supply.refused = true;
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
            .take()
            .into_iter()
            .filter(|(_, supply)| supply.sa.state() != SaState::Deleted)
            .map(|(name, supply)| {
                // From now on nobody gets a number that the snapshot does not know of.
                supply.sa.close();
                (name, supply.sa.snapshot(now))
            })
            .collect();
        self.store.finish(&snapshots)
    }
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
