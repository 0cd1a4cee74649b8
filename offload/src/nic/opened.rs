//! Packet mode for whole batches, in: open them and hand them over, with nothing else to do.

use core::sync::atomic::Ordering;
use std::collections::VecDeque;

use arrayvec::ArrayVec;

use vesper_esp::{Buffer, Engine, Inbound, Verdict};
use vesper_sa::{Timestamp, VmId};

use super::receive::Step;
use super::{BATCH, Config, Nic, Processor};
use crate::capability::OffloadMode;
use crate::ethernet::Frame;
use crate::fate::Loss;
use crate::nic::large_send::checksum_is_right;
use crate::rings::{Class, Queue, Waiting, lock};
use crate::transfer::{Received, ReceivedIpsec};
use crate::unit::Offloaded;

/// What came of opening a batch as a whole.
pub(super) enum Opening<'a> {
    /// All are opened: so many in a row by each association.
    All(ArrayVec<(&'a Offloaded, usize), BATCH>),
    /// Some were refused.
    Some(ArrayVec<Step<'a>, BATCH>),
    /// Nothing: there is other work in it.
    Not,
}

impl<B: Buffer> Nic<B> {
    /// Packet mode for a whole batch, which is what nearly all batches are for.
    #[inline(never)]
    pub(super) fn open_all<'a>(
        &self,
        config: &'a Config<B>,
        engine: &mut Engine,
        now: Timestamp,
        batch: &mut [Waiting<B>],
    ) -> Opening<'a> {
        let mut runs: ArrayVec<(&'a Offloaded, usize), BATCH> = ArrayVec::new();
        let mut to_open: ArrayVec<Inbound<'_, &mut B>, BATCH> = ArrayVec::new();
        for waiting in batch {
            let Class::Esp(handle) = waiting.class else {
                return Opening::Not;
            };
            let found = match runs.last_mut() {
                Some((last, count)) if last.handle == handle => {
                    *count += 1;
                    *last
                }
                _ => match config.unit.at(handle) {
                    Some(found) if found.offload.mode == OffloadMode::Packet => {
                        runs.push((found, 1));
                        found
                    }
                    _ => return Opening::Not,
                },
            };
            let mut job = Inbound::new(&mut waiting.frame.payload);
            job.sa = Some(&found.sa);
            to_open.push(job);
        }
        engine.decapsulate(now, &|_, _| None, &mut to_open);
        if to_open.iter().all(is_opened) {
            return Opening::All(runs);
        }
        let each = runs
            .into_iter()
            .flat_map(|(offloaded, count)| core::iter::repeat_n(offloaded, count));
        let steps = to_open.iter().zip(each);
        Opening::Some(
            steps
                .map(|(job, offloaded)| match is_opened(job) {
                    true => Step::Opened(offloaded),
                    false => Step::Failed(offloaded.sa.owner()),
                })
                .collect(),
        )
    }

    /// Puts a batch that was opened in packet mode where it belongs.
    #[inline(never)]
    pub(super) fn hand_over_opened(
        &self,
        config: &Config<B>,
        queue: &Queue<B>,
        processor: &mut Processor<B>,
        now: Timestamp,
        batch: &mut VecDeque<Waiting<B>>,
        runs: &[(&Offloaded, usize)],
    ) {
        let opened = batch.len();
        let mut inner = lock(&queue.inner);
        let inner_ref = &mut *inner;
        let (room, loss) = match queue.owner {
            Some(_) => (inner_ref.posted.len(), Loss::NoBuffer),
            None => {
                let room = queue.ring.saturating_sub(inner_ref.ready.len());
                (room, Loss::RingFull)
            }
        };
        let room = room.min(opened);
        if queue.owner.is_some() {
            processor.recycled.extend(inner_ref.posted.drain(..room));
        }
        let mut bytes = 0;
        inner_ref.ready.reserve(room);
        let mut frames = Vec::from(core::mem::take(batch));
        let mut rest = frames.drain(..);
        let mut left = room;
        let mut lost: ArrayVec<(Option<VmId>, usize), BATCH> = ArrayVec::new();
        for (offloaded, count) in runs {
            let offload = &offloaded.offload;
            let owner = queue.owner.or(Some(offloaded.sa.owner()));
            let delivered = left.min(*count);
            left -= delivered;
            let received = rest.by_ref().take(delivered).map(|waiting| {
                let Frame {
                    payload,
                    link,
                    vlan,
                } = waiting.frame;
                let packet = payload.data();
                bytes += packet.len() as u64;
                let checksum = match offload.inner_checksum {
                    true => checksum_is_right(packet),
                    false => None,
                };
                let link = link.of_packet(packet, offload.rewrite.as_ref());
                Received {
                    frame: Frame {
                        payload,
                        link,
                        vlan,
                    },
                    queue: queue.id,
                    owner,
                    ipsec: ReceivedIpsec::Opened { checksum },
                }
            });
            inner_ref.ready.extend(received);
            if delivered < *count {
                lost.push((owner, count - delivered));
                let free = rest.by_ref().take(count - delivered);
                let free = free.map(|waiting| waiting.frame.payload);
                processor.recycled.extend(free);
            }
        }
        drop(rest);
        *batch = frames.into();
        if room > 0 {
            inner_ref.oldest.get_or_insert(now);
            queue.is_ready.store(true, Ordering::Relaxed);
        }
        inner_ref.counters.received += room as u64;
        inner_ref.counters.bytes += bytes;
        drop(inner);
        for (owner, count) in lost {
            for _ in 0..count {
                self.count_receive_loss(config, owner, loss);
            }
        }
        self.count_opened(config, queue, opened as u64);
    }
}

#[inline]
fn is_opened<B>(job: &Inbound<'_, B>) -> bool {
    matches!(job.verdict, Verdict::Opened(_))
}
