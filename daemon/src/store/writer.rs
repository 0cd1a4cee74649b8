//! The one that changes the store: database first, then the anchor, then the answer.

use std::time::{Duration, Instant};

use redb::{Builder, Database, Durability, WriteTransaction};
use vesper_sa::{Lease, LeaseError, LeaseHolder, LeaseRequest, SaSnapshot};
use zeroize::Zeroizing;

use super::anchor::{Anchor, AnchorState};
use super::clock::Moment;
use super::kek::StoreKeys;
use super::medium::Medium;
use super::model::{Change, Fingerprint, Loss, SaName, Standing, StoredSa};
use super::plain;
use super::tables::{self, Head, Index, NumberTable, SaTables};
use super::{COMMIT_BUCKETS, Grant, Granted, Need, NeedKind, StoreError, StoreStatistics};

/// An open store. There is one per process.
pub(super) struct Writer {
    pub(super) medium: Box<dyn Medium>,
    /// `None` after a failure: it is opened again before the next change.
    pub(super) database: Option<Database>,
    pub(super) anchor: Anchor,
    pub(super) head: Head,
    pub(super) file: u64,
    pub(super) machine: [u8; 16],
    pub(super) index: Index,
    /// Changes are in the database that only its next durable change makes durable.
    pub(super) prepared: bool,
    /// Changes that were prepared are gone: what else belongs to them must not be made.
    pub(super) lost: bool,
    /// How the store lost its memory, if it did in this epoch.
    pub(super) loss: Option<Loss>,
    pub(super) statistics: StoreStatistics,
}

/// Memory that the database may use for its pages. What it does not keep, the system does.
const CACHE: usize = 1 << 20;

/// How a database is opened. A damaged page is found here, not when it is used.
pub(super) fn builder() -> Builder {
    let mut builder = Database::builder();
    builder
        .set_cache_size(CACHE)
        .set_check_integrity_on_open(true);
    builder
}

impl Writer {
    pub(super) fn apply(
        &mut self,
        keys: &StoreKeys,
        changes: &[Change],
    ) -> Result<Vec<Standing>, StoreError> {
        // What takes a change back that was prepared, or has nothing to do with one.
        self.lost = false;
        let loss = self.loss;
        self.change(keys, |transaction, index| {
            apply(keys, changes, loss, transaction, index)
        })
    }

    /// Makes changes that are durable with the next durable change, or with
    /// [`settle`](Self::settle), and not before. They are the last part of those that came
    /// before them if that is said, and else a part that the next start forgets if no last one
    /// has followed.
    pub(super) fn prepare(
        &mut self,
        keys: &StoreKeys,
        changes: &[&Change],
        last_of: Option<&[&Change]>,
    ) -> Result<(), StoreError> {
        self.mend(keys)?;
        if self.lost {
            return Err(StoreError::Unfinished);
        }
        let Some(database) = &self.database else {
            return Err(StoreError::ChangedOutside);
        };
        let loss = self.loss;
        let attempt = (|| {
            let mut transaction = database.begin_write()?;
            // The generation stays: on the disk this is the same store still.
            transaction
                .set_durability(Durability::None)
                .map_err(|error| StoreError::Database(Box::new(error.into())))?;
            let made = changes.iter().copied();
            apply(keys, made, loss, &transaction, &mut self.index)?;
            match last_of {
                Some(parts) => tables::end_draft(&transaction, parts, changes)?,
                None => tables::begin_draft(&transaction, changes)?,
            }
            transaction.commit()?;
            Ok(())
        })();
        match attempt {
            Ok(()) => {
                self.prepared = true;
                Ok(())
            }
            Err(error) => {
                self.unwind(&error)?;
                Err(error)
            }
        }
    }

    /// What is prepared from now on is of another change.
    pub(super) fn begin(&mut self) {
        self.lost = false;
    }

