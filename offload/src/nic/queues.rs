//! Receive queues and their filters: the verbs of VMQ.

use core::fmt;
use core::sync::atomic::Ordering;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use vesper_esp::Buffer;
use vesper_sa::{Timestamp, VmId};

use super::{Config, Nic, NicEvent};
use crate::arrivals::{Indicated, move_between};
use crate::fate::Loss;
use crate::filter::{FilterError, FilterId, ReceiveFilter};
use crate::queue::{QueueEvent, QueueId, QueueState, WrongState};
use crate::rings::{Queue, QueueCounters, lock};
use crate::settings::InterruptModeration;
use crate::sriov::Function;
use crate::transfer::Received;
use crate::unit::OffloadHandle;

/// Why a queue was not allocated, changed or freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueError {
    /// No such machine.
    UnknownVm(VmId),
    /// No such queue.
    Unknown(QueueId),
    /// The machine has a queue already.
    HasQueue(QueueId),
    /// The machine has `vmq_weight` 0.
    NotWanted(VmId),
    /// All queues are in use.
    NoneLeft {
        /// How many there are.
        capacity: u16,
    },
    /// With a NIC switch that has virtual functions, queues come with its ports; create a
    /// port of the physical function instead.
    SriovEnabled,
    /// The default queue can be neither allocated nor freed.
    Default,
    /// A queue of a port; delete the port instead.
    OfVport(QueueId),
    /// The queue is in another state.
    State(WrongState),
    /// Look-ahead split was asked for, which NDIS 6.30 has removed: packets go to one memory
    /// in one piece; ask for a look-ahead of 0.
    Lookahead {
        /// What was asked for, in bytes.
        asked: u32,
    },
    /// More packets were returned than are outstanding.
    NotOutstanding {
        /// How many were returned.
        returned: u32,
        /// How many are outstanding.
        outstanding: u32,
    },
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownVm(vm) => write!(f, "{vm} does not exist"),
            Self::Unknown(queue) => write!(f, "{queue} does not exist"),
            Self::HasQueue(queue) => write!(f, "the machine has {queue} already"),
            Self::NotWanted(vm) => write!(f, "vmq_weight of {vm} is 0; set it to 1 to 100"),
            Self::NoneLeft { capacity } => write!(f, "all {capacity} queues are in use"),
            Self::SriovEnabled => f.write_str(
                "the NIC switch has virtual functions; create a VPort of the physical function",
            ),
            Self::Default => f.write_str("the default queue always exists"),
            Self::OfVport(queue) => write!(f, "{queue} belongs to a VPort; delete that"),
            Self::State(error) => error.fmt(f),
            Self::Lookahead { asked } => write!(
                f,
                "look-ahead split after {asked} bytes: removed in NDIS 6.30, packets stay in \
                 one piece; ask for 0"
            ),
            Self::NotOutstanding {
                returned,
                outstanding,
            } => write!(f, "{returned} packets returned, {outstanding} outstanding"),
        }
    }
}

impl core::error::Error for QueueError {}

impl From<WrongState> for QueueError {
    fn from(error: WrongState) -> Self {
        Self::State(error)
    }
}

/// What is read back of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueStatus {
    /// Where it is in its life.
    pub state: QueueState,
    /// The machine that it serves.
    pub owner: Option<VmId>,
    /// Buffers posted.
    pub posted: usize,
    /// Frames in the ring before the processor.
    pub waiting: usize,
    /// Frames ready to be indicated.
    pub ready: usize,
    /// Packets indicated and not returned.
    pub outstanding: u32,
    /// What it has done.
    pub counters: QueueCounters,
}

impl<B: Buffer> Nic<B> {
    /// Allocates a receive queue for a machine (`OID_RECEIVE_FILTER_ALLOCATE_QUEUE`).
    ///
    /// Look-ahead split does not exist any more: `lookahead` has to be 0.
    pub fn allocate_queue(&self, vm: VmId, lookahead: u32) -> Result<QueueId, QueueError> {
        if lookahead != 0 {
            return Err(QueueError::Lookahead { asked: lookahead });
        }
        let mut config = self.write();
        let has_functions = config
            .switch
            .as_ref()
            .is_some_and(|switch| switch.params.virtual_functions > 0);
        if has_functions {
            return Err(QueueError::SriovEnabled);
        }
        self.new_queues(&mut config, vm, Function::Physical, 1)
    }

