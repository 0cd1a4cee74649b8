//! The command `pcap`: opens the ESP packets of a capture.

use core::fmt;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use serde::Serialize;
use vesper_esp::aead::Implementation;
use vesper_esp::{DropReason, Verdict};
use vesper_sa::Timestamp;

use crate::capture::{CaptureError, CaptureReader, CaptureWriter, Record};
use crate::ingress::{Arrival, Contradiction, Ingress};
use crate::opener::{Batch, Opener, OpenerError, Opening, Tally, count_name};
use crate::xfrm::Entry;

/// Names of the counts that are always there, also when they are 0.
const COUNTS: [DropReason; 7] = [
    DropReason::Icv,
    DropReason::Replay,
    DropReason::Malformed,
    DropReason::Padding,
    DropReason::Dummy,
    DropReason::Selector,
    DropReason::NoSa,
];

/// The most failures that a summary lists; the others are counted only, so that a large
/// capture takes no more memory than a small one.
const FAILURES: usize = 10_000;

/// Packets of so many bytes are opened together...
const BATCH: usize = 256 << 10;

/// ... or of so many frames.
const ITEMS: usize = 1024;

/// What became of the packets of a capture.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Frames in the capture.
    pub frames: u64,
    /// ESP packets seen: those accepted and those dropped for whatever reason.
    pub packets: u64,
    /// Packets accepted.
    pub accepted: u64,
    /// Packets dropped, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Frames that hold neither ESP nor a fragment.
    pub not_esp: u64,
    /// Datagrams of which fragments are missing; they have no other count.
    pub incomplete_datagrams: u64,
    /// Packets on which the implementations disagree.
    pub disagreements: u64,
    /// The associations, in the order of the file.
    pub sas: Vec<SaSummary>,
    /// Packets that were not right, dummies not among them.
    pub failures: Vec<Failure>,
    /// Failures that are not in the list.
    pub failures_omitted: u64,
}

/// What became of the packets of one association.
#[derive(Clone, Debug, Serialize)]
pub struct SaSummary {
    /// Line of the file of associations.
    pub line: usize,
    /// SPI, or the pattern of a Wireshark row.
    pub spi: String,
    /// Outer source address.
    pub source: String,
    /// Outer destination address.
    pub destination: String,
    /// `tunnel` or `transport`; a Wireshark row does not say it.
    pub mode: Option<&'static str>,
    /// The suite.
    pub suite: &'static str,
    /// The same packets on each implementation; the first one is the one that counts.
    pub implementations: Vec<LaneSummary>,
}

/// What became of the packets of one association on one implementation.
#[derive(Clone, Debug, Serialize)]
pub struct LaneSummary {
    /// Name of the implementation.
    pub implementation: &'static str,
    /// Packets accepted.
    pub accepted: u64,
    /// Bytes of the inner packets.
    pub bytes: u64,
    /// Highest sequence number accepted, of 64 bits.
    pub highest_sequence: u64,
    /// Packets dropped, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
}

/// A packet that was not right.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// Number of its frame, counted from 1; of a fragmented packet, that of the last fragment.
    pub frame: u64,
    /// SPI, if the packet has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spi: Option<String>,
    /// Sequence number, of 64 bits where an association was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// The name that it is counted under.
    pub count: &'static str,
    /// The reason in words.
    pub reason: String,
}

/// Why a capture was not processed to its end.
#[derive(Debug)]
#[non_exhaustive]
pub enum UnsealError {
    /// The capture cannot be read.
    Capture(CaptureError),
    /// An association cannot be used.
    Opener(OpenerError),
    /// The output cannot be written.
    Output(io::Error),
}

