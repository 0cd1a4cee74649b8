//! The batch engine: prepare all, seal or open all, finish all.

use core::ptr;

use arrayvec::ArrayVec;
use vesper_sa::{Event, Events, Mode, Timestamp};

use crate::aead::{self, Job, open_batch, seal_batch};
use crate::association::EspSa;
use crate::audit::Audit;
use crate::buffer::Buffer;
use crate::fate::{Counters, DropReason, Opened, Verdict};
use crate::inbound::{self, Candidate, Gate, Inbound, InboundSas};
use crate::outbound::{self, Measured, Outbound, Path};
use crate::recent::Recent;
use crate::wire::EncapsulationPorts;

/// How many packets are in flight between the passes. Longer batches are cut.
pub const CHUNK: usize = 64;

/// How many events are kept for collection; more are counted as lost.
const EVENTS: usize = 256;

/// What has been measured of packets of one association that stand together.
#[derive(Default)]
struct Run {
    measured: u32,
    /// Bytes that the cipher will be applied to.
    text_bytes: u64,
    /// Bytes before anything was added.
    packet_bytes: u64,
}

impl Run {
    #[inline]
    fn add(&mut self, measured: &Measured) {
        self.measured += 1;
        self.text_bytes += u64::from(measured.text_len());
        self.packet_bytes += u64::from(measured.packet_len());
    }
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
    audit: Audit,
    /// Where to try an ESP packet on a copy; `None`: never.
    scratch: Option<Vec<u8>>,
    recent: Recent,
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
            audit: Audit::new(),
            scratch: Some(Vec::new()),
            recent: Recent::new(),
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
        self.encapsulate_all::<B, false>(now, batch);
    }

    /// Encapsulates as [`encapsulate`](Self::encapsulate) does, but leaves the cryptography to
    /// an adapter: [`Verdict::Sealed`] then means that headers, IV, padding and trailer are
    /// written, the text is **clear**, and where the ICV belongs there is room for it.
    ///
    /// The UDP checksum that ESP in UDP over IPv6 needs is not computed either.
    pub fn frame<B: Buffer>(&mut self, now: Timestamp, batch: &mut [Outbound<'_, B>]) {
        self.encapsulate_all::<B, true>(now, batch);
    }

    /// Decapsulates packets that an adapter has authenticated and decrypted already: replay
    /// window, trailer, selectors, inner packet.
    ///
    /// Every entry names its association and, as its sequence number, the one of 64 bits that
    /// the adapter has used; if that is not the number that the window infers, the adapter was
    /// behind, the packet may be an old one, and it is dropped as a replay.
    pub fn accept<B: Buffer>(&mut self, now: Timestamp, batch: &mut [Inbound<'_, B>]) {
        self.decapsulate_all::<B, true>(now, &|_, _| None, batch);
    }

    /// Decapsulates every packet of `batch` in place, with the associations that `sas` finds.
    pub fn decapsulate<'a, B: Buffer>(
        &mut self,
        now: Timestamp,
        sas: &impl InboundSas<'a>,
        batch: &mut [Inbound<'a, B>],
    ) {
        self.decapsulate_all::<B, false>(now, sas, batch);
    }

    /// `ADAPTER`: somebody else does the cryptography.
    #[inline(always)]
    fn encapsulate_all<B: Buffer, const ADAPTER: bool>(
        &mut self,
        now: Timestamp,
        batch: &mut [Outbound<'_, B>],
    ) {
        let mut rest = batch;
        while !rest.is_empty() {
            let chunk;
            let (len, soon) = self.recent.cut(rest.len(), |i| Some(rest[i].sa));
            (chunk, rest) = rest.split_at_mut(len);
            outbound::prefetch(chunk);
            self.encapsulate_chunk::<B, ADAPTER>(now, chunk, &rest[..soon]);
        }
    }

    /// As [`encapsulate_all`](Self::encapsulate_all), as many as are in flight at once; `next` are
    /// some that follow, whose associations are likely not to be in the caches.
    fn encapsulate_chunk<B: Buffer, const ADAPTER: bool>(
        &mut self,
        now: Timestamp,
        chunk: &mut [Outbound<'_, B>],
        next: &[Outbound<'_, B>],
    ) {
        let mut with_checksum = false;
        let mut jobs: ArrayVec<Job<'_>, CHUNK> = ArrayVec::new();
        // Packets of the same association that stand together are a run.
        for run in chunk.chunk_by_mut(|a, b| ptr::eq(a.sa, b.sa)) {
            let context = run[0].sa.context();
            context.prefetch_key();
            with_checksum |= context.has_udp_checksum();
            self.frame_run(now, run, &mut jobs);
        }
        prefetch_soon(next.iter().map(|entry| Some(entry.sa)));
        if !ADAPTER {
            seal_batch(&mut jobs);
        }
        drop(jobs);

        if with_checksum && !ADAPTER {
            for entry in chunk {
                if let Verdict::Sealed { .. } = entry.verdict {
                    outbound::write_udp_checksum(entry.sa.context(), entry.packet.data_mut());
                }
            }
        }
    }

    /// Writes all but ciphertext and ICV of the packets of a run.
    #[inline(always)]
    fn frame_run<'a, 'c, B: Buffer>(
        &mut self,
        now: Timestamp,
        run: &'c mut [Outbound<'a, B>],
        jobs: &mut ArrayVec<Job<'c>, CHUNK>,
    ) where
        'a: 'c,
    {
        let sa = run[0].sa;
        // `None`: refused.
        let mut measured: ArrayVec<Option<Measured>, CHUNK> = ArrayVec::new();
        let total = self.measure(run, &mut measured);
        if total.measured as usize == run.len()
            && let Some(first) = sa.reserve_run(now, total.measured, total.text_bytes)
        {
            self.counters.sealed_packets += u64::from(total.measured);
            self.counters.sealed_bytes += total.packet_bytes;
            let (cipher, esn) = (sa.context().cipher(), sa.esn());
            // Inclusive: the last number has none after it.
            let numbers = first..=u64::MAX;
            for ((entry, measured), sequence) in
                run.iter_mut().zip(measured.iter().flatten()).zip(numbers)
            {
                entry.verdict = Verdict::Sealed { sequence };
                jobs.push(Job {
                    cipher,
                    sequence,
                    esn,
                    esp: outbound::write(sa, entry.packet.data_mut(), measured, sequence),
                    authentic: false,
                });
            }
            return;
        }
        self.number_one_by_one(now, run, &mut measured);
        write(run, &measured, jobs);
    }

    /// Makes room for what the packets of a run will become.
    #[inline(always)]
    fn measure<B: Buffer>(
        &mut self,
        run: &mut [Outbound<'_, B>],
        measured: &mut ArrayVec<Option<Measured>, CHUNK>,
    ) -> Run {
        let path = Path::of(run[0].sa);
        let mut total = Run::default();
        for entry in run {
            if let Some(plain) = path.measure_plain(entry.content, &mut entry.packet) {
                total.add(&plain);
                measured.push(Some(plain));
                continue;
            }
            let outcome = path.measure(entry.content, &mut entry.packet);
            measured.push(outcome.ok());
            match outcome {
                Ok(measured) => total.add(&measured),
                Err(verdict) => {
                    entry.verdict = verdict;
                    self.counters.count(verdict, 0);
                }
            }
        }
        total
    }

    /// Reserves sequence numbers for the packets of a run that have been measured, and leaves
    /// them in their verdicts; not all may get one.
    #[inline(never)]
    fn number_one_by_one<B: Buffer>(
        &mut self,
        now: Timestamp,
        run: &mut [Outbound<'_, B>],
        measured: &mut [Option<Measured>],
    ) {
        let sa = run[0].sa;
        let lengths = measured.iter().flatten().map(Measured::text_len);
        let reservation = sa.reserve(now, lengths);
        let mut numbers = (0..reservation.count).zip(reservation.first..=u64::MAX);
        for (entry, place) in run.iter_mut().zip(measured) {
            let Some(measured) = place else { continue };
            if let Some((_, sequence)) = numbers.next() {
                entry.verdict = Verdict::Sealed { sequence };
            } else {
                let reason = reservation
                    .refused
                    .map_or(DropReason::OutSequence, outbound::refused);
                Path::of(sa).unmeasure(&mut entry.packet, measured);
                entry.verdict = Verdict::Drop(reason);
            }
            self.counters
                .count(entry.verdict, measured.packet_len() as usize);
            if let Verdict::Drop(_) = entry.verdict {
                *place = None;
            }
        }
        self.emit(sa, reservation.events);
    }

    /// `ADAPTER`: somebody else has done the cryptography.
    #[inline(always)]
    fn decapsulate_all<'a, B: Buffer, const ADAPTER: bool>(
        &mut self,
        now: Timestamp,
        sas: &impl InboundSas<'a>,
        batch: &mut [Inbound<'a, B>],
    ) {
        let mut rest = batch;
        while !rest.is_empty() {
            let chunk;
            let (len, soon) = self.recent.cut(rest.len(), |i| rest[i].sa);
            (chunk, rest) = rest.split_at_mut(len);
            inbound::prefetch(chunk, sas);
            self.decapsulate_chunk::<B, ADAPTER>(now, sas, chunk, &rest[..soon]);
        }
    }

    /// As [`decapsulate_all`](Self::decapsulate_all), as many as are in flight at once; `next` are
    /// some that follow, whose associations are likely not to be in the caches.
    fn decapsulate_chunk<'a, B: Buffer, const ADAPTER: bool>(
        &mut self,
        now: Timestamp,
        sas: &impl InboundSas<'a>,
        chunk: &mut [Inbound<'a, B>],
        next: &[Inbound<'a, B>],
    ) {
        let mut candidates: ArrayVec<Candidate<'a>, CHUNK> = ArrayVec::new();
        let mut jobs: ArrayVec<Job<'_>, CHUNK> = ArrayVec::new();
        let mut first = 0;
        for run in chunk.chunk_by_mut(|a, b| same(a.sa, b.sa)) {
            let len = run.len();
            self.admit::<B, ADAPTER>(now, sas, run, first, &mut candidates, &mut jobs);
            first += len;
        }
        prefetch_soon(next.iter().map(|entry| entry.sa));
        if !ADAPTER {
            open_batch(&mut jobs);
        }
        let authentic = if ADAPTER { u64::MAX } else { authentic(&jobs) };
        drop(jobs);

        let mut first = 0;
        for run in candidates.chunk_by_mut(|a, b| ptr::eq(a.sa, b.sa)) {
            self.commit(now, run, authentic >> first);
            self.open(now, run, chunk);
            first += run.len();
        }
    }

    /// Admits the packets of a run, all with the same association or all without one, to the
    /// cryptography; `first` is the place of the first in the chunk.
    #[inline(always)]
    fn admit<'a, 'c, B: Buffer, const ADAPTER: bool>(
        &mut self,
        now: Timestamp,
        sas: &impl InboundSas<'a>,
        run: &'c mut [Inbound<'a, B>],
        first: usize,
        candidates: &mut ArrayVec<Candidate<'a>, CHUNK>,
        jobs: &mut ArrayVec<Job<'c>, CHUNK>,
    ) where
        'a: 'c,
    {
        let gate = run[0].sa.map(Gate::of);
        if let Some(sa) = run[0].sa {
            sa.context().prefetch_key();
        }
        for (entry, index) in run.iter_mut().zip(first..) {
            if let Some(gate) = &gate
                && let Some(candidate) =
                    inbound::admit_plain::<B, ADAPTER>(gate, entry, index as u8)
            {
                jobs.push(gate.job(&candidate, entry.packet.data_mut()));
                candidates.push(candidate);
                continue;
            }
            let admitted = if ADAPTER {
                inbound::admit_opened(entry, index as u8, &self.ports)
            } else {
                inbound::admit(entry, index as u8, sas, &self.ports, &mut self.scratch)
            };
            match admitted {
                Ok(candidate) => {
                    let gate = Gate::of(candidate.sa);
                    jobs.push(gate.job(&candidate, entry.packet.data_mut()));
                    candidates.push(candidate);
                }
                Err(verdict) => {
                    if let Verdict::Drop(reason) = verdict {
                        self.tell(now, reason, entry.sa, entry.packet.data());
                    }
                    entry.verdict = verdict;
                    self.counters.count(verdict, 0);
                }
            }
        }
    }

    /// Decides about the packets of a run, of which a bit says whether each is authentic.
    #[inline(always)]
    fn commit(&mut self, now: Timestamp, run: &mut [Candidate<'_>], authentic: u64) {
        let sa = run[0].sa;
        let around = sa.context().framing().esp_around();
        let all = run.len().min(authentic.trailing_ones() as usize);
        let packets = run[..all]
            .iter()
            .map(|candidate| (candidate.sequence, candidate.esp_len - around));
        let accepted = sa.accept_run(now, packets);
        if accepted < run.len() {
            self.commit_closely(now, &mut run[accepted..], authentic >> accepted);
        }
    }

    /// As [`commit`](Self::commit), where not all may be accepted. The association's lock is
    /// held meanwhile, and for nothing else.
    #[inline(never)]
    fn commit_closely(&mut self, now: Timestamp, run: &mut [Candidate<'_>], authentic: u64) {
        let sa = run[0].sa;
        let mut forged = 0;
        let mut commit = sa.commit(now);
        for (index, candidate) in run.iter_mut().enumerate() {
            if authentic >> index & 1 == 0 {
                candidate.refusal = Some(DropReason::Icv);
                forged += 1;
            } else if let Err(refusal) = commit.accept(candidate.sequence, candidate.text_len()) {
                candidate.refusal = Some(inbound::refused(refusal));
            }
        }
        let events = commit.finish();
        self.emit(sa, events);
        for _ in 0..forged {
            let events = sa.authentication_failed(now);
            self.emit(sa, events);
        }
    }

    /// Leaves the inner packets of those that were accepted.
    #[inline(always)]
    fn open<B: Buffer>(
        &mut self,
        now: Timestamp,
        candidates: &[Candidate<'_>],
        chunk: &mut [Inbound<'_, B>],
    ) {
        let (mut opened, mut bytes) = (0, 0);
        for candidate in candidates {
            let entry = &mut chunk[usize::from(candidate.index)];
            if candidate.refusal.is_none()
                && let Some((next_header, len)) = inbound::open_plain(candidate, &mut entry.packet)
            {
                entry.verdict = Verdict::Opened(Opened {
                    sequence: candidate.sequence,
                    mode: Mode::Tunnel,
                    next_header,
                });
                opened += 1;
                bytes += len as u64;
                continue;
            }
            if let Some(reason) = candidate.refusal {
                self.tell(now, reason, Some(candidate.sa), entry.packet.data());
            }
            entry.verdict = inbound::open(candidate, &mut entry.packet);
            let len = entry.packet.data().len();
            self.counters.count(entry.verdict, len);
        }
        self.counters.opened_packets += opened;
        self.counters.opened_bytes += bytes;
    }

    /// Tells of a packet that is refused, as often as that is of use.
    #[cold]
    fn tell(&mut self, now: Timestamp, reason: DropReason, sa: Option<&EspSa>, packet: &[u8]) {
        let event = self.audit.refused(now, reason, sa, packet, &self.ports);
        let has_room = self.events.len() < EVENTS;
        self.events.extend(event.filter(|_| has_room));
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

/// Writes all but ciphertext and ICV of the packets of a run that have numbers.
#[inline(never)]
fn write<'a, 'c, B: Buffer>(
    run: &'c mut [Outbound<'a, B>],
    measured: &[Option<Measured>],
    jobs: &mut ArrayVec<Job<'c>, CHUNK>,
) where
    'a: 'c,
{
    for (entry, measured) in run.iter_mut().zip(measured) {
        let (Verdict::Sealed { sequence }, Some(measured)) = (entry.verdict, measured) else {
            continue;
        };
        let sa = entry.sa;
        jobs.push(Job {
            cipher: sa.context().cipher(),
            sequence,
            esn: sa.esn(),
            esp: outbound::write(sa, entry.packet.data_mut(), measured, sequence),
            authentic: false,
        });
    }
}

/// Asks for the associations of the packets that follow, while those before them are with the
/// cipher.
#[inline(always)]
fn prefetch_soon<'a>(sas: impl Iterator<Item = Option<&'a EspSa>>) {
    for sa in sas.flatten() {
        aead::prefetch_soon(sa, 0);
        aead::prefetch_soon(sa, 64);
        sa.context().prefetch_soon();
    }
}

/// A bit for each, in their order: the ICV was right.
#[inline]
fn authentic(jobs: &[Job<'_>]) -> u64 {
    let bits = jobs.iter().zip(0..);
    bits.fold(0, |bits, (job, at)| bits | u64::from(job.authentic) << at)
}

/// Whether both are the same association, or none.
#[inline]
fn same(a: Option<&EspSa>, b: Option<&EspSa>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => ptr::eq(a, b),
        (a, b) => a.is_none() && b.is_none(),
    }
}
