//! Opens packets with the associations of a file, on every implementation that has the suite.

use core::fmt;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use vesper_esp::aead::{Implementation, Job, open_batch};
use vesper_esp::wire::{EncapsulationPorts, EspLocation, IpHeader, Located, locate, protocol};
use vesper_esp::{
    AssociationError, Buffer, DropReason, Engine, EspSa, Inbound, PacketBuf, Verdict, association,
};
use vesper_sa::{
    Direction, Ecn, Mode, NAT_TRAVERSAL_PORT, NatChecksum, ReplayProtection, SaParams, Spi,
    Timestamp,
};

use crate::xfrm::{Entry, Row, State};

/// Room for any IP packet, reassembled ones included.
const LONGEST_PACKET: usize = 65_535 + 128;

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
    associations: Vec<Association>,
    /// Destination and SPI to the place in `associations`.
    index: HashMap<(IpAddr, Spi), usize>,
    ports: EncapsulationPorts,
    engine: Engine,
    buffer: PacketBuf,
    /// Where the other implementations open the same packet.
    second: PacketBuf,
}

/// One line of the file, and what became of its packets.
#[derive(Debug)]
pub struct Association {
    /// The line.
    pub entry: Entry,
    /// The same association on each implementation that has its suite, the fastest first.
    pub lanes: Vec<Lane>,
}

/// An association on one implementation.
#[derive(Debug)]
pub struct Lane {
    /// Who does the cryptography.
    pub implementation: Implementation,
    /// What became of the packets.
    pub tally: Tally,
    /// One for an `ip xfrm` line; for a Wireshark row one for each destination and SPI that it
    /// has matched.
    sas: HashMap<(IpAddr, Spi), EspSa>,
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
            associations: Vec::with_capacity(entries.len()),
            index: HashMap::new(),
            ports: EncapsulationPorts::default(),
            engine: Engine::default().without_resynchronisation(),
            buffer: PacketBuf::with_room(&[], 0, LONGEST_PACKET),
            second: PacketBuf::with_room(&[], 0, LONGEST_PACKET),
        };
        for entry in entries {
            opener.add(entry, implementations)?;
        }
        opener.engine = Engine::new(opener.ports.clone()).without_resynchronisation();
        Ok(opener)
    }

    /// The associations in the order of the file.
    pub fn associations(&self) -> &[Association] {
        &self.associations
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
        let association = self
            .associations
            .get(*self.index.get(&(destination, spi))?)?;
        let lane = association
            .lanes
            .iter()
            .find(|lane| lane.implementation == implementation)?;
        lane.sas.get(&(destination, spi))
    }

    fn add(&mut self, entry: Entry, implementations: &[Implementation]) -> Result<(), OpenerError> {
        let line = entry.line();
        let suite = entry.keys().suite();
        // The implementation that a data path would use decides; the others give their opinion.
        let chosen = entry
            .keys()
            .fastest_cipher()
            .map_err(|error| OpenerError::Association {
                line,
                error: AssociationError::Cipher(error),
            })?
            .implementation();
        let mut supporting: Vec<Implementation> = implementations
            .iter()
            .copied()
            .filter(|implementation| implementation.supports(suite))
            .collect();
        supporting.sort_by_key(|&implementation| implementation != chosen);
        let mut lanes = Vec::new();
        for implementation in supporting {
            let mut sas = HashMap::new();
            if let Entry::State(state) = &entry {
                let sa = inbound(state, implementation)
                    .map_err(|error| OpenerError::Association { line, error })?;
                sas.insert((state.destination, state.spi), sa);
            }
            lanes.push(Lane {
                implementation,
                tally: Tally::default(),
                sas,
            });
        }
        if lanes.is_empty() {
            return Err(OpenerError::Unsupported {
                line,
                suite: suite.name,
            });
        }
        if let Entry::State(state) = &entry {
            let at = self.associations.len();
            self.index.insert((state.destination, state.spi), at);
            if let Some(udp) = state.encapsulation {
                let standard = NAT_TRAVERSAL_PORT.get();
                let known = [udp.source_port, udp.destination_port].contains(&standard);
                if !known && !self.ports.add(udp.destination_port) {
                    return Err(OpenerError::Ports { line });
                }
            }
        }
        self.associations.push(Association { entry, lanes });
        Ok(())
    }

    /// Opens one whole IP packet.
    ///
    /// # Errors
    /// An association cannot be made of a Wireshark row: the system has no randomness.
    pub fn open(&mut self, now: Timestamp, packet: &[u8]) -> Result<Opening<'_>, OpenerError> {
        let location = match locate(packet, &self.ports) {
            Located::Esp(location) => Some(location),
            _ => None,
        };
        let found = location.and_then(|location| {
            let at = self.association_at(&location, packet)?;
            let spi = Spi::new(location.spi)?;
            Some((at, location, (location.destination, spi)))
        });
        let Some((at, location, key)) = found else {
            let verdict = decapsulate(&mut self.engine, now, None, &mut self.buffer, packet).0;
            return Ok(Opening {
                verdict,
                inner: &[],
                spi: location.map(|location| location.spi),
                sequence: location.map_or(0, |location| location.sequence.into()),
                dissent: None,
            });
        };
        let Association { entry, lanes } = &mut self.associations[at];
        let mut first: Option<(Verdict, u64)> = None;
        let mut dissent = None;
        for lane in lanes {
            let buffer = match first {
                None => &mut self.buffer,
                Some(_) => &mut self.second,
            };
            let mut passing = None;
            if let Entry::Row(row) = entry
                && !lane.sas.contains_key(&key)
            {
                let (sa, authentic) = lane.complete(row, &location, packet).map_err(|error| {
                    OpenerError::Association {
                        line: row.line,
                        error,
                    }
                })?;
                if authentic {
                    lane.sas.insert(key, sa);
                } else {
                    passing = Some(sa);
                }
            }
            let sa = passing.as_ref().or_else(|| lane.sas.get(&key));
            let (verdict, sequence) = decapsulate(&mut self.engine, now, sa, buffer, packet);
            lane.tally.count(verdict, buffer.data().len());
            match first {
                None => first = Some((verdict, sequence)),
                Some((other, _)) => {
                    let differs = other != verdict
                        || matches!(verdict, Verdict::Opened(_))
                            && self.buffer.data() != self.second.data();
                    if differs && dissent.is_none() {
                        dissent = Some((lane.implementation, verdict));
                    }
                }
            }
        }
        let (verdict, sequence) = first.unwrap_or((Verdict::Pending, 0));
        Ok(Opening {
            verdict,
            inner: match verdict {
                Verdict::Opened(_) => self.buffer.data(),
                _ => &[],
            },
            spi: Some(location.spi),
            sequence,
            dissent,
        })
    }

    /// The place of the association for a packet: the line with its destination and SPI, else
    /// the first row that matches.
    fn association_at(&self, location: &EspLocation, packet: &[u8]) -> Option<usize> {
        let spi = Spi::new(location.spi)?;
        let exact = self.index.get(&(location.destination, spi)).copied();
        exact.or_else(|| {
            let source = IpHeader::base(packet).ok()?.source;
            self.associations
                .iter()
                .position(|association| match &association.entry {
                    Entry::Row(row) => row.matches(source, location.destination, location.spi),
                    Entry::State(_) => false,
                })
        })
    }
}

