//! Associations and policies published together: packet threads see one consistent epoch for
//! as long as they look.

use core::fmt;
use core::net::IpAddr;
use core::ops::{Deref, RangeInclusive};
use std::collections::HashMap;
use std::sync::Arc;

use left_right::{Absorb, ReadGuard, ReadHandle, ReadHandleFactory, WriteHandle};

use crate::association::Sa;
use crate::event::{Events, SaIdentity};
use crate::handle::{ReceiveKey, SaHandle};
use crate::ident::{Direction, Spi, Timestamp, VmId};
use crate::params::Scope;
use crate::sad::{Attached, Detached, Sad};
use crate::sad_error::{AddError, ChangeError, NotFound, SpiError};
use crate::selector::Flow;
use crate::spd::{Action, Spd};
use crate::table::SaTable;
use crate::update::SaUpdate;

/// The databases of a host: the [`Sad`] and one [`Spd`] per virtual machine, for one writer and
/// any number of packet threads, which take no lock.
///
/// ```
/// use vesper_sa::{Database, Direction, Mode, Sa, SaParams, Spi, Timestamp, VmId};
///
/// let mut database = Database::<()>::new();
/// let reader = database.readers().reader();
///
/// let mut params = SaParams::new(
///     Spi::new(0x1000).unwrap(),
///     Direction::Outbound,
///     Mode::Tunnel,
///     "192.0.2.1".parse()?,
///     "192.0.2.2".parse()?,
/// );
/// params.owner = VmId(7);
/// let sa = Sa::new(params, (), Timestamp::ZERO)?;
///
/// let mut change = database.change();
/// let handle = change.add(sa.into())?;
/// assert!(reader.enter().unwrap().get(VmId(7), handle).is_none());
/// change.publish();
/// assert!(reader.enter().unwrap().get(VmId(7), handle).is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Database<C> {
    sad: Sad<C>,
    writer: WriteHandle<Epoch<C>, Op<C>>,
    readers: Readers<C>,
}

/// Makes a [`Reader`] for each packet thread.
pub struct Readers<C>(ReadHandleFactory<Epoch<C>>);

/// The view of one packet thread.
pub struct Reader<C>(ReadHandle<Epoch<C>>);

/// What a packet thread sees while it holds this: nothing changes, but the per-packet state of
/// the associations.
///
/// Holding it delays [`Change::publish`]; a thread holds it for one batch of packets.
pub struct View<'a, C>(ReadGuard<'a, Epoch<C>>);

/// One published state of the databases.
pub struct Epoch<C> {
    number: u64,
    table: SaTable<C>,
    policies: HashMap<VmId, Arc<Spd>>,
}

/// Changes that are published together, or not at all: dropping it takes them back.
#[must_use = "nothing changes before `publish`"]
pub struct Change<'a, C> {
    database: &'a mut Database<C>,
    ops: Vec<Op<C>>,
    undo: Vec<Undo<C>>,
}

enum Op<C> {
    Insert(SaHandle, Arc<Sa<C>>, u64),
    Remove(SaHandle),
    SetPolicies(VmId, Option<Arc<Spd>>),
    Number(u64),
}

enum Undo<C> {
    Add(Attached),
    Delete(Detached<C>),
}

impl<C> Database<C> {
    /// Databases without associations and policies.
    pub fn new() -> Self {
        let (writer, reader) = left_right::new_from_empty(Epoch {
            number: 0,
            table: SaTable::new(),
            policies: HashMap::new(),
        });
        let mut database = Self {
            sad: Sad::new(),
            writer,
            readers: Readers(reader.factory()),
        };
        database.writer.publish();
        database
    }

    /// For making the [`Reader`]s of packet threads.
    pub fn readers(&self) -> &Readers<C> {
        &self.readers
    }

    /// The associations as the writer sees them.
    pub fn sad(&self) -> &Sad<C> {
        &self.sad
    }

