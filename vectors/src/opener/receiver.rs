//! The packets of a batch on one implementation, one after the other.

use core::ops::Range;
use std::collections::HashMap;
use std::net::IpAddr;

use vesper_esp::aead::{Implementation, Job, open_batch};
use vesper_esp::wire::{EncapsulationPorts, EspLocation, protocol};
use vesper_esp::{
    AssociationError, Buffer, Engine, EspSa, Inbound, PacketBuf, Verdict, association,
};
use vesper_sa::{Direction, Ecn, Mode, NatChecksum, ReplayProtection, SaParams, Spi, Timestamp};

use super::{Batch, Found, OpenerError, Tally};
use crate::xfrm::{Entry, Row, State};

/// Room for any IP packet, reassembled ones included.
const LONGEST_PACKET: usize = 65_535 + 128;

/// One implementation with the associations whose suite it has.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) implementation: Implementation,
    /// By their place in the file; `None`: not its suite.
    lanes: Vec<Option<Lane>>,
    engine: Engine,
    buffer: PacketBuf,
    /// What became of the packets of the batch; `None`: not its suite.
    outcomes: Vec<Option<Outcome>>,
    /// The inner packets of the batch.
    inner: Vec<u8>,
}

/// An association on one implementation.
#[derive(Debug, Default)]
struct Lane {
    tally: Tally,
    /// One for an `ip xfrm` line; for a Wireshark row one for each destination and SPI that it
    /// has matched.
    sas: HashMap<(IpAddr, Spi), EspSa>,
}

/// What became of one packet.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) verdict: Verdict,
    pub(super) sequence: u64,
    inner: Range<usize>,
}

impl Receiver {
    pub(super) fn new(implementation: Implementation) -> Self {
        Self {
            implementation,
            lanes: Vec::new(),
            engine: Engine::default(),
            buffer: PacketBuf::with_room(&[], 0, LONGEST_PACKET),
            outcomes: Vec::new(),
            inner: Vec::new(),
        }
    }

    /// Adds the next association of the file, if this implementation has its suite.
    pub(super) fn add(&mut self, entry: &Entry, supported: bool) -> Result<(), AssociationError> {
        let mut lane = supported.then(Lane::default);
        if let (Some(lane), Entry::State(state)) = (&mut lane, entry) {
            let sa = inbound(state, self.implementation)?;
            lane.sas.insert((state.destination, state.spi), sa);
        }
        self.lanes.push(lane);
        Ok(())
    }

    /// Takes packets to and from these ports for ESP in UDP.
    pub(super) fn listen(&mut self, ports: &EncapsulationPorts) {
        self.engine = Engine::new(ports.clone()).without_resynchronisation();
    }

    /// What became of the packets of an association.
    pub(super) fn tally(&self, at: usize) -> Option<&Tally> {
        Some(&self.lanes.get(at)?.as_ref()?.tally)
    }

    pub(super) fn find(&self, at: usize, key: &(IpAddr, Spi)) -> Option<&EspSa> {
        self.lanes.get(at)?.as_ref()?.sas.get(key)
    }

    /// What became of a packet of the batch.
    pub(super) fn outcome(&self, index: usize) -> Option<&Outcome> {
        self.outcomes.get(index)?.as_ref()
    }

    /// The inner packet, if it was accepted.
    pub(super) fn inner(&self, outcome: &Outcome) -> &[u8] {
        &self.inner[outcome.inner.clone()]
    }

    /// Opens the packets of a batch, in their order.
    pub(super) fn open(
        &mut self,
        batch: &Batch,
        found: &[Option<Found>],
        entries: &[Entry],
    ) -> Result<(), OpenerError> {
        self.outcomes.clear();
        self.inner.clear();
        for ((now, packet), found) in batch.iter().zip(found) {
            let outcome = match found {
                Some(found) => self.open_one(now, packet, found, &entries[found.at])?,
                None => None,
            };
            self.outcomes.push(outcome);
        }
        Ok(())
    }

    fn open_one(
        &mut self,
        now: Timestamp,
        packet: &[u8],
        found: &Found,
        entry: &Entry,
    ) -> Result<Option<Outcome>, OpenerError> {
        let Some(lane) = &mut self.lanes[found.at] else {
            return Ok(None);
        };
        let mut passing = None;
        if let Entry::Row(row) = entry
            && !lane.sas.contains_key(&found.key)
        {
            let made = complete(self.implementation, row, &found.location, packet);
            let (sa, authentic) = made.map_err(|error| OpenerError::Association {
                line: row.line,
                error,
            })?;
            if authentic {
                lane.sas.insert(found.key, sa);
            } else {
                passing = Some(sa);
            }
        }
        let sa = passing.as_ref().or_else(|| lane.sas.get(&found.key));
        let buffer = &mut self.buffer;
        let (verdict, sequence) = decapsulate(&mut self.engine, now, sa, buffer, packet);
        lane.tally.count(verdict, buffer.data().len());
        let start = self.inner.len();
        if let Verdict::Opened(_) = verdict {
            self.inner.extend_from_slice(buffer.data());
        }
        Ok(Some(Outcome {
            verdict,
            sequence,
            inner: start..self.inner.len(),
        }))
    }
}

/// Makes an association of a row and the first packet that it matches; `true` if that packet is
/// authentic and so has shown the mode.
fn complete(
    implementation: Implementation,
    row: &Row,
    location: &EspLocation,
    packet: &[u8],
) -> Result<(EspSa, bool), AssociationError> {
    let cipher = || {
        row.keys
            .cipher(implementation)
            .map_err(AssociationError::Cipher)
    };
    let sequence = u64::from(row.sequence_high.unwrap_or(0)) << 32 | u64::from(location.sequence);
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
pub(super) fn decapsulate(
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
