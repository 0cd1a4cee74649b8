//! A cable between two hosts of one process: frames change hands without a copy.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rtrb::{Consumer, Producer, RingBuffer};
use vesper_esp::{Buffer, PacketBuf, prefetch};
use vesper_sa::Timestamp;

use super::sys::prefetch_to_write;
use super::{Incoming, Pool, Port, PortStatus, append};
use crate::node::Waker;

/// Frames that a cable holds in each direction: few enough to stay in a processor's cache.
const FRAMES: usize = 512;

/// How many buffers one end may have of the other's before it gives empty ones back. As long as
/// frames go both ways they bring their buffers with them, and nothing else has to cross.
const OWED: usize = 256;

/// One end of a cable. Of the frames that it takes out beyond those that it sends it gives the
/// buffers back, empty, so that neither end runs out of them.
#[derive(Debug)]
pub struct Cable {
    frames: Consumer<PacketBuf>,
    empties_back: Producer<PacketBuf>,
    to_peer: Producer<PacketBuf>,
    empties: Consumer<PacketBuf>,
    /// Buffers of the peer that are here; negative: of ours that are there.
    owed: isize,
    own: Arc<End>,
    peer: Arc<End>,
    status: PortStatus,
}

/// What the other end sees of an end.
#[derive(Debug)]
struct End {
    waker: Waker,
    /// It has frames that there was no room for.
    is_blocked: AtomicBool,
    /// Buffers that its pool may have; 0 while nobody knows.
    buffers: AtomicUsize,
}

impl Cable {
    /// A cable for IP packets of up to `mtu` bytes.
    pub fn new(mtu: u32) -> io::Result<(Self, Self)> {
        let end = || -> io::Result<Arc<End>> {
            Ok(Arc::new(End {
                waker: Waker::new()?,
                is_blocked: AtomicBool::new(false),
                buffers: AtomicUsize::new(0),
            }))
        };
        let (left, right) = (end()?, end()?);
        let (to_right, from_left) = RingBuffer::new(FRAMES);
        let (to_left, from_right) = RingBuffer::new(FRAMES);
        // An empty buffer goes back for each frame that was taken out; as long as it has not
        // been collected there is one frame fewer on the way.
        let (back_to_left, empties_left) = RingBuffer::new(2 * FRAMES);
        let (back_to_right, empties_right) = RingBuffer::new(2 * FRAMES);
        let status = PortStatus {
            up: true,
            mtu,
            ..PortStatus::default()
        };
        Ok((
            Self {
                frames: from_right,
                empties_back: back_to_right,
                to_peer: to_right,
                empties: empties_left,
                owed: 0,
                own: Arc::clone(&left),
                peer: Arc::clone(&right),
                status: status.clone(),
            },
            Self {
                frames: from_left,
                empties_back: back_to_left,
                to_peer: to_left,
                empties: empties_right,
                owed: 0,
                own: right,
                peer: left,
                status,
            },
        ))
    }

    fn collect_empties(&mut self, pool: &mut Pool) {
        if self.own.buffers.load(Ordering::Relaxed) != pool.capacity {
            self.own.buffers.store(pool.capacity, Ordering::Relaxed);
        }
        let count = self.empties.slots();
        if count == 0 {
            return;
        }
        if let Ok(chunk) = self.empties.read_chunk(count) {
            chunk.into_iter().for_each(|buffer| pool.give(buffer));
            self.owed += count as isize;
        }
    }

    /// How many frames may be taken in: there have to be buffers to give back for them, once the
    /// peer lacks more than it can easily spare.
    fn room(&self, pool: &Pool) -> usize {
        let most = self.allowance(pool).saturating_sub_signed(self.owed);
        match most < FRAMES {
            true => most + pool.free().min(self.empties_back.slots()),
            false => most,
        }
    }

    /// Gives buffers back, if the peer lacks more of them than it can easily spare.
    fn settle(&mut self, pool: &mut Pool) {
        let allowance = self.allowance(pool);
        let owed = usize::try_from(self.owed).unwrap_or(0);
        if owed <= allowance {
            return;
        }
        let count = (owed - allowance / 2)
            .min(pool.free())
            .min(self.empties_back.slots());
        if let Ok(chunk) = self.empties_back.write_chunk_uninit(count) {
            chunk.fill_from_iter(std::iter::from_fn(|| pool.free.pop()));
            self.owed -= count as isize;
        }
    }

    /// How many buffers either end can spare.
    fn allowance(&self, pool: &Pool) -> usize {
        let peer = self.peer.buffers.load(Ordering::Relaxed);
        OWED.min(pool.capacity.min(peer) / 16)
    }

    /// Asks for the memory that the next frames for the peer are written to: it is in the cache of
    /// the peer, which has read it.
    fn prefetch_slots(&mut self, count: usize) {
        if let Ok(mut chunk) = self.to_peer.write_chunk_uninit(count) {
            let (first, second) = chunk.as_mut_slices();
            for slots in [first, second] {
                // Two of them are shorter than a line.
                for slot in slots.iter().step_by(2) {
                    prefetch_to_write(slot.as_ptr().cast());
                }
            }
        }
    }
}

