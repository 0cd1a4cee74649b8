//! Posting frames to be sent, and taking completions.

use core::fmt;
use core::sync::atomic::Ordering;
use vesper_esp::Buffer;
use vesper_sa::{Timestamp, VmId};

use super::{Config, Nic};
use crate::completions::{Completed, Completions};
use crate::ethernet::Frame;
use crate::fate::Loss;
use crate::rings::{Pending, SendRing, VmPort, lock};
use crate::sriov::{Function, VfId, VfState};
use crate::transfer::{Completion, Send, SendIpsec};
use crate::unit::OffloadHandle;

/// How much of a batch was posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posted {
    /// Frames taken out of the batch, from its front.
    pub accepted: usize,
    /// Why the rest stayed there.
    pub stopped: Option<SendRefusal>,
}

/// Why a frame was not even posted; it stays with the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SendRefusal {
    /// The sender is unknown, or its function does not carry traffic now.
    NoSender,
    /// The ring is full. Take completions and try again.
    RingFull,
    /// The adapter is busy. Try again.
    Busy,
}

impl fmt::Display for SendRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSender => "the sender is unknown or its function is not active",
            Self::RingFull => "the send ring is full; take completions and try again",
            Self::Busy => "the adapter is busy; try again",
        })
    }
}

impl core::error::Error for SendRefusal {}

impl Posted {
    const NOBODY: Posted = Posted {
        accepted: 0,
        stopped: Some(SendRefusal::NoSender),
    };
}

impl<B: Buffer> Nic<B> {
    /// Posts frames through the physical function: the host's own, or those of a machine that
    /// came through the software switch. What is accepted is taken out of `frames`.
    pub fn send_from_host(&self, owner: VmId, frames: &mut Vec<Send<B>>) -> Posted {
        let config = self.read();
        let Some(entry) = config.vms.get(&owner) else {
            return Posted::NOBODY;
        };
        let mut admission = Admission::new(&config, &entry.port);
        self.post(&config, &entry.port, frames, |send, ring| {
            admission.open(send, Function::Physical, ring);
        })
    }

    /// As [`send_from_host`](Self::send_from_host), for a host that has taken the frames apart
    /// already.
    pub(crate) fn post_from_host(&self, owner: VmId, frames: &mut Vec<Pending<B>>) -> Posted {
        let config = self.read();
        let Some(entry) = config.vms.get(&owner) else {
            return Posted::NOBODY;
        };
        let mut admission = Admission::new(&config, &entry.port);
        self.post(&config, &entry.port, frames, |frame, ring| {
            admission.admit(frame, ring);
        })
    }

    /// Posts frames through a virtual function, past the host.
    pub fn send_from_function(&self, vf: VfId, frames: &mut Vec<Send<B>>) -> Posted {
        let config = self.read();
        let active = config
            .switch
            .as_ref()
            .and_then(|switch| switch.function(vf).ok())
            .filter(|function| function.state == VfState::Active)
            .and_then(|function| config.vms.get(&function.vm));
        let Some(entry) = active else {
            return Posted::NOBODY;
        };
        let mut admission = Admission::new(&config, &entry.port);
        self.post(&config, &entry.port, frames, |send, ring| {
            admission.open(send, Function::Virtual(vf), ring);
        })
    }

    /// Takes completions of a machine's sends, or of the host's own.
    pub fn take_completions(&self, owner: VmId, now: Timestamp, into: &mut Vec<Completion<B>>) {
        self.completions(owner, now, |completions| completions.drain_into(into));
    }

    /// As [`take_completions`](Self::take_completions), several at once where they went well.
    pub(crate) fn take_completed(&self, owner: VmId, now: Timestamp, into: &mut Vec<Completed<B>>) {
        self.completions(owner, now, |completions| into.extend(completions.drain()));
    }

    fn completions(&self, owner: VmId, now: Timestamp, take: impl FnOnce(&mut Completions<B>)) {
        let config = self.read();
        let Some(entry) = config.vms.get(&owner) else {
            return;
        };
        let mut sends = lock(&entry.port.sends);
        let SendRing {
            late, completions, ..
        } = &mut *sends;
        let due = late.extract_if(.., |(due, _)| *due <= now);
        due.for_each(|(_, completion)| completions.push(completion));
        take(completions);
    }