    /// Makes the queues of a port, at least one; the first one stands for all of them.
    pub(crate) fn new_queues(
        &self,
        config: &mut Config<B>,
        vm: VmId,
        function: Function,
        count: u16,
    ) -> Result<QueueId, QueueError> {
        let entry = config
            .vms
            .get(&vm)
            .filter(|_| vm != VmId::HOST)
            .ok_or(QueueError::UnknownVm(vm))?;
        if let Some(queue) = entry.queue {
            return Err(QueueError::HasQueue(queue));
        }
        if function == Function::Physical && entry.port.settings.vmq_weight == 0 {
            return Err(QueueError::NotWanted(vm));
        }
        let in_use = config.queues.iter().skip(1).flatten().count();
        let count = usize::from(count.max(1));
        if in_use + count > usize::from(self.profile.queues) {
            return Err(QueueError::NoneLeft {
                capacity: self.profile.queues,
            });
        }
        let settings = entry.port.settings;
        let new = |id| Queue::new(id, Some(vm), function, &settings, self.profile.ring);
        let followers = (1..count).map(|rank| config.place_queue(|id| Queue { rank, ..new(id) }));
        let followers: Box<[QueueId]> = followers.collect();
        let id = config.place_queue(|id| Queue {
            followers,
            ..new(id)
        });
        if let Some(entry) = config.vms.get_mut(&vm) {
            entry.queue = Some(id);
        }
        config.rebuild_flows(self.processors.len());
        Ok(id)
    }

    /// The queues of the port that has this one, if it is their first: frames are spread over
    /// them by flow, ESP packets by association.
    pub fn queues_of_port(&self, first: QueueId) -> Vec<QueueId> {
        let config = self.read();
        let followers = config.queue(first).map(|queue| queue.followers.to_vec());
        core::iter::once(first)
            .chain(followers.unwrap_or_default())
            .collect()
    }

    /// Ends the allocation (`OID_RECEIVE_FILTER_QUEUE_ALLOCATION_COMPLETE`): one answer per
    /// queue.
    pub fn complete_allocation(&self, queues: &[QueueId]) -> Vec<Result<QueueState, QueueError>> {
        let config = self.read();
        let complete = |&id: &QueueId| config.change(id, QueueEvent::AllocationComplete);
        queues.iter().map(complete).collect()
    }

    /// Sets a filter on a queue (`OID_RECEIVE_FILTER_SET_FILTER`).
    pub fn set_filter(
        &self,
        queue: QueueId,
        filter: ReceiveFilter,
    ) -> Result<FilterId, FilterError> {
        let mut config = self.write();
        let state = config.state(queue).ok_or(FilterError::Queue(queue))?;
        if queue != QueueId::DEFAULT && state.on(QueueEvent::SetFilter).is_err() {
            return Err(FilterError::Queue(queue));
        }
        let id = config.filters.set(filter, queue)?;
        config.filter_arrived(queue);
        Ok(id)
    }

    /// Clears a filter (`OID_RECEIVE_FILTER_CLEAR_FILTER`). Its frames go to the default queue
    /// from now on.
    pub fn clear_filter(&self, id: FilterId) -> Result<(), FilterError> {
        let mut config = self.write();
        let queue = config.filters.clear(id)?;
        config.filter_left(queue);
        Ok(())
    }

    /// Moves a filter to another queue in one step (`OID_RECEIVE_FILTER_MOVE_FILTER`): every
    /// frame meets it either there or here.
    pub fn move_filter(&self, id: FilterId, to: QueueId) -> Result<(), FilterError> {
        let mut config = self.write();
        config.move_filter(id, to)
    }

