//! Software IPsec, out: ESP by software, or made for the adapter to encrypt, of whole batches or
//! frame by frame.

use arrayvec::ArrayVec;

use vesper_esp::{Buffer, Outbound, Verdict};
use vesper_sa::{Timestamp, VmId};

use super::Host;
use super::outbound::{Batch, Plan, Way};
use super::posting::Posting;
use crate::ethernet::{Frame, HEADER_LEN, Link};
use crate::fate::Loss;
use crate::nic::{BATCH, fill_checksum};
use crate::transfer::{HostSend, SendIpsec};

/// Frames that software makes ESP packets of, with nothing else to do: all of a batch so far, or
/// none. Their headers are still on.
#[derive(Debug)]
pub(super) struct Whole<B> {
    frames: Vec<B>,
    runs: Vec<Run>,
}

/// Frames that stand together, with one plan and one header.
#[derive(Clone, Copy, Debug)]
struct Run {
    plan: u32,
    link: Link,
    count: usize,
}

impl<B> Default for Whole<B> {
    fn default() -> Self {
        Self {
            frames: Vec::new(),
            runs: Vec::new(),
        }
    }
}

impl<B> Whole<B> {
    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Adds a frame with this plan, and the header that the plan was made for.
    #[inline(always)]
    pub(super) fn push(&mut self, frame: B, plan: u32, link: &Link) {
        self.frames.push(frame);
        match self.runs.last_mut() {
            Some(run) if run.plan == plan => run.count += 1,
            _ => self.runs.push(Run {
                plan,
                link: *link,
                count: 1,
            }),
        }
    }
}

/// A frame that was taken apart, and the number of its plan.
#[derive(Debug)]
pub(super) struct Planned<B> {
    frame: Frame<B>,
    plan: u32,
    /// Why ESP refused it.
    refused: Option<Loss>,
    /// It is where it belongs, and its buffer is free.
    is_delivered: bool,
}

impl<B> Planned<B> {
    /// With nothing left to be done to it.
    const fn new(frame: Frame<B>, plan: u32) -> Self {
        Self {
            frame,
            plan,
            refused: None,
            is_delivered: false,
        }
    }
}

impl<B: Buffer> Host<B> {
    /// As [`encapsulate`](Self::encapsulate) and [`route`](Self::route), for frames with which
    /// nothing else is to be done.
    #[inline(never)]
    pub(super) fn seal(
        &mut self,
        vm: VmId,
        plans: &[Plan],
        whole: &mut Whole<B>,
        posting: &mut Posting<B>,
    ) {
        let refusals = self.seal_all(posting.now, plans, whole);
        let Whole { frames, runs } = whole;
        let mut sealed = 0;
        let mut frames = frames.drain(..).zip(refusals);
        for run in runs.drain(..) {
            let (form, ipsec, handle) = match plans.get(run.plan as usize) {
                Some(Plan::Software(_, form)) => (form, SendIpsec::Done, None),
                Some(Plan::Frame(_, form, handle)) => {
                    (form, SendIpsec::Handle(*handle), Some(*handle))
                }
                _ => continue,
            };
            // All of a run get the same header.
            let mut header = None;
            for (mut frame, refusal) in frames.by_ref().take(run.count) {
                if let Some(loss) = refusal {
                    self.lose(Some(vm), frame, loss);
                    continue;
                }
                sealed += 1;
                let header = header.get_or_insert_with(|| {
                    let link = run.link.of_packet(frame.data(), form.rewrite.as_ref());
                    link.header(form.vlan)
                });
                match header.put_before(&mut frame) {
                    true => posting.push(HostSend::new(frame), ipsec, handle),
                    false => self.lose(Some(vm), frame, Loss::NoRoom),
                }
            }
        }
        self.count(vm, |counters| counters.sealed += sealed);
    }

    /// Takes the headers off and makes ESP packets of the frames; why that was refused.
    fn seal_all(
        &mut self,
        now: Timestamp,
        plans: &[Plan],
        whole: &mut Whole<B>,
    ) -> ArrayVec<Option<Loss>, BATCH> {
        let Whole { frames, runs } = whole;
        let mut software: ArrayVec<Outbound<'_, &mut B>, BATCH> = ArrayVec::new();
        let mut framed: ArrayVec<Outbound<'_, &mut B>, BATCH> = ArrayVec::new();
        let mut rest = frames.iter_mut();
        for run in runs.iter() {
            let (sa, jobs) = match plans.get(run.plan as usize) {
                Some(Plan::Software(sa, _)) => (sa, &mut software),
                Some(Plan::Frame(sa, ..)) => (sa, &mut framed),
                _ => continue,
            };
            for frame in rest.by_ref().take(run.count) {
                frame.trim_front(HEADER_LEN);
                jobs.push(Outbound::new(sa, frame));
            }
        }
        self.engine.encapsulate(now, &mut software);
        self.engine.frame(now, &mut framed);
        let mut software = software.iter().map(refusal);
        let mut framed = framed.iter().map(refusal);
        let mut refusals: ArrayVec<Option<Loss>, BATCH> = ArrayVec::new();
        for run in runs.iter() {
            match plans.get(run.plan as usize) {
                Some(Plan::Software(..)) => refusals.extend(software.by_ref().take(run.count)),
                _ => refusals.extend(framed.by_ref().take(run.count)),
            }
        }
        refusals
    }

