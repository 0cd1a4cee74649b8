//! The rings of the adapter: receive queues and send queues, with their accounts.

use core::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vesper_esp::Buffer;
use vesper_sa::{Timestamp, VmId};

use crate::completions::Completions;
use crate::ethernet::{Frame, HEADER_LEN, Link, VlanId};
use crate::fate::{Loss, Losses, SendError};
use crate::queue::{QueueId, QueueState};
use crate::settings::{InterruptModeration, VmAddress, VmSettings};
use crate::sriov::Function;
use crate::transfer::{Completion, Received, ReceivedIpsec, Send, SendIpsec};
use crate::unit::{OffloadHandle, PortId};

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

/// Frames that wait for their processor, their headers taken off. What neighbours have in
/// common is kept once.
#[derive(Debug)]
pub(crate) struct Arrivals<B> {
    pub(crate) payloads: VecDeque<B>,
    pub(crate) runs: VecDeque<Arrival>,
}

/// What frames that have arrived one after another have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) class: Class,
    pub(crate) link: Link,
    pub(crate) vlan: Option<VlanId>,
    pub(crate) count: usize,
}

impl<B> Arrivals<B> {
    pub(crate) const fn new() -> Self {
        Self {
            payloads: VecDeque::new(),
            runs: VecDeque::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.payloads.len()
    }

    pub(crate) fn push(&mut self, frame: Frame<B>, class: Class) {
        let Frame {
            payload,
            link,
            vlan,
        } = frame;
        match self.runs.back_mut() {
            Some(run) if (run.class, run.link, run.vlan) == (class, link, vlan) => run.count += 1,
            _ => self.runs.push_back(Arrival {
                class,
                link,
                vlan,
                count: 1,
            }),
        }
        self.payloads.push_back(payload);
    }

    /// Adds a payload of which all else is as of the frame that was pushed last.
    #[inline(always)]
    pub(crate) fn push_alike(&mut self, payload: B) {
        if let Some(run) = self.runs.back_mut() {
            run.count += 1;
            self.payloads.push_back(payload);
        }
    }

    /// Moves up to `most` frames to `to`, which is empty.
    pub(crate) fn take(&mut self, most: usize, to: &mut Self) {
        if self.len() <= most {
            return core::mem::swap(self, to);
        }
        to.payloads.extend(self.payloads.drain(..most));
        let mut left = most;
        while left > 0
            && let Some(run) = self.runs.front_mut()
        {
            let count = left.min(run.count);
            to.runs.push_back(Arrival { count, ..*run });
            run.count -= count;
            left -= count;
            if run.count == 0 {
                self.runs.pop_front();
            }
        }
    }

    /// The class of each frame, and its payload.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (Class, &mut B)> {
        let classes = self.runs.iter();
        let classes = classes.flat_map(|run| core::iter::repeat_n(run.class, run.count));
        classes.zip(&mut self.payloads)
    }

    /// Takes all frames.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (Frame<B>, Class)> {
        let runs = self.runs.drain(..);
        let runs = runs.flat_map(|run| core::iter::repeat_n(run, run.count));
        runs.zip(self.payloads.drain(..)).map(|(run, payload)| {
            let Arrival {
                class, link, vlan, ..
            } = run;
            let frame = Frame {
                payload,
                link,
                vlan,
            };
            (frame, class)
        })
    }
}

/// Frames that are to be indicated, their headers taken off. What neighbours have in common is
/// kept once.
#[derive(Debug)]
pub(crate) struct Ready<B> {
    payloads: VecDeque<B>,
    runs: VecDeque<(Indicated, usize)>,
}

/// What there is to say about a received frame beside its payload, see [`Received`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Indicated {
    pub(crate) link: Link,
    pub(crate) vlan: Option<VlanId>,
    pub(crate) queue: QueueId,
    pub(crate) owner: Option<VmId>,
    pub(crate) ipsec: ReceivedIpsec,
}

impl Indicated {
    /// Of this payload.
    pub(crate) fn received<B>(self, payload: B) -> Received<B> {
        let Self {
            link,
            vlan,
            queue,
            owner,
            ipsec,
        } = self;
        let frame = Frame {
            payload,
            link,
            vlan,
        };
        Received {
            frame,
            queue,
            owner,
            ipsec,
        }
    }
}

