//! Software IPsec, in: finding the associations of ESP packets, and opening them by runs.

use std::sync::Arc;

use arrayvec::ArrayVec;

use vesper_esp::wire::{EncapsulationPorts, IpHeader, Located, locate, protocol};
use vesper_esp::{Buffer, EspSa, Inbound, Reassembly, Verdict, audited};
use vesper_sa::{Event, ReceiveKey, Receiver, SaHandle, Spi, Timestamp, VmId};

use super::{Host, SoftwareReason};
use crate::crypto_status::{CryptoInfo, CryptoStatus};
use crate::ethernet::{Frame, Header, Link, VlanId};
use crate::fate::Loss;
use crate::nic::BATCH;
use crate::queue::QueueId;
use crate::unit::{PortId, Rewrite};

/// Packets of one indication that software has to open, or to finish, a batch at most. Empty in
/// between, it keeps its memory.
#[derive(Debug)]
pub(super) struct ToOpen<B> {
    payloads: Vec<B>,
    /// Of those that the adapter has decrypted, the numbers that it has authenticated.
    sequences: Vec<u64>,
    runs: Vec<Run>,
}

/// Packets that stand together and have all of this in common.
#[derive(Debug)]
struct Run {
    owner: VmId,
    handle: SaHandle,
    sa: Arc<EspSa>,
    link: Link,
    vlan: Option<VlanId>,
    queue: QueueId,
    /// The adapter has done the cryptography.
    is_decrypted: bool,
    count: usize,
}

/// An ESP packet, as the adapter has indicated it.
struct Arrived<B> {
    frame: Frame<B>,
    sequence: Option<u64>,
    queue: QueueId,
}

impl<B> Default for ToOpen<B> {
    fn default() -> Self {
        Self {
            payloads: Vec::new(),
            sequences: Vec::new(),
            runs: Vec::new(),
        }
    }
}

impl<B> ToOpen<B> {
    /// Adds a packet of which all else is as of the one that was added last.
    #[inline(always)]
    pub(super) fn push_alike(&mut self, payload: B) {
        if let Some(run) = self.runs.last_mut() {
            run.count += 1;
            self.payloads.push(payload);
        }
    }

    fn push(&mut self, owner: VmId, handle: SaHandle, sa: &Arc<EspSa>, packet: Arrived<B>) {
        let Arrived {
            frame,
            sequence,
            queue,
        } = packet;
        let is_decrypted = sequence.is_some();
        self.sequences.extend(sequence);
        self.payloads.push(frame.payload);
        match self.runs.last_mut() {
            Some(run)
                if Arc::ptr_eq(&run.sa, sa)
                    && (run.link, run.vlan, run.queue) == (frame.link, frame.vlan, queue)
                    && run.is_decrypted == is_decrypted =>
            {
                run.count += 1;
            }
            _ => self.runs.push(Run {
                owner,
                handle,
                sa: Arc::clone(sa),
                link: frame.link,
                vlan: frame.vlan,
                queue,
                is_decrypted,
                count: 1,
            }),
        }
    }
}

impl<B: Buffer> Host<B> {
    /// Crypto mode: the adapter has done the cryptography, the host does the rest; what failed
    /// ends here, counted.
    pub(super) fn finish_crypto(
        &mut self,
        owner: Option<VmId>,
        queue: QueueId,
        frame: Frame<B>,
        info: CryptoInfo,
        batch: &mut ToOpen<B>,
    ) {
        let found = self.in_crypto_mode(info.handle);
        if let Some((owner, handle, _)) = &found
            && info.sa_delete_req
            && self.offloaded.contains_key(&info.handle)
        {
            self.fall_back(*owner, *handle, SoftwareReason::Ended);
        }
        match found {
            Some((owner, handle, sa)) if info.status == CryptoStatus::Success => {
                let arrived = Arrived {
                    frame,
                    sequence: Some(info.sequence),
                    queue,
                };
                batch.push(owner, handle, &sa, arrived);
            }
            Some((owner, ..)) => {
                self.count(owner, |counters| counters.crypto_failures += 1);
                self.lose_received(Some(owner), queue, frame.payload, Loss::Esp);
            }
            // Decrypted with an association that is gone meanwhile: nothing may judge it.
            None => {
                self.lose_received(owner, queue, frame.payload, Loss::NoSa);
            }
        }
    }

