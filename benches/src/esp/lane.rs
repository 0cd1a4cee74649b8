//! What one core does: passes of packets through an engine of its own.

use std::net::IpAddr;

use vesper_esp::{Engine, EspContext, EspSa, Inbound, InboundSas, Outbound, Verdict};
use vesper_sa::{Reader, ReceiveKey, Receiver, SaHandle, Spi, View, VmId};

use super::NOW;
use super::slot::{Place, Slot, arena, slots};
use crate::arena::Arena;
use crate::case::{BURST, Case, Digest, PACKETS};
use crate::lanes::{Gate, Lap};
use crate::sys;

/// The associations, and how a packet comes by its own.
pub(super) enum Sas {
    /// It brings it along.
    Given {
        outbound: Vec<EspSa>,
        inbound: Vec<EspSa>,
    },
    /// Outbound it brings a handle, inbound destination and SPI find it.
    Found { outbound: Vec<SaHandle> },
}

/// What one core has.
pub(super) struct Lane {
    engine: Engine,
    /// Its view of the database, if there is one.
    reader: Option<Reader<EspContext>>,
    arena: Arena,
    /// Where each packet lies in its slot.
    places: Vec<Place>,
    /// Passes there and back so far: with more associations than packets, each takes others.
    turns: usize,
    refused: Option<Verdict>,
}

impl Lane {
    /// With the packets of the case; a reader where associations are found in a database.
    pub(super) fn new(case: &Case, reader: Option<Reader<EspContext>>) -> Self {
        let (mut arena, places) = arena(&case.size.lengths());
        for ((index, slot), place) in arena.packets().enumerate().zip(&places) {
            case.write_inner(index, &mut slot[place.start..place.end]);
        }
        Self {
            engine: Engine::default(),
            reader,
            arena,
            places,
            turns: 0,
            refused: None,
        }
    }

    /// What became of the first packet that the engine refused, if there was one.
    pub(super) fn refused(&self) -> Option<Verdict> {
        self.refused
    }

    /// `digest` with all packets, without their first `skip` bytes.
    pub(super) fn digest(&mut self, digest: Digest, skip: usize) -> Digest {
        let packets = self.arena.packets().zip(&self.places);
        packets.fold(digest, |digest, (slot, place)| {
            digest.with(&slot[place.start + skip..place.end])
        })
    }

    /// Encapsulates all packets.
    pub(super) fn seal(&mut self, sas: &Sas, order: &[u32], gate: &Gate) -> Lap {
        let view = self.reader.as_ref().and_then(Reader::enter);
        let owners = owners(order, self.turns);
        let slots = slots(&mut self.arena, &self.places).zip(&owners);
        let mut batch: Vec<_> = slots
            .filter_map(|(slot, &owner)| {
                Some(Outbound::new(sas.outbound(view.as_ref(), owner)?, slot))
            })
            .collect();
        gate.pass();
        let start = sys::ticks();
        encapsulate(&mut self.engine, sas, view.as_ref(), &owners, &mut batch);
        let end = sys::ticks();
        for (place, entry) in self.places.iter_mut().zip(&batch) {
            *place = entry.packet.place;
            if !matches!(entry.verdict, Verdict::Sealed { .. }) {
                self.refused.get_or_insert(entry.verdict);
            }
        }
        Lap { start, end }
    }

    /// Decapsulates all packets.
    pub(super) fn open(&mut self, sas: &Sas, order: &[u32], gate: &Gate) -> Lap {
        let view = self.reader.as_ref().and_then(Reader::enter);
        let slots = slots(&mut self.arena, &self.places);
        let mut batch: Vec<_> = slots
            .zip(owners(order, self.turns))
            .map(|(slot, owner)| Inbound {
                sa: sas.inbound(owner),
                ..Inbound::new(slot)
            })
            .collect();
        let find = |destination: IpAddr, spi: Spi| -> Option<&EspSa> {
            let key = ReceiveKey {
                receiver: Receiver::Host,
                destination,
                spi,
            };
            view.as_ref()?.inbound(&key).map(|(_, sa)| &**sa)
        };
        gate.pass();
        let start = sys::ticks();
        decapsulate(&mut self.engine, &find, &mut batch);
        let end = sys::ticks();
        for (place, entry) in self.places.iter_mut().zip(&batch) {
            *place = entry.packet.place;
            if !matches!(entry.verdict, Verdict::Opened(_)) {
                self.refused.get_or_insert(entry.verdict);
            }
        }
        self.turns += 1;
        Lap { start, end }
    }
}

/// What is measured, and nothing else: a function of its own, so that a profiler can tell it
/// from the rest.
#[inline(never)]
fn encapsulate<'a>(
    engine: &mut Engine,
    sas: &'a Sas,
    view: Option<&'a View<'_, EspContext>>,
    owners: &[usize],
    batch: &mut [Outbound<'a, Slot<'_>>],
) {
    for (burst, owners) in batch.chunks_mut(BURST).zip(owners.chunks(BURST)) {
        if view.is_some() {
            for (entry, &owner) in burst.iter_mut().zip(owners) {
                if let Some(sa) = sas.outbound(view, owner) {
                    entry.sa = sa;
                }
            }
        }
        engine.encapsulate(NOW, burst);
    }
}

/// As [`encapsulate`], the other way.
#[inline(never)]
fn decapsulate<'a>(
    engine: &mut Engine,
    sas: &impl InboundSas<'a>,
    batch: &mut [Inbound<'a, Slot<'_>>],
) {
    for burst in batch.chunks_mut(BURST) {
        engine.decapsulate(NOW, sas, burst);
    }
}

impl Sas {
    fn outbound<'a>(
        &'a self,
        view: Option<&'a View<'_, EspContext>>,
        index: usize,
    ) -> Option<&'a EspSa> {
        match self {
            Self::Given { outbound, .. } => outbound.get(index),
            Self::Found { outbound } => {
                let sa = view?.get(VmId::HOST, *outbound.get(index)?)?;
                Some(sa)
            }
        }
    }

    /// The association that an inbound packet brings along.
    fn inbound(&self, index: usize) -> Option<&EspSa> {
        match self {
            Self::Given { inbound, .. } => inbound.get(index),
            Self::Found { .. } => None,
        }
    }
}

/// Which association each packet of a turn belongs to.
fn owners(order: &[u32], turn: usize) -> Vec<usize> {
    let round = order.iter().cycle();
    let first = turn * PACKETS % order.len();
    let owners = round.skip(first).take(PACKETS);
    owners.map(|&owner| owner as usize).collect()
}
