//! The batch engine: prepare all, seal or open all, finish all.

use core::ptr;

use arrayvec::ArrayVec;
use vesper_sa::{Event, Events, Timestamp};

use crate::aead::{Job, open_batch, seal_batch};
use crate::association::EspSa;
use crate::buffer::Buffer;
use crate::fate::{Counters, DropReason, Verdict};
use crate::inbound::{self, Candidate, Inbound, InboundSas};
use crate::outbound::{self, Measured, Outbound};
use crate::wire::EncapsulationPorts;

/// How many packets are in flight between the passes. Longer batches are cut.
pub const CHUNK: usize = 64;

/// How many events are kept for collection; more are counted as lost.
const EVENTS: usize = 256;

/// An outbound packet for which room has been made.
struct Prepared<'a, 'c, B> {
    sa: &'a EspSa,
    packet: &'c mut B,
    verdict: &'c mut Verdict,
    lengths: Measured,
}

/// Encapsulates and decapsulates batches of packets. One per worker: it keeps the counters and
/// events of that worker and nothing else.
///
/// A batch may mix associations, suites and lengths. Packets of the same association that
/// stand together share one reservation of sequence numbers or one commit of the window.
#[derive(Debug)]
pub struct Engine {
    ports: EncapsulationPorts,
    counters: Counters,
    events: Vec<Event>,
    /// Where to try an ESP packet on a copy; `None`: never.
    scratch: Option<Vec<u8>>,
}

impl Default for Engine {
    fn default() -> Self {
        Self::new(EncapsulationPorts::default())
    }
}

impl Engine {
    /// An engine that takes UDP packets from and to `ports` for ESP in UDP.
    pub fn new(ports: EncapsulationPorts) -> Self {
        Self {
            ports,
            counters: Counters::default(),
            events: Vec::with_capacity(EVENTS),
            scratch: Some(Vec::new()),
        }
    }

    /// The same engine, but it does not look for a sender that was silent for more than 2^32
    /// packets (RFC 4303 appendix A3): such a packet fails its integrity check, as in Linux.
    #[must_use]
    pub fn without_resynchronisation(mut self) -> Self {
        self.scratch = None;
        self
    }