    /// Finds the association of an ESP packet: one of the receiver, else one that ends at the
    /// host and names the receiver. Whether there is one, and the packet is in `batch` now.
    pub(super) fn find(
        &mut self,
        now: Timestamp,
        vm: Option<VmId>,
        mut frame: Frame<B>,
        queue: QueueId,
        batch: &mut ToOpen<B>,
    ) -> bool {
        let located = match located(&frame) {
            Located::Fragment(ip) if is_piece_of_esp(&ip) => {
                match self.reassemble(now, vm, frame) {
                    Some(whole) => {
                        frame = whole;
                        self::located(&frame)
                    }
                    None => return false,
                }
            }
            located => located,
        };
        let esp = match (located, vm) {
            (Located::Esp(esp), _) => esp,
            // A piece of something else, which the adapter could not tell.
            (Located::Fragment(_), Some(vm)) if self.admits_clear(vm, &frame) => {
                self.deliver(vm, queue, frame);
                return false;
            }
            _ => {
                self.lose(vm, frame.payload, Loss::NoSa);
                return false;
            }
        };
        let receivers = vm.map(Receiver::Vm).into_iter().chain([Receiver::Host]);
        let found = Spi::new(esp.spi).and_then(|spi| {
            receivers
                .map(|receiver| ReceiveKey {
                    receiver,
                    destination: esp.destination,
                    spi,
                })
                .find_map(|key| self.sad.inbound(&key))
        });
        let Some((handle, sa)) = found else {
            let packet = audited(frame.payload.data(), &EncapsulationPorts::default());
            if let Some(packet) = packet {
                self.report(Event::BadSpi {
                    receiver: vm,
                    packet,
                });
            }
            self.lose(vm, frame.payload, Loss::NoSa);
            return false;
        };
        let owner = sa.owner();
        if frame.vlan != self.wire_form(owner, handle).vlan {
            self.lose(Some(owner), frame.payload, Loss::Vlan);
            return false;
        }
        let arrived = Arrived {
            frame,
            sequence: None,
            queue,
        };
        batch.push(owner, handle, sa, arrived);
        true
    }

    /// Keeps a fragment until its datagram is whole, which is then in the buffer of its last
    /// fragment, if it has the room.
    ///
    //= https://www.rfc-editor.org/rfc/rfc4303#section-3.4.1
    //# If required, reassembly is performed prior to ESP processing.
    fn reassemble(
        &mut self,
        now: Timestamp,
        vm: Option<VmId>,
        mut frame: Frame<B>,
    ) -> Option<Frame<B>> {
        // Fragments of different receivers and VLANs are never mixed.
        let receiver = vm.and_then(|vm| self.machines.get(&vm));
        let receiver = receiver.map_or(PortId::HOST, |machine| machine.port);
        let vlan = frame.vlan.map_or(0, VlanId::get);
        let channel = receiver.0 << 12 | u32::from(vlan);
        let packet = match self.reassembler.push(now, channel, frame.payload.data()) {
            Reassembly::Complete(packet) => packet,
            Reassembly::Waiting => {
                self.nic.recycle(frame.payload);
                return None;
            }
            Reassembly::Whole => return Some(frame),
            Reassembly::Refused(_) => {
                self.lose(vm, frame.payload, Loss::Fragment);
                return None;
            }
        };
        let has = frame.payload.data().len();
        let grown = match packet.len().checked_sub(has) {
            Some(more) => frame.payload.grow_back(more),
            None => {
                frame.payload.trim_back(has - packet.len());
                true
            }
        };
        if !grown {
            self.lose(vm, frame.payload, Loss::NoRoom);
            return None;
        }
        frame.payload.data_mut().copy_from_slice(&packet);
        Some(frame)
    }

    /// Opens packets in software, or finishes those that the adapter has decrypted, and delivers
    /// them.
    pub(super) fn open(&mut self, now: Timestamp, batch: &mut ToOpen<B>) {
        let ToOpen {
            payloads,
            sequences,
            runs,
        } = batch;
        if payloads.is_empty() {
            return;
        }
        let opened = self.open_all(now, payloads, sequences, runs);
        let mut packets = payloads.drain(..).zip(opened);
        for run in runs.drain(..) {
            self.deliver_opened(&run, packets.by_ref().take(run.count));
        }
    }