impl<B> Ready<B> {
    pub(crate) const fn new() -> Self {
        Self {
            payloads: VecDeque::new(),
            runs: VecDeque::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.payloads.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.payloads.is_empty()
    }

    /// Adds a payload.
    #[inline]
    pub(crate) fn push(&mut self, what: Indicated, payload: B) {
        self.begin(what, 1);
        self.payloads.push_back(payload);
    }

    /// Moves the first `count` payloads of which the same is to be said here.
    pub(crate) fn extend(&mut self, what: Indicated, from: &mut VecDeque<B>, count: usize) {
        let count = count.min(from.len());
        if count > 0 {
            self.begin(what, count);
            move_between(from, count, |payload| self.payloads.push_back(payload));
        }
    }

    fn begin(&mut self, what: Indicated, count: usize) {
        // What was decrypted differs by its number at least.
        let may_repeat = !matches!(what.ipsec, ReceivedIpsec::Crypto(_));
        match self.runs.back_mut() {
            Some((last, counted)) if may_repeat && *last == what => *counted += count,
            _ => self.runs.push_back((what, count)),
        }
    }

    /// Takes up to `most` frames: what is to be said of each run, and so many payloads, each of
    /// which is to be taken.
    pub(crate) fn take(
        &mut self,
        most: usize,
        mut each: impl FnMut(Indicated, usize, &mut VecDeque<B>),
    ) -> usize {
        let mut left = most;
        while left > 0
            && let Some((what, count)) = self.runs.front_mut()
        {
            let taken = left.min(*count);
            *count -= taken;
            left -= taken;
            let what = *what;
            if *count == 0 {
                self.runs.pop_front();
            }
            each(what, taken, &mut self.payloads);
        }
        most - left
    }
}

/// Moves the first `count` elements. For a few, which is what runs are where many flows are mixed,
/// this is faster than draining them.
#[inline]
pub(crate) fn move_between<T>(from: &mut VecDeque<T>, count: usize, mut to: impl FnMut(T)) {
    for _ in 0..count {
        let Some(element) = from.pop_front() else {
            return;
        };
        to(element);
    }
}

/// What the parser found a received frame to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Not ESP.
    Clear,
    /// ESP of an offloaded association.
    Esp(OffloadHandle),
    /// ESP that the adapter has no association for, or a fragment.
    Unknown,
    /// Not ESP, and copied into a posted buffer already.
    Copy,
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
    /// Makes place for a frame that is to be [indicated](Self::indicate): a posted buffer comes
    /// out in exchange for that of the frame, if `exchange`; the default queue needs none.
    #[inline]
    pub(crate) fn claim(&mut self, queue: &Queue<B>, exchange: bool) -> Result<Option<B>, Loss> {
        match queue.owner {
            Some(_) if !exchange => Ok(None),
            Some(_) => match self.posted.pop() {
                Some(buffer) => Ok(Some(buffer)),
                None => Err(Loss::NoBuffer),
            },
            None if self.ready.len() >= queue.ring => Err(Loss::RingFull),
            None => Ok(None),
        }
    }

