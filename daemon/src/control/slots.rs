//! How many connections there are, and which one makes room for a new one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The places for connections.
///
/// A new connection that finds them all taken gets a place of the peer that has most of them: of
/// those without a request the one that has waited longest. Who connects again and again and says
/// nothing takes places from itself, and can not keep others out.
#[derive(Debug)]
pub(super) struct Slots {
    capacity: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    /// Those that wait for a request, by when they began to.
    waiting: BTreeMap<u64, (Peer, Arc<Notify>)>,
    busy: usize,
}

/// Who has a connection: a process, or an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Peer {
    /// A process, by its number; 0 if the kernel does not tell.
    Process(i32),
    /// An address of the network.
    Address(IpAddr),
}

/// A place of a connection.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    peer: Peer,
    /// When it began to wait; `None` while a request is being answered.
    waiting: Mutex<Option<u64>>,
    leave: Arc<Notify>,
}

impl Slots {
    pub(super) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            table: Mutex::default(),
        })
    }

    /// A place; `None` if all are taken by connections whose requests are being answered.
    pub(super) fn take(self: &Arc<Self>, peer: Peer) -> Option<Slot> {
        let mut table = self.table();
        if table.waiting.len() + table.busy >= self.capacity {
            let number = table.next_to_leave()?;
            let (_, leave) = table.waiting.remove(&number)?;
            leave.notify_one();
        }
        let leave = Arc::new(Notify::new());
        let number = table.wait(peer, &leave);
        drop(table);
        Some(Slot {
            slots: Arc::clone(self),
            peer,
            waiting: Mutex::new(Some(number)),
            leave,
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn wait(&mut self, peer: Peer, leave: &Arc<Notify>) -> u64 {
        self.last += 1;
        self.waiting.insert(self.last, (peer, Arc::clone(leave)));
        self.last
    }

    /// The one that has waited longest, of the peer of which most wait.
    fn next_to_leave(&self) -> Option<u64> {
        let mut peers: HashMap<Peer, (usize, Reverse<u64>)> = HashMap::new();
        for (number, (peer, _)) in &self.waiting {
            peers.entry(*peer).or_insert((0, Reverse(*number))).0 += 1;
        }
        let (_, Reverse(number)) = peers.into_values().max()?;
        Some(number)
    }
}

impl Slot {
    /// Comes when the connection has to make room.
    pub(super) async fn evicted(&self) {
        self.leave.notified().await;
    }

    /// A request has come: nobody takes this place until it is answered.
    pub(super) fn begin_request(&self) {
        let mut table = self.slots.table();
        if let Some(number) = self.waiting().take() {
            // If it was evicted meanwhile, it is answered nothing, and leaves.
            table.waiting.remove(&number);
            table.busy += 1;
        }
    }

    /// The answer is on its way.
    pub(super) fn end_request(&self) {
        let mut table = self.slots.table();
        let mut waiting = self.waiting();
        if waiting.is_none() {
            table.busy = table.busy.saturating_sub(1);
            *waiting = Some(table.wait(self.peer, &self.leave));
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Option<u64>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut table = self.slots.table();
        match *self.waiting() {
            Some(number) => {
                table.waiting.remove(&number);
            }
            None => table.busy = table.busy.saturating_sub(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_evicted(slot: &Slot) -> bool {
        use std::future::Future;
        let mut leave = std::pin::pin!(slot.evicted());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        leave.as_mut().poll(&mut context).is_ready()
    }

    #[test]
    fn the_one_that_waits_longest_makes_room() {
        let slots = Slots::new(2);
        let first = slots.take(Peer::Process(1)).unwrap();
        let second = slots.take(Peer::Process(1)).unwrap();
        first.begin_request();
        first.end_request();
        let third = slots.take(Peer::Process(1)).unwrap();
        assert!(is_evicted(&second) && !is_evicted(&first));
        drop(second);
        first.begin_request();
        third.begin_request();
        assert!(slots.take(Peer::Process(1)).is_none());
        third.end_request();
        let fourth = slots.take(Peer::Process(1)).unwrap();
        assert!(is_evicted(&third) && !is_evicted(&fourth));
        drop((first, third));
        assert!(slots.take(Peer::Process(1)).is_some());
        drop(fourth);
        let table = slots.table();
        assert_eq!((table.waiting.len(), table.busy), (0, 0));
    }

    #[test]
    fn who_has_most_places_makes_room() {
        let slots = Slots::new(3);
        let quiet = slots.take(Peer::Process(2)).unwrap();
        let loud: Vec<_> = (0..50)
            .map(|_| slots.take(Peer::Process(1)).unwrap())
            .collect();
        assert!(!is_evicted(&quiet));
        assert!(loud[..48].iter().all(is_evicted) && !loud[48..].iter().any(is_evicted));
    }
}