    /// Opens or finishes packets; which of them are opened.
    fn open_all(
        &mut self,
        now: Timestamp,
        payloads: &mut [B],
        sequences: &mut Vec<u64>,
        runs: &[Run],
    ) -> ArrayVec<bool, BATCH> {
        let mut whole: ArrayVec<Inbound<'_, &mut B>, BATCH> = ArrayVec::new();
        let mut begun: ArrayVec<Inbound<'_, &mut B>, BATCH> = ArrayVec::new();
        let mut rest = payloads.iter_mut();
        let mut sequences = sequences.drain(..);
        for run in runs {
            for payload in rest.by_ref().take(run.count) {
                let mut job = Inbound::new(payload);
                job.sa = Some(&run.sa);
                match run.is_decrypted {
                    true => {
                        job.sequence = sequences.next().unwrap_or_default();
                        begun.push(job);
                    }
                    false => whole.push(job),
                }
            }
        }
        self.engine.decapsulate(now, &|_, _| None, &mut whole);
        self.engine.accept(now, &mut begun);
        let is_opened = |job: &Inbound<'_, _>| matches!(job.verdict, Verdict::Opened(_));
        let mut whole = whole.iter().map(is_opened);
        let mut begun = begun.iter().map(is_opened);
        let mut opened: ArrayVec<bool, BATCH> = ArrayVec::new();
        for run in runs {
            match run.is_decrypted {
                true => opened.extend(begun.by_ref().take(run.count)),
                false => opened.extend(whole.by_ref().take(run.count)),
            }
        }
        opened
    }

    /// Hands packets of one run to their machine, those that are opened.
    fn deliver_opened(&mut self, run: &Run, packets: impl Iterator<Item = (B, bool)>) {
        let rewrite = self.wire_form(run.owner, run.handle).rewrite;
        let mut header = None;
        let mut count = 0;
        let mut lost: ArrayVec<(B, Loss), BATCH> = ArrayVec::new();
        let mut machine = self.machines.get_mut(&run.owner);
        for (mut payload, is_opened) in packets {
            if !is_opened {
                lost.push((payload, Loss::Esp));
                continue;
            }
            count += 1;
            let header = header_of(&mut header, run.link, rewrite.as_ref(), payload.data());
            match &mut machine {
                None => lost.push((payload, Loss::Gone)),
                Some(machine) if run.queue == QueueId::DEFAULT => {
                    machine.copy_in(&[header.bytes(), payload.data()]);
                    self.scratch.free.push(payload);
                }
                Some(machine) if header.put_before(&mut payload) => {
                    machine.counters.received += 1;
                    machine.ready.push_back(payload);
                }
                Some(_) => lost.push((payload, Loss::NoRoom)),
            }
        }
        if let Some(machine) = machine {
            machine.counters.opened += count;
        }
        for (payload, loss) in lost {
            self.lose_received(Some(run.owner), run.queue, payload, loss);
        }
    }
}

/// The header before an opened packet; that of the packet before, if both are of one version.
#[inline(always)]
fn header_of<'a>(
    latest: &'a mut Option<(u8, Header)>,
    link: Link,
    rewrite: Option<&Rewrite>,
    packet: &[u8],
) -> &'a Header {
    let version = packet.first().map_or(0, |first| first >> 4);
    match latest {
        Some((known, _)) if *known == version => {}
        _ => *latest = None,
    }
    let make = || (version, link.of_packet(packet, rewrite).header(None));
    &latest.get_or_insert_with(make).1
}

fn located<B: Buffer>(frame: &Frame<B>) -> Located {
    locate(frame.payload.data(), &EncapsulationPorts::default())
}

/// Whether a frame holds an ESP packet, or a piece of one.
pub(super) fn is_esp<B: Buffer>(frame: &Frame<B>) -> bool {
    frame.is_ip()
        && match located(frame) {
            Located::Esp(_) => true,
            Located::Fragment(ip) => is_piece_of_esp(&ip),
            Located::NotEsp(_) | Located::Malformed(_) => false,
        }
}

/// Whether a fragment belongs to an ESP packet. ESP in UDP can be told by its first fragment
/// alone: who uses it avoids fragments (RFC 3948 section 3.4 leaves them to the sender).
const fn is_piece_of_esp(ip: &IpHeader) -> bool {
    ip.protocol == protocol::ESP
}