    /// Begins a set of changes.
    pub fn change(&mut self) -> Change<'_, C> {
        Change {
            database: self,
            ops: Vec::new(),
            undo: Vec::new(),
        }
    }

    /// See [`Sad::set_limit`].
    pub fn set_limit(&mut self, owner: VmId, limit: u32) {
        self.sad.set_limit(owner, limit);
    }

    /// See [`Sad::allocate_spi`].
    pub fn allocate_spi(
        &mut self,
        owner: VmId,
        scope: Scope,
        destination: IpAddr,
        range: RangeInclusive<Spi>,
        start: u32,
    ) -> Result<Spi, SpiError> {
        self.sad
            .allocate_spi(owner, scope, destination, range, start)
    }

    /// See [`Sad::release_spi`].
    pub fn release_spi(
        &mut self,
        owner: VmId,
        scope: Scope,
        destination: IpAddr,
        spi: Spi,
    ) -> bool {
        self.sad.release_spi(owner, scope, destination, spi)
    }

    /// Changes an association while packets pass; in force at once, see [`Sad::update`].
    pub fn update(
        &self,
        owner: VmId,
        handle: SaHandle,
        update: &SaUpdate,
    ) -> Result<Events, ChangeError> {
        self.sad.update(owner, handle, update)
    }

    /// Replaces an association by one that takes over its state, and publishes that; see
    /// [`Sad::replace`]. Packets that use the old one meanwhile are refused.
    pub fn replace(
        &mut self,
        owner: VmId,
        handle: SaHandle,
        sa: Sa<C>,
        now: Timestamp,
    ) -> Result<(), ChangeError> {
        let (sa, serial) = self.sad.substitute(owner, handle, sa, now)?;
        self.publish([Op::Remove(handle), Op::Insert(handle, sa, serial)]);
        Ok(())
    }

    /// Frees the deleted associations that no packet in flight uses any more, keys included,
    /// and returns what their handles and names were.
    pub fn reap(&mut self) -> Vec<(SaHandle, SaIdentity)> {
        self.sad.reap()
    }

    /// Publishes changes that `sad` has seen already.
    fn publish(&mut self, ops: impl IntoIterator<Item = Op<C>>) {
        let number = self
            .writer
            .enter()
            .map_or(0, |epoch| epoch.number)
            .wrapping_add(1);
        self.writer.extend(ops);
        self.writer.append(Op::Number(number));
        self.writer.publish();
        // Waits for the readers of the epoch before, and brings its copy up to date.
        self.writer.publish();
    }
}

impl<C> Change<'_, C> {
    /// See [`Sad::add`].
    pub fn add(&mut self, sa: Arc<Sa<C>>) -> Result<SaHandle, AddError> {
        let attached = self.database.sad.attach(Arc::clone(&sa))?;
        let handle = attached.handle;
        self.ops.push(Op::Insert(handle, sa, attached.serial));
        self.undo.push(Undo::Add(attached));
        Ok(handle)
    }

    /// Deletes an association. Packet threads use it until they see the new epoch; only then
    /// is it closed, so that no packet is lost when another takes its place in the same epoch.
    pub fn delete(&mut self, owner: VmId, handle: SaHandle) -> Result<(), NotFound> {
        let detached = self.database.sad.detach(owner, handle)?;
        self.ops.push(Op::Remove(handle));
        self.undo.push(Undo::Delete(detached));
        Ok(())
    }

    /// Sets the policies of a virtual machine; without policies all its packets are discarded.
    pub fn set_policies(&mut self, owner: VmId, policies: Option<Spd>) {
        let policies = policies.map(Arc::new);
        self.ops.push(Op::SetPolicies(owner, policies));
    }

    /// Makes all changes visible at once. Returns when no packet thread sees the epochs before
    /// any more, and so must not be called by a thread that holds a [`View`].
    pub fn publish(mut self) {
        let ops = core::mem::take(&mut self.ops);
        let undo = core::mem::take(&mut self.undo);
        self.database.publish(ops);
        for done in undo {
            if let Undo::Delete(detached) = done {
                self.database.sad.retire(detached);
            }
        }
    }
}

