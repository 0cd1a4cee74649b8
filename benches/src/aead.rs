//! Contestants at the level of the AEAD alone that live in this process: our own
//! implementations by name, and the library crates called directly.
//!
//! All do the same: a pass is [`PACKETS`] ESP packets from the SPI to the ICV, sealed or
//! opened in place. Lists of packets and keys are made before the clock starts, as they are
//! in the peers' programs.

mod library;
mod ours;

use std::sync::Arc;

use crate::arena::Arena;
use crate::case::{Case, Digest, Direction, PACKETS};
use crate::contest::{Contestant, Fault, REPETITION, Refusal, Repetition};
use crate::lanes::{Cores, Gate, Lap};

pub(crate) use library::libraries;
pub(crate) use ours::ours;

/// A packet and its key.
struct Packet<'a, K> {
    key: &'a K,
    /// The number of the packet in the pass, plus 1: its sequence number.
    sequence: u64,
    /// SPI to ICV.
    esp: &'a mut [u8],
}

/// Somebody's AEAD.
trait Backend {
    /// An expanded key.
    type Key: Send + Sync;

    /// The name in results.
    fn name(&self) -> &str;

    /// Expands a key; the reason if this backend lacks the suite.
    fn key(&self, case: &Case, key: &[u8], auth_key: &[u8]) -> Result<Self::Key, String>;

    /// Seals or opens all packets after the gate; `None` if one was not authentic.
    fn process(
        case: &Case,
        direction: Direction,
        packets: Vec<Packet<'_, Self::Key>>,
        gate: &Gate,
    ) -> Option<Lap>;
}

/// A backend on the cores of this process.
struct InProcess<B: Backend> {
    backend: B,
    cores: Arc<Cores>,
    prepared: Option<Prepared<B::Key>>,
}

struct Prepared<K> {
    case: Case,
    keys: Vec<K>,
    order: Vec<u32>,
    lanes: Vec<Lane>,
}

/// The packets of one core.
struct Lane {
    arena: Arena,
    /// Passes there and back so far: with more associations than packets, each takes others.
    turns: usize,
    authentic: bool,
}

impl<B: Backend> InProcess<B> {
    fn new(backend: B, cores: &Arc<Cores>) -> Self {
        Self {
            backend,
            cores: Arc::clone(cores),
            prepared: None,
        }
    }
}

impl<B: Backend> Contestant for InProcess<B> {
    fn name(&self) -> &str {
        self.backend.name()
    }

    fn prepare(&mut self, case: &Case) -> Result<Option<Digest>, Refusal> {
        let keys = (0..case.sas)
            .map(|index| {
                let (key, auth_key) = case.keys(index);
                self.backend.key(case, &key, &auth_key)
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(Refusal::Declined)?;
        let lanes = (0..self.cores.count()).map(|_| Lane::new(case)).collect();
        self.prepared = Some(Prepared {
            case: *case,
            keys,
            order: case.order(),
            lanes,
        });
        let clear = self.digest(case.suite.icv_len);
        self.run(&[Direction::Out])?;
        let sealed = self.digest(0);
        self.run(&[Direction::In])?;
        if clear != self.digest(case.suite.icv_len) {
            return Err(Fault::new(self.name(), "opened packets are not those sealed").into());
        }
        Ok(Some(sealed))
    }

    fn repeat(&mut self) -> Result<Repetition, Fault> {
        self.run(&REPETITION)
    }

    fn finish(&mut self) -> Result<(), Fault> {
        self.prepared = None;
        Ok(())
    }
}

impl<B: Backend> InProcess<B> {
    /// Makes these passes on all lanes; the last of each direction is measured.
    fn run(&mut self, passes: &[Direction]) -> Result<Repetition, Fault> {
        let Some(prepared) = &mut self.prepared else {
            return Err(Fault::new(self.backend.name(), "no case was prepared"));
        };
        let (case, keys, order) = (&prepared.case, &prepared.keys, &prepared.order);
        let repetition = self.cores.run(&mut prepared.lanes, |lane, gate| {
            let mut laps = [Lap::default(); 2];
            for &direction in passes {
                laps[direction as usize] = lane.pass::<B>(case, keys, order, direction, gate);
            }
            laps
        });
        if prepared.lanes.iter().all(|lane| lane.authentic) {
            Ok(repetition)
        } else {
            Err(Fault::new(self.backend.name(), "an ICV was refused"))
        }
    }

    /// Of the packets of the first lane, without their last `trailer` bytes.
    fn digest(&mut self, trailer: usize) -> Digest {
        self.prepared
            .iter_mut()
            .flat_map(|prepared| &mut prepared.lanes)
            .take(1)
            .flat_map(|lane| lane.arena.packets())
            .fold(Digest::EMPTY, |digest, packet| {
                digest.with(&packet[..packet.len() - trailer])
            })
    }
}

impl Lane {
    fn new(case: &Case) -> Self {
        let suite = case.suite;
        let header = 8 + suite.iv_len;
        let lengths = case.size.lengths().into_iter();
        let lengths = lengths.map(|size| header + case.text_len(size) + suite.icv_len);
        let mut arena = Arena::new(header, lengths.collect());
        for (index, packet) in arena.packets().enumerate() {
            case.write_esp(index, packet);
        }
        Self {
            arena,
            turns: 0,
            authentic: true,
        }
    }

    fn pass<B: Backend>(
        &mut self,
        case: &Case,
        keys: &[B::Key],
        order: &[u32],
        direction: Direction,
        gate: &Gate,
    ) -> Lap {
        let first = self.turns * PACKETS;
        let packets = self.arena.packets().enumerate().map(|(index, esp)| Packet {
            key: &keys[order[(first + index) % order.len()] as usize],
            sequence: index as u64 + 1,
            esp,
        });
        let lap = B::process(case, direction, packets.collect(), gate);
        self.turns += usize::from(direction == Direction::In);
        self.authentic &= lap.is_some();
        lap.unwrap_or_default()
    }
}
