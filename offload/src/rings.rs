//! The rings of the adapter, with their accounts: a receive queue, and a machine with what it sends.

use core::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vesper_esp::Buffer;
use vesper_sa::{Timestamp, VmId};

use crate::arrivals::{Arrivals, Indicated, Ready};
use crate::fate::Loss;
use crate::queue::{QueueId, QueueState};
use crate::sends::SendRing;
use crate::settings::{InterruptModeration, VmAddress, VmSettings};
use crate::sriov::Function;
use crate::transfer::Received;
use crate::unit::PortId;

/// Locks, whatever a panicking thread left behind: the adapter's own code does not panic while
/// it holds a lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Moves the first `count` elements to the end of `to`: as a whole, if that is all that both
/// have.
pub(crate) fn move_front<T>(from: &mut VecDeque<T>, count: usize, to: &mut Vec<T>) {
    if to.is_empty() && count == from.len() {
        let empty = core::mem::take(to).into();
        *to = core::mem::replace(from, empty).into();
    } else {
        to.extend(from.drain(..count));
    }
}

/// Moves all elements to the end of `to`.
pub(crate) fn append<T>(to: &mut VecDeque<T>, from: &mut Vec<T>) {
    if to.is_empty() {
        let empty = core::mem::take(to).into();
        *to = core::mem::replace(from, empty).into();
    } else {
        to.extend(from.drain(..));
    }
}

/// How a packet weighs in the fairness between machines: its bytes, and as many again as its
/// handling costs.
pub(crate) const fn weight_of(bytes: usize) -> i64 {
    bytes as i64 + 128
}

/// The share of a flow in one round: eight full packets for a weight of 100.
pub(crate) const fn quantum(weight: u16) -> i64 {
    weight as i64 * weight_of(1500) * 8 / 100
}

/// What a receive queue has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounters {
    /// Frames handed over into posted buffers, or into host memory.
    pub received: u64,
    /// Their bytes, Ethernet header not counted.
    pub bytes: u64,
    /// Frames that had to be copied; those of groups.
    pub copies: u64,
    /// Interrupts.
    pub interrupts: u64,
}

/// A receive queue. Those of different processors share no cache line.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Queue<B> {
    pub(crate) id: QueueId,
    /// The machine that it serves; the default queue serves none.
    pub(crate) owner: Option<VmId>,
    pub(crate) function: Function,
    pub(crate) weight: u16,
    pub(crate) ring: usize,
    /// Which of the queues of its port it is.
    pub(crate) rank: usize,
    /// Of the first queue of a port the others, among which its frames are spread.
    pub(crate) followers: Box<[QueueId]>,
    pub(crate) deficit: AtomicI64,
    /// Its processor has to look inside.
    pub(crate) attention: AtomicBool,
    /// There is something to indicate.
    pub(crate) is_ready: AtomicBool,
    pub(crate) inner: Mutex<QueueInner<B>>,
}

#[derive(Debug)]
pub(crate) struct QueueInner<B> {
    pub(crate) state: QueueState,
    pub(crate) waiting: Arrivals<B>,
    /// The one that was posted last is filled first: it is the most likely to be in the cache.
    pub(crate) posted: Vec<B>,
    pub(crate) ready: Ready<B>,
    /// Indicated, and not yet returned.
    pub(crate) outstanding: u32,
    pub(crate) oldest: Option<Timestamp>,
    pub(crate) moderation: InterruptModeration,
    pub(crate) counters: QueueCounters,
}

impl<B: Buffer> Queue<B> {
    pub(crate) fn new(
        id: QueueId,
        owner: Option<VmId>,
        function: Function,
        settings: &VmSettings,
        ring: usize,
    ) -> Self {
        Self {
            id,
            owner,
            function,
            weight: settings.share(),
            ring,
            rank: 0,
            followers: Box::default(),
            deficit: AtomicI64::new(0),
            attention: AtomicBool::new(false),
            is_ready: AtomicBool::new(false),
            inner: Mutex::new(QueueInner {
                state: QueueState::Allocated,
                waiting: Arrivals::new(),
                posted: Vec::new(),
                ready: Ready::new(),
                outstanding: 0,
                oldest: None,
                moderation: settings.interrupts,
                counters: QueueCounters::default(),
            }),
        }
    }
}