    /// Takes the frames apart that were to be sealed with nothing else to do: something else has
    /// come behind them.
    #[cold]
    pub(super) fn take_apart(&mut self, batch: &mut Batch<B>) {
        let Whole { frames, runs } = &mut batch.whole;
        let plans = runs.drain(..);
        let plans = plans.flat_map(|run| core::iter::repeat_n(run.plan, run.count));
        for (frame, plan) in frames.drain(..).zip(plans) {
            match Frame::open(frame) {
                Ok(frame) => batch.planned.push(Planned::new(frame, plan)),
                Err((buffer, _)) => self.lose(Some(batch.vm), buffer, Loss::Malformed),
            }
        }
    }

    /// Takes a frame apart, and cuts and completes it if the adapter does not.
    #[inline(never)]
    pub(super) fn prepare(&mut self, batch: &mut Batch<B>, send: HostSend<B>) {
        let Batch { plans, planned, .. } = batch;
        let Some(plan) = plans.last() else { return };
        let number = plans.len() as u32 - 1;
        let opened = match Frame::open(send.frame) {
            Ok(frame) => frame,
            Err((buffer, _)) => return self.lose(Some(batch.vm), buffer, Loss::Malformed),
        };
        let mut frame = Planned::new(opened, number);
        if matches!(plan, Plan::Lose(_)) {
            return planned.push(frame);
        }
        match send.segment_size {
            None => {
                if send.checksum {
                    fill_checksum(frame.frame.payload.data_mut());
                }
                planned.push(frame);
            }
            Some(size) => match self.nic.cut(&frame.frame, size) {
                Some(segments) => {
                    self.nic.recycle(frame.frame.payload);
                    let segments = segments.into_iter();
                    planned.extend(segments.map(|frame| Planned::new(frame, number)));
                }
                None => self.lose(Some(batch.vm), frame.frame.payload, Loss::LargeSend),
            },
        }
    }

    /// Software's part of ESP, and the form of the frames around it.
    pub(super) fn encapsulate(
        &mut self,
        vm: VmId,
        now: Timestamp,
        plans: &[Plan],
        frames: &mut [Planned<B>],
    ) {
        let has_work = |plan: &Plan| matches!(plan, Plan::Software(..) | Plan::Frame(..));
        if !plans.iter().any(has_work) {
            return;
        }
        let (mut software, mut framed) = (Vec::new(), Vec::new());
        for planned in frames.iter_mut() {
            let packet = &mut planned.frame.payload;
            match plans.get(planned.plan as usize) {
                Some(Plan::Software(sa, _)) => software.push(Outbound::new(sa, packet)),
                Some(Plan::Frame(sa, ..)) => framed.push(Outbound::new(sa, packet)),
                _ => {}
            }
        }
        self.engine.encapsulate(now, &mut software);
        self.engine.frame(now, &mut framed);
        let software: Vec<_> = software.iter().map(refusal).collect();
        let framed: Vec<_> = framed.iter().map(refusal).collect();
        let (mut software, mut framed) = (software.into_iter(), framed.into_iter());
        let mut sealed = 0;
        for planned in frames.iter_mut() {
            let (refused, form) = match plans.get(planned.plan as usize) {
                Some(Plan::Software(_, form)) => (software.next(), form),
                Some(Plan::Frame(_, form, _)) => (framed.next(), form),
                _ => continue,
            };
            planned.refused = refused.flatten();
            if planned.refused.is_none() {
                sealed += 1;
                form.apply(&mut planned.frame);
            }
        }
        self.count(vm, |counters| counters.sealed += sealed);
    }

    /// Sends frames to where their plans say.
    pub(super) fn route(
        &mut self,
        vm: VmId,
        plans: &[Plan],
        frames: &mut Vec<Planned<B>>,
        posting: &mut Posting<B>,
        way: Way,
    ) {
        for planned in frames.iter_mut() {
            let plan = plans.get(planned.plan as usize);
            if matches!(plan, Some(Plan::Clear)) && way == Way::Switch {
                planned.is_delivered = !self.switch(vm, &mut planned.frame, posting.now);
            }
        }
        for planned in frames.drain(..) {
            let plan = plans.get(planned.plan as usize);
            let ipsec = match (planned.refused, plan) {
                (Some(loss), _) | (None, Some(&Plan::Lose(loss))) => {
                    self.lose(Some(vm), planned.frame.payload, loss);
                    continue;
                }
                (None, Some(Plan::Adapter(handle) | Plan::Frame(_, _, handle))) => {
                    SendIpsec::Handle(*handle)
                }
                (None, Some(Plan::Clear)) if planned.is_delivered => {
                    self.nic.recycle(planned.frame.payload);
                    continue;
                }
                (None, Some(Plan::Clear | Plan::Software(..)) | None) => SendIpsec::Done,
            };
            match planned.frame.close() {
                Ok(frame) => {
                    let framed = match plan {
                        Some(Plan::Frame(_, _, handle)) => Some(*handle),
                        _ => None,
                    };
                    posting.push(HostSend::new(frame), ipsec, framed);
                }
                Err(frame) => self.lose(Some(vm), frame.payload, Loss::NoRoom),
            }
        }
    }
}

/// Why ESP has refused a packet, if it has.
fn refusal<B>(job: &Outbound<'_, B>) -> Option<Loss> {
    match job.verdict {
        Verdict::Sealed { .. } => None,
        Verdict::TooBig { .. } => Some(Loss::TooBig),
        _ => Some(Loss::Esp),
    }
}