    /// The filters of a queue (`OID_RECEIVE_FILTER_ENUM_FILTERS`).
    pub fn filters(&self, queue: QueueId) -> Vec<(FilterId, ReceiveFilter)> {
        let mut filters: Vec<_> = self.read().filters.of(queue).collect();
        filters.sort_by_key(|(id, _)| *id);
        filters
    }

    /// Begins to free a queue without filters (`OID_RECEIVE_FILTER_FREE_QUEUE`).
    ///
    /// Its processor delivers what is still on its way and reports
    /// [`NicEvent::DmaStopped`]; when the host has taken and returned every packet, the queue
    /// is gone and [`NicEvent::QueueFreed`] says so.
    pub fn free_queue(&self, id: QueueId) -> Result<(), QueueError> {
        if id == QueueId::DEFAULT {
            return Err(QueueError::Default);
        }
        let config = self.read();
        if config.is_of_vport(id) {
            return Err(QueueError::OfVport(id));
        }
        config.change(id, QueueEvent::Free).map(drop)
    }

    /// Posts buffers for a queue to receive into; all of the memory of a buffer is its data.
    pub fn post_buffers(
        &self,
        id: QueueId,
        buffers: impl IntoIterator<Item = B>,
    ) -> Result<(), QueueError> {
        let config = self.read();
        let queue = config.queue(id).ok_or(QueueError::Unknown(id))?;
        let mut inner = lock(&queue.inner);
        if matches!(inner.state, QueueState::StopDma | QueueState::Freeing) {
            let mut recycled = lock(&self.recycled);
            recycled.extend(buffers);
        } else {
            inner.posted.extend(buffers);
        }
        Ok(())
    }

    /// Changes when a queue interrupts.
    pub fn set_interrupts(
        &self,
        id: QueueId,
        moderation: InterruptModeration,
    ) -> Result<(), QueueError> {
        let config = self.read();
        let queue = config.queue(id).ok_or(QueueError::Unknown(id))?;
        lock(&queue.inner).moderation = InterruptModeration {
            packets: moderation.packets.max(1),
            ..moderation
        };
        Ok(())
    }

    /// The queues that have something to indicate now, by their interrupt moderation.
    pub fn interrupts(&self, now: Timestamp) -> Vec<QueueId> {
        let config = self.read();
        let due = |queue: &&Arc<Queue<B>>| queue.is_due(now);
        let queues = config.queues.iter().flatten();
        queues.filter(due).map(|queue| queue.id).collect()
    }

    /// As [`interrupts`](Self::interrupts), with the owners, but without those queues that go
    /// with the one that `own` says the owner serves by itself.
    pub(crate) fn due(
        &self,
        now: Timestamp,
        due: &mut Vec<(QueueId, Option<VmId>)>,
        own: impl Fn(VmId) -> Option<QueueId>,
    ) {
        let config = self.read();
        for queue in config.queues.iter().flatten() {
            let is_own = || {
                queue
                    .owner
                    .and_then(&own)
                    .is_some_and(|first| config.is_queue_of(first, queue.id))
            };
            if queue.is_ready.load(Ordering::Relaxed) && !is_own() && queue.is_due(now) {
                due.push((queue.id, queue.owner));
            }
        }
    }

    /// Takes what a queue has received: one batch of one queue, never a mixture. Counts as an
    /// interrupt if there is anything.
    ///
    /// Each packet of a queue other than the default queue is to be
    /// [returned](Self::return_packets) when the host is done with it.
    pub fn take_indication(&self, id: QueueId, packets: &mut Vec<Received<B>>, most: usize) {
        self.take_ready(id, most, |what, count, payloads| {
            move_between(payloads, count, |payload| {
                packets.push(what.received(payload))
            });
        });
    }