impl Port for Cable {
    fn receive(
        &mut self,
        _: Timestamp,
        pool: &mut Pool,
        most: usize,
        into: &mut Vec<Incoming>,
    ) -> usize {
        self.collect_empties(pool);
        let count = self.frames.slots().min(most).min(self.room(pool));
        if count == 0 {
            return 0;
        }
        if let Ok(chunk) = self.frames.read_chunk(count) {
            for frame in chunk {
                self.status.received_bytes += frame.data().len() as u64;
                // Another processor has written it.
                prefetch(frame.data());
                append(into, frame);
            }
        }
        self.status.received += count as u64;
        self.owed += count as isize;
        self.settle(pool);
        if self.peer.is_blocked.load(Ordering::Relaxed) {
            self.peer.waker.wake();
        }
        count
    }

    fn send(&mut self, _: Timestamp, pool: &mut Pool, frames: &mut Vec<PacketBuf>) {
        self.collect_empties(pool);
        let count = self.to_peer.slots().min(frames.len());
        self.own
            .is_blocked
            .store(count < frames.len(), Ordering::Relaxed);
        if count == 0 {
            return;
        }
        let bytes = frames[..count].iter().map(|frame| frame.data().len());
        self.status.sent_bytes += bytes.sum::<usize>() as u64;
        self.status.sent += count as u64;
        self.owed -= count as isize;
        self.prefetch_slots(count);
        if let Ok(chunk) = self.to_peer.write_chunk_uninit(count) {
            chunk.fill_from_iter(frames.drain(..count));
        }
        self.peer.waker.wake();
    }

    fn status(&self) -> PortStatus {
        PortStatus {
            up: !self.frames.is_abandoned(),
            ..self.status.clone()
        }
    }

    fn wake(&self) -> Option<BorrowedFd<'_>> {
        Some(self.own.waker.as_fd())
    }

    fn prepare_sleep(&mut self, sleeping: bool) -> bool {
        self.own.waker.set_asleep(sleeping);
        let has_room = self.own.is_blocked.load(Ordering::Relaxed) && self.to_peer.slots() > 0;
        sleeping && (!self.frames.is_empty() || has_room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::ZERO;

    #[test]
    fn frames_cross_in_order_and_buffers_come_back() {
        let (mut left, mut right) = Cable::new(1500).unwrap();
        let (mut pool, mut other) = (Pool::new(100, 100), Pool::new(100, 100));
        let mut received = Vec::new();
        for round in 0..200_u32 {
            let mut frames: Vec<_> = (0..40)
                .map(|index| pool.copy(&(round * 40 + index).to_be_bytes()).unwrap())
                .collect();
            left.send(NOW, &mut pool, &mut frames);
            assert!(frames.is_empty());
            received.clear();
            assert_eq!(right.receive(NOW, &mut other, 60, &mut received), 40);
            for (index, incoming) in (0..).zip(&received) {
                assert_eq!(incoming.frame.data(), (round * 40 + index).to_be_bytes());
            }
            received
                .drain(..)
                .for_each(|incoming| other.give(incoming.frame));
            // All but a sixteenth of what a pool has.
            assert!(pool.free() + left.empties.slots() >= 94);
            assert_eq!(other.free(), 100);
        }
        let status = right.status();
        assert_eq!((status.received, status.received_bytes), (8_000, 32_000));
    }

    #[test]
    fn frames_that_go_both_ways_bring_their_buffers_along() {
        let (left, right) = Cable::new(1500).unwrap();
        // Not full: a full pool takes no more.
        let pool = || {
            let mut pool = Pool::new(100, 10);
            pool.free.truncate(90);
            pool
        };
        let mut ends = [(left, pool()), (right, pool())];
        for _ in 0..200 {
            for (end, pool) in &mut ends {
                let mut received = Vec::new();
                end.receive(NOW, pool, 60, &mut received);
                let frames = received.drain(..);
                frames.for_each(|incoming| pool.give(incoming.frame));
                let mut frames: Vec<_> = (0..5).map(|_| pool.copy(&[1]).unwrap()).collect();
                end.send(NOW, pool, &mut frames);
                assert_eq!(end.empties.slots(), 0);
            }
        }
        let free: usize = ends.iter().map(|(_, pool)| pool.free()).sum();
        assert_eq!(free + 5, 180);
    }

    #[test]
    fn a_full_cable_keeps_the_rest_and_says_when_there_is_room() {
        let (mut left, mut right) = Cable::new(1500).unwrap();
        let (mut pool, mut other) = (Pool::new(2048, 10), Pool::new(2048, 10));
        let mut frames: Vec<_> = (0..FRAMES + 10).map(|_| pool.copy(&[1]).unwrap()).collect();
        left.send(NOW, &mut pool, &mut frames);
        assert_eq!(frames.len(), 10);
        assert!(!left.prepare_sleep(true));
        right.receive(NOW, &mut other, 20, &mut Vec::new());
        assert!(left.prepare_sleep(true));
        left.prepare_sleep(false);
        left.send(NOW, &mut pool, &mut frames);
        assert!(frames.is_empty());
    }

    #[test]
    fn without_free_buffers_frames_stay_on_the_cable() {
        let (mut left, mut right) = Cable::new(1500).unwrap();
        let (mut pool, mut empty) = (Pool::new(4, 10), Pool::new(0, 10));
        let mut frames = vec![pool.copy(&[1]).unwrap()];
        left.send(NOW, &mut pool, &mut frames);
        assert_eq!(right.receive(NOW, &mut empty, 20, &mut Vec::new()), 0);
        assert!(right.prepare_sleep(true));
        drop(left);
        assert!(!right.status().up);
    }
}
