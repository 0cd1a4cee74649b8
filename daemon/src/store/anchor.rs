//! The anchor: a small file outside of the store that tells whether the store is the latest.
//!
//! It has two slots of 512 bytes, written in turn, so that a torn write leaves the one before.
//! Whoever changes the store writes the store's new generation here before the change is used:
//! a store whose generation is lower is an old copy.

use super::StoreError;
use super::kek::{SEAL_LEN, StoreKeys};
use super::medium::AnchorFile;
use super::record::Reader;

/// What the anchor remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AnchorState {
    /// The store that it belongs to.
    pub(super) instance: [u8; 16],
    /// How often the store was opened.
    pub(super) epoch: u64,
    /// How often the store was changed.
    pub(super) generation: u64,
    /// The file of the store: a copy has another number. 0 if unknown.
    pub(super) file: u64,
    /// The machine, as a hash of what names it; all zero if unknown.
    pub(super) machine: [u8; 16],
}

/// What an anchor file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing: it is new.
    Nothing,
    /// Something, but no valid state.
    Damaged,
    /// The latest state.
    State(AnchorState),
}

/// The anchor of an open store.
pub(super) struct Anchor {
    file: Box<dyn AnchorFile>,
    next_slot: u64,
    /// The generation that is durable.
    generation: u64,
}

/// A sector of most disks: what is written in one go or not at all.
const SLOT: usize = 512;
const MAGIC: [u8; 8] = *b"VESPERA1";
const LEN: usize = 8 + 16 + 3 * 8 + 16;

impl Anchor {
    pub(super) fn open(
        mut file: Box<dyn AnchorFile>,
        keys: &StoreKeys,
    ) -> Result<(Self, Found), StoreError> {
        let bytes = file.read()?;
        let states: Vec<Option<AnchorState>> = bytes
            .chunks(SLOT)
            .take(2)
            .map(|slot| AnchorState::decode(keys, slot))
            .collect();
        let latest = (0..)
            .zip(&states)
            .filter_map(|(slot, state)| Some((slot, (*state)?)))
            .max_by_key(|(_, state)| (state.epoch, state.generation));
        let found = match latest {
            Some((_, state)) => Found::State(state),
            None if bytes.iter().all(|byte| *byte == 0) => Found::Nothing,
            None => Found::Damaged,
        };
        let anchor = Self {
            file,
            next_slot: latest.map_or(0, |(slot, _)| 1 - slot),
            generation: latest.map_or(0, |(_, state)| state.generation),
        };
        Ok((anchor, found))
    }

    /// The generation that is durable.
    pub(super) const fn generation(&self) -> u64 {
        self.generation
    }

    /// Makes a state durable.
    pub(super) fn write(
        &mut self,
        keys: &StoreKeys,
        state: &AnchorState,
    ) -> Result<(), StoreError> {
        let mut slot = state.encode(keys);
        slot.resize(SLOT, 0);
        self.file.write(self.next_slot * SLOT as u64, &slot)?;
        self.file.sync()?;
        self.next_slot = 1 - self.next_slot;
        self.generation = state.generation;
        Ok(())
    }
}

impl AnchorState {
    fn encode(&self, keys: &StoreKeys) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SLOT);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.instance);
        for field in [self.epoch, self.generation, self.file] {
            bytes.extend_from_slice(&field.to_be_bytes());
        }
        bytes.extend_from_slice(&self.machine);
        let seal = keys.seal("anchor", &[&bytes]);
        bytes.extend_from_slice(&seal);
        bytes
    }

    fn decode(keys: &StoreKeys, slot: &[u8]) -> Option<Self> {
        let (state, rest) = slot.split_at_checked(LEN)?;
        if rest.first_chunk::<SEAL_LEN>()? != &keys.seal("anchor", &[state]) {
            return None;
        }
        let mut rest = Reader(state);
        if rest.take()? != MAGIC {
            return None;
        }
        Some(Self {
            instance: rest.take()?,
            epoch: u64::from_be_bytes(rest.take()?),
            generation: u64::from_be_bytes(rest.take()?),
            file: u64::from_be_bytes(rest.take()?),
            machine: rest.take()?,
        })
    }
}