    /// As [`take_indication`](Self::take_indication), for a machine that wants nothing but whole
    /// frames, without the tag of its VLAN. Returns how many packets that were: so many are to
    /// be [returned](Self::return_packets). A frame of which the buffer has no room for its
    /// header is lost.
    pub fn take_frames(&self, id: QueueId, frames: &mut Vec<B>, most: usize) -> usize {
        let mut lost: Vec<(Option<VmId>, B)> = Vec::new();
        let taken = self.take_ready(id, most, |what, count, payloads| {
            let header = what.link.header(None);
            move_between(payloads, count, |mut payload| {
                match header.put_before(&mut payload) {
                    true => frames.push(payload),
                    false => lost.push((what.owner, payload)),
                }
            });
        });
        if !lost.is_empty() {
            let config = self.read();
            for (owner, buffer) in lost {
                self.lose(&config, owner, buffer, Loss::NoRoom);
            }
        }
        taken
    }

    /// As [`take_indication`](Self::take_indication), by runs of frames of which the same is to
    /// be said. Returns how many packets that were.
    pub(crate) fn take_ready(
        &self,
        id: QueueId,
        most: usize,
        each: impl FnMut(&Indicated, usize, &mut VecDeque<B>),
    ) -> usize {
        let config = self.read();
        let Some(queue) = config.queue(id) else {
            return 0;
        };
        let mut inner = lock(&queue.inner);
        let count = inner.ready.take(most, each);
        if count == 0 {
            return 0;
        }
        inner.counters.interrupts += 1;
        if queue.owner.is_some() {
            inner.outstanding += count as u32;
        }
        if inner.ready.is_empty() {
            inner.oldest = None;
            queue.is_ready.store(false, Ordering::Relaxed);
        }
        count
    }

    /// The associations in crypto mode of which packets are to be indicated.
    pub(crate) fn crypto_indicated(&self) -> HashSet<OffloadHandle> {
        let mut handles = HashSet::new();
        let config = self.read();
        for queue in config.queues.iter().flatten() {
            handles.extend(lock(&queue.inner).ready.in_crypto_mode());
        }
        handles
    }

    /// Says that the host, or the machine, is done with this many packets of a queue.
    pub fn return_packets(&self, id: QueueId, count: u32) -> Result<(), QueueError> {
        let freed = {
            let config = self.read();
            let queue = config.queue(id).ok_or(QueueError::Unknown(id))?;
            let mut inner = lock(&queue.inner);
            let outstanding = inner.outstanding;
            inner.outstanding =
                outstanding
                    .checked_sub(count)
                    .ok_or(QueueError::NotOutstanding {
                        returned: count,
                        outstanding,
                    })?;
            inner.state == QueueState::Freeing && inner.outstanding == 0 && inner.ready.is_empty()
        };
        if freed {
            self.finish_freeing(id);
        }
        Ok(())
    }

    /// What is to be known of a queue (`OID_RECEIVE_FILTER_QUEUE_PARAMETERS`).
    pub fn queue_status(&self, id: QueueId) -> Option<QueueStatus> {
        let config = self.read();
        let queue = config.queue(id)?;
        let inner = lock(&queue.inner);
        Some(QueueStatus {
            state: inner.state,
            owner: queue.owner,
            posted: inner.posted.len(),
            waiting: inner.waiting.len(),
            ready: inner.ready.len(),
            outstanding: inner.outstanding,
            counters: inner.counters,
        })
    }

    /// The queues that exist (`OID_RECEIVE_FILTER_ENUM_QUEUES`).
    pub fn queues(&self) -> Vec<QueueId> {
        let config = self.read();
        let queues = config.queues.iter().flatten();
        queues.map(|queue| queue.id).collect()
    }

    /// After the processor has found nothing more on its way into a queue in state `StopDma`.
    pub(crate) fn dma_stopped(&self, id: QueueId) {
        let is_empty = {
            let config = self.read();
            if config.change(id, QueueEvent::DmaStopped).is_err() {
                return;
            }
            let Some(queue) = config.queue(id) else {
                return;
            };
            let mut inner = lock(&queue.inner);
            lock(&self.recycled).extend(inner.posted.drain(..));
            inner.outstanding == 0 && inner.ready.is_empty()
        };
        self.emit(NicEvent::DmaStopped(id));
        if is_empty {
            self.finish_freeing(id);
        }
    }

