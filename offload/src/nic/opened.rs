//! Packet mode for whole batches, in: open them and hand them over, with nothing else to do.

use arrayvec::ArrayVec;

use vesper_esp::{Buffer, Engine, Inbound, Verdict};
use vesper_sa::{Timestamp, VmId};

use super::receive::{OpenedBy, Step, add_opened, around_opened};
use super::{BATCH, Config, Nic, Processor};
use crate::arrivals::{Arrival, Arrivals, Class, Indicated, move_between};
use crate::capability::OffloadMode;
use crate::rings::{Queue, lock};
use crate::transfer::ReceivedIpsec;
use crate::unit::Offloaded;

/// What came of opening a batch as a whole.
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, and never moved far"
)]
pub(super) enum Opening<'a> {
    /// All are opened: by these, one for each run of the batch.
    All(ArrayVec<&'a Offloaded, BATCH>),
    /// Some were refused.
    Some(ArrayVec<Step<'a>, BATCH>),
    /// Nothing, and nothing is to be done to any of them.
    Untouched,
    /// Nothing: there is other work in it.
    Not,
}

impl<B: Buffer> Nic<B> {
    /// Packet mode for a whole batch, which is what nearly all batches are for. Adds the bytes of
    /// the packets, as received.
    #[inline(never)]
    pub(super) fn open_all<'a>(
        &self,
        config: &'a Config<B>,
        queue: &Queue<B>,
        engine: &mut Engine,
        now: Timestamp,
        batch: &mut Arrivals<B>,
        bytes: &mut usize,
    ) -> Opening<'a> {
        let mut sas: ArrayVec<&'a Offloaded, BATCH> = ArrayVec::new();
        let is_untouched = |run: &Arrival| !matches!(run.class, Class::Esp(_));
        if batch.runs.iter().all(is_untouched) {
            let owner = queue.owner;
            return match owner.and_then(|owner| config.unit.policies(owner)) {
                None => Opening::Untouched,
                Some(_) => Opening::Not,
            };
        }
        for run in &batch.runs {
            match run.class {
                Class::Esp(handle) => match config.unit.at(handle) {
                    Some(found) if found.offload.mode == OffloadMode::Packet => sas.push(found),
                    _ => return Opening::Not,
                },
                Class::Clear | Class::Unknown | Class::Copy => return Opening::Not,
            }
        }
        let mut to_open: ArrayVec<Inbound<'_, &mut B>, BATCH> = ArrayVec::new();
        let mut payloads = batch.payloads.make_contiguous().iter_mut();
        for (run, offloaded) in batch.runs.iter().zip(&sas) {
            for payload in payloads.by_ref().take(run.count) {
                *bytes += payload.data().len();
                let mut job = Inbound::new(payload);
                job.sa = Some(&offloaded.sa);
                to_open.push(job);
            }
        }
        engine.decapsulate(now, &|_, _| None, &mut to_open);
        if to_open.iter().all(is_opened) {
            return Opening::All(sas);
        }
        let runs = batch.runs.iter().zip(&sas);
        let each = runs.flat_map(|(run, offloaded)| core::iter::repeat_n(*offloaded, run.count));
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
        batch: &mut Arrivals<B>,
        sas: &[&Offloaded],
    ) {
        let opened = batch.len();
        let mut inner = lock(&queue.inner);
        let inner_ref = &mut *inner;
        let (room, loss) = inner_ref.room(queue);
        let room = room.min(opened);
        inner_ref.exchange(queue, room, &mut processor.recycled);
        let mut bytes = 0;
        let mut left = room;
        let mut opened_by = OpenedBy::new();
        let mut lost: ArrayVec<(Option<VmId>, usize), BATCH> = ArrayVec::new();
        for (run, offloaded) in batch.runs.drain(..).zip(sas) {
            let whose = queue.owner.unwrap_or_else(|| offloaded.sa.owner());
            add_opened(&mut opened_by, whose, run.count as u64);
            let owner = Some(whose);
            let what = |payload: &B| {
                let (link, ipsec) = around_opened(&offloaded.offload, run.link, payload.data());
                Indicated {
                    link,
                    vlan: run.vlan,
                    queue: queue.id,
                    owner,
                    ipsec,
                }
            };
            let mut delivered = left.min(run.count);
            left -= delivered;
            if delivered < run.count {
                lost.push((owner, run.count - delivered));
            }
            let surplus = run.count - delivered;
            while delivered > 0 {
                // Nearly always all of them are alike.
                let payloads = batch.payloads.iter().take(delivered);
                let Some(first) = batch.payloads.front().map(what) else {
                    break;
                };
                let checks = offloaded.offload.inner_checksum;
                let version = batch.payloads.front().and_then(version);
                let alike = payloads.take_while(|&payload| {
                    let is_alike =
                        self::version(payload) == version && (!checks || what(payload) == first);
                    bytes += if is_alike { payload.data().len() } else { 0 };
                    is_alike
                });
                // The first one is like itself.
                let count = alike.count().max(1);
                inner_ref.ready.extend(first, &mut batch.payloads, count);
                delivered -= count;
            }
            move_between(&mut batch.payloads, surplus, |free| {
                processor.recycled.push(free)
            });
        }
        inner_ref.indicated(queue, room, bytes, now);
        drop(inner);
        for (owner, count) in lost {
            for _ in 0..count {
                self.count_receive_loss(config, owner, loss);
            }
        }
        self.count_opened(config, &opened_by);
    }
}

impl<B: Buffer> Nic<B> {
    /// Puts a batch where it belongs to which nothing was to be done, in a queue without policies.
    #[inline(never)]
    pub(super) fn hand_over_untouched(
        &self,
        config: &Config<B>,
        queue: &Queue<B>,
        processor: &mut Processor<B>,
        now: Timestamp,
        batch: &mut Arrivals<B>,
    ) {
        let mut inner = lock(&queue.inner);
        let inner_ref = &mut *inner;
        let mut lost = 0;
        for run in batch.runs.drain(..) {
            let delivered = match run.class {
                // In buffers of the machine already.
                Class::Copy => run.count,
                _ => {
                    let delivered = inner_ref.room(queue).0.min(run.count);
                    inner_ref.exchange(queue, delivered, &mut processor.recycled);
                    delivered
                }
            };
            let lens = batch.payloads.iter().take(delivered);
            let bytes: usize = lens.map(|payload| payload.data().len()).sum();
            inner_ref.indicated(queue, delivered, bytes, now);
            let what = Indicated {
                link: run.link,
                vlan: run.vlan,
                queue: queue.id,
                owner: queue.owner,
                ipsec: ReceivedIpsec::Untouched,
            };
            inner_ref.ready.extend(what, &mut batch.payloads, delivered);
            let surplus = run.count - delivered;
            lost += surplus;
            move_between(&mut batch.payloads, surplus, |free| {
                processor.recycled.push(free)
            });
        }
        let (_, loss) = inner_ref.room(queue);
        drop(inner);
        for _ in 0..lost {
            self.count_receive_loss(config, queue.owner, loss);
        }
    }
}

/// What the packet says of its version.
#[inline]
fn version(payload: &impl Buffer) -> Option<u8> {
    payload.data().first().map(|first| first >> 4)
}

#[inline]
fn is_opened<B>(job: &Inbound<'_, B>) -> bool {
    matches!(job.verdict, Verdict::Opened(_))
}