/// Opens every ESP packet of `capture`, writes the inner packets to `output`, and calls
/// `progress` with the bytes read now and then and `failed` for every failure.
pub fn unseal<R: Read, W: Write>(
    capture: &mut CaptureReader<R>,
    opener: &mut Opener,
    mut output: Option<&mut CaptureWriter<W>>,
    mut progress: impl FnMut(u64),
    mut failed: impl FnMut(&Failure),
) -> Result<Summary, UnsealError> {
    let mut summary = Summary::new();
    let mut ingress = Ingress::default();
    let mut arrived = Arrived::default();
    loop {
        if arrived.is_enough() {
            arrived.open(opener, &mut summary, output.as_deref_mut(), &mut failed)?;
            progress(capture.position());
        }
        let record = match capture.next_record() {
            Ok(Some(record)) => record,
            // What came before an error is opened all the same.
            end => {
                let end = end.map(drop);
                arrived.open(opener, &mut summary, output.as_deref_mut(), &mut failed)?;
                end.map_err(UnsealError::Capture)?;
                break;
            }
        };
        summary.frames += 1;
        let (now, arrival) = ingress.frame(&record);
        match arrival {
            Arrival::Packet(packet) => arrived.push(&record, now, &packet),
            Arrival::Fragment => {}
            Arrival::NotIp => summary.not_esp += 1,
            Arrival::Malformed(contradiction) => arrived.refuse(record.number, &contradiction),
        }
    }
    progress(capture.position());
    summary.incomplete_datagrams = ingress.incomplete();
    summary.sas = opener
        .associations()
        .map(|(entry, tallies)| SaSummary::new(entry, tallies))
        .collect();
    Ok(summary)
}

/// What has arrived and is yet to be opened.
#[derive(Default)]
struct Arrived {
    items: Vec<Item>,
    batch: Batch,
}

/// A packet, or a frame that holds none.
enum Item {
    /// The next packet of the batch.
    Packet {
        /// Number of its frame.
        frame: u64,
        /// Of its capture, in nanoseconds.
        timestamp: u64,
    },
    Malformed(Failure),
}

impl Arrived {
    /// Whether it is time to open what is there.
    fn is_enough(&self) -> bool {
        self.batch.bytes() >= BATCH || self.items.len() >= ITEMS
    }

    fn push(&mut self, record: &Record<'_>, now: Timestamp, packet: &[u8]) {
        self.batch.push(now, packet);
        self.items.push(Item::Packet {
            frame: record.number,
            timestamp: record.timestamp,
        });
    }

    fn refuse(&mut self, frame: u64, contradiction: &Contradiction) {
        let failure = Failure::malformed(frame, contradiction);
        self.items.push(Item::Malformed(failure));
    }

    /// Opens the packets, and says of all in their order what became of them.
    fn open<W: Write>(
        &mut self,
        opener: &mut Opener,
        summary: &mut Summary,
        mut output: Option<&mut CaptureWriter<W>>,
        failed: &mut impl FnMut(&Failure),
    ) -> Result<(), UnsealError> {
        opener.open_all(&self.batch).map_err(UnsealError::Opener)?;
        let mut index = 0;
        for item in self.items.drain(..) {
            match item {
                Item::Packet { frame, timestamp } => {
                    let opening = opener.opening(index);
                    if let (Verdict::Opened(_), Some(output)) = (opening.verdict, &mut output) {
                        let written = output.packet(timestamp, opening.inner);
                        written.map_err(UnsealError::Output)?;
                    }
                    summary.count(frame, &opening, failed);
                    index += 1;
                }
                Item::Malformed(failure) => summary.fail(failure, failed),
            }
        }
        self.batch.clear();
        Ok(())
    }
}

impl Summary {
    fn new() -> Self {
        Self {
            frames: 0,
            packets: 0,
            accepted: 0,
            dropped: COUNTS
                .iter()
                .map(|&reason| (count_name(reason), 0))
                .collect(),
            not_esp: 0,
            incomplete_datagrams: 0,
            disagreements: 0,
            sas: Vec::new(),
            failures: Vec::new(),
            failures_omitted: 0,
        }
    }

