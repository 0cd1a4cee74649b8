//! The command `encap`: seals the IP packets of a capture.

use core::fmt;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::IpAddr;

use serde::Serialize;
use vesper_esp::wire::flow;
use vesper_esp::{
    AssociationError, Buffer, Engine, EspSa, Outbound, PacketBuf, Verdict, association,
};
use vesper_sa::{Direction, Timestamp};

use crate::capture::{CaptureError, CaptureReader, CaptureWriter};
use crate::frame::{Frame, ip_packet};
use crate::xfrm::{Entry, State};

/// The longest IP packet in bytes: IPv6 with a full payload.
const LONGEST_PACKET: usize = 65_575;
/// Room for all that encapsulation adds behind a packet, padding for traffic flow
/// confidentiality included.
const TAILROOM: usize = 65_535 + PacketBuf::TAILROOM;

/// A sender with the outbound associations of a file.
#[derive(Debug)]
pub struct Sealer {
    associations: Vec<Sender>,
    engine: Engine,
    buffer: PacketBuf,
}

#[derive(Debug)]
struct Sender {
    state: Box<State>,
    sa: EspSa,
    sealed: u64,
    bytes: u64,
    highest: u64,
}

/// What became of the packets of a capture.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Frames in the capture.
    pub frames: u64,
    /// IP packets in it.
    pub packets: u64,
    /// Packets sealed and written.
    pub sealed: u64,
    /// IP packets that no association is for; they are not copied.
    pub not_selected: u64,
    /// Frames without an IP packet; they are not copied.
    pub not_ip: u64,
    /// Packets that an association is for and that could not be sealed, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// The outbound associations, in the order of the file.
    pub sas: Vec<SaSummary>,
}

/// What one association has sealed.
#[derive(Clone, Debug, Serialize)]
pub struct SaSummary {
    /// Line of the file of associations.
    pub line: usize,
    /// SPI.
    pub spi: String,
    /// Outer source address.
    pub source: IpAddr,
    /// Outer destination address.
    pub destination: IpAddr,
    /// The suite.
    pub suite: &'static str,
    /// Name of the implementation.
    pub implementation: &'static str,
    /// Packets sealed.
    pub sealed: u64,
    /// Bytes of the packets before they were sealed.
    pub bytes: u64,
    /// The last sequence number used, of 64 bits.
    pub highest_sequence: u64,
}

/// A packet that could not be sealed.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Number of its frame, counted from 1.
    pub frame: u64,
    /// The reason in words.
    pub reason: String,
}

/// Why a file of associations cannot be used for sending.
#[derive(Debug)]
#[non_exhaustive]
pub enum SealerError {
    /// An association cannot be made.
    Association {
        /// Line of the file.
        line: usize,
        /// What is wrong.
        error: AssociationError,
    },
    /// A Wireshark row says too little to send with.
    Row {
        /// Line of the file.
        line: usize,
    },
    /// A tunnel needs a source address, and the line has none.
    NoSource {
        /// Line of the file.
        line: usize,
    },
    /// Every line says `dir in`, or there is none.
    NoOutbound,
}

/// Why a capture was not processed to its end.
#[derive(Debug)]
#[non_exhaustive]
pub enum SealError {
    /// The capture cannot be read.
    Capture(CaptureError),
    /// The output cannot be written.
    Output(io::Error),
}

impl Sealer {
    /// A sender; lines with `dir in` take no part.
    pub fn new(entries: Vec<Entry>) -> Result<Self, SealerError> {
        let mut associations = Vec::new();
        for entry in entries {
            let state = match entry {
                Entry::State(state) => state,
                Entry::Row(row) => return Err(SealerError::Row { line: row.line }),
            };
            if state.direction == Some(Direction::Inbound) {
                continue;
            }
            let line = state.line;
            if state.source.is_unspecified() {
                return Err(SealerError::NoSource { line });
            }
            let sa = outbound(&state).map_err(|error| SealerError::Association { line, error })?;
            associations.push(Sender {
                state,
                sa,
                sealed: 0,
                bytes: 0,
                highest: 0,
            });
        }
        if associations.is_empty() {
            return Err(SealerError::NoOutbound);
        }
        Ok(Self {
            associations,
            engine: Engine::default(),
            buffer: PacketBuf::with_room(&[], PacketBuf::HEADROOM, LONGEST_PACKET + TAILROOM),
        })
    }
}

fn outbound(state: &State) -> Result<EspSa, AssociationError> {
    let cipher = state
        .keys
        .fastest_cipher()
        .map_err(AssociationError::Cipher)?;
    association(state.params(Direction::Outbound), cipher, Timestamp::ZERO)
}

