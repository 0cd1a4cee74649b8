//! Opens packets with the associations of a file, on every implementation that has the suite.

mod receiver;

use core::fmt;
use core::ops::Range;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use rayon::prelude::*;
use vesper_esp::aead::Implementation;
use vesper_esp::wire::{EncapsulationPorts, EspLocation, IpHeader, Located, locate};
use vesper_esp::{AssociationError, DropReason, Engine, EspSa, PacketBuf, Verdict};
use vesper_sa::{NAT_TRAVERSAL_PORT, Spi, Timestamp};

use crate::xfrm::Entry;
use receiver::Receiver;

/// From so many bytes on a batch is opened by several threads at once. Handing work to another
/// thread costs some ten microseconds, in which the slowest implementation opens about 20 KiB.
const PARALLEL: usize = 64 << 10;

/// The name under which a dropped packet is counted: the seven of the JSON output, and for
/// what can only come of an association's own limits the name of the reason.
pub fn count_name(reason: DropReason) -> &'static str {
    match reason {
        DropReason::InnerMalformed | DropReason::Fragment => DropReason::Malformed.name(),
        reason => reason.name(),
    }
}

/// A receiver with the associations of a file.
#[derive(Debug)]
pub struct Opener {
    entries: Vec<Entry>,
    /// For each association the implementations that have its suite, by their place in
    /// `receivers`; the first one's verdict counts.
    orders: Vec<Vec<usize>>,
    receivers: Vec<Receiver>,
    /// Destination and SPI to the place in `entries`.
    index: HashMap<(IpAddr, Spi), usize>,
    ports: EncapsulationPorts,
    /// For packets of no association.
    engine: Engine,
    buffer: PacketBuf,
    /// The batch of which the receivers keep the outcomes.
    openings: Vec<Unclaimed>,
}

/// Packets to be opened together, in the order of their arrival.
#[derive(Debug, Default)]
pub struct Batch {
    packets: Vec<(Timestamp, Range<usize>)>,
    bytes: Vec<u8>,
}

/// The association of a packet.
#[derive(Clone, Copy, Debug)]
struct Found {
    at: usize,
    location: EspLocation,
    key: (IpAddr, Spi),
}

/// What is known of a packet of the batch beside the outcomes of the receivers.
#[derive(Clone, Copy, Debug)]
struct Unclaimed {
    /// Its association.
    at: Option<usize>,
    /// Where there is no association.
    verdict: Verdict,
    spi: Option<u32>,
    sequence: u64,
}

/// What became of the packets of an association.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets accepted.
    pub accepted: u64,
    /// Bytes of the inner packets.
    pub bytes: u64,
    /// Highest sequence number accepted.
    pub highest: u64,
    /// Packets dropped, by the name of [`count_name`].
    pub dropped: BTreeMap<&'static str, u64>,
}

/// What became of one packet.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// The verdict of the fastest implementation.
    pub verdict: Verdict,
    /// The inner packet, if it was accepted.
    pub inner: &'a [u8],
    /// SPI, if it is an ESP packet.
    pub spi: Option<u32>,
    /// The sequence number, of 64 bits where an association was found.
    pub sequence: u64,
    /// An implementation that came to another result, and its verdict.
    pub dissent: Option<(Implementation, Verdict)>,
}

/// Why a file of associations cannot be used.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenerError {
    /// An association cannot be made.
    Association {
        /// Line of the file.
        line: usize,
        /// What is wrong.
        error: AssociationError,
    },
    /// No chosen implementation has the suite.
    Unsupported {
        /// Line of the file.
        line: usize,
        /// The suite.
        suite: &'static str,
    },
    /// More UDP ports than the engine looks at.
    Ports {
        /// Line of the file.
        line: usize,
    },
}

impl Batch {
    /// Adds a whole IP packet that came at `now`.
    pub fn push(&mut self, now: Timestamp, packet: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(packet);
        self.packets.push((now, start..self.bytes.len()));
    }

    /// How many packets there are.
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// How many bytes all packets have.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Forgets the packets.
    pub fn clear(&mut self) {
        self.packets.clear();
        self.bytes.clear();
    }