    /// Whether something was accepted and nothing was wrong.
    pub fn is_success(&self) -> bool {
        self.accepted > 0 && self.failures.is_empty()
    }

    /// Counts a packet.
    fn count(&mut self, frame: u64, opening: &Opening<'_>, failed: &mut impl FnMut(&Failure)) {
        let failure = |count, reason| Failure {
            frame,
            spi: opening.spi.map(|spi| format!("0x{spi:08x}")),
            sequence: opening.spi.map(|_| opening.sequence),
            count,
            reason,
        };
        match opening.verdict {
            Verdict::Opened(_) => {
                self.packets += 1;
                self.accepted += 1;
            }
            Verdict::Drop(reason) if reason == DropReason::Dummy => {
                self.packets += 1;
                *self.dropped.entry(count_name(reason)).or_default() += 1;
            }
            Verdict::Drop(reason) => {
                self.fail(failure(count_name(reason), reason.to_string()), failed);
            }
            Verdict::NotEsp(_)
            | Verdict::Pending
            | Verdict::Sealed { .. }
            | Verdict::TooBig { .. } => self.not_esp += 1,
        }
        if let Some((implementation, verdict)) = opening.dissent {
            self.disagreements += 1;
            let outcome = match verdict {
                Verdict::Drop(reason) => format!("drops it: {reason}"),
                Verdict::Opened(_) if matches!(opening.verdict, Verdict::Opened(_)) => {
                    "opens it to another packet".to_owned()
                }
                _ => "accepts it".to_owned(),
            };
            let reason = format!("{implementation} {outcome}");
            self.list(failure("disagreement", reason), failed);
        }
    }

    fn fail(&mut self, failure: Failure, failed: &mut impl FnMut(&Failure)) {
        self.packets += 1;
        *self.dropped.entry(failure.count).or_default() += 1;
        self.list(failure, failed);
    }

    fn list(&mut self, failure: Failure, failed: &mut impl FnMut(&Failure)) {
        failed(&failure);
        if self.failures.len() < FAILURES {
            self.failures.push(failure);
        } else {
            self.failures_omitted += 1;
        }
    }
}

impl Failure {
    fn malformed(frame: u64, contradiction: &Contradiction) -> Self {
        Self {
            frame,
            spi: None,
            sequence: None,
            count: count_name(DropReason::Malformed),
            reason: contradiction.to_string(),
        }
    }
}

impl SaSummary {
    fn new<'a>(entry: &Entry, tallies: impl Iterator<Item = (Implementation, &'a Tally)>) -> Self {
        let (spi, source, destination, mode) = match entry {
            Entry::State(state) => (
                state.spi.to_string(),
                state.source.to_string(),
                state.destination.to_string(),
                Some(match state.mode {
                    vesper_sa::Mode::Tunnel => "tunnel",
                    vesper_sa::Mode::Transport => "transport",
                }),
            ),
            Entry::Row(row) => (
                row.spi.to_string(),
                row.source.to_string(),
                row.destination.to_string(),
                None,
            ),
        };
        let lanes = tallies.map(|(implementation, tally)| LaneSummary {
            implementation: implementation.name(),
            accepted: tally.accepted,
            bytes: tally.bytes,
            highest_sequence: tally.highest,
            dropped: tally.dropped.clone(),
        });
        Self {
            line: entry.line(),
            spi,
            source,
            destination,
            mode,
            suite: entry.keys().suite().name,
            implementations: lanes.collect(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame {}", self.frame)?;
        if let Some(spi) = &self.spi {
            write!(f, " SPI {spi}")?;
        }
        if let Some(sequence) = self.sequence {
            write!(f, " sequence {sequence}")?;
        }
        write!(f, ": {}: {}", self.count, self.reason)
    }
}

impl fmt::Display for UnsealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capture(error) => error.fmt(f),
            Self::Opener(error) => error.fmt(f),
            Self::Output(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for UnsealError {}
