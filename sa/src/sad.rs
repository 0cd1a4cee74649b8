//! The security association database (RFC 4301 section 4.4.2): which associations exist, and
//! whose they are.

use core::fmt;
use core::hash::BuildHasher;
use core::net::IpAddr;
use core::ops::RangeInclusive;
use std::collections::HashMap;
use std::hash::RandomState;
use std::sync::Arc;

use hashbrown::HashTable;

use crate::association::Sa;
use crate::event::{Events, SaIdentity};
use crate::handle::{ReceiveKey, Receiver, SaHandle};
use crate::ident::{Direction, Spi, Timestamp, VmId};
use crate::params::Scope;
use crate::sad_error::{AddError, ChangeError, NotFound, SpiError};
use crate::table::SaTable;
use crate::update::SaUpdate;

/// How many associations a virtual machine may have unless [`Sad::set_limit`] says otherwise:
/// both directions and allocated SPIs together.
pub const DEFAULT_SA_LIMIT: u32 = 512;

/// The security association database of one writer. [`Database`](crate::Database) publishes
/// one to packet threads.
///
/// Whoever names an association by its [`SaHandle`] says for which virtual machine. Another
/// machine's association is not found, exactly as if it did not exist.
pub struct Sad<C> {
    table: SaTable<C>,
    /// Outbound associations by their identity, each of which exists once.
    outbound: HashTable<SaHandle>,
    identities: RandomState,
    free: Vec<u32>,
    serial: u64,
    accounts: HashMap<VmId, SaUsage>,
    /// Allocated SPIs that have no association yet, and for whom.
    reserved: HashMap<ReceiveKey, VmId>,
    /// Deleted associations that packets in flight may still use.
    draining: Vec<(SaHandle, Arc<Sa<C>>)>,
}

/// What a virtual machine has, and may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaUsage {
    /// Live associations.
    pub associations: u32,
    /// Allocated SPIs that have no association yet.
    pub reserved: u32,
    /// How many of both there may be.
    pub limit: u32,
}

/// An association that was added and may yet be taken back.
pub(crate) struct Attached {
    pub(crate) handle: SaHandle,
    pub(crate) serial: u64,
    used_reservation: bool,
}

/// An association that was taken out of a [`Sad`], and is to be [put back](Sad::put_back) or
/// [ended](Sad::retire).
#[must_use = "an association that is not ended goes on wherever else it is in use"]
pub struct Detached<C> {
    handle: SaHandle,
    sa: Arc<Sa<C>>,
    serial: u64,
}

impl<C> Sad<C> {
    /// A database without associations.
    pub fn new() -> Self {
        Self {
            table: SaTable::new(),
            outbound: HashTable::new(),
            identities: RandomState::new(),
            free: Vec::new(),
            serial: 0,
            accounts: HashMap::new(),
            reserved: HashMap::new(),
            draining: Vec::new(),
        }
    }

    /// Sets how many associations and allocated SPIs an owner may have; 0 is none. More that
    /// exist already remain. The host's own are unlimited unless a limit is set.
    pub fn set_limit(&mut self, owner: VmId, limit: u32) {
        self.account(owner).limit = limit;
    }

    /// What an owner has, and may have.
    pub fn usage(&self, owner: VmId) -> SaUsage {
        self.accounts
            .get(&owner)
            .copied()
            .unwrap_or_else(|| SaUsage::none(owner))
    }

