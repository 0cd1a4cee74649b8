//! The command `pcap`: opens the ESP packets of a capture.

use core::fmt;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use serde::Serialize;
use vesper_esp::{DropReason, Verdict};

use crate::capture::{CaptureError, CaptureReader, CaptureWriter};
use crate::ingress::{Arrival, Contradiction, Ingress};
use crate::opener::{Association, Opener, OpenerError, count_name};
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
    loop {
        if summary.frames.is_multiple_of(256) {
            progress(capture.position());
        }
        let Some(record) = capture.next_record().map_err(UnsealError::Capture)? else {
            break;
        };
        summary.frames += 1;
        let (now, arrival) = ingress.frame(&record);
        let packet = match arrival {
            Arrival::Packet(packet) => packet,
            Arrival::Fragment => continue,
            Arrival::NotIp => {
                summary.not_esp += 1;
                continue;
            }
            Arrival::Malformed(contradiction) => {
                let failure = Failure::malformed(record.number, &contradiction);
                summary.fail(failure, &mut failed);
                continue;
            }
        };
        let opening = opener.open(now, &packet).map_err(UnsealError::Opener)?;
        let failure = |count, reason| Failure {
            frame: record.number,
            spi: opening.spi.map(|spi| format!("0x{spi:08x}")),
            sequence: opening.spi.map(|_| opening.sequence),
            count,
            reason,
        };
        match opening.verdict {
            Verdict::Opened(_) => {
                summary.packets += 1;
                summary.accepted += 1;
                if let Some(output) = &mut output {
                    output
                        .packet(record.timestamp, opening.inner)
                        .map_err(UnsealError::Output)?;
                }
            }
            Verdict::Drop(reason) if reason == DropReason::Dummy => {
                summary.packets += 1;
                *summary.dropped.entry(count_name(reason)).or_default() += 1;
            }
            Verdict::Drop(reason) => {
                let failure = failure(count_name(reason), reason.to_string());
                summary.fail(failure, &mut failed);
            }
            Verdict::NotEsp(_)
            | Verdict::Pending
            | Verdict::Sealed { .. }
            | Verdict::TooBig { .. } => summary.not_esp += 1,
        }
        if let Some((implementation, verdict)) = opening.dissent {
            summary.disagreements += 1;
            let outcome = match verdict {
                Verdict::Drop(reason) => format!("drops it: {reason}"),
                Verdict::Opened(_) if matches!(opening.verdict, Verdict::Opened(_)) => {
                    "opens it to another packet".to_owned()
                }
                _ => "accepts it".to_owned(),
            };
            let failure = failure("disagreement", format!("{implementation} {outcome}"));
            summary.list(failure, &mut failed);
        }
    }
    progress(capture.position());
    summary.incomplete_datagrams = ingress.incomplete();
    summary.sas = opener.associations().iter().map(SaSummary::new).collect();
    Ok(summary)
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

    fn fail(&mut self, failure: Failure, failed: impl FnMut(&Failure)) {
        self.packets += 1;
        *self.dropped.entry(failure.count).or_default() += 1;
        self.list(failure, failed);
    }

    fn list(&mut self, failure: Failure, mut failed: impl FnMut(&Failure)) {
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
    fn new(association: &Association) -> Self {
        let (spi, source, destination, mode) = match &association.entry {
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
        let lanes = association.lanes.iter().map(|lane| LaneSummary {
            implementation: lane.implementation.name(),
            accepted: lane.tally.accepted,
            bytes: lane.tally.bytes,
            highest_sequence: lane.tally.highest,
            dropped: lane.tally.dropped.clone(),
        });
        Self {
            line: association.entry.line(),
            spi,
            source,
            destination,
            mode,
            suite: association.entry.keys().suite().name,
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