    /// What this engine has done so far.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Takes the events that have occurred since the last call.
    pub fn drain_events(&mut self) -> impl Iterator<Item = Event> + '_ {
        self.events.drain(..)
    }

    /// Encapsulates every packet of `batch` with its association, in place.
    ///
    /// A refused packet keeps its content; see [`Verdict`]. A sequence number that was
    /// reserved is never given back.
    pub fn encapsulate<B: Buffer>(&mut self, now: Timestamp, batch: &mut [Outbound<'_, B>]) {
        for chunk in batch.chunks_mut(CHUNK) {
            self.encapsulate_chunk::<B, false>(now, chunk);
        }
    }

    /// Encapsulates as [`encapsulate`](Self::encapsulate) does, but leaves the cryptography to
    /// an adapter: [`Verdict::Sealed`] then means that headers, IV, padding and trailer are
    /// written, the text is **clear**, and where the ICV belongs there is room for it.
    ///
    /// The UDP checksum that ESP in UDP over IPv6 needs is not computed either.
    pub fn frame<B: Buffer>(&mut self, now: Timestamp, batch: &mut [Outbound<'_, B>]) {
        for chunk in batch.chunks_mut(CHUNK) {
            self.encapsulate_chunk::<B, true>(now, chunk);
        }
    }

    /// Decapsulates packets that an adapter has authenticated and decrypted already: replay
    /// window, trailer, selectors, inner packet.
    ///
    /// Every entry names its association and, as its sequence number, the one of 64 bits that
    /// the adapter has used; if that is not the number that the window infers, the adapter was
    /// behind, the packet may be an old one, and it is dropped as a replay.
    pub fn accept<B: Buffer>(&mut self, now: Timestamp, batch: &mut [Inbound<'_, B>]) {
        for chunk in batch.chunks_mut(CHUNK) {
            self.decapsulate_chunk::<B, true>(now, &|_, _| None, chunk);
        }
    }

    /// Decapsulates every packet of `batch` in place, with the associations that `sas` finds.
    pub fn decapsulate<'a, B: Buffer>(
        &mut self,
        now: Timestamp,
        sas: &impl InboundSas<'a>,
        batch: &mut [Inbound<'a, B>],
    ) {
        for chunk in batch.chunks_mut(CHUNK) {
            self.decapsulate_chunk::<B, false>(now, sas, chunk);
        }
    }

    /// `ADAPTER`: somebody else does the cryptography.
    fn encapsulate_chunk<B: Buffer, const ADAPTER: bool>(
        &mut self,
        now: Timestamp,
        chunk: &mut [Outbound<'_, B>],
    ) {
        let mut prepared: ArrayVec<Prepared<'_, '_, B>, CHUNK> = ArrayVec::new();
        for entry in chunk.iter_mut() {
            match outbound::measure(entry) {
                Ok(lengths) => prepared.push(Prepared {
                    sa: entry.sa,
                    packet: &mut entry.packet,
                    verdict: &mut entry.verdict,
                    lengths,
                }),
                Err(verdict) => {
                    entry.verdict = verdict;
                    self.counters.count(verdict, 0);
                }
            }
        }

        // One reservation per run of packets of the same association.
        let mut jobs: ArrayVec<Job<'_>, CHUNK> = ArrayVec::new();
        let mut with_checksum = false;
        let mut rest = prepared.as_mut_slice();
        while let Some(first) = rest.first() {
            let sa = first.sa;
            let len = rest
                .iter()
                .take_while(|packet| ptr::eq(packet.sa, sa))
                .count();
            let (run, others) = rest.split_at_mut(len);
            rest = others;
            let context = sa.context();
            with_checksum |= context.has_udp_checksum();
            let lengths = run.iter().map(|packet| packet.lengths.text_len(context));
            let reservation = sa.reserve(now, lengths);
            let (granted, refused) = run.split_at_mut(reservation.count as usize);
            for (packet, sequence) in granted.iter_mut().zip(reservation.first..) {
                let data = packet.packet.data_mut();
                let esp = outbound::write(sa, data, &packet.lengths, sequence);
                jobs.push(Job {
                    cipher: context.cipher(),
                    sequence,
                    esn: sa.esn(),
                    esp,
                    authentic: false,
                });
                *packet.verdict = Verdict::Sealed { sequence };
                self.counters.sealed_packets += 1;
                self.counters.sealed_bytes += u64::from(packet.lengths.packet_len);
            }
            for packet in refused {
                let reason = reservation
                    .refused
                    .map_or(DropReason::OutSequence, outbound::refused);
                outbound::unmeasure(packet.packet, &packet.lengths);
                *packet.verdict = Verdict::Drop(reason);
                self.counters.count(*packet.verdict, 0);
            }
            self.emit(sa, reservation.events);
        }
        if !ADAPTER {
            seal_batch(&mut jobs);
        }
        drop(jobs);
        drop(prepared);

        if with_checksum && !ADAPTER {
            for entry in chunk {
                if let Verdict::Sealed { .. } = entry.verdict {
                    outbound::write_udp_checksum(entry.sa.context(), entry.packet.data_mut());
                }
            }
        }
    }

    /// `ADAPTER`: somebody else has done the cryptography.
    fn decapsulate_chunk<'a, B: Buffer, const ADAPTER: bool>(
        &mut self,
        now: Timestamp,
        sas: &impl InboundSas<'a>,
        chunk: &mut [Inbound<'a, B>],
    ) {
        let mut candidates: ArrayVec<Candidate<'a>, CHUNK> = ArrayVec::new();
        let mut jobs: ArrayVec<Job<'_>, CHUNK> = ArrayVec::new();
        for (index, entry) in chunk.iter_mut().enumerate() {
            let prepared = if ADAPTER {
                inbound::prepare_opened(entry, index, &self.ports)
            } else {
                inbound::prepare(entry, index, sas, &self.ports, &mut self.scratch)
            };
            match prepared {
                Ok(candidate) => {
                    let esp_at = candidate.esp_at;
                    jobs.push(Job {
                        cipher: candidate.sa.context().cipher(),
                        sequence: candidate.sequence,
                        esn: candidate.sa.esn(),
                        esp: &mut entry.packet.data_mut()[esp_at..esp_at + candidate.esp_len],
                        authentic: false,
                    });
                    candidates.push(candidate);
                }
                Err(verdict) => {
                    entry.verdict = verdict;
                    self.counters.count(verdict, 0);
                }
            }
        }
        if !ADAPTER {
            open_batch(&mut jobs);
        }
        for (candidate, job) in candidates.iter_mut().zip(&jobs) {
            candidate.authentic = ADAPTER || job.authentic;
        }
        drop(jobs);

        // One commit per run of packets of the same association.
        for run in candidates.chunk_by(|a, b| ptr::eq(a.sa, b.sa)) {
            let sa = run[0].sa;
            let mut failures = 0;
            let mut commit = sa.commit(now);
            for candidate in run {
                let entry = &mut chunk[candidate.index];
                if candidate.authentic {
                    entry.verdict = inbound::finish(candidate, &mut commit, &mut entry.packet);
                } else {
                    failures += 1;
                    entry.verdict = Verdict::Drop(DropReason::Icv);
                }
                let bytes = entry.packet.data().len();
                self.counters.count(entry.verdict, bytes);
            }
            let events = commit.finish();
            self.emit(sa, events);
            for _ in 0..failures {
                let events = sa.authentication_failed(now);
                self.emit(sa, events);
            }
        }
    }

    #[inline]
    fn emit(&mut self, sa: &EspSa, events: Events) {
        if !events.is_empty() {
            self.keep(sa, events);
        }
    }

    #[cold]
    fn keep(&mut self, sa: &EspSa, events: Events) {
        for event in sa.messages(events) {
            if self.events.len() < EVENTS {
                self.events.push(event);
            } else {
                self.counters.lost_events += 1;
            }
        }
    }
}