    #[inline(always)]
    fn post<S>(
        &self,
        config: &Config<B>,
        port: &VmPort<B>,
        frames: &mut Vec<S>,
        mut admit: impl FnMut(S, &mut SendRing<B>),
    ) -> Posted {
        let mut sends = lock(&port.sends);
        let sends = &mut *sends;
        let room = port.ring.saturating_sub(sends.pending.len());
        let mut stopped = (frames.len() > room).then_some(SendRefusal::RingFull);
        let mut accepted = room.min(frames.len());
        if config.faulty {
            let mut faults = lock(&self.faults);
            let (busy, full) = (faults.plan.busy, faults.plan.queue_full);
            if faults.strikes(busy) {
                faults.counters.busy += 1;
                (accepted, stopped) = (accepted / 2, Some(SendRefusal::Busy));
            } else if faults.strikes(full) {
                faults.counters.queue_full += 1;
                (accepted, stopped) = (accepted / 2, Some(SendRefusal::RingFull));
            }
        }
        sends.counters.posted += accepted as u64;
        for frame in frames.drain(..accepted) {
            admit(frame, sends);
        }
        port.attention.store(true, Ordering::Relaxed);
        Posted { accepted, stopped }
    }
}

/// Checks frames before they get into the ring: what may not be sent ends here, and never
/// leaves in clear.
struct Admission<'a, B> {
    config: &'a Config<B>,
    port: &'a VmPort<B>,
    /// The last handle that was found to be the sender's.
    admitted: Option<OffloadHandle>,
}

impl<'a, B: Buffer> Admission<'a, B> {
    fn new(config: &'a Config<B>, port: &'a VmPort<B>) -> Self {
        Self {
            config,
            port,
            admitted: None,
        }
    }

    /// Takes a frame apart and admits it to the ring.
    #[inline(always)]
    fn open(&mut self, send: Send<B>, from: Function, ring: &mut SendRing<B>) {
        let frame = match Frame::open(send.frame) {
            Ok(frame) => frame,
            Err((buffer, _)) => return ring.refuse(send.id, buffer, Loss::Malformed),
        };
        if from != Function::Physical
            && let Some(loss) = self.violation(&frame, send.ipsec)
        {
            return ring.refuse(send.id, frame.give_back(), loss);
        }
        let pending = Pending {
            id: send.id,
            is_segment: false,
            frame,
            ipsec: send.ipsec,
            segment_size: send.segment_size,
            checksum: send.checksum,
            from,
        };
        self.admit(pending, ring);
    }

    #[inline(always)]
    fn admit(&mut self, mut pending: Pending<B>, ring: &mut SendRing<B>) {
        if let SendIpsec::Handle(handle) = pending.ipsec
            && !self.admits(handle)
        {
            let buffer = pending.frame.give_back();
            return ring.refuse(pending.id, buffer, Loss::ForeignHandle);
        }
        if pending.frame.vlan.is_none() {
            pending.frame.vlan = self.port.address.vlan;
        }
        ring.push(pending);
    }

    /// What a function may not do.
    #[inline(always)]
    fn violation(&self, frame: &Frame<B>, ipsec: SendIpsec) -> Option<Loss> {
        if frame.vlan.is_some() {
            // The VLAN is the adapter's business, not the machine's.
            Some(Loss::Vlan)
        } else if !self.port.settings.trusted && frame.link.source != self.port.address.mac {
            Some(Loss::Spoofed)
        } else if ipsec == SendIpsec::Done {
            Some(Loss::Policy)
        } else {
            None
        }
    }

    /// Whether a handle names an association of the sender, on its port.
    #[inline(always)]
    fn admits(&mut self, handle: OffloadHandle) -> bool {
        self.admitted == Some(handle) || self.look_up(handle)
    }

    #[inline(never)]
    fn look_up(&mut self, handle: OffloadHandle) -> bool {
        let found = self.config.unit.get(self.port.vm, handle);
        let admits = found.is_some_and(|offloaded| offloaded.offload.port == self.port.port);
        if admits {
            self.admitted = Some(handle);
        }
        admits
    }
}