impl<B: Buffer> Queue<B> {
    /// Whether packets are to be indicated.
    pub(crate) fn is_due(&self, now: Timestamp) -> bool {
        self.is_ready.load(Ordering::Relaxed) && lock(&self.inner).is_due(now)
    }
}

impl<B: Buffer> QueueInner<B> {
    /// How many frames more have a place, and why the others have none: in a machine's queue each
    /// needs a posted buffer.
    #[inline]
    pub(crate) fn room(&self, queue: &Queue<B>) -> (usize, Loss) {
        match queue.owner {
            Some(_) => (self.posted.len(), Loss::NoBuffer),
            None => (queue.ring.saturating_sub(self.ready.len()), Loss::RingFull),
        }
    }

    /// Takes posted buffers out, in exchange for those of so many frames that there is
    /// [room](Self::room) for; the default queue needs none.
    #[inline]
    pub(crate) fn exchange(&mut self, queue: &Queue<B>, count: usize, free: &mut Vec<B>) {
        if queue.owner.is_some() {
            let from = self.posted.len().saturating_sub(count);
            free.extend(self.posted.drain(from..));
        }
    }

    /// Takes note that frames were added to those that are ready.
    #[inline]
    pub(crate) fn indicated(
        &mut self,
        queue: &Queue<B>,
        count: usize,
        bytes: usize,
        now: Timestamp,
    ) {
        self.counters.received += count as u64;
        self.counters.bytes += bytes as u64;
        if count > 0 {
            self.oldest.get_or_insert(now);
            queue.is_ready.store(true, Ordering::Relaxed);
        }
    }

    /// Hands a frame over to whoever owns the queue.
    #[inline(always)]
    pub(crate) fn indicate(&mut self, queue: &Queue<B>, received: Received<B>, now: Timestamp) {
        self.indicated(queue, 1, received.frame.payload.data().len(), now);
        let Received {
            frame,
            queue: id,
            owner,
            ipsec,
        } = received;
        let what = Indicated {
            link: frame.link,
            vlan: frame.vlan,
            queue: id,
            owner,
            ipsec,
        };
        self.ready.push(what, frame.payload);
    }

    /// Hands frames over to the host through its default queue; what has no place is given to
    /// `lost`.
    pub(crate) fn indicate_to_host(
        &mut self,
        queue: &Queue<B>,
        frames: impl IntoIterator<Item = Received<B>>,
        now: Timestamp,
        mut lost: impl FnMut(Received<B>, Loss),
    ) {
        for mut received in frames {
            received.queue = queue.id;
            match self.room(queue) {
                (0, loss) => lost(received, loss),
                _ => self.indicate(queue, received, now),
            }
        }
    }

    /// Whether the packets that wait are to be indicated.
    pub(crate) fn is_due(&self, now: Timestamp) -> bool {
        let Some(oldest) = self.oldest else {
            return false;
        };
        self.ready.len() >= self.moderation.packets as usize
            || now.since(oldest).as_nanos() >= u128::from(self.moderation.delay)
            || self.state == QueueState::StopDma
            || self.state == QueueState::Freeing
    }
}

/// A machine as the adapter knows it. Those of different processors share no cache line.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct VmPort<B> {
    pub(crate) vm: VmId,
    pub(crate) port: PortId,
    pub(crate) address: VmAddress,
    pub(crate) settings: VmSettings,
    pub(crate) ring: usize,
    pub(crate) deficit: AtomicI64,
    /// Its processor has to look inside.
    pub(crate) attention: AtomicBool,
    pub(crate) sends: Mutex<SendRing<B>>,
}

impl<B> VmPort<B> {
    pub(crate) fn new(
        vm: VmId,
        port: PortId,
        address: VmAddress,
        settings: VmSettings,
        ring: usize,
    ) -> Self {
        Self {
            vm,
            port,
            address,
            settings,
            ring,
            deficit: AtomicI64::new(0),
            attention: AtomicBool::new(false),
            sends: Mutex::new(SendRing::new(settings.rate_limit)),
        }
    }
}
