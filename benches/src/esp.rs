//! Contestants at the level of ESP that live in this process: our engine, whole, with each
//! of our implementations of the cryptography.
//!
//! All of a user's packet is in it: sequence number, lifetimes with soft and hard limits,
//! outer header with DSCP, ECN and DF by RFC 6040, ESP header, IV, padding and trailer, ICV;
//! and back, finding the association by destination and SPI, the replay window, padding
//! check, ECN merge, counters. A pass is [`PACKETS`] packets in batches of [`BURST`] that
//! lie in one piece of memory with headroom, as those of a vswitch do.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use vesper_esp::aead::{Cipher, Implementation};
use vesper_esp::{Buffer, Encryption, Engine, EspSa, Inbound, Outbound, Verdict, association};
use vesper_sa::{
    Direction as SaDirection, Lifetime, Limits, Mode, ReplayProtection, SaParams, Spi, Timestamp,
    WindowSize,
};

use crate::arena::Arena;
use crate::case::{BURST, Case, Digest, Direction, PACKETS};
use crate::contest::{Contestant, Fault, REPETITION, Refusal, Repetition};
use crate::lanes::{Cores, Gate, Lap};
use crate::report::OURS;
use crate::sys;

/// Packets of the replay window, for each core that works at once.
const WINDOW: u32 = 1024;
/// Bytes before a packet, as in a packet buffer of DPDK.
const HEADROOM: usize = 128;
/// Bytes of the outer IP header, which is not compared with that of others.
const OUTER: usize = 20;
/// Bytes for packet and tailroom, at least: what is usual.
const ROOM: usize = 2048;
/// Bytes of room behind a packet that is larger than usual.
const TAILROOM: usize = 64;
/// The time of every packet; limits in time are checked against it.
const NOW: Timestamp = Timestamp::from_secs(1);

/// Our engine with each of these implementations.
pub(crate) fn engines(
    implementations: &[Implementation],
    cores: &Arc<Cores>,
) -> Vec<Box<dyn Contestant>> {
    implementations
        .iter()
        .map(|&implementation| -> Box<dyn Contestant> {
            Box::new(OurEngine {
                name: format!("{OURS}{}", implementation.name()),
                implementation,
                cores: Arc::clone(cores),
                prepared: None,
            })
        })
        .collect()
}

struct OurEngine {
    name: String,
    implementation: Implementation,
    cores: Arc<Cores>,
    prepared: Option<Prepared>,
}

struct Prepared {
    outbound: Vec<EspSa>,
    inbound: Vec<EspSa>,
    order: Vec<u32>,
    lanes: Vec<Lane>,
}

/// What one core has.
struct Lane {
    engine: Engine,
    arena: Arena,
    /// Where each packet lies in its slot.
    places: Vec<Place>,
    /// Passes there and back so far: with more associations than packets, each takes others.
    turns: usize,
    /// What became of the first packet that the engine refused.
    refused: Option<Verdict>,
}

/// Offsets of a packet in its slot.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: usize,
    end: usize,
}

/// A packet in its slot: a buffer as a vswitch would bring its own.
#[derive(Debug)]
struct Slot<'a> {
    memory: &'a mut [u8],
    place: Place,
}

impl Contestant for OurEngine {
    fn name(&self) -> &str {
        &self.name
    }

    fn prepare(&mut self, case: &Case) -> Result<Option<Digest>, Refusal> {
        let threads = self.cores.count();
        let all = |direction| {
            (0..case.sas)
                .map(|index| self.association(case, index, direction))
                .collect::<Result<Vec<_>, _>>()
        };
        self.prepared = Some(Prepared {
            outbound: all(SaDirection::Outbound)?,
            inbound: all(SaDirection::Inbound)?,
            order: case.order(),
            lanes: (0..threads).map(|_| Lane::new(case)).collect(),
        });
        let clear = self.digest(0);
        self.run(&[Direction::Out])?;
        let sealed = self.digest(OUTER);
        self.run(&[Direction::In])?;
        if clear != self.digest(0) {
            return Err(Fault::new(self.name(), "opened packets are not those sealed").into());
        }
        // With several cores, which of them gets which sequence number is left to chance.
        let comparable = case.suite.encryption != Encryption::AesCbc && threads == 1;
        Ok(comparable.then_some(sealed))
    }

    fn repeat(&mut self) -> Result<Repetition, Fault> {
        self.run(&REPETITION)
    }