impl<C> Drop for Change<'_, C> {
    fn drop(&mut self) {
        for undo in self.undo.drain(..).rev() {
            match undo {
                Undo::Add(attached) => self.database.sad.undo_attach(&attached),
                Undo::Delete(detached) => self.database.sad.put_back(detached),
            }
        }
    }
}

impl<C> Readers<C> {
    /// A reader for one packet thread.
    pub fn reader(&self) -> Reader<C> {
        Reader(self.0.handle())
    }
}

impl<C> Reader<C> {
    /// The current epoch; `None` once the [`Database`] is gone.
    pub fn enter(&self) -> Option<View<'_, C>> {
        self.0.enter().map(View)
    }
}

impl<C> Deref for View<'_, C> {
    type Target = Epoch<C>;

    fn deref(&self) -> &Epoch<C> {
        &self.0
    }
}

impl<C> Epoch<C> {
    /// Grows by one whenever something is published.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The association that a handle of `owner` names.
    pub fn get(&self, owner: VmId, handle: SaHandle) -> Option<&Arc<Sa<C>>> {
        self.table.owned(owner, handle)
    }

    /// The association of a received packet.
    pub fn inbound(&self, key: &ReceiveKey) -> Option<(SaHandle, &Arc<Sa<C>>)> {
        self.table.inbound(key)
    }

    /// The association that serves a policy; see [`Sad::outbound`].
    pub fn outbound(
        &self,
        owner: VmId,
        reqid: u32,
        destination: IpAddr,
    ) -> Option<(SaHandle, &Arc<Sa<C>>)> {
        self.table.outbound(owner, reqid, destination)
    }

    /// What the policies of a virtual machine say about a packet; without policies: discard.
    pub fn action(&self, owner: VmId, direction: Direction, flow: &Flow) -> Action {
        self.policies(owner)
            .map_or(Action::Discard, |spd| spd.lookup(direction, flow))
    }

    /// The policies of a virtual machine.
    pub fn policies(&self, owner: VmId) -> Option<&Spd> {
        self.policies.get(&owner).map(|spd| &**spd)
    }
}

impl<C> Absorb<Op<C>> for Epoch<C> {
    fn absorb_first(&mut self, op: &mut Op<C>, _: &Self) {
        match op {
            Op::Insert(handle, sa, serial) => self.table.insert(*handle, Arc::clone(sa), *serial),
            Op::Remove(handle) => drop(self.table.remove(*handle)),
            Op::SetPolicies(owner, Some(spd)) => {
                self.policies.insert(*owner, Arc::clone(spd));
            }
            Op::SetPolicies(owner, None) => {
                self.policies.remove(owner);
            }
            Op::Number(number) => self.number = *number,
        }
    }

    fn sync_with(&mut self, first: &Self) {
        self.clone_from(first);
    }
}

// Deriving these would ask for a `C` that can be copied, printed or made from nothing.

impl<C> Clone for Epoch<C> {
    fn clone(&self) -> Self {
        Self {
            number: self.number,
            table: self.table.clone(),
            policies: self.policies.clone(),
        }
    }
}

impl<C> Clone for Readers<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<C> Default for Database<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C> fmt::Debug for Epoch<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epoch")
            .field("number", &self.number)
            .field("associations", &self.table)
            .field("policies", &self.policies)
            .finish()
    }
}

impl<C> fmt::Debug for Database<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Database").field(&self.sad).finish()
    }
}

impl<C> fmt::Debug for Readers<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Readers")
    }
}

impl<C> fmt::Debug for Reader<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}

impl<C> fmt::Debug for View<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<C> fmt::Debug for Change<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Change")
            .field("operations", &self.ops.len())
            .finish_non_exhaustive()
    }
}
