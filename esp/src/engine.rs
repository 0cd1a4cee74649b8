//! The batch engine: prepare all, seal or open all, finish all.

use core::ptr;

use arrayvec::ArrayVec;
use vesper_sa::{Event, Timestamp};

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

/// An outbound packet between the passes.
#[derive(Debug)]
struct Prepared<'a> {
    /// Its place in the batch.
    index: usize,
    sa: &'a EspSa,
    lengths: Measured,
    /// `None` until a number was reserved, and if none was granted.
    sequence: Option<u64>,
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
    scratch: Vec<u8>,
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
            scratch: Vec::new(),
        }
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
            self.encapsulate_chunk(now, chunk);
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
            self.decapsulate_chunk(now, sas, chunk);
        }
    }

    fn encapsulate_chunk<'a, B: Buffer>(&mut self, now: Timestamp, chunk: &mut [Outbound<'a, B>]) {
        let mut prepared: ArrayVec<Prepared<'a>, CHUNK> = ArrayVec::new();
        for (index, entry) in chunk.iter_mut().enumerate() {
            match outbound::measure(entry) {
                Ok(lengths) => prepared.push(Prepared {
                    index,
                    sa: entry.sa,
                    lengths,
                    sequence: None,
                }),
                Err(verdict) => {
                    entry.verdict = verdict;
                    self.counters.count(verdict, 0);
                }
            }
        }

        // One reservation per run of packets of the same association.
        for run in prepared.chunk_by_mut(|a, b| ptr::eq(a.sa, b.sa)) {
            let sa = run[0].sa;
            let lengths = run
                .iter()
                .map(|packet| packet.lengths.text_len(sa.context()));
            let reservation = sa.reserve(now, lengths);
            let (granted, refused) = run.split_at_mut(reservation.count as usize);
            for (packet, sequence) in granted.iter_mut().zip(reservation.first..) {
                packet.sequence = Some(sequence);
                let data = chunk[packet.index].packet.data_mut();
                outbound::write(sa, data, &packet.lengths, sequence);
            }
            for packet in refused {
                let reason = reservation
                    .refused
                    .map_or(DropReason::OutSequence, outbound::refused);
                let entry = &mut chunk[packet.index];
                outbound::unmeasure(&mut entry.packet, &packet.lengths);
                entry.verdict = Verdict::Drop(reason);
                self.counters.count(entry.verdict, 0);
            }
            self.emit(sa, reservation.events);
        }

        let mut jobs: ArrayVec<Job<'_>, CHUNK> = ArrayVec::new();
        let mut entries = chunk.iter_mut().enumerate();
        for packet in &prepared {
            let entry = entries.find(|(index, _)| *index == packet.index);
            if let (Some((_, entry)), Some(sequence)) = (entry, packet.sequence) {
                let context = packet.sa.context();
                jobs.push(Job {
                    cipher: context.cipher(),
                    sequence,
                    esn: packet.sa.esn(),
                    esp: &mut entry.packet.data_mut()[packet.lengths.esp_at(context)..],
                    authentic: false,
                });
            }
        }
        seal_batch(&mut jobs);
        drop(jobs);

        for packet in &prepared {
            if let Some(sequence) = packet.sequence {
                let entry = &mut chunk[packet.index];
                let data = entry.packet.data_mut();
                outbound::finish_udp(packet.sa.context(), data, &packet.lengths);
                entry.verdict = Verdict::Sealed { sequence };
                self.counters
                    .count(entry.verdict, packet.lengths.packet_len as usize);
            }
        }
    }

    fn decapsulate_chunk<'a, B: Buffer>(
        &mut self,
        now: Timestamp,
        sas: &impl InboundSas<'a>,
        chunk: &mut [Inbound<'a, B>],
    ) {
        let mut candidates: ArrayVec<(usize, Candidate<'a>), CHUNK> = ArrayVec::new();
        for (index, entry) in chunk.iter_mut().enumerate() {
            match inbound::prepare(entry, sas, &self.ports, &mut self.scratch) {
                Ok(candidate) => candidates.push((index, candidate)),
                Err(verdict) => {
                    entry.verdict = verdict;
                    self.counters.count(verdict, 0);
                }
            }
        }

        let mut jobs: ArrayVec<Job<'_>, CHUNK> = ArrayVec::new();
        let mut entries = chunk.iter_mut().enumerate();
        for (index, candidate) in &candidates {
            let Some((_, entry)) = entries.find(|(at, _)| at == index) else {
                break;
            };
            let esp_at = candidate.location.esp_at;
            jobs.push(Job {
                cipher: candidate.sa.context().cipher(),
                sequence: candidate.sequence,
                esn: candidate.sa.esn(),
                esp: &mut entry.packet.data_mut()[esp_at..esp_at + candidate.location.esp_len],
                authentic: false,
            });
        }
        open_batch(&mut jobs);
        let authentic: ArrayVec<bool, CHUNK> = jobs.iter().map(|job| job.authentic).collect();
        drop(jobs);

        // One commit per run of packets of the same association.
        let mut authentic = authentic.into_iter();
        for run in candidates.chunk_by(|(_, a), (_, b)| ptr::eq(a.sa, b.sa)) {
            let sa = run[0].1.sa;
            let mut failures = 0;
            let mut commit = sa.commit(now);
            for ((index, candidate), authentic) in run.iter().zip(authentic.by_ref()) {
                let entry = &mut chunk[*index];
                entry.verdict = if authentic {
                    inbound::finish(candidate, &mut commit, &mut entry.packet)
                } else {
                    failures += 1;
                    Verdict::Drop(DropReason::Icv)
                };
                self.counters
                    .count(entry.verdict, entry.packet.data().len());
            }
            let events = commit.finish();
            self.emit(sa, events);
            for _ in 0..failures {
                let events = sa.authentication_failed(now);
                self.emit(sa, events);
            }
        }
    }

    fn emit(&mut self, sa: &EspSa, events: vesper_sa::Events) {
        if events.is_empty() {
            return;
        }
        for event in sa.messages(events) {
            if self.events.len() < EVENTS {
                self.events.push(event);
            } else {
                self.counters.lost_events += 1;
            }
        }
    }
}
