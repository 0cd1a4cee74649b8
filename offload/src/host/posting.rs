//! What the host posts to the adapter for machines, and what comes of it.

use core::time::Duration;

use arrayvec::ArrayVec;

use vesper_esp::Buffer;
use vesper_esp::aead::seal_batch;
use vesper_esp::wire::EncapsulationPorts;
use vesper_sa::{Timestamp, VmId};

use super::{AdapterWork, Host, Outstanding};
use crate::completions::Completed;
use crate::crypto_mode::to_encrypt;
use crate::ethernet::parse;
use crate::fate::{Loss, SendError};
use crate::sends::Poster;
use crate::transfer::{HostSend, Send, SendIpsec};
use crate::unit::OffloadHandle;

/// A completion that has not come after this time will not come.
const COMPLETION_TIMEOUT: Duration = Duration::from_secs(1);

/// What a machine is about to post to the adapter.
pub(super) struct Posting<B> {
    pub(super) now: Timestamp,
    pub(super) unsent: Vec<Send<B>>,
    pub(super) outstanding: Outstanding,
    /// The identifier of the next send; those from `outstanding.next()` on have this work.
    next: u64,
    work: AdapterWork,
}

impl<B> Posting<B> {
    pub(super) const fn new(
        now: Timestamp,
        unsent: Vec<Send<B>>,
        outstanding: Outstanding,
    ) -> Self {
        Self {
            now,
            next: outstanding.next(),
            work: AdapterWork {
                framed: None,
                segment_size: None,
                checksum: false,
            },
            unsent,
            outstanding,
        }
    }

    /// `framed`: the frame holds an ESP packet in clear, of this association.
    #[inline(always)]
    pub(super) fn push(
        &mut self,
        send: HostSend<B>,
        ipsec: SendIpsec,
        framed: Option<OffloadHandle>,
    ) {
        let HostSend {
            frame,
            segment_size,
            checksum,
        } = send;
        let work = AdapterWork {
            framed,
            segment_size,
            checksum,
        };
        if work != self.work {
            self.begin();
            self.work = work;
        }
        let id = self.next;
        self.next += 1;
        self.unsent.push(Send {
            id,
            frame,
            ipsec,
            segment_size,
            checksum,
        });
    }

    /// Takes note of what was pushed since the last time, all with the same work.
    pub(super) fn begin(&mut self) {
        let count = self.next - self.outstanding.next();
        self.outstanding.begin_all(self.now, self.work, count);
    }
}

impl<B: Buffer> Host<B> {
    /// Completions of what machines have sent on the synthetic path.
    ///
    /// Where the association had left the adapter between plan and post, a frame that is still
    /// what the machine sent goes through policy once more; an ESP packet that the adapter was
    /// to encrypt has its number already, and software encrypts it in the adapter's place.
    pub(super) fn take_completions(&mut self, now: Timestamp) {
        let mut completions = core::mem::take(&mut self.scratch.completions);
        let mut again = Vec::new();
        let mut to_encrypt = Vec::new();
        for (vm, machine) in &mut self.machines {
            if machine.outstanding.is_empty() {
                continue;
            }
            self.nic
                .take_completed(*vm, Poster::Host, now, &mut completions);
            for completed in completions.drain(..) {
                let completion = match completed {
                    Completed::Sent(ids) => {
                        machine.outstanding.complete_all(ids);
                        continue;
                    }
                    Completed::Failed(completion) => completion,
                };
                let work = machine.outstanding.complete(completion.id);
                let Some(buffer) = completion.buffer else {
                    continue;
                };
                let is_stale = completion.result == Err(SendError::Lost(Loss::ForeignHandle));
                match work.filter(|_| is_stale) {
                    Some(AdapterWork {
                        framed: Some(handle),
                        ..
                    }) => to_encrypt.push((*vm, handle, buffer)),
                    Some(work) => {
                        let send = HostSend {
                            frame: buffer,
                            segment_size: work.segment_size,
                            checksum: work.checksum,
                        };
                        again.push((*vm, send));
                    }
                    None => self.nic.recycle(buffer),
                }
            }
            machine.outstanding.expire(now, COMPLETION_TIMEOUT);
        }
        self.scratch.completions = completions;
        for (vm, handle, frame) in to_encrypt {
            self.encrypt_framed(vm, now, handle, frame);
        }
        for (vm, send) in again {
            self.protect_sends(vm, now, &mut vec![send]);
        }
    }

    /// Encrypts an ESP packet that the host has made for crypto mode and the adapter has refused,
    /// untouched, because it had let go of the association; and sends it on.
    fn encrypt_framed(&mut self, vm: VmId, now: Timestamp, handle: OffloadHandle, mut frame: B) {
        let found = self.in_crypto_mode(handle);
        let (Some((.., sa)), Some(machine)) = (found, self.machines.get_mut(&vm)) else {
            return self.nic.recycle(frame);
        };
        let is_encrypted = parse(frame.data()).is_ok_and(|(_, _, len)| {
            let packet = frame.data_mut().get_mut(len..).unwrap_or_default();
            let ports = EncapsulationPorts::default();
            let job = to_encrypt(
                &sa,
                |low| last_ending_in(sa.sequence(), low),
                packet,
                &ports,
            );
            let is_found = job.is_some();
            seal_batch(&mut job.into_iter().collect::<ArrayVec<_, 1>>());
            is_found
        });
        if !is_encrypted {
            return self.lose(Some(vm), frame, Loss::Esp);
        }
        let id = machine.outstanding.begin(now, AdapterWork::default());
        machine.unsent.push(Send {
            ipsec: SendIpsec::Done,
            ..Send::new(id, frame)
        });
        self.nic.send_from_host(vm, &mut machine.unsent);
    }
}

/// The latest number that ends in `low`, where `last` is the last one that was given out.
const fn last_ending_in(last: u64, low: u32) -> u64 {
    last.wrapping_sub((last as u32).wrapping_sub(low) as u64)
}