/// Seals every IP packet of `capture` that an association is for (the first in the file whose
/// `sel` matches) and writes it to `output`; calls `progress` with the bytes read now and then
/// and `refused` for every packet that could not be sealed.
pub fn seal<R: Read, W: Write>(
    capture: &mut CaptureReader<R>,
    sealer: &mut Sealer,
    output: &mut CaptureWriter<W>,
    mut progress: impl FnMut(u64),
    mut refused: impl FnMut(&Refusal),
) -> Result<Summary, SealError> {
    let mut summary = Summary::new();
    let mut start = None;
    loop {
        if summary.frames.is_multiple_of(256) {
            progress(capture.position());
        }
        let Some(record) = capture.next_record().map_err(SealError::Capture)? else {
            break;
        };
        summary.frames += 1;
        let mut refuse = |count, reason| {
            *summary.refused.entry(count).or_default() += 1;
            refused(&Refusal {
                frame: record.number,
                reason,
            });
        };
        let packet = match ip_packet(&record) {
            Frame::Ip { packet, .. } => packet,
            Frame::Other => {
                summary.not_ip += 1;
                continue;
            }
            Frame::Malformed(defect) => {
                refuse("malformed", defect.to_string());
                continue;
            }
        };
        summary.packets += 1;
        let Some(flow) = flow(packet) else {
            refuse("malformed", "not a whole IP packet".to_owned());
            continue;
        };
        let Some(sender) = sealer.associations.iter_mut().find(|sender| {
            let selector = sender.state.selector.as_ref();
            selector.is_none_or(|selector| selector.matches(&flow))
        }) else {
            summary.not_selected += 1;
            continue;
        };
        let now = Timestamp::from_nanos(
            record
                .timestamp
                .saturating_sub(*start.get_or_insert(record.timestamp)),
        );
        if !sealer.buffer.refill(packet, PacketBuf::HEADROOM) {
            // Only what the link appends to a packet can be that long.
            refuse("malformed", "longer than an IP packet can be".to_owned());
            continue;
        }
        let mut batch = [Outbound::new(&sender.sa, &mut sealer.buffer)];
        sealer.engine.encapsulate(now, &mut batch);
        match batch[0].verdict {
            Verdict::Sealed { sequence } => {
                sender.sealed += 1;
                sender.bytes += packet.len() as u64;
                sender.highest = sequence;
                summary.sealed += 1;
                output
                    .packet(record.timestamp, sealer.buffer.data())
                    .map_err(SealError::Output)?;
            }
            Verdict::Drop(reason) => refuse(reason.name(), reason.to_string()),
            Verdict::TooBig { mtu } => refuse("too_big", format!("longer than {mtu} bytes")),
            Verdict::Pending | Verdict::Opened(_) | Verdict::NotEsp(_) => {}
        }
        sealer.engine.drain_events().for_each(drop);
    }
    progress(capture.position());
    summary.sas = sealer.associations.iter().map(SaSummary::new).collect();
    Ok(summary)
}

impl Summary {
    const fn new() -> Self {
        Self {
            frames: 0,
            packets: 0,
            sealed: 0,
            not_selected: 0,
            not_ip: 0,
            refused: BTreeMap::new(),
            sas: Vec::new(),
        }
    }

    /// Whether something was sealed and nothing that should have been was refused.
    pub fn is_success(&self) -> bool {
        self.sealed > 0 && self.refused.is_empty()
    }
}

impl SaSummary {
    fn new(sender: &Sender) -> Self {
        Self {
            line: sender.state.line,
            spi: sender.state.spi.to_string(),
            source: sender.state.source,
            destination: sender.state.destination,
            suite: sender.state.keys.suite().name,
            implementation: sender.sa.context().cipher().implementation().name(),
            sealed: sender.sealed,
            bytes: sender.bytes,
            highest_sequence: sender.highest,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame {}: not sealed: {}", self.frame, self.reason)
    }
}

impl fmt::Display for SealerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Association { line, error } => write!(f, "{line}: {error}"),
            Self::Row { line } => write!(
                f,
                "{line}: a Wireshark row says neither mode nor sequence number; write an `ip xfrm \
                 state add` line to send with"
            ),
            Self::NoSource { line } => write!(
                f,
                "{line}: src: missing; sending needs the address that packets come from"
            ),
            Self::NoOutbound => f.write_str("1: dir: no association to send with"),
        }
    }
}

impl core::error::Error for SealerError {}

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capture(error) => error.fmt(f),
            Self::Output(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for SealError {}
