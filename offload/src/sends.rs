//! Sends on their way through the adapter: what was posted, by whom, and how fast it may leave.

use std::collections::VecDeque;

use vesper_esp::Buffer;
use vesper_sa::Timestamp;

use crate::completions::Completions;
use crate::ethernet::{Frame, HEADER_LEN};
use crate::fate::{Loss, Losses, SendError};
use crate::rings::append;
use crate::transfer::{Completion, Send, SendIpsec};
use crate::unit::OffloadHandle;

/// Who has posted a send. Each has a send ring and completions of its own: what one of them posts
/// never waits behind the other, and neither sees how the sends of the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poster {
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

/// What one poster has posted, and how it ended.
#[derive(Debug)]
pub(crate) struct Ring<B> {
    sends: VecDeque<Send<B>>,
    /// How many of them are large sends.
    large: usize,
    pub(crate) completions: Completions<B>,
    /// Completions that a fault has delayed.
    pub(crate) late: Vec<(Timestamp, Completion<B>)>,
}

/// What a machine, or the host, has posted to be sent, and what came of it.
#[derive(Debug)]
pub(crate) struct SendRing<B> {
    /// As posted, by [`Poster`]. An association that a handle names is kept until the frame has
    /// left the ring, even if it is deleted meanwhile.
    posted: [Ring<B>; 2],
    /// Whose ring is looked into next.
    turn: Poster,
    pub(crate) limiter: RateLimiter,
    pub(crate) counters: VmCounters,
}

impl<B> SendRing<B> {
    /// Empty, with a limit in bits a second; 0 is none.
    pub(crate) fn new(rate_limit: u64) -> Self {
        Self {
            posted: [Ring::new(), Ring::new()],
            turn: Poster::Host,
            limiter: RateLimiter::new(rate_limit),
            counters: VmCounters::default(),
        }
    }
}

impl<B: Buffer> SendRing<B> {
    /// Ends a send of which nothing was done; the frame comes back as it was.
    #[cold]
    pub(crate) fn refuse(&mut self, poster: Poster, send: Send<B>, loss: Loss) {
        self.counters.send_losses.count(loss);
        self.completions(poster).push(Completion {
            id: send.id,
            result: Err(SendError::Lost(loss)),
            buffer: Some(send.frame),
        });
    }

    /// Ends a send that failed; the buffer comes back.
    pub(crate) fn fail(&mut self, poster: Poster, pending: Pending<B>, error: SendError) {
        self.counters.send_losses.count(error.loss());
        self.completions(poster).push(Completion {
            id: pending.id,
            result: Err(error),
            buffer: Some(pending.frame.give_back()),
        });
    }

    /// Ends a send that failed on its way out. The buffer of a segment is free.
    #[cold]
    pub(crate) fn fail_frame(
        &mut self,
        poster: Poster,
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
        self.completions(poster).push(Completion {
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
        let is_unlimited = self.limiter.is_unlimited();
        let ring = self.ring_mut(poster);
        if ring.large == 0 && is_unlimited && ring.sends.len() <= most {
            core::mem::swap(&mut ring.sends, batch);
        } else {
            let ring = &mut self.posted[poster as usize];
            ring.take_some(&mut self.limiter, now, most, batch);
        }
        // Who has to wait for the limit keeps the turn.
        if !batch.is_empty() {
            self.turn = poster.other();
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
        let ring = self.ring_mut(poster);
        ring.large = 0;
        core::mem::take(&mut ring.sends)
    }

    /// Puts sends that there is room for onto a ring: as a whole, if it is empty. So many of them are
    /// large ones.
    pub(crate) fn push_all(&mut self, poster: Poster, sends: &mut Vec<Send<B>>, large: usize) {
        let ring = self.ring_mut(poster);
        ring.large += large;
        append(&mut ring.sends, sends);
    }

    /// Whether a send in a ring is bound to an association.
    pub(crate) fn binds(&self, handle: OffloadHandle) -> bool {
        let mut sends = self.posted.iter().flat_map(|ring| &ring.sends);
        sends.any(|send| send.ipsec == SendIpsec::Handle(handle))
    }

    /// How the sends of this poster have ended.
    #[inline(always)]
    pub(crate) fn completions(&mut self, poster: Poster) -> &mut Completions<B> {
        &mut self.ring_mut(poster).completions
    }

    #[inline(always)]
    pub(crate) fn ring_mut(&mut self, poster: Poster) -> &mut Ring<B> {
        &mut self.posted[poster as usize]
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
            completions: Completions::new(),
            late: Vec::new(),
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
    use vesper_esp::PacketBuf;

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

    #[test]
    fn the_turn_is_kept_while_the_limit_is_reached() {
        let mut sends = SendRing::new(8_000);
        let frame = PacketBuf::with_room(&[0; 1_014], 0, 0);
        for poster in [Poster::Host, Poster::Guest] {
            let mut waiting = vec![Send::new(1, frame.clone()); 200];
            sends.push_all(poster, &mut waiting, 0);
        }
        // A frame may leave every second, and is asked for twice in each.
        let mut sent = [0; 2];
        for time in (0..200_000).step_by(500) {
            let now = Timestamp::from_nanos(time * 1_000_000);
            let mut batch = VecDeque::new();
            let poster = sends.take_batch(now, 1, &mut batch);
            sent[poster as usize] += batch.len();
        }
        assert!(sent[0] > 100 && sent[0].abs_diff(sent[1]) <= 1, "{sent:?}");
    }
}
