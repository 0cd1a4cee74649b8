//! Posting frames to be sent, and taking completions.

use core::fmt;
use core::sync::atomic::Ordering;
use vesper_esp::Buffer;
use vesper_sa::{Timestamp, VmId};

use super::{Config, Nic};
use crate::completions::{Completed, Completions};
use crate::ethernet::{Link, VlanId};
use crate::fate::Loss;
use crate::rings::{VmPort, lock};
use crate::sends::{Poster, Ring, SendRing};
use crate::sriov::{VfId, VfState};
use crate::transfer::{Completion, Send, SendIpsec};

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
        match config.vms.get(&owner) {
            Some(entry) => self.post(&config, &entry.port, Poster::Host, frames),
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
            Some(entry) => self.post(&config, &entry.port, Poster::Guest, frames),
            None => Posted::NOBODY,
        }
    }

    /// Takes the completions of what was posted for a machine, or for the host itself, by this
    /// poster.
    pub fn take_completions(
        &self,
        owner: VmId,
        poster: Poster,
        now: Timestamp,
        into: &mut Vec<Completion<B>>,
    ) {
        self.completions((owner, poster), now, |completions| {
            completions.drain_into(into);
        });
    }

    /// As [`take_completions`](Self::take_completions), for a sender that has to know only which
    /// sends failed: takes those, and returns how many went well.
    pub fn take_failures(
        &self,
        owner: VmId,
        poster: Poster,
        now: Timestamp,
        failed: &mut Vec<Completion<B>>,
    ) -> usize {
        let mut sent = 0;
        self.completions((owner, poster), now, |completions| {
            for completed in completions.drain() {
                match completed {
                    Completed::Sent(ids) => sent += ids.count as usize,
                    Completed::Failed(completion) => failed.push(completion),
                }
            }
        });
        sent
    }

    /// As [`take_completions`](Self::take_completions), several at once where they went well.
    pub(crate) fn take_completed(
        &self,
        owner: VmId,
        poster: Poster,
        now: Timestamp,
        into: &mut Vec<Completed<B>>,
    ) {
        self.completions((owner, poster), now, |completions| {
            into.extend(completions.drain());
        });
    }

    fn completions(
        &self,
        (owner, poster): (VmId, Poster),
        now: Timestamp,
        take: impl FnOnce(&mut Completions<B>),
    ) {
        let config = self.read();
        let Some(entry) = config.vms.get(&owner) else {
            return;
        };
        let mut sends = lock(&entry.port.sends);
        let Ring {
            late, completions, ..
        } = sends.ring_mut(poster);
        let due = late.extract_if(.., |(due, _)| *due <= now);
        due.for_each(|(_, completion)| completions.push(completion));
        take(completions);
    }

    /// Puts frames into a ring as they are; its processor looks into them. Handles alone are
    /// looked at here: a handle that is good when it is posted is good until the frame is sent.
    #[inline(never)]
    fn post(
        &self,
        config: &Config<B>,
        port: &VmPort<B>,
        poster: Poster,
        frames: &mut Vec<Send<B>>,
    ) -> Posted {
        let mut admitted = SendIpsec::Policy;
        let mut all_admitted = true;
        let mut large = 0;
        for send in frames.iter() {
            large += usize::from(send.segment_size.is_some());
            if send.ipsec != admitted {
                admitted = send.ipsec;
                all_admitted &= is_admitted(config, port, send);
            }
        }
        let mut ring = lock(&port.sends);
        let room = port.ring.saturating_sub(ring.len(poster));
        let posted = if all_admitted && frames.len() <= room && !config.faulty {
            let accepted = frames.len();
            ring.push_all(poster, frames, large);
            Posted {
                accepted,
                stopped: None,
            }
        } else {
            self.post_some(config, port, poster, frames, room, &mut ring)
        };
        ring.counters.posted += posted.accepted as u64;
        port.attention.store(true, Ordering::Relaxed);
        posted
    }

    /// As many as there is room for; those with a foreign handle end here.
    #[cold]
    fn post_some(
        &self,
        config: &Config<B>,
        port: &VmPort<B>,
        poster: Poster,
        frames: &mut Vec<Send<B>>,
        room: usize,
        ring: &mut SendRing<B>,
    ) -> Posted {
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
        let mut admitted = Vec::with_capacity(accepted);
        for send in frames.drain(..accepted) {
            match is_admitted(config, port, &send) {
                true => admitted.push(send),
                false => ring.refuse(poster, send, Loss::ForeignHandle),
            }
        }
        let large = |send: &&Send<B>| send.segment_size.is_some();
        let large = admitted.iter().filter(large).count();
        ring.push_all(poster, &mut admitted, large);
        Posted { accepted, stopped }
    }
}

/// What a sender may not do through its function.
pub(super) fn violation<B>(
    (port, poster): (&VmPort<B>, Poster),
    link: &Link,
    vlan: Option<VlanId>,
    ipsec: SendIpsec,
) -> Option<Loss> {
    if poster == Poster::Host {
        None
    } else if vlan.is_some() {
        // The VLAN is the adapter's business, not the machine's.
        Some(Loss::Vlan)
    } else if !port.settings.trusted && link.source != port.address.mac {
        Some(Loss::Spoofed)
    } else if ipsec == SendIpsec::Done {
        Some(Loss::Policy)
    } else {
        None
    }
}

/// Whether the handle of a send, if it has one, names an association of the sender, on its port.
#[inline(never)]
fn is_admitted<B>(config: &Config<B>, port: &VmPort<B>, send: &Send<B>) -> bool {
    let SendIpsec::Handle(handle) = send.ipsec else {
        return true;
    };
    let found = config.unit.get(port.vm, handle);
    found.is_some_and(|offloaded| offloaded.offload.port == port.port)
}
