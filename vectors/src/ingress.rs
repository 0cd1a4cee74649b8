//! From captured frames to whole IP packets: link headers off, fragments together.

use core::fmt;
use std::borrow::Cow;

use vesper_esp::wire::WireError;
use vesper_esp::{Reassembler, Reassembly, ReassemblyError};
use vesper_sa::Timestamp;

use crate::capture::Record;
use crate::frame::{Defect, Frame, ip_packet};

/// What a frame amounts to.
#[derive(Debug)]
pub enum Arrival<'a> {
    /// A whole IP packet, of one frame or of several fragments, with whatever the link appends.
    Packet(Cow<'a, [u8]>),
    /// A fragment; others of its datagram are missing yet.
    Fragment,
    /// Well-formed, but not IP.
    NotIp,
    /// Lengths or headers contradict each other.
    Malformed(Contradiction),
}

/// What contradicts what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contradiction {
    /// In the link header.
    Link(Defect),
    /// The capture kept only the beginning of the frame.
    SnapLen {
        /// Bytes that it kept.
        captured: usize,
        /// Bytes on the wire.
        original: u32,
    },
    /// In the IP header, or among the fragments of a datagram.
    Reassembly(ReassemblyError),
}

/// Takes frames of one capture in order.
#[derive(Debug, Default)]
pub struct Ingress {
    reassembler: Reassembler,
    /// Time of the first frame; the clock of everything that follows begins there.
    start: Option<u64>,
}

impl Ingress {
    /// Takes one frame, and says when it came, counted from the first.
    pub fn frame<'a>(&mut self, record: &Record<'a>) -> (Timestamp, Arrival<'a>) {
        let start = *self.start.get_or_insert(record.timestamp);
        let now = Timestamp::from_nanos(record.timestamp.saturating_sub(start));
        let (packet, vlan) = match ip_packet(record) {
            Frame::Ip { packet, vlan } => (packet, vlan),
            Frame::Other => return (now, Arrival::NotIp),
            Frame::Malformed(defect) => {
                return (now, Arrival::Malformed(Contradiction::Link(defect)));
            }
        };
        let arrival = match self.reassembler.push(now, vlan, packet) {
            Reassembly::Whole => Arrival::Packet(Cow::Borrowed(packet)),
            Reassembly::Complete(packet) => Arrival::Packet(Cow::Owned(packet)),
            Reassembly::Waiting => Arrival::Fragment,
            Reassembly::Refused(error) => {
                let cut = (record.data.len() as u64) < u64::from(record.original_len);
                Arrival::Malformed(match error {
                    ReassemblyError::Malformed(
                        WireError::TotalLength | WireError::Truncated | WireError::ExtensionHeader,
                    ) if cut => Contradiction::SnapLen {
                        captured: record.data.len(),
                        original: record.original_len,
                    },
                    error => Contradiction::Reassembly(error),
                })
            }
        };
        (now, arrival)
    }

    /// Datagrams of which fragments are missing, those given up included.
    pub fn incomplete(&self) -> u64 {
        self.reassembler.pending() as u64 + self.reassembler.given_up()
    }
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(defect) => defect.fmt(f),
            Self::SnapLen { captured, original } => write!(
                f,
                "the capture kept {captured} of the {original} bytes of the frame"
            ),
            Self::Reassembly(error) => error.fmt(f),
        }
    }
}