    fn iter(&self) -> impl Iterator<Item = (Timestamp, &[u8])> {
        let packets = self.packets.iter();
        packets.map(|(now, range)| (*now, &self.bytes[range.clone()]))
    }
}

impl Opener {
    /// A receiver; `implementations` are those to be tried, the fastest first.
    ///
    /// The inner packets come out exactly as they were encrypted, whatever a line says about
    /// ECN and DSCP.
    pub fn new(
        entries: Vec<Entry>,
        implementations: &[Implementation],
    ) -> Result<Self, OpenerError> {
        let mut opener = Self {
            entries: Vec::with_capacity(entries.len()),
            orders: Vec::with_capacity(entries.len()),
            receivers: implementations.iter().copied().map(Receiver::new).collect(),
            index: HashMap::new(),
            ports: EncapsulationPorts::default(),
            engine: Engine::default(),
            buffer: PacketBuf::default(),
            openings: Vec::new(),
        };
        for entry in entries {
            opener.add(entry)?;
        }
        opener.engine = Engine::new(opener.ports.clone()).without_resynchronisation();
        for receiver in &mut opener.receivers {
            receiver.listen(&opener.ports);
        }
        Ok(opener)
    }

    /// The associations in the order of the file, each with what became of its packets on each
    /// implementation that has its suite. The first implementation is the one that counts.
    pub fn associations(
        &self,
    ) -> impl Iterator<Item = (&Entry, impl Iterator<Item = (Implementation, &Tally)>)> {
        let associations = self.entries.iter().zip(&self.orders).enumerate();
        associations.map(|(at, (entry, order))| {
            let receivers = order.iter().map(|&place| &self.receivers[place]);
            let tallies = receivers
                .filter_map(move |receiver| Some((receiver.implementation, receiver.tally(at)?)));
            (entry, tallies)
        })
    }

    /// The UDP ports that carry ESP: 4500, and those of the file.
    pub const fn ports(&self) -> &EncapsulationPorts {
        &self.ports
    }

    /// The association of an implementation for this destination and SPI; only those of `ip
    /// xfrm` lines.
    pub fn find(
        &self,
        implementation: Implementation,
        destination: IpAddr,
        spi: Spi,
    ) -> Option<&EspSa> {
        let key = (destination, spi);
        let at = *self.index.get(&key)?;
        let receiver = self
            .receivers
            .iter()
            .find(|receiver| receiver.implementation == implementation)?;
        receiver.find(at, &key)
    }

    fn add(&mut self, entry: Entry) -> Result<(), OpenerError> {
        let line = entry.line();
        let suite = entry.keys().suite();
        let failed = |error| OpenerError::Association { line, error };
        // The implementation that a data path would use decides; the others give their opinion.
        let chosen = entry
            .keys()
            .fastest_cipher()
            .map_err(|error| failed(AssociationError::Cipher(error)))?
            .implementation();
        let mut order = Vec::new();
        for (place, receiver) in self.receivers.iter_mut().enumerate() {
            let supported = receiver.implementation.supports(suite);
            receiver.add(&entry, supported).map_err(failed)?;
            if supported {
                order.push(place);
            }
        }
        if order.is_empty() {
            return Err(OpenerError::Unsupported {
                line,
                suite: suite.name,
            });
        }
        order.sort_by_key(|&place| self.receivers[place].implementation != chosen);
        if let Entry::State(state) = &entry {
            let at = self.entries.len();
            self.index.insert((state.destination, state.spi), at);
            if let Some(udp) = state.encapsulation {
                let standard = NAT_TRAVERSAL_PORT.get();
                let known = [udp.source_port, udp.destination_port].contains(&standard);
                if !known && !self.ports.add(udp.destination_port) {
                    return Err(OpenerError::Ports { line });
                }
            }
        }
        self.entries.push(entry);
        self.orders.push(order);
        Ok(())
    }