    /// Hands a frame over to whoever owns the queue.
    #[inline]
    pub(crate) fn indicate(&mut self, queue: &Queue<B>, received: Received<B>, now: Timestamp) {
        self.counters.received += 1;
        self.counters.bytes += received.frame.payload.data().len() as u64;
        self.oldest.get_or_insert(now);
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
        queue.is_ready.store(true, Ordering::Relaxed);
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
            match self.claim(queue, false) {
                Ok(_) => self.indicate(queue, received, now),
                Err(loss) => lost(received, loss),
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

/// Who has posted a send. Each has a ring of its own: what one of them posts never waits behind
/// the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Poster {
    /// The host, for itself or for a machine.
    Host,
    /// The machine, through its virtual function.
    Guest,
}

/// A send of which the frame is taken apart.
#[derive(Debug)]
pub(crate) struct Pending<B> {
    pub(crate) id: u64,
    /// Of a large send, which is completed as a whole.
    pub(crate) is_segment: bool,
    pub(crate) frame: Frame<B>,
    pub(crate) ipsec: SendIpsec,
    pub(crate) segment_size: Option<u16>,
    pub(crate) checksum: bool,
}

impl<B> Pending<B> {
    /// A segment of this large send.
    pub(crate) fn segment(&self, frame: Frame<B>) -> Self {
        Self {
            id: self.id,
            is_segment: true,
            frame,
            ipsec: self.ipsec,
            segment_size: None,
            checksum: false,
        }
    }
}

/// What a virtual machine, or the host itself, has done through the adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmCounters {
    /// Frames accepted for sending.
    pub posted: u64,
    /// Frames sent, to the wire or to a function of this adapter.
    pub sent: u64,
    /// Their bytes as posted.
    pub sent_bytes: u64,
    /// Frames that went to the host's software because the adapter could not protect them.
    pub to_host: u64,
    /// Packets that the adapter sealed.
    pub sealed: u64,
    /// Packets that the adapter opened.
    pub opened: u64,
    /// Segments made of large sends.
    pub segments: u64,
    /// Frames lost on their way out.
    pub send_losses: Losses,
    /// Frames lost on their way in.
    pub receive_losses: Losses,
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

/// What one poster has posted.
#[derive(Debug)]
pub(crate) struct Ring<B> {
    sends: VecDeque<Send<B>>,
    /// How many of them are large sends.
    large: usize,
}

#[derive(Debug)]
pub(crate) struct SendRing<B> {
    /// As posted, by [`Poster`]. An association that a handle names is kept until the frame has
    /// left the ring, even if it is deleted meanwhile.
    posted: [Ring<B>; 2],
    /// Whose ring is looked into next.
    turn: Poster,
    pub(crate) completions: Completions<B>,
    /// Completions that a fault has delayed.
    pub(crate) late: Vec<(Timestamp, Completion<B>)>,
    pub(crate) limiter: RateLimiter,
    pub(crate) counters: VmCounters,
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
            sends: Mutex::new(SendRing {
                posted: [Ring::new(), Ring::new()],
                turn: Poster::Host,
                completions: Completions::new(),
                late: Vec::new(),
                limiter: RateLimiter::new(settings.rate_limit),
                counters: VmCounters::default(),
            }),
        }
    }
}

impl<B: Buffer> SendRing<B> {
    /// Ends a send of which nothing was done; the frame comes back as it was.
    #[cold]
    pub(crate) fn refuse(&mut self, send: Send<B>, loss: Loss) {
        self.counters.send_losses.count(loss);
        self.completions.push(Completion {
            id: send.id,
            result: Err(SendError::Lost(loss)),
            buffer: Some(send.frame),
        });
    }

    /// Ends a send that failed; the buffer comes back.
    pub(crate) fn fail(&mut self, pending: Pending<B>, error: SendError) {
        self.counters.send_losses.count(error.loss());
        self.completions.push(Completion {
            id: pending.id,
            result: Err(error),
            buffer: Some(pending.frame.give_back()),
        });
    }

    /// Ends a send that failed on its way out. The buffer of a segment is free.
    #[cold]
    pub(crate) fn fail_frame(
        &mut self,
        id: u64,
        is_segment: bool,
        frame: Frame<B>,
        error: SendError,
        free: &mut Vec<B>,
    ) {
        self.counters.send_losses.count(error.loss());
        if is_segment {
            return free.push(frame.payload);
        }
        self.completions.push(Completion {
            id,
            result: Err(error),
            buffer: Some(frame.give_back()),
        });
    }

    /// Takes up to `most` sends off one of the rings, as far as the rate limit allows, and says
    /// whose they are. A large send is a batch of its own.
    pub(crate) fn take_batch(
        &mut self,
        now: Timestamp,
        most: usize,
        batch: &mut VecDeque<Send<B>>,
    ) -> Poster {
        let mut poster = self.turn;
        if self.ring(poster).sends.is_empty() {
            poster = poster.other();
        }
        self.turn = poster.other();
        let ring = &mut self.posted[poster as usize];
        if ring.large == 0 && self.limiter.is_unlimited() && ring.sends.len() <= most {
            core::mem::swap(&mut ring.sends, batch);
        } else {
            ring.take_some(&mut self.limiter, now, most, batch);
        }
        poster
    }

    /// How many sends wait in a ring.
    pub(crate) fn len(&self, poster: Poster) -> usize {
        self.ring(poster).sends.len()
    }

    /// Whether none waits in either.
    pub(crate) fn is_empty(&self) -> bool {
        self.posted.iter().all(|ring| ring.sends.is_empty())
    }