    fn finish(&mut self) -> Result<(), Fault> {
        self.prepared = None;
        Ok(())
    }
}

impl OurEngine {
    /// Makes these passes on all lanes; the last of each direction is measured.
    fn run(&mut self, passes: &[Direction]) -> Result<Repetition, Fault> {
        let Some(prepared) = &mut self.prepared else {
            return Err(Fault::new(&self.name, "no case was prepared"));
        };
        let Prepared {
            outbound,
            inbound,
            order,
            lanes,
        } = prepared;
        let repetition = self.cores.run(lanes, |lane, gate| {
            let mut laps = [Lap::default(); 2];
            for &direction in passes {
                laps[direction as usize] = match direction {
                    Direction::Out => lane.seal(outbound, order, gate),
                    Direction::In => lane.open(inbound, gate),
                };
            }
            laps
        });
        match lanes.iter().find_map(|lane| lane.refused) {
            None => Ok(repetition),
            Some(verdict) => Err(Fault::new(&self.name, format_args!("{verdict:?}"))),
        }
    }

    fn association(
        &self,
        case: &Case,
        index: usize,
        direction: SaDirection,
    ) -> Result<EspSa, Refusal> {
        let (key, auth_key) = case.keys(index);
        let cipher = Cipher::with_implementation(case.suite, &key, &auth_key, self.implementation)
            .map_err(|error| Refusal::Declined(error.to_string()))?;
        let failed = |what: &dyn std::fmt::Display| Refusal::Fault(Fault::new(&self.name, what));
        let params = parameters(spi(index), direction, self.cores.count())
            .ok_or_else(|| failed(&"no such association"))?;
        association(params, cipher, NOW).map_err(|error| failed(&error))
    }

    /// Of the packets of the first lane, without their first `skip` bytes.
    fn digest(&mut self, skip: usize) -> Digest {
        let lanes = self
            .prepared
            .iter_mut()
            .flat_map(|prepared| &mut prepared.lanes);
        lanes
            .take(1)
            .flat_map(|lane| lane.arena.packets().zip(&lane.places))
            .fold(Digest::EMPTY, |digest, (slot, place)| {
                digest.with(&slot[place.start + skip..place.end])
            })
    }
}

/// The SPI of association `index`.
fn spi(index: usize) -> u32 {
    0x1000 + index as u32
}

fn parameters(spi: u32, direction: SaDirection, threads: usize) -> Option<SaParams> {
    let [source, destination] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
    let mut params = SaParams::new(
        Spi::new(spi)?,
        direction,
        Mode::Tunnel,
        IpAddr::V4(source),
        IpAddr::V4(destination),
    );
    params.esn = true;
    let window = WindowSize::new(WINDOW.saturating_mul(threads as u32));
    params.replay = ReplayProtection::Window(window.unwrap_or(WindowSize::MAX));
    // Limits that are checked and never reached.
    let far = Limits {
        bytes: Some(u64::MAX / 2),
        packets: Some(u64::MAX / 2),
        time: Some(std::time::Duration::from_secs(86_400)),
        idle: None,
    };
    params.lifetime = Lifetime {
        soft: far,
        hard: far,
    };
    Some(params)
}

impl Lane {
    fn new(case: &Case) -> Self {
        let sizes = case.size.lengths();
        let longest = sizes.iter().max().copied().unwrap_or(0);
        let room = HEADROOM + ROOM.max(longest + TAILROOM);
        let mut arena = Arena::new(0, vec![room; sizes.len()]);
        let places: Vec<_> = sizes
            .iter()
            .map(|size| Place {
                start: HEADROOM,
                end: HEADROOM + size,
            })
            .collect();
        for ((index, slot), place) in arena.packets().enumerate().zip(&places) {
            case.write_inner(index, &mut slot[place.start..place.end]);
        }
        Self {
            engine: Engine::default(),
            arena,
            places,
            turns: 0,
            refused: None,
        }
    }