    /// Makes durable what was prepared and is not yet.
    pub(super) fn settle(&mut self, keys: &StoreKeys) -> Result<(), StoreError> {
        match self.prepared {
            _ if self.lost => Err(StoreError::Unfinished),
            true => self.change(keys, |_, _| Ok(())),
            false => Ok(()),
        }
    }

    /// Where an association may go on that is about to be put; changes nothing.
    pub(super) fn standing(
        &mut self,
        keys: &StoreKeys,
        sa: &StoredSa,
    ) -> Result<Standing, StoreError> {
        self.mend(keys)?;
        let Some(database) = &self.database else {
            return Err(StoreError::ChangedOutside);
        };
        tables::standing(database, keys, sa, self.loss, &Moment::now())
    }

    pub(super) fn knows(&mut self, keys: &StoreKeys, name: &SaName) -> Result<bool, StoreError> {
        self.mend(keys)?;
        Ok(self.index.key(name).is_some())
    }

    pub(super) fn words(
        &mut self,
        keys: &StoreKeys,
        name: &SaName,
    ) -> Result<Option<Zeroizing<String>>, StoreError> {
        self.mend(keys)?;
        let Some(database) = &self.database else {
            return Err(StoreError::ChangedOutside);
        };
        tables::words(database, keys, name)
    }

    pub(super) fn lease(
        &mut self,
        keys: &StoreKeys,
        name: &SaName,
        request: &LeaseRequest,
    ) -> Result<Result<Lease, LeaseError>, StoreError> {
        let key = self.index.key(name).ok_or(StoreError::NotFound)?;
        self.change(keys, |transaction, _| {
            NumberTable::open(transaction, keys)?.grant(key, request, None)
        })
    }

    pub(super) fn grant(
        &mut self,
        keys: &StoreKeys,
        needs: &[(SaName, Need)],
    ) -> Result<Vec<Grant>, StoreError> {
        let holder = self.holder();
        self.change(keys, |transaction, index| {
            let mut numbers = NumberTable::open(transaction, keys)?;
            let mut granted = Vec::with_capacity(needs.len());
            for (name, need) in needs {
                // Another one may have taken the name, but not be in force yet: numbers of its key
                // are not for this one.
                let is_its = |key: &Fingerprint| need.key.is_none_or(|its| its == *key);
                let Some(key) = index.key(name).filter(is_its) else {
                    let unknown = Box::new(StoreError::NotFound);
                    granted.push(Err(LeaseError::Store(unknown)));
                    continue;
                };
                let outcome = match need.kind {
                    NeedKind::Lease { used, size, end } => {
                        let request = LeaseRequest {
                            sa: need.sa,
                            holder,
                            used,
                            size,
                            end,
                        };
                        numbers
                            .grant(key, &request, Some(need.usage))?
                            .map(Granted::Lease)
                    }
                    NeedKind::Mark(mark) => {
                        let shared = index.is_shared(key);
                        numbers
                            .mark(key, mark, shared, need.usage)?
                            .map(|()| Granted::Mark(mark))
                    }
                };
                granted.push(outcome.map(|granted| (granted, key)));
            }
            Ok(granted)
        })
    }

    pub(super) fn finish(
        &mut self,
        keys: &StoreKeys,
        snapshots: &[(SaName, SaSnapshot)],
        now: &Moment,
    ) -> Result<(), StoreError> {
        self.change(keys, |transaction, index| {
            let mut sas = SaTables::open(transaction, keys)?;
            for (name, snapshot) in snapshots {
                sas.finish(index, name, snapshot, now)?;
            }
            Ok(())
        })
    }

    pub(super) fn holder(&self) -> LeaseHolder {
        let [a, b, c, d, e, f, g, h, ..] = self.head.instance;
        LeaseHolder {
            host: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            epoch: self.head.epoch,
        }
    }

    pub(super) const fn statistics(&self) -> StoreStatistics {
        self.statistics
    }