    /// Takes everything off a ring.
    pub(crate) fn take_all(&mut self, poster: Poster) -> VecDeque<Send<B>> {
        let ring = &mut self.posted[poster as usize];
        ring.large = 0;
        core::mem::take(&mut ring.sends)
    }

    /// Puts sends that there is room for onto a ring: as a whole, if it is empty. So many of them are
    /// large ones.
    pub(crate) fn push_all(&mut self, poster: Poster, sends: &mut Vec<Send<B>>, large: usize) {
        let ring = &mut self.posted[poster as usize];
        ring.large += large;
        append(&mut ring.sends, sends);
    }

    /// Whether a send in a ring is bound to an association.
    pub(crate) fn binds(&self, handle: OffloadHandle) -> bool {
        let mut sends = self.posted.iter().flat_map(|ring| &ring.sends);
        sends.any(|send| send.ipsec == SendIpsec::Handle(handle))
    }

    fn ring(&self, poster: Poster) -> &Ring<B> {
        &self.posted[poster as usize]
    }
}

impl Poster {
    const fn other(self) -> Self {
        match self {
            Self::Host => Self::Guest,
            Self::Guest => Self::Host,
        }
    }
}

impl<B> Ring<B> {
    const fn new() -> Self {
        Self {
            sends: VecDeque::new(),
            large: 0,
        }
    }
}

impl<B: Buffer> Ring<B> {
    fn take_some(
        &mut self,
        limiter: &mut RateLimiter,
        now: Timestamp,
        most: usize,
        batch: &mut VecDeque<Send<B>>,
    ) {
        let is_large = |send: &Send<B>| send.segment_size.is_some();
        while batch.len() < most {
            let Some(next) = self.sends.front() else {
                break;
            };
            let alone = is_large(next) || batch.back().is_some_and(is_large);
            if alone && !batch.is_empty() {
                break;
            }
            if !limiter.admit(now, payload_len(next.frame.data())) {
                break;
            }
            if let Some(next) = self.sends.pop_front() {
                self.large -= usize::from(is_large(&next));
                batch.push_back(next);
            }
        }
    }
}

/// Bytes of a frame behind its header; those of a tag are counted as well.
pub(crate) fn payload_len(frame: &[u8]) -> usize {
    frame.len().saturating_sub(HEADER_LEN)
}

/// A limit in bits a second that allows bursts of a millisecond, or of 64 KiB if that is more
/// (the generic cell rate algorithm: one number, no timer).
#[derive(Clone, Copy, Debug)]
pub struct RateLimiter {
    /// Bits a second; 0 is unlimited.
    rate: u64,
    /// The moment in nanoseconds by which everything sent so far would have left at the rate.
    due: u64,
}

/// Bits of a burst that is always allowed.
const BURST_BITS: u64 = 64 * 1024 * 8;

impl RateLimiter {
    /// A limit of `rate` bits a second; 0 is none.
    pub const fn new(rate: u64) -> Self {
        Self { rate, due: 0 }
    }

    /// Whether there is no limit.
    pub const fn is_unlimited(&self) -> bool {
        self.rate == 0
    }

    /// Charges a packet of this many bytes, or says that it has to wait.
    pub fn admit(&mut self, now: Timestamp, bytes: usize) -> bool {
        if self.rate == 0 {
            return true;
        }
        let nanos = |bits: u64| {
            let nanos = u128::from(bits) * 1_000_000_000 / u128::from(self.rate);
            u64::try_from(nanos).unwrap_or(u64::MAX)
        };
        let burst = nanos(BURST_BITS).max(1_000_000);
        let now = now.as_nanos();
        if self.due > now.saturating_add(burst) {
            return false;
        }
        self.due = self.due.max(now).saturating_add(nanos(bytes as u64 * 8));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_over_a_second() {
        let mut limiter = RateLimiter::new(100_000_000);
        let mut sent = 0;
        for nanos in (0..1_000_000_000).step_by(10_000) {
            while limiter.admit(Timestamp::from_nanos(nanos), 1_000) {
                sent += 1_000;
            }
        }
        // 12.5 MB and a burst, give or take a packet.
        let most = 12_500_000 + 64 * 1024 + 2_000;
        assert!((12_500_000..=most).contains(&sent), "{sent}");
        assert!(RateLimiter::new(0).admit(Timestamp::ZERO, usize::MAX));
    }
}
