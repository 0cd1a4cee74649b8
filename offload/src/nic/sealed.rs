//! Packet mode for whole batches, out: seal them and send them, with nothing else to do.

use core::ptr;
use std::collections::VecDeque;

use arrayvec::ArrayVec;

use vesper_esp::{Buffer, Engine, Outbound, Verdict};
use vesper_sa::Timestamp;

use super::choose::Chooser;
use super::send::violation;
use super::transmit::{Protected, Step};
use super::{BATCH, Config, Nic, Processor};
use crate::completions::SentIds;
use crate::ethernet::{Frame, HEADER_LEN, Link, MacAddress, VlanId, parse};
use crate::fate::{Loss, SendError};
use crate::flow_key::FrameKey;
use crate::rings::{VmPort, lock};
use crate::sends::{Pending, Poster, payload_len};
use crate::transfer::{Send, SendIpsec};
use crate::unit::Offloaded;

/// Frames of a batch that stand together, have the same header and are sealed by the same
/// association.
pub(super) struct Run<'a> {
    offloaded: &'a Offloaded,
    link: Link,
    count: usize,
}

impl Run<'_> {
    fn is_like(&self, other: &Self) -> bool {
        ptr::eq(self.offloaded, other.offloaded) && self.link == other.link
    }
}

/// What came of sealing a batch as a whole.
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, and never moved far"
)]
pub(super) enum Sealing<'a> {
    /// All are sealed; their headers are gone.
    All {
        runs: ArrayVec<Run<'a>, BATCH>,
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
    /// is to be done to any of its frames. Those of which some were refused are in `opened`
    /// afterwards.
    #[inline(never)]
    pub(super) fn seal_all<'a>(
        &self,
        config: &'a Config<B>,
        from: (&VmPort<B>, Poster),
        engine: &mut Engine,
        now: Timestamp,
        batch: &mut VecDeque<Send<B>>,
        opened: &mut Vec<Pending<B>>,
    ) -> Sealing<'a> {
        if config.faulty {
            return Sealing::Not;
        }
        let mut runs: ArrayVec<Run<'a>, BATCH> = ArrayVec::new();
        let mut to_seal: ArrayVec<Outbound<'_, &mut B>, BATCH> = ArrayVec::new();
        let mut chooser = Chooser::new(config, from.0.vm);
        let mut key: Option<(FrameKey, SendIpsec)> = None;
        let mut bytes = 0;
        let sends = batch.make_contiguous();
        for send in sends.iter_mut() {
            let frame = send.frame.data();
            let len = payload_len(frame);
            // Neighbours of one flow are recognised by a compare.
            let is_known = key.as_ref().is_some_and(|(key, ipsec)| {
                *ipsec == send.ipsec && !send.checksum && key.matches(frame)
            });
            if !is_known {
                let run = match send.checksum {
                    true => None,
                    false => begin_run(&mut chooser, from, send.ipsec, frame),
                };
                let Some(run) = run else {
                    drop(to_seal);
                    put_back(&runs, sends);
                    return Sealing::Not;
                };
                key = FrameKey::of(frame).map(|key| match chooser.ignores_ports(send.ipsec) {
                    true => (key.of_all_ports(), send.ipsec),
                    false => (key, send.ipsec),
                });
                match runs.last() {
                    Some(last) if last.is_like(&run) => {}
                    _ => runs.push(run),
                }
            }
            let Some(run) = runs.last_mut() else { break };
            run.count += 1;
            bytes += len;
            send.frame.trim_front(HEADER_LEN);
            to_seal.push(Outbound::new(&run.offloaded.sa, &mut send.frame));
        }
        engine.encapsulate(now, &mut to_seal);
        if to_seal.iter().all(is_sealed) {
            return Sealing::All { runs, bytes };
        }
        let mut protected = Protected {
            steps: ArrayVec::new(),
            errors: ArrayVec::new(),
        };
        let refusals: ArrayVec<_, BATCH> = to_seal.iter().map(refusal).collect();
        drop(to_seal);
        let each = runs
            .iter()
            .flat_map(|run| core::iter::repeat_n(run, run.count));
        for ((send, error), run) in batch.drain(..).zip(refusals).zip(each) {
            protected.steps.push(match error {
                None => Step::Seal(run.offloaded),
                Some(_) => Step::Fail,
            });
            protected.errors.extend(error);
            let frame = Frame {
                payload: send.frame,
                link: run.link,
                vlan: from.0.address.vlan,
            };
            opened.push(Pending {
                id: send.id,
                is_segment: false,
                frame,
                ipsec: send.ipsec,
                segment_size: None,
                checksum: false,
            });
        }
        Sealing::Some { protected, bytes }
    }

    /// Sends and completes a batch of frames that are all sealed in packet mode.
    #[inline(never)]
    pub(super) fn send_sealed(
        &self,
        config: &Config<B>,
        (port, poster): (&VmPort<B>, Poster),
        processor: &mut Processor<B>,
        batch: &mut VecDeque<Send<B>>,
        runs: &[Run<'_>],
        bytes: usize,
    ) {
        let mut local: ArrayVec<Frame<B>, BATCH> = ArrayVec::new();
        let mut route = Route::default();
        let count = batch.len() as u64;
        let mut failed = 0;
        let mut ids = SentIds::NONE;
        let mut sent = Vec::from(core::mem::take(batch));
        let mut rest = sent.drain(..);
        let mut sends = lock(&port.sends);
        for run in runs {
            let vlan = run.offloaded.offload.vlan;
            let link = run.offloaded.link(run.link);
            // The whole run gets the same header.
            let header = link.header(vlan);
            let is_local =
                config.switch.is_some() && route.is_local(config, link.destination, vlan);
            processor.wire.reserve(run.count);
            for send in rest.by_ref().take(run.count) {
                let Send {
                    id,
                    frame: mut payload,
                    ..
                } = send;
                if !is_local && header.put_before(&mut payload) {
                    processor.wire.push(payload);
                    ids = sends.completions(poster).also_sent(ids, id);
                    continue;
                }
                let frame = Frame {
                    payload,
                    link,
                    vlan,
                };
                if is_local {
                    local.push(frame);
                    ids = sends.completions(poster).also_sent(ids, id);
                    continue;
                }
                failed += 1;
                // Completions keep their order.
                sends.completions(poster).sent(ids);
                ids = SentIds::NONE;
                let error = SendError::Lost(Loss::NoRoom);
                sends.fail_frame(poster, id, false, frame, error, &mut processor.recycled);
            }
        }
        sends.completions(poster).sent(ids);
        sends.counters.sent_bytes += bytes as u64;
        sends.counters.sealed += count;
        sends.counters.sent += count - failed;
        drop(sends);
        drop(rest);
        *batch = sent.into();
        if !local.is_empty() {
            self.send_locally(config, port, processor, local);
        }
    }

    /// Sends a batch of frames of the host with which nothing is to be done any more, if that is
    /// what all of them are. Returns their bytes, as posted.
    #[inline(never)]
    pub(super) fn send_finished(
        &self,
        config: &Config<B>,
        port: &VmPort<B>,
        processor: &mut Processor<B>,
        batch: &mut VecDeque<Send<B>>,
    ) -> Option<usize> {
        if config.faulty {
            return None;
        }
        let is_on_vlan = |frame: &[u8]| match frame.get(12..14) {
            // A tag may have a priority alone, and the VLAN is still to be put in.
            Some([0x81, 0]) => parse(frame).is_ok_and(|(_, vlan, _)| vlan.is_some()),
            Some(_) => port.address.vlan.is_none(),
            None => false,
        };
        // A frame for a function of this adapter, or for a group.
        let is_local = |frame: &[u8]| {
            config.switch.is_some()
                && parse(frame).map_or(true, |(link, vlan, _)| {
                    let vlan = vlan.or(port.address.vlan);
                    Route::default().is_local(config, link.destination, vlan)
                })
        };
        let mut bytes = 0;
        let mut header: Option<[u8; 16]> = None;
        for send in batch.iter() {
            let frame = send.frame.data();
            if send.ipsec != SendIpsec::Done || send.checksum {
                return None;
            }
            // Neighbours have the same header, tag and all.
            if header.is_none() || frame.first_chunk() != header.as_ref() {
                if !is_on_vlan(frame) || is_local(frame) {
                    return None;
                }
                header = frame.first_chunk().copied();
            }
            bytes += payload_len(frame);
        }
        let count = batch.len() as u64;
        let mut ids = SentIds::NONE;
        let mut sent = Vec::from(core::mem::take(batch));
        let mut sends = lock(&port.sends);
        let poster = Poster::Host;
        processor.wire.reserve(sent.len());
        for send in sent.drain(..) {
            ids = sends.completions(poster).also_sent(ids, send.id);
            processor.wire.push(send.frame);
        }
        sends.completions(poster).sent(ids);
        sends.counters.sent_bytes += bytes as u64;
        sends.counters.sent += count;
        drop(sends);
        *batch = sent.into();
        Some(bytes)
    }
}

/// Puts the headers back that were taken off the first frames of a batch.
#[cold]
fn put_back<B: Buffer>(runs: &[Run<'_>], sends: &mut [Send<B>]) {
    let each = runs
        .iter()
        .flat_map(|run| core::iter::repeat_n(run.link.header(None), run.count));
    for (send, header) in sends.iter_mut().zip(each) {
        // It was there a moment ago.
        let _ = header.put_before(&mut send.frame);
    }
}

#[inline(never)]
fn begin_run<'a, B: Buffer>(
    chooser: &mut Chooser<'a, B>,
    from: (&VmPort<B>, Poster),
    ipsec: SendIpsec,
    frame: &[u8],
) -> Option<Run<'a>> {
    let (link, tag, len) = parse(frame).ok()?;
    if len != HEADER_LEN || violation(from, &link, tag, ipsec).is_some() {
        return None;
    }
    Some(Run {
        offloaded: chooser.tunnel(ipsec, &link, frame.get(len..)?)?,
        link,
        count: 0,
    })
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