    /// After the last packet of a queue in state `Freeing` was returned.
    fn finish_freeing(&self, id: QueueId) {
        let mut config = self.write();
        if config.change(id, QueueEvent::AllReturned).is_err() {
            return;
        }
        let owner = config.queue(id).and_then(|queue| queue.owner);
        if let Some(place) = config.queues.get_mut(usize::from(id.0)) {
            *place = None;
        }
        if let Some(entry) = owner.and_then(|owner| config.vms.get_mut(&owner))
            && entry.queue == Some(id)
        {
            entry.queue = None;
        }
        config.rebuild_flows(self.processors.len());
        drop(config);
        self.emit(NicEvent::QueueFreed(id));
    }
}

impl<B: Buffer> Config<B> {
    pub(crate) fn state(&self, id: QueueId) -> Option<QueueState> {
        self.queue(id).map(|queue| lock(&queue.inner).state)
    }

    /// Puts a queue where there is none.
    fn place_queue(&mut self, queue: impl FnOnce(QueueId) -> Queue<B>) -> QueueId {
        let free = self.queues.iter().position(Option::is_none);
        let number = free.unwrap_or(self.queues.len());
        let id = QueueId(number as u16);
        if number == self.queues.len() {
            self.queues.push(None);
        }
        if let Some(place) = self.queues.get_mut(number) {
            *place = Some(Arc::new(queue(id)));
        }
        id
    }

    /// Takes a queue to its next state; a queue that is gone afterwards keeps its last one
    /// until it is taken out. What is commanded of the first queue of a port is of all of them;
    /// what happens to each happens to each.
    pub(crate) fn change(&self, id: QueueId, event: QueueEvent) -> Result<QueueState, QueueError> {
        let state = self.change_one(id, event)?;
        let is_command = !matches!(event, QueueEvent::DmaStopped | QueueEvent::AllReturned);
        if let Some(queue) = self.queue(id).filter(|_| is_command) {
            for follower in &queue.followers {
                // In the same state as the first, or gone.
                let _ = self.change_one(*follower, event);
            }
        }
        Ok(state)
    }

    fn change_one(&self, id: QueueId, event: QueueEvent) -> Result<QueueState, QueueError> {
        let queue = self.queue(id).ok_or(QueueError::Unknown(id))?;
        let mut inner = lock(&queue.inner);
        if let Some(next) = inner.state.on(event)? {
            inner.state = next;
            queue.attention.store(true, Ordering::Relaxed);
        }
        Ok(inner.state)
    }

    /// Whether both are queues of one port, of which `first` is the first.
    fn is_queue_of(&self, first: QueueId, id: QueueId) -> bool {
        first == id
            || self
                .queue(first)
                .is_some_and(|queue| queue.followers.contains(&id))
    }

    pub(crate) fn is_of_vport(&self, id: QueueId) -> bool {
        self.switch.as_ref().is_some_and(|switch| {
            let mut vports = switch.vports.iter().flatten();
            vports.any(|vport| vport.queue == id)
        })
    }

    pub(crate) fn move_filter(&mut self, id: FilterId, to: QueueId) -> Result<(), FilterError> {
        let state = self.state(to).ok_or(FilterError::Queue(to))?;
        if to != QueueId::DEFAULT && state.on(QueueEvent::SetFilter).is_err() {
            return Err(FilterError::Queue(to));
        }
        if self.filters.queue_of(id)? == to {
            return Ok(());
        }
        let from = self.filters.move_to(id, to)?;
        self.filter_arrived(to);
        self.filter_left(from);
        Ok(())
    }

    fn filter_arrived(&mut self, queue: QueueId) {
        if queue != QueueId::DEFAULT {
            // Asked before: it can not be refused.
            let _ = self.change(queue, QueueEvent::SetFilter);
        }
    }

    fn filter_left(&mut self, queue: QueueId) {
        if queue != QueueId::DEFAULT && self.filters.count(queue) == 0 {
            // A queue with a filter is Set or Running, both of which may lose it.
            let _ = self.change(queue, QueueEvent::ClearLastFilter);
        }
    }
}