    /// One durable change: all of it or nothing.
    fn change<R>(
        &mut self,
        keys: &StoreKeys,
        change: impl FnOnce(&WriteTransaction, &mut Index) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        let begun = Instant::now();
        let outcome = self.try_change(keys, change);
        match &outcome {
            Ok(_) => self.statistics.count(begun.elapsed()),
            // The request was wrong, not the disk.
            Err(StoreError::NotFound) => {}
            Err(_) => self.statistics.failures += 1,
        }
        outcome
    }

    fn try_change<R>(
        &mut self,
        keys: &StoreKeys,
        change: impl FnOnce(&WriteTransaction, &mut Index) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        self.mend(keys)?;
        let Some(database) = &self.database else {
            return Err(StoreError::ChangedOutside);
        };
        let generation = self.head.generation + 1;
        let attempt = (|| {
            let mut transaction = database.begin_write()?;
            // The default, said aloud: nothing may be used before it is on the disk.
            transaction
                .set_durability(Durability::Immediate)
                .map_err(|error| StoreError::Database(Box::new(error.into())))?;
            let answer = change(&transaction, &mut self.index)?;
            tables::set_generation(&transaction, generation)?;
            transaction.commit()?;
            Ok(answer)
        })();
        match attempt {
            Ok(answer) => {
                self.head.generation = generation;
                self.prepared = false;
                self.raise_anchor(keys)?;
                Ok(answer)
            }
            Err(error) => {
                self.unwind(&error)?;
                Err(error)
            }
        }
    }

    /// Forgets what a change that failed has left behind.
    fn unwind(&mut self, error: &StoreError) -> Result<(), StoreError> {
        match (error, &self.database) {
            // Nothing was changed, but the index may have gone ahead.
            (StoreError::NotFound, Some(database)) => self.index = tables::index(database)?,
            // Whether the change is on the disk is not known; and the index may have gone
            // ahead. Both are read again.
            _ => {
                self.lost |= self.prepared;
                self.database = None;
            }
        }
        Ok(())
    }

    /// Tells the anchor the generation of the store.
    pub(super) fn raise_anchor(&mut self, keys: &StoreKeys) -> Result<(), StoreError> {
        let state = AnchorState {
            instance: self.head.instance,
            epoch: self.head.epoch,
            generation: self.head.generation,
            file: self.file,
            machine: self.machine,
        };
        self.anchor.write(keys, &state)
    }

    /// Opens the database again after a failure, and lets the anchor catch up.
    fn mend(&mut self, keys: &StoreKeys) -> Result<(), StoreError> {
        if self.database.is_none() {
            let database = self
                .medium
                .database(&builder())
                .map_err(|error| StoreError::Database(Box::new(error.into())))?;
            let head = tables::head(&database, keys)?.ok_or(StoreError::ChangedOutside)?;
            let went_through = Head {
                generation: self.head.generation + 1,
                ..self.head
            };
            if head != self.head && head != went_through {
                return Err(StoreError::ChangedOutside);
            }
            self.index = tables::index(&database)?;
            self.head = head;
            self.prepared = false;
            self.database = Some(database);
        }
        if self.anchor.generation() != self.head.generation {
            self.raise_anchor(keys)?;
        }
        Ok(())
    }
}

fn apply<'a>(
    keys: &StoreKeys,
    changes: impl IntoIterator<Item = &'a Change>,
    loss: Option<Loss>,
    transaction: &WriteTransaction,
    index: &mut Index,
) -> Result<Vec<Standing>, StoreError> {
    let now = Moment::now();
    let mut standings = Vec::new();
    let mut sas = SaTables::open(transaction, keys)?;
    for change in changes {
        match change {
            Change::PutSa(sa) => standings.push(sas.put(index, sa, loss, &now)?),
            Change::DeleteSa(name) => sas.delete(index, name)?,
            other => plain::change(transaction, other)?,
        }
    }
    Ok(standings)
}

impl StoreStatistics {
    fn count(&mut self, took: Duration) {
        self.commits += 1;
        self.busy += took;
        self.longest = self.longest.max(took);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = COMMIT_BUCKETS.partition_point(|bound| *bound < micros);
        self.buckets[bucket] += 1;
    }
}
