//! The table in which the packet path finds associations.

use core::fmt;
use core::hash::{BuildHasher, Hash};
use core::net::IpAddr;
use std::sync::Arc;

use foldhash::SharedSeed;
use foldhash::fast::SeedableRandomState;
use hashbrown::HashTable;

use crate::association::{Sa, SaState};
use crate::handle::{PolicyKey, ReceiveKey, SaHandle};
use crate::ident::{Direction, VmId};

/// Live associations by handle, by what received packets carry, and by what policies name.
///
/// Changes are deterministic, so that the same changes keep two tables equal.
pub(crate) struct SaTable<C> {
    slots: Vec<Slot<C>>,
    inbound: HashTable<InboundEntry<C>>,
    outbound: HashTable<OutboundEntry<C>>,
    len: usize,
    hasher: SeedableRandomState,
}

struct Slot<C> {
    generation: u32,
    sa: Option<Arc<Sa<C>>>,
}

/// The key is here so that finding an association does not wait for its memory.
struct InboundEntry<C> {
    key: ReceiveKey,
    sa: Arc<Sa<C>>,
    handle: SaHandle,
}

struct OutboundEntry<C> {
    sa: Arc<Sa<C>>,
    handle: SaHandle,
    serial: u64,
}

impl<C> SaTable<C> {
    /// An empty table whose hash function is drawn by lot: who chooses SPIs can not choose
    /// collisions.
    pub(crate) fn new() -> Self {
        let seed = std::hash::RandomState::new().hash_one(());
        Self {
            slots: Vec::new(),
            inbound: HashTable::new(),
            outbound: HashTable::new(),
            len: 0,
            hasher: SeedableRandomState::with_seed(seed, SharedSeed::global_random()),
        }
    }

    pub(crate) fn get(&self, handle: SaHandle) -> Option<&Arc<Sa<C>>> {
        let slot = self.slots.get(handle.slot as usize)?;
        slot.sa
            .as_ref()
            .filter(|_| slot.generation == handle.generation)
    }

    /// A stale handle and another owner's handle name nothing.
    pub(crate) fn owned(&self, owner: VmId, handle: SaHandle) -> Option<&Arc<Sa<C>>> {
        self.get(handle).filter(|sa| sa.owner() == owner)
    }

    pub(crate) fn inbound(&self, key: &ReceiveKey) -> Option<(SaHandle, &Arc<Sa<C>>)> {
        let entry = self
            .inbound
            .find(self.hash(key), |entry| entry.key == *key)?;
        Some((entry.handle, &entry.sa))
    }

    pub(crate) fn outbound(
        &self,
        owner: VmId,
        reqid: u32,
        destination: IpAddr,
    ) -> Option<(SaHandle, &Arc<Sa<C>>)> {
        let key = PolicyKey {
            owner,
            reqid,
            destination,
        };
        self.outbound
            .iter_hash(self.hash(&key))
            .filter(|entry| PolicyKey::of(entry.sa.params()) == key)
            .filter(|entry| entry.sa.state() <= SaState::Dying)
            .max_by_key(|entry| entry.serial)
            .map(|entry| (entry.handle, &entry.sa))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (SaHandle, &Arc<Sa<C>>)> {
        (0..).zip(&self.slots).filter_map(|(slot, content)| {
            let handle = SaHandle {
                slot,
                generation: content.generation,
            };
            Some((handle, content.sa.as_ref()?))
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The number of slots, empty ones included.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The generation of the latest association in a slot; 0 before the first one.
    pub(crate) fn generation(&self, slot: u32) -> u32 {
        self.slots
            .get(slot as usize)
            .map_or(0, |slot| slot.generation)
    }

    /// Puts an association into the slot of `handle`, which must be empty. `serial` says
    /// which of two associations is the newer one.
    pub(crate) fn insert(&mut self, handle: SaHandle, sa: Arc<Sa<C>>, serial: u64) {
        let index = handle.slot as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || Slot {
                generation: 0,
                sa: None,
            });
        }
        match sa.direction() {
            Direction::Inbound => {
                let key = ReceiveKey::of(sa.params());
                let hash = self.hash(&key);
                let Self {
                    inbound, hasher, ..
                } = self;
                let entry = InboundEntry {
                    key,
                    sa: Arc::clone(&sa),
                    handle,
                };
                inbound.insert_unique(hash, entry, |entry| hasher.hash_one(entry.key));
            }
            Direction::Outbound if sa.params().reqid == 0 => {}
            Direction::Outbound => {
                let hash = self.hash(&PolicyKey::of(sa.params()));
                let Self {
                    outbound, hasher, ..
                } = self;
                let entry = OutboundEntry {
                    sa: Arc::clone(&sa),
                    handle,
                    serial,
                };
                outbound.insert_unique(hash, entry, |entry| {
                    hasher.hash_one(PolicyKey::of(entry.sa.params()))
                });
            }
        }
        if let Some(slot) = self.slots.get_mut(index) {
            slot.generation = handle.generation;
            slot.sa = Some(sa);
            self.len += 1;
        }
    }

    /// Takes out the association that `handle` names, with the serial number that it was put
    /// in with; 0 if no policy can name it.
    pub(crate) fn remove(&mut self, handle: SaHandle) -> Option<(Arc<Sa<C>>, u64)> {
        let slot = self.slots.get_mut(handle.slot as usize)?;
        if slot.generation != handle.generation {
            return None;
        }
        let sa = slot.sa.take()?;
        self.len -= 1;
        let mut serial = 0;
        match sa.direction() {
            Direction::Inbound => {
                let hash = self.hash(&ReceiveKey::of(sa.params()));
                let entry = self
                    .inbound
                    .find_entry(hash, |entry| entry.handle == handle);
                if let Ok(entry) = entry {
                    entry.remove();
                }
            }
            Direction::Outbound if sa.params().reqid == 0 => {}
            Direction::Outbound => {
                let hash = self.hash(&PolicyKey::of(sa.params()));
                let entry = self
                    .outbound
                    .find_entry(hash, |entry| entry.handle == handle);
                if let Ok(entry) = entry {
                    serial = entry.remove().0.serial;
                }
            }
        }
        Some((sa, serial))
    }

    fn hash(&self, key: &impl Hash) -> u64 {
        self.hasher.hash_one(key)
    }
}

// Deriving these would ask for a `C` that can be copied or printed.

impl<C> Clone for SaTable<C> {
    fn clone(&self) -> Self {
        Self {
            slots: self.slots.clone(),
            inbound: self.inbound.clone(),
            outbound: self.outbound.clone(),
            len: self.len,
            hasher: self.hasher.clone(),
        }
    }
}

impl<C> Clone for Slot<C> {
    fn clone(&self) -> Self {
        Self {
            generation: self.generation,
            sa: self.sa.clone(),
        }
    }
}

impl<C> Clone for InboundEntry<C> {
    fn clone(&self) -> Self {
        Self {
            key: self.key,
            sa: Arc::clone(&self.sa),
            handle: self.handle,
        }
    }
}

impl<C> Clone for OutboundEntry<C> {
    fn clone(&self) -> Self {
        Self {
            sa: Arc::clone(&self.sa),
            handle: self.handle,
            serial: self.serial,
        }
    }
}

impl<C> fmt::Debug for SaTable<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.iter().map(|(handle, sa)| (handle, sa.identity())))
            .finish()
    }
}