impl Lane {
    /// Makes an association of a row and the first packet that it matches; `true` if that
    /// packet is authentic and so has shown the mode.
    fn complete(
        &self,
        row: &Row,
        location: &EspLocation,
        packet: &[u8],
    ) -> Result<(EspSa, bool), AssociationError> {
        let cipher = || {
            row.keys
                .cipher(self.implementation)
                .map_err(AssociationError::Cipher)
        };
        let sequence =
            u64::from(row.sequence_high.unwrap_or(0)) << 32 | u64::from(location.sequence);
        let mut esp = packet[location.esp_at..location.esp_at + location.esp_len].to_vec();
        let key = cipher()?;
        let icv_len = key.suite().icv_len;
        let mut jobs = [Job {
            cipher: &key,
            sequence,
            esn: row.sequence_high.is_some(),
            esp: &mut esp,
            authentic: false,
        }];
        open_batch(&mut jobs);
        let authentic = jobs[0].authentic;
        let next_header = esp
            .len()
            .checked_sub(icv_len + 1)
            .and_then(|at| esp.get(at));
        let mode = match next_header {
            Some(&(protocol::IPV4 | protocol::IPV6 | protocol::NONE)) => Mode::Tunnel,
            _ if authentic => Mode::Transport,
            _ => Mode::Tunnel,
        };
        // A dummy packet shows nothing about the mode: wait for the next.
        let shown = authentic && next_header != Some(&protocol::NONE);
        // The SPI of a located packet that a row matches is not reserved.
        let spi = Spi::new(location.spi).unwrap_or(Spi::MIN);
        // The source plays no part in opening; only its version has to fit.
        let destination = location.destination;
        let mut params = SaParams::new(spi, Direction::Inbound, mode, destination, destination);
        params.replay = ReplayProtection::Off;
        params.esn = row.sequence_high.is_some();
        params.sequence = sequence.saturating_sub(1);
        params.tunnel.ecn = Ecn::Off;
        Ok((association(params, cipher()?, Timestamp::ZERO)?, shown))
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

/// The inbound association of a line, which changes nothing in the inner packets.
fn inbound(state: &State, implementation: Implementation) -> Result<EspSa, AssociationError> {
    let mut params = state.params(Direction::Inbound);
    params.tunnel.ecn = Ecn::Off;
    params.nat_checksum = NatChecksum::Keep;
    let cipher = state
        .keys
        .cipher(implementation)
        .map_err(AssociationError::Cipher)?;
    association(params, cipher, Timestamp::ZERO)
}

/// Decapsulates `packet` in `buffer` with `sa`, or without any.
fn decapsulate(
    engine: &mut Engine,
    now: Timestamp,
    sa: Option<&EspSa>,
    buffer: &mut PacketBuf,
    packet: &[u8],
) -> (Verdict, u64) {
    if !buffer.refill(packet, 0) {
        *buffer = PacketBuf::with_room(packet, 0, 0);
    }
    let mut batch = [Inbound::new(&mut *buffer)];
    engine.decapsulate(now, &|_, _| sa, &mut batch);
    let outcome = (batch[0].verdict, batch[0].sequence);
    engine.drain_events().for_each(drop);
    outcome
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
