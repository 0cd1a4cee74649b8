//! Packet mode for whole batches, out: seal them and send them, with nothing else to do.

use core::ptr;
use std::collections::VecDeque;

use arrayvec::ArrayVec;

use vesper_esp::{Buffer, Engine, Outbound, Verdict};
use vesper_sa::{Timestamp, VmId};

use super::choose::Chooser;
use super::transmit::{Protected, Step};
use super::{BATCH, Config, Nic, Processor};
use crate::completions::SentIds;
use crate::ethernet::{Frame, MacAddress, VlanId};
use crate::fate::{Loss, SendError};
use crate::rings::{Pending, VmPort, lock};
use crate::unit::Offloaded;

/// What came of sealing a batch as a whole.
pub(super) enum Sealing<'a> {
    /// All are sealed: so many in a row by each association.
    All {
        runs: ArrayVec<(&'a Offloaded, usize), BATCH>,
        /// Of the frames as posted.
        bytes: usize,
    },
    /// Some were refused.
    Some {
        protected: Protected<'a>,
        /// Of the frames as posted.
        bytes: usize,
    },
    /// Nothing: there is other work in it.
    Not,
}

impl<B: Buffer> Nic<B> {
    /// Packet mode for a whole batch, which is what nearly all batches are for: nothing else
    /// is to be done to any of its frames.
    #[inline(never)]
    pub(super) fn seal_all<'a>(
        &self,
        config: &'a Config<B>,
        owner: VmId,
        engine: &mut Engine,
        now: Timestamp,
        batch: &mut [Pending<B>],
    ) -> Sealing<'a> {
        if config.faulty {
            return Sealing::Not;
        }
        let mut runs: ArrayVec<(&'a Offloaded, usize), BATCH> = ArrayVec::new();
        let mut to_seal: ArrayVec<Outbound<'_, &mut B>, BATCH> = ArrayVec::new();
        let mut chooser = Chooser::new(config, owner);
        let mut bytes = 0;
        for pending in batch {
            let found = chooser.tunnel(pending.ipsec, &pending.frame);
            let Some(found) = found.filter(|_| !pending.checksum && !pending.is_segment) else {
                return Sealing::Not;
            };
            match runs.last_mut() {
                Some((last, count)) if ptr::eq(*last, found) => *count += 1,
                _ => runs.push((found, 1)),
            }
            bytes += pending.frame.payload.data().len();
            to_seal.push(Outbound::new(&found.sa, &mut pending.frame.payload));
        }
        engine.encapsulate(now, &mut to_seal);
        if to_seal.iter().all(is_sealed) {
            return Sealing::All { runs, bytes };
        }
        let mut protected = Protected {
            steps: ArrayVec::new(),
            errors: ArrayVec::new(),
        };
        let each = runs
            .into_iter()
            .flat_map(|(offloaded, count)| core::iter::repeat_n(offloaded, count));
        for (job, offloaded) in to_seal.iter().zip(each) {
            protected.steps.push(match refusal(job) {
                None => Step::Seal(offloaded),
                Some(error) => {
                    protected.errors.push(error);
                    Step::Fail
                }
            });
        }
        Sealing::Some { protected, bytes }
    }

    /// Sends and completes a batch of frames that are all sealed in packet mode.
    #[inline(never)]
    pub(super) fn send_sealed(
        &self,
        config: &Config<B>,
        port: &VmPort<B>,
        processor: &mut Processor<B>,
        batch: &mut VecDeque<Pending<B>>,
        runs: &[(&Offloaded, usize)],
        bytes: usize,
    ) {
        let mut local: ArrayVec<Frame<B>, BATCH> = ArrayVec::new();
        let mut route = Route::default();
        let count = batch.len() as u64;
        let mut failed = 0;
        let mut ids = SentIds::NONE;
        let mut frames = Vec::from(core::mem::take(batch));
        let mut rest = frames.drain(..);
        let mut sends = lock(&port.sends);
        for (offloaded, count) in runs {
            let offload = &offloaded.offload;
            let link = offloaded.link();
            let is_local = |route: &mut Route, destination, vlan| {
                config.switch.is_some() && route.is_local(config, destination, vlan)
            };
            // The whole run gets the same header.
            let header = link
                .filter(|link| !is_local(&mut route, link.destination, offload.vlan))
                .map(|link| link.header(offload.vlan));
            for pending in rest.by_ref().take(*count) {
                let mut frame = pending.frame;
                let closed = match &header {
                    Some(header) => frame.close_with(header),
                    None => {
                        frame.dress(offload.vlan, offload.rewrite.as_ref());
                        if is_local(&mut route, frame.link.destination, frame.vlan) {
                            local.push(frame);
                            ids = sends.completions.also_sent(ids, pending.id);
                            continue;
                        }
                        frame.close()
                    }
                };
                match closed {
                    Ok(buffer) => {
                        processor.wire.push(buffer);
                        ids = sends.completions.also_sent(ids, pending.id);
                    }
                    Err(frame) => {
                        failed += 1;
                        // Completions keep their order.
                        sends.completions.sent(ids);
                        ids = SentIds::NONE;
                        let error = SendError::Lost(Loss::NoRoom);
                        let free = &mut processor.recycled;
                        sends.fail_frame(pending.id, false, frame, error, free);
                    }
                }
            }
        }
        sends.completions.sent(ids);
        sends.counters.sent_bytes += bytes as u64;
        sends.counters.sealed += count;
        sends.counters.sent += count - failed;
        drop(sends);
        drop(rest);
        *batch = frames.into();
        if !local.is_empty() {
            self.send_locally(config, port, processor, local);
        }
    }
}

/// Whether the NIC switch has something to do with frames for an address: what it has found
/// for the one before.
#[derive(Default)]
pub(super) struct Route {
    to: Option<(MacAddress, Option<VlanId>)>,
    is_local: bool,
}

impl Route {
    /// Whether a frame goes to a function of this adapter, or to a group.
    #[inline]
    pub(super) fn is_local<B: Buffer>(
        &mut self,
        config: &Config<B>,
        destination: MacAddress,
        vlan: Option<VlanId>,
    ) -> bool {
        let to = (destination, vlan);
        if self.to != Some(to) {
            let queue = config.filters.classify(to.0, to.1);
            self.to = Some(to);
            self.is_local = to.0.is_group() || queue.is_some_and(|queue| config.is_switched(queue));
        }
        self.is_local
    }
}

#[inline]
pub(super) fn is_sealed<B>(job: &Outbound<'_, B>) -> bool {
    matches!(job.verdict, Verdict::Sealed { .. })
}

/// Why the engine has not sealed a packet, if it has not.
pub(super) fn refusal<B>(job: &Outbound<'_, B>) -> Option<SendError> {
    match job.verdict {
        Verdict::Sealed { .. } => None,
        Verdict::TooBig { mtu } => Some(SendError::TooBig { mtu }),
        Verdict::Drop(reason) => Some(SendError::Esp(reason)),
        _ => Some(SendError::Lost(Loss::NotFramed)),
    }
}