    fn seal(&mut self, sas: &[EspSa], order: &[u32], gate: &Gate) -> Lap {
        let first = self.turns * PACKETS;
        let slots = slots(&mut self.arena, &self.places).enumerate();
        let mut batch: Vec<_> = slots
            .map(|(index, slot)| {
                let sa = order[(first + index) % order.len()];
                Outbound::new(&sas[sa as usize], slot)
            })
            .collect();
        gate.pass();
        let start = sys::ticks();
        for burst in batch.chunks_mut(BURST) {
            self.engine.encapsulate(NOW, burst);
        }
        let end = sys::ticks();
        let refused = |verdict: &Verdict| !matches!(verdict, Verdict::Sealed { .. });
        let mut verdicts = batch.iter().map(|entry| entry.verdict);
        self.refused = self.refused.or(verdicts.find(refused));
        self.places = batch.iter().map(|entry| entry.packet.place).collect();
        Lap { start, end }
    }

    fn open(&mut self, sas: &[EspSa], gate: &Gate) -> Lap {
        self.turns += 1;
        let slots = slots(&mut self.arena, &self.places);
        let mut batch: Vec<_> = slots.map(Inbound::new).collect();
        let find = |_, found: Spi| sas.get(found.get().wrapping_sub(spi(0)) as usize);
        gate.pass();
        let start = sys::ticks();
        for burst in batch.chunks_mut(BURST) {
            self.engine.decapsulate(NOW, &find, burst);
        }
        let end = sys::ticks();
        let refused = |verdict: &Verdict| !matches!(verdict, Verdict::Opened(_));
        let mut verdicts = batch.iter().map(|entry| entry.verdict);
        self.refused = self.refused.or(verdicts.find(refused));
        self.places = batch.iter().map(|entry| entry.packet.place).collect();
        Lap { start, end }
    }
}

fn slots<'a>(arena: &'a mut Arena, places: &'a [Place]) -> impl Iterator<Item = Slot<'a>> {
    let slots = arena.packets().zip(places);
    slots.map(|(memory, &place)| Slot { memory, place })
}

impl Buffer for Slot<'_> {
    fn data(&self) -> &[u8] {
        &self.memory[self.place.start..self.place.end]
    }

    fn data_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.place.start..self.place.end]
    }

    fn grow_front(&mut self, bytes: usize) -> bool {
        match self.place.start.checked_sub(bytes) {
            Some(start) => {
                self.place.start = start;
                true
            }
            None => false,
        }
    }

    fn grow_back(&mut self, bytes: usize) -> bool {
        let end = self.place.end + bytes;
        let fits = end <= self.memory.len();
        if fits {
            self.place.end = end;
        }
        fits
    }

    fn trim_front(&mut self, bytes: usize) {
        self.place.start = (self.place.start + bytes).min(self.place.end);
    }

    fn trim_back(&mut self, bytes: usize) {
        self.place.end = self.place.end.saturating_sub(bytes).max(self.place.start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{Level, Size};
    use crate::contest::hold;
    use vesper_esp::Suite;

    fn round_trips(suite: &str, sas: usize, threads: usize) {
        let Some(cores) = Cores::claim(threads, None) else {
            eprintln!("this machine has not got {threads} cores");
            return;
        };
        let cores = Arc::new(cores);
        let case = Case {
            level: Level::Esp,
            suite: Suite::by_name(suite).unwrap(),
            size: Size::Imix,
            sas,
        };
        let all: Vec<_> = Implementation::available().collect();
        let mut contestants = engines(&all, &cores);
        let outcome = hold(cores.clock(), &case, &mut contestants, 1, || ()).unwrap();
        assert!(!outcome.figures.is_empty(), "{:?}", outcome.declined);
    }

    /// All implementations must agree on every byte, which `hold` checks.
    #[test]
    fn implementations_agree() {
        round_trips("aes256gcm16", 1, 1);
        round_trips("aes128gcm16", 100, 1);
        round_trips("chacha20poly1305", 3000, 1);
        round_trips("aes256-sha256", 7, 1);
    }

    #[test]
    fn two_cores_share_an_association() {
        round_trips("aes256gcm16", 1, 2);
    }

    #[test]
    fn slots_grow_and_shrink_within_bounds() {
        let mut memory = [0; 10];
        let place = Place { start: 4, end: 6 };
        let mut slot = Slot {
            memory: &mut memory,
            place,
        };
        assert!(!slot.grow_front(5) && !slot.grow_back(5));
        assert!(slot.grow_front(4) && slot.grow_back(4));
        assert_eq!(slot.data().len(), 10);
        slot.trim_front(3);
        slot.trim_back(3);
        assert_eq!((slot.place.start, slot.place.end), (3, 7));
        slot.trim_back(100);
        slot.trim_front(100);
        assert!(slot.data_mut().is_empty());
    }
}
