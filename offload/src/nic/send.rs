//! Posting frames to be sent, and taking completions.

use core::fmt;
use core::sync::atomic::Ordering;
use vesper_esp::Buffer;
use vesper_sa::{Timestamp, VmId};

use super::{Config, Nic, VmEntry};
use crate::ethernet::Frame;
use crate::fate::{Loss, SendError};
use crate::rings::{Pending, Plan, SendRing, VmPort, lock};
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

/// A [`Send`] with its frame taken apart.
#[derive(Debug)]
pub(crate) struct Opened<B> {
    pub(crate) id: u64,
    pub(crate) frame: Frame<B>,
    pub(crate) ipsec: SendIpsec,
    pub(crate) segment_size: Option<u16>,
    pub(crate) checksum: bool,
}

impl<B: Buffer> Opened<B> {
    #[inline(always)]
    fn of(send: Send<B>) -> Result<Self, Completion<B>> {
        match Frame::open(send.frame) {
            Ok(frame) => Ok(Self {
                id: send.id,
                frame,
                ipsec: send.ipsec,
                segment_size: send.segment_size,
                checksum: send.checksum,
            }),
            Err((buffer, _)) => Err(refuse(send.id, buffer, Loss::Malformed)),
        }
    }
}

impl<B: Buffer> Nic<B> {
    /// Posts frames through the physical function: the host's own, or those of a machine that
    /// came through the software switch. What is accepted is taken out of `frames`.
    pub fn send_from_host(&self, owner: VmId, frames: &mut Vec<Send<B>>) -> Posted {
        let config = self.read();
        match config.vms.get(&owner) {
            Some(entry) => self.post(&config, entry, Function::Physical, frames, Opened::of),
            None => Posted::NOBODY,
        }
    }

    /// As [`send_from_host`](Self::send_from_host), for a host that has taken the frames apart
    /// already.
    pub(crate) fn post_from_host(&self, owner: VmId, frames: &mut Vec<Opened<B>>) -> Posted {
        let config = self.read();
        match config.vms.get(&owner) {
            Some(entry) => self.post(&config, entry, Function::Physical, frames, Ok),
            None => Posted::NOBODY,
        }
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
        match active {
            Some(entry) => self.post(&config, entry, Function::Virtual(vf), frames, Opened::of),
            None => Posted::NOBODY,
        }
    }

    /// Takes completions of a machine's sends, or of the host's own.
    pub fn take_completions(&self, owner: VmId, now: Timestamp, into: &mut Vec<Completion<B>>) {
        let config = self.read();
        let Some(entry) = config.vms.get(&owner) else {
            return;
        };
        let mut sends = lock(&entry.port.sends);
        let SendRing {
            late, completions, ..
        } = &mut *sends;
        let due = late.extract_if(.., |(due, _)| *due <= now);
        completions.extend(due.map(|(_, completion)| completion));
        into.extend(completions.drain(..));
    }

    fn post<S>(
        &self,
        config: &Config<B>,
        entry: &VmEntry<B>,
        from: Function,
        frames: &mut Vec<S>,
        open: impl Fn(S) -> Result<Opened<B>, Completion<B>>,
    ) -> Posted {
        let port = &entry.port;
        let mut sends = lock(&port.sends);
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
        let mut admission = Admission {
            config,
            port,
            is_function: from != Function::Physical,
            admitted: None,
        };
        for send in frames.drain(..accepted) {
            match open(send).and_then(|send| admission.admit(from, send)) {
                Ok(pending) => sends.push(pending),
                Err(refused) => {
                    if let Err(error) = refused.result {
                        sends.counters.send_losses.count(error.loss());
                    }
                    sends.completions.push_back(refused);
                }
            }
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
    is_function: bool,
    /// The last handle that was found to be the sender's.
    admitted: Option<OffloadHandle>,
}

impl<B: Buffer> Admission<'_, B> {
    #[inline(always)]
    fn admit(&mut self, from: Function, send: Opened<B>) -> Result<Pending<B>, Completion<B>> {
        let mut frame = send.frame;
        if self.is_function
            && let Some(loss) = self.violation(&frame, send.ipsec)
        {
            return Err(refuse(send.id, frame.give_back(), loss));
        }
        if frame.vlan.is_none() {
            frame.vlan = self.port.address.vlan;
        }
        let plan = match send.ipsec {
            SendIpsec::Policy => Plan::Policy,
            SendIpsec::Done => Plan::Done,
            SendIpsec::Handle(handle) => match self.admits(handle) {
                true => Plan::Bound(handle),
                false => return Err(refuse(send.id, frame.give_back(), Loss::ForeignHandle)),
            },
        };
        Ok(Pending {
            id: send.id,
            is_segment: false,
            frame,
            plan,
            segment_size: send.segment_size,
            checksum: send.checksum,
            from,
        })
    }

    /// What a function may not do.
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
    fn admits(&mut self, handle: OffloadHandle) -> bool {
        if self.admitted == Some(handle) {
            return true;
        }
        let found = self.config.unit.get(self.port.vm, handle);
        let admits = found.is_some_and(|offloaded| offloaded.offload.port == self.port.port);
        if admits {
            self.admitted = Some(handle);
        }
        admits
    }
}

fn refuse<B>(id: u64, buffer: B, loss: Loss) -> Completion<B> {
    Completion {
        id,
        result: Err(SendError::Lost(loss)),
        buffer: Some(buffer),
    }
}