    /// Opens one whole IP packet.
    ///
    /// # Errors
    /// See [`open_all`](Self::open_all).
    pub fn open(&mut self, now: Timestamp, packet: &[u8]) -> Result<Opening<'_>, OpenerError> {
        let mut batch = Batch::default();
        batch.push(now, packet);
        self.open_all(&batch)?;
        Ok(self.opening(0))
    }

    /// Opens the packets of a batch; [`opening`](Self::opening) tells what became of each.
    ///
    /// Each implementation takes the packets in their order, the implementations of a large
    /// batch side by side.
    ///
    /// # Errors
    /// An association cannot be made of a Wireshark row: the system has no randomness.
    pub fn open_all(&mut self, batch: &Batch) -> Result<(), OpenerError> {
        self.openings.clear();
        let mut found = Vec::with_capacity(batch.len());
        for (now, packet) in batch.iter() {
            let location = match locate(packet, &self.ports) {
                Located::Esp(location) => Some(location),
                _ => None,
            };
            let association = location.and_then(|location| {
                Some(Found {
                    at: self.association_at(&location, packet)?,
                    location,
                    key: (location.destination, Spi::new(location.spi)?),
                })
            });
            let verdict = match association {
                Some(_) => Verdict::Pending,
                None => {
                    receiver::decapsulate(&mut self.engine, now, None, &mut self.buffer, packet).0
                }
            };
            self.openings.push(Unclaimed {
                at: association.map(|found| found.at),
                verdict,
                spi: location.map(|location| location.spi),
                sequence: location.map_or(0, |location| location.sequence.into()),
            });
            found.push(association);
        }
        let open = |receiver: &mut Receiver| receiver.open(batch, &found, &self.entries);
        if batch.bytes() < PARALLEL {
            self.receivers.iter_mut().try_for_each(open)
        } else {
            self.receivers.par_iter_mut().try_for_each(open)
        }
    }

    /// What became of a packet of the last batch.
    ///
    /// # Panics
    /// If the batch had no such packet.
    pub fn opening(&self, index: usize) -> Opening<'_> {
        let Unclaimed {
            at,
            verdict,
            spi,
            sequence,
        } = self.openings[index];
        let order = at.map_or(&[][..], |at| &self.orders[at]);
        let mut outcomes = order.iter().filter_map(|&place| {
            let receiver = &self.receivers[place];
            let outcome = receiver.outcome(index)?;
            Some((receiver.implementation, outcome, receiver.inner(outcome)))
        });
        let Some((_, first, inner)) = outcomes.next() else {
            return Opening {
                verdict,
                inner: &[],
                spi,
                sequence,
                dissent: None,
            };
        };
        let dissent = outcomes
            .find(|(_, other, other_inner)| other.verdict != first.verdict || *other_inner != inner)
            .map(|(implementation, other, _)| (implementation, other.verdict));
        Opening {
            verdict: first.verdict,
            inner,
            spi,
            sequence: first.sequence,
            dissent,
        }
    }

    /// The place of the association for a packet: the line with its destination and SPI, else
    /// the first row that matches.
    fn association_at(&self, location: &EspLocation, packet: &[u8]) -> Option<usize> {
        let spi = Spi::new(location.spi)?;
        let exact = self.index.get(&(location.destination, spi)).copied();
        exact.or_else(|| {
            let source = IpHeader::base(packet).ok()?.source;
            self.entries.iter().position(|entry| match entry {
                Entry::Row(row) => row.matches(source, location.destination, location.spi),
                Entry::State(_) => false,
            })
        })
    }
}

impl Tally {
    fn count(&mut self, verdict: Verdict, len: usize) {
        match verdict {
            Verdict::Opened(opened) => {
                self.accepted += 1;
                self.bytes += len as u64;
                self.highest = self.highest.max(opened.sequence);
            }
            Verdict::Drop(reason) => *self.dropped.entry(count_name(reason)).or_default() += 1,
            _ => {}
        }
    }
}

impl fmt::Display for OpenerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Association { line, error } => write!(f, "{line}: {error}"),
            Self::Unsupported { line, suite } => {
                write!(f, "{line}: no chosen implementation has {suite}")
            }
            Self::Ports { line } => write!(
                f,
                "{line}: encap: more than eight different UDP ports in the file"
            ),
        }
    }
}

impl core::error::Error for OpenerError {}