    /// Live associations of all owners.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is no live association.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every live association, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (SaHandle, &Arc<Sa<C>>)> {
        self.table.iter()
    }

    /// The association that a handle of `owner` names.
    pub fn get(&self, owner: VmId, handle: SaHandle) -> Result<&Arc<Sa<C>>, NotFound> {
        self.table.owned(owner, handle).ok_or(NotFound { handle })
    }

    /// The association of a received packet.
    pub fn inbound(&self, key: &ReceiveKey) -> Option<(SaHandle, &Arc<Sa<C>>)> {
        self.table.inbound(key)
    }

    /// The association that serves a policy with this `reqid` (not 0) towards `destination`:
    /// of several the one added last that still carries packets, so that a replacement takes
    /// over at once.
    pub fn outbound(
        &self,
        owner: VmId,
        reqid: u32,
        destination: IpAddr,
    ) -> Option<(SaHandle, &Arc<Sa<C>>)> {
        self.table.outbound(owner, reqid, destination)
    }

    /// Allocates an SPI for an inbound association that is still being negotiated: the first
    /// one of `range` that is neither live nor allocated for this receiver and destination,
    /// beginning `start` (which should be random) places into the range and going around.
    ///
    /// It counts towards the owner's limit until it is used by [`add`](Self::add) or given back
    /// by [`release_spi`](Self::release_spi).
    pub fn allocate_spi(
        &mut self,
        owner: VmId,
        scope: Scope,
        destination: IpAddr,
        range: RangeInclusive<Spi>,
        start: u32,
    ) -> Result<Spi, SpiError> {
        let usage = self.usage(owner);
        if usage.is_full() {
            return Err(SpiError::QuotaExceeded {
                owner,
                limit: usage.limit,
            });
        }
        let (first, last) = (range.start().get(), range.end().get());
        let exhausted = SpiError::Exhausted {
            first: *range.start(),
            last: *range.end(),
            destination,
        };
        let size = u64::from(last) + 1 - u64::from(first.min(last));
        if first > last {
            return Err(exhausted);
        }
        let start = first + (u64::from(start) % size) as u32;
        let key = (start..=last)
            .chain(first..start)
            .filter_map(Spi::new)
            .map(|spi| ReceiveKey {
                receiver: Receiver::of(scope, owner),
                destination,
                spi,
            })
            .find(|key| !self.reserved.contains_key(key) && self.inbound(key).is_none())
            .ok_or(exhausted)?;
        self.reserved.insert(key, owner);
        self.account(owner).reserved += 1;
        Ok(key.spi)
    }

    /// Gives back an allocated SPI that will get no association; whether there was one.
    pub fn release_spi(
        &mut self,
        owner: VmId,
        scope: Scope,
        destination: IpAddr,
        spi: Spi,
    ) -> bool {
        let key = ReceiveKey {
            receiver: Receiver::of(scope, owner),
            destination,
            spi,
        };
        let is_owners = self.reserved.get(&key) == Some(&owner);
        if is_owners {
            self.reserved.remove(&key);
            self.account(owner).reserved -= 1;
        }
        is_owners
    }

    /// Adds an association for the owner that its parameters name.
    ///
    /// Inbound, the receive key has to be free or allocated to the owner. Outbound, the owner
    /// may not have another one with the same destination and SPI.
    pub fn add(&mut self, sa: Arc<Sa<C>>) -> Result<SaHandle, AddError> {
        self.attach(sa).map(|attached| attached.handle)
    }

    /// Changes an association while packets pass.
    pub fn update(
        &self,
        owner: VmId,
        handle: SaHandle,
        update: &SaUpdate,
    ) -> Result<Events, ChangeError> {
        Ok(self.get(owner, handle)?.update(update)?)
    }

    /// Puts `sa`, with other parameters or another context but the same SPI, direction, owner
    /// and kind of sequence number, in the place of the association that `handle` names. It
    /// takes over the state ([`Sa::continuing`]) and keeps the handle.
    pub fn replace(
        &mut self,
        owner: VmId,
        handle: SaHandle,
        sa: Sa<C>,
        now: Timestamp,
    ) -> Result<(), ChangeError> {
        self.substitute(owner, handle, sa, now).map(drop)
    }

    /// [`replace`](Self::replace), telling what is now in the table.
    pub(crate) fn substitute(
        &mut self,
        owner: VmId,
        handle: SaHandle,
        sa: Sa<C>,
        now: Timestamp,
    ) -> Result<(Arc<Sa<C>>, u64), ChangeError> {
        let old = Arc::clone(self.get(owner, handle)?);
        let is_moved = ReceiveKey::of(old.params()) != ReceiveKey::of(sa.params());
        if is_moved && self.is_taken(&sa) {
            return Err(ChangeError::SpiInUse {
                spi: sa.spi(),
                destination: sa.params().destination,
            });
        }
        let sa = Arc::new(sa.continuing(&old, now)?);
        self.unname(handle, &old);
        let serial = self.table.remove(handle).map_or(0, |(_, serial)| serial);
        self.table.insert(handle, Arc::clone(&sa), serial);
        self.name(handle, &sa);
        Ok((sa, serial))
    }

    /// Deletes an association: it is not found any more, and refuses packets. It is freed once
    /// no packet in flight uses it; [`reap`](Self::reap) tells.
    pub fn delete(&mut self, owner: VmId, handle: SaHandle) -> Result<(), NotFound> {
        let detached = self.detach(owner, handle)?;
        self.retire(detached);
        Ok(())
    }

    /// Takes an association out without ending it: it is not found here any more, and goes on
    /// wherever else it is in use.
    pub fn withdraw(&mut self, owner: VmId, handle: SaHandle) -> Result<Arc<Sa<C>>, NotFound> {
        let detached = self.detach(owner, handle)?;
        self.free(handle);
        Ok(detached.sa)
    }

    /// Deleted associations that packets in flight may still use.
    pub fn draining(&self) -> usize {
        self.draining.len()
    }

    /// Frees the deleted associations that nothing uses any more, keys included, and returns
    /// what their handles and names were.
    pub fn reap(&mut self) -> Vec<(SaHandle, SaIdentity)> {
        self.draining
            .extract_if(.., |(_, sa)| Arc::strong_count(sa) == 1)
            .map(|(handle, sa)| (handle, sa.identity()))
            .collect()
    }

    pub(crate) fn attach(&mut self, sa: Arc<Sa<C>>) -> Result<Attached, AddError> {
        let owner = sa.owner();
        let key = ReceiveKey::of(sa.params());
        let used_reservation =
            sa.direction() == Direction::Inbound && self.reserved.get(&key) == Some(&owner);
        let usage = self.usage(owner);
        if !used_reservation && usage.is_full() {
            return Err(AddError::QuotaExceeded {
                owner,
                limit: usage.limit,
            });
        }
        if !used_reservation && self.is_taken(&sa) {
            return Err(AddError::SpiInUse {
                spi: sa.spi(),
                destination: sa.params().destination,
            });
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => u32::try_from(self.table.slots()).map_err(|_| AddError::TableFull)?,
        };
        let handle = SaHandle {
            slot,
            generation: self.table.generation(slot) + 1,
        };
        self.serial += 1;
        self.name(handle, &sa);
        self.table.insert(handle, sa, self.serial);
        if used_reservation {
            self.reserved.remove(&key);
            self.account(owner).reserved -= 1;
        }
        self.account(owner).associations += 1;
        Ok(Attached {
            handle,
            serial: self.serial,
            used_reservation,
        })
    }

    pub(crate) fn undo_attach(&mut self, attached: &Attached) {
        let taken = self.take(attached.handle);
        self.free(attached.handle);
        if let Some((sa, _)) = taken
            && attached.used_reservation
        {
            self.reserved
                .insert(ReceiveKey::of(sa.params()), sa.owner());
            self.account(sa.owner()).reserved += 1;
        }
    }

    /// Takes an association out, so that another may have its name. It keeps its handle, which
    /// finds nothing until it is put back.
    pub fn detach(&mut self, owner: VmId, handle: SaHandle) -> Result<Detached<C>, NotFound> {
        self.get(owner, handle)?;
        let (sa, serial) = self.take(handle).ok_or(NotFound { handle })?;
        Ok(Detached { handle, sa, serial })
    }

    /// Puts back what was taken out, where nothing has its name. A limit does not count.
    pub fn put_back(&mut self, detached: Detached<C>) {
        let Detached { handle, sa, serial } = detached;
        self.account(sa.owner()).associations += 1;
        self.name(handle, &sa);
        self.table.insert(handle, sa, serial);
    }

    /// Ends what was taken out: it refuses packets, and is freed as after
    /// [`delete`](Self::delete).
    pub fn retire(&mut self, detached: Detached<C>) {
        detached.sa.close();
        self.free(detached.handle);
        self.draining.push((detached.handle, detached.sa));
    }

    /// Takes an association out of everything but the reservations and `draining`.
    fn take(&mut self, handle: SaHandle) -> Option<(Arc<Sa<C>>, u64)> {
        let sa = Arc::clone(self.table.get(handle)?);
        self.unname(handle, &sa);
        let removed = self.table.remove(handle)?;
        self.account(sa.owner()).associations -= 1;
        Some(removed)
    }

    /// Lets another association have the slot, unless its generations are used up.
    fn free(&mut self, handle: SaHandle) {
        if handle.generation < u32::MAX {
            self.free.push(handle.slot);
        }
    }

    /// Whether another association, or somebody's allocated SPI, is where `sa` wants to be.
    fn is_taken(&self, sa: &Sa<C>) -> bool {
        match sa.direction() {
            Direction::Inbound => {
                let key = ReceiveKey::of(sa.params());
                self.inbound(&key).is_some() || self.reserved.contains_key(&key)
            }
            Direction::Outbound => {
                let identity = sa.identity();
                let hash = self.identities.hash_one(identity);
                self.outbound
                    .find(hash, |&handle| {
                        self.table
                            .get(handle)
                            .is_some_and(|sa| sa.identity() == identity)
                    })
                    .is_some()
            }
        }
    }

    fn name(&mut self, handle: SaHandle, sa: &Sa<C>) {
        if sa.direction() == Direction::Outbound {
            let Self {
                table,
                outbound,
                identities,
                ..
            } = self;
            let hash = identities.hash_one(sa.identity());
            outbound.insert_unique(hash, handle, |&handle| {
                // Only named associations are in the table of names.
                table
                    .get(handle)
                    .map_or(0, |sa| identities.hash_one(sa.identity()))
            });
        }
    }

    fn unname(&mut self, handle: SaHandle, sa: &Sa<C>) {
        if sa.direction() == Direction::Outbound {
            let hash = self.identities.hash_one(sa.identity());
            if let Ok(entry) = self.outbound.find_entry(hash, |&other| other == handle) {
                entry.remove();
            }
        }
    }

    fn account(&mut self, owner: VmId) -> &mut SaUsage {
        self.accounts
            .entry(owner)
            .or_insert_with(|| SaUsage::none(owner))
    }
}

impl SaUsage {
    fn none(owner: VmId) -> Self {
        Self {
            associations: 0,
            reserved: 0,
            limit: match owner {
                VmId::HOST => u32::MAX,
                _ => DEFAULT_SA_LIMIT,
            },
        }
    }

    fn is_full(&self) -> bool {
        self.associations.saturating_add(self.reserved) >= self.limit
    }
}

impl<C> Default for Sad<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C> fmt::Debug for Sad<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sad")
            .field("live", &self.table)
            .field("reserved", &self.reserved)
            .field("draining", &self.draining.len())
            .finish_non_exhaustive()
    }
}
