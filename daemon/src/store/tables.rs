//! The tables of the database and the rules for their rows.

use std::collections::{HashMap, HashSet};

use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition,
    TableError, WriteTransaction,
};
use vesper_sa::{Direction, LeaseError, LeaseHolder, LeaseRecord, LeaseRequest, Past, SaSnapshot};
use zeroize::Zeroizing;

use super::StoreError;
use super::clock::Moment;
use super::kek::StoreKeys;
use super::model::{Change, Fingerprint, Loss, Origin, SaName, Standing, StoredSa};
use super::record::{Numbers, SaRecord, Usage};

type Bytes = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// Format, instance, epoch, generation, a check of the key-encryption key.
const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");
/// Name -> key, where it began, wrapped words.
const SAS: Bytes = TableDefinition::new("sas");
/// Fingerprint -> numbers.
const NUMBERS: Bytes = TableDefinition::new("numbers");
/// Place in the queue -> fingerprint of a key that no association has.
const RETIRED: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("retired");
/// Name -> moment, snapshot: of a daemon that was stopped in order.
const SNAPSHOTS: Bytes = TableDefinition::new("snapshots");
/// Names of associations that a change of several has put so far, which is not whole yet.
const DRAFT: TableDefinition<'static, &'static [u8], ()> = TableDefinition::new("draft");
/// The format that this release writes.
pub(super) const FORMAT: u32 = 1;

/// So many keys that no association has any more stay known.
const RETIRED_KEYS: u64 = 1 << 16;

/// The head of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) instance: [u8; 16],
    pub(super) epoch: u64,
    pub(super) generation: u64,
}

/// Which key each association has, and how many have it.
#[derive(Debug, Default)]
pub(super) struct Index {
    keys: HashMap<SaName, Fingerprint>,
    users: HashMap<Fingerprint, u32>,
}

impl Index {
    pub(super) fn key(&self, name: &SaName) -> Option<Fingerprint> {
        self.keys.get(name).copied()
    }

    pub(super) fn is_shared(&self, key: Fingerprint) -> bool {
        self.users.get(&key).is_some_and(|users| *users > 1)
    }

    /// Returns the key that the association had and nobody has any more.
    pub(super) fn set(&mut self, name: &SaName, key: Option<Fingerprint>) -> Option<Fingerprint> {
        let before = match key {
            Some(key) => self.keys.insert(name.clone(), key),
            None => self.keys.remove(name),
        };
        if let Some(key) = key {
            *self.users.entry(key).or_default() += 1;
        }
        let before = before?;
        let users = self.users.get_mut(&before)?;
        *users -= 1;
        if *users > 0 {
            return None;
        }
        self.users.remove(&before);
        Some(before)
    }
}

/// Reads the head; `None` of a database that was just made.
pub(super) fn head(database: &Database, keys: &StoreKeys) -> Result<Option<Head>, StoreError> {
    let damaged = || StoreError::Damaged { table: "meta" };
    let transaction = database.begin_read()?;
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let get = |name| -> Result<Vec<u8>, StoreError> {
        let value = meta.get(name)?.ok_or_else(damaged)?;
        Ok(value.value().to_vec())
    };
    let number = |bytes: Vec<u8>| {
        bytes
            .try_into()
            .map(u64::from_be_bytes)
            .map_err(|_| damaged())
    };
    let format = get("format")?.try_into().map_err(|_| damaged())?;
    let format = u32::from_be_bytes(format);
    if format > FORMAT {
        return Err(StoreError::Newer {
            found: format,
            known: FORMAT,
        });
    }
    if get("check")? != keys.seal("check", &[]) {
        return Err(StoreError::WrongKey);
    }
    Ok(Some(Head {
        instance: get("instance")?.try_into().map_err(|_| damaged())?,
        epoch: number(get("epoch")?)?,
        generation: number(get("generation")?)?,
    }))
}

/// The words of an association.
pub(super) fn words(
    database: &Database,
    keys: &StoreKeys,
    name: &SaName,
) -> Result<Option<Zeroizing<String>>, StoreError> {
    let damaged = || StoreError::Damaged { table: "sas" };
    let name = name.encode();
    let table = database.begin_read()?.open_table(SAS)?;
    let Some(bytes) = table.get(name.as_slice())? else {
        return Ok(None);
    };
    let record = SaRecord::decode(bytes.value()).ok_or_else(damaged)?;
    record.words(keys, &name).ok_or_else(damaged).map(Some)
}

/// Where an association may go on that is about to be put.
pub(super) fn standing(
    database: &Database,
    keys: &StoreKeys,
    sa: &StoredSa,
    loss: Option<Loss>,
    now: &Moment,
) -> Result<Standing, StoreError> {
    let damaged = |table| StoreError::Damaged { table };
    let transaction = database.begin_read()?;
    let name = sa.name.encode();
    let kept = match transaction.open_table(SAS)?.get(name.as_slice())? {
        Some(bytes) => Some(SaRecord::decode(bytes.value()).ok_or_else(|| damaged("sas"))?)
            .filter(|record| record.key == sa.key),
        None => None,
    };
    let numbers = transaction.open_table(NUMBERS)?;
    let known = match numbers.get(sa.key.0.as_slice())? {
        Some(bytes) => {
            let numbers = Numbers::decode(keys, sa.key, bytes.value());
            Some(numbers.ok_or_else(|| damaged("numbers"))?)
        }
        None => None,
    };
    Ok(judge(sa, kept.as_ref(), known, loss, now).1)
}

/// What is known of the numbers of an association, and what follows from it.
fn judge(
    sa: &StoredSa,
    kept: Option<&SaRecord>,
    known: Option<Numbers>,
    loss: Option<Loss>,
    now: &Moment,
) -> (Numbers, Standing) {
    let direction = sa.name.sa.direction;
    let loss = loss.filter(|_| sa.origin == Origin::File && known.is_none());
    let is_known = known.is_some();
    let numbers = known.unwrap_or(Numbers {
        burnt: loss,
        ..Numbers::default()
    });
    let standing = if let Some(loss) = numbers.burnt {
        Standing::NeedsRekey(loss)
    } else if !is_known || numbers.reached(direction) == 0 {
        Standing::Fresh
    } else {
        let (packets, bytes) = numbers.past(direction);
        Standing::After {
            sequence: numbers.reached(direction).max(sa.sequence),
            past: Past {
                packets,
                bytes,
                age: kept
                    .map(|record| now.since(&record.born))
                    .unwrap_or_default(),
            },
        }
    };
    (numbers, standing)
}

/// Reads which key each association has.
pub(super) fn index(database: &Database) -> Result<Index, StoreError> {
    let damaged = || StoreError::Damaged { table: "sas" };
    let mut index = Index::default();
    for row in database.begin_read()?.open_table(SAS)?.iter()? {
        let (name, record) = row?;
        let name = SaName::decode(name.value()).ok_or_else(damaged)?;
        let record = SaRecord::decode(record.value()).ok_or_else(damaged)?;
        index.set(&name, Some(record.key));
    }
    Ok(index)
}

/// Writes the head.
pub(super) fn set_head(
    transaction: &WriteTransaction,
    keys: &StoreKeys,
    head: &Head,
) -> Result<(), StoreError> {
    let mut meta = transaction.open_table(META)?;
    meta.insert("format", FORMAT.to_be_bytes().as_slice())?;
    meta.insert("check", keys.seal("check", &[]).as_slice())?;
    meta.insert("instance", head.instance.as_slice())?;
    meta.insert("epoch", head.epoch.to_be_bytes().as_slice())?;
    meta.insert("generation", head.generation.to_be_bytes().as_slice())?;
    Ok(())
}

/// Writes the generation alone.
pub(super) fn set_generation(
    transaction: &WriteTransaction,
    generation: u64,
) -> Result<(), StoreError> {
    let mut meta = transaction.open_table(META)?;
    meta.insert("generation", generation.to_be_bytes().as_slice())?;
    Ok(())
}

/// What a part of a change puts is only there if its last part comes to be.
pub(super) fn begin_draft(
    transaction: &WriteTransaction,
    part: &[&Change],
) -> Result<(), StoreError> {
    let mut draft = transaction.open_table(DRAFT)?;
    for change in part {
        if let Change::PutSa(sa) = change {
            draft.insert(sa.name.encode().as_slice(), ())?;
        }
    }
    Ok(())
}

/// A change is whole, with the parts that came before the last one. What another one has left
/// behind that could not be taken back stays for the next start to drop.
pub(super) fn end_draft(
    transaction: &WriteTransaction,
    parts: &[&Change],
    last: &[&Change],
) -> Result<(), StoreError> {
    let mut draft = transaction.open_table(DRAFT)?;
    if draft.is_empty()? {
        return Ok(());
    }
    if draft.len()? == parts.len() as u64 {
        drop(draft);
        transaction.delete_table(DRAFT)?;
        return Ok(());
    }
    for change in parts.iter().chain(last) {
        if let Change::PutSa(sa) = change {
            draft.remove(sa.name.encode().as_slice())?;
        }
    }
    Ok(())
}

/// Takes out the names of what was put by changes whose last part did not come to be.
pub(super) fn take_draft(transaction: &WriteTransaction) -> Result<HashSet<Vec<u8>>, StoreError> {
    let mut draft = transaction.open_table(DRAFT)?;
    let mut names = HashSet::new();
    for row in draft.iter()? {
        names.insert(row?.0.value().to_vec());
    }
    draft.retain(|_, ()| false)?;
    Ok(names)
}

/// The rows about associations and their numbers, in one transaction.
pub(super) struct SaTables<'t, 'k> {
    keys: &'k StoreKeys,
    sas: Table<'t, &'static [u8], &'static [u8]>,
    numbers: NumberTable<'t, 'k>,
    retired: Table<'t, u64, &'static [u8]>,
    snapshots: Table<'t, &'static [u8], &'static [u8]>,
}

/// The rows about numbers, in one transaction.
pub(super) struct NumberTable<'t, 'k> {
    keys: &'k StoreKeys,
    table: Table<'t, &'static [u8], &'static [u8]>,
}

impl<'t, 'k> NumberTable<'t, 'k> {
    pub(super) fn open(
        transaction: &'t WriteTransaction,
        keys: &'k StoreKeys,
    ) -> Result<Self, StoreError> {
        let table = transaction.open_table(NUMBERS)?;
        Ok(Self { keys, table })
    }

    pub(super) fn get(&self, key: Fingerprint) -> Result<Option<Numbers>, StoreError> {
        let Some(bytes) = self.table.get(key.0.as_slice())? else {
            return Ok(None);
        };
        Numbers::decode(self.keys, key, bytes.value())
            .ok_or(StoreError::Damaged { table: "numbers" })
            .map(Some)
    }

    pub(super) fn put(&mut self, key: Fingerprint, numbers: &Numbers) -> Result<(), StoreError> {
        let bytes = numbers.encode(self.keys, key);
        self.table.insert(key.0.as_slice(), bytes.as_slice())?;
        Ok(())
    }

    /// Grants outbound numbers.
    pub(super) fn grant(
        &mut self,
        key: Fingerprint,
        request: &LeaseRequest,
        usage: Option<Usage>,
    ) -> Result<Result<vesper_sa::Lease, LeaseError>, StoreError> {
        let mut numbers = self.get(key)?.unwrap_or_default();
        if let Some(loss) = numbers.burnt {
            return Ok(Err(LeaseError::Store(loss.to_string().into())));
        }
        let (record, lease) = match LeaseRecord::grant(numbers.lease.as_ref(), request) {
            Ok(granted) => granted,
            Err(refused) => return Ok(Err(refused)),
        };
        numbers.lease = Some(record);
        numbers.sent = usage.unwrap_or(numbers.sent);
        self.put(key, &numbers)?;
        Ok(Ok(lease))
    }

    /// Sets the mark of inbound numbers. `shared`: another association has the same key, and
    /// may have accepted higher numbers.
    pub(super) fn mark(
        &mut self,
        key: Fingerprint,
        mark: u64,
        shared: bool,
        usage: Usage,
    ) -> Result<Result<(), LeaseError>, StoreError> {
        let mut numbers = self.get(key)?.unwrap_or_default();
        if let Some(loss) = numbers.burnt {
            return Ok(Err(LeaseError::Store(loss.to_string().into())));
        }
        numbers.mark = if shared { mark.max(numbers.mark) } else { mark };
        numbers.received = usage;
        self.put(key, &numbers)?;
        Ok(Ok(()))
    }
}

impl<'t, 'k> SaTables<'t, 'k> {
    pub(super) fn open(
        transaction: &'t WriteTransaction,
        keys: &'k StoreKeys,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            keys,
            sas: transaction.open_table(SAS)?,
            numbers: NumberTable::open(transaction, keys)?,
            retired: transaction.open_table(RETIRED)?,
            snapshots: transaction.open_table(SNAPSHOTS)?,
        })
    }

    /// Keeps an association and tells where it may go on. `loss`: the store has lost its
    /// memory in this epoch.
    pub(super) fn put(
        &mut self,
        index: &mut Index,
        sa: &StoredSa,
        loss: Option<Loss>,
        now: &Moment,
    ) -> Result<Standing, StoreError> {
        let name = sa.name.encode();
        let kept = self.record(&name)?.filter(|record| record.key == sa.key);
        let known = self.numbers.get(sa.key)?;
        let (mut numbers, standing) = judge(sa, kept.as_ref(), known, loss, now);
        self.begin(&mut numbers, sa)?;
        self.numbers.put(sa.key, &numbers)?;
        let mut record = SaRecord {
            key: sa.key,
            sequence: sa.sequence,
            born: kept.map_or(*now, |record| record.born),
            configured: sa.configured,
            wrapped: Vec::new(),
        };
        record.wrapped = self.keys.wrap(&record.associated(&name), &sa.words)?;
        self.sas
            .insert(name.as_slice(), record.encode().as_slice())?;
        if let Some(unused) = index.set(&sa.name, Some(sa.key)) {
            self.retire(unused)?;
        }
        Ok(standing)
    }

    /// The words may say that numbers were used elsewhere.
    fn begin(&mut self, numbers: &mut Numbers, sa: &StoredSa) -> Result<(), StoreError> {
        if numbers.retired != 0 {
            self.retired.remove(numbers.retired)?;
            numbers.retired = 0;
        }
        match sa.name.sa.direction {
            Direction::Inbound => numbers.mark = numbers.mark.max(sa.sequence),
            Direction::Outbound => {
                if sa.sequence > numbers.reached(Direction::Outbound) {
                    numbers.lease = Some(LeaseRecord {
                        holder: numbers
                            .lease
                            .map_or(LeaseHolder { host: 0, epoch: 0 }, |lease| lease.holder),
                        granted: sa.sequence,
                        used: sa.sequence,
                    });
                }
            }
        }
        Ok(())
    }

    pub(super) fn delete(&mut self, index: &mut Index, name: &SaName) -> Result<(), StoreError> {
        let bytes = name.encode();
        if self.sas.remove(bytes.as_slice())?.is_none() {
            return Err(StoreError::NotFound);
        }
        self.snapshots.remove(bytes.as_slice())?;
        if let Some(unused) = index.set(name, None) {
            self.retire(unused)?;
        }
        Ok(())
    }

    /// Puts a key into the queue of those that nobody has, and forgets the one that has been
    /// there for longest if there are too many.
    fn retire(&mut self, key: Fingerprint) -> Result<(), StoreError> {
        let Some(mut numbers) = self.numbers.get(key)? else {
            return Ok(());
        };
        let last = self.retired.last()?.map_or(0, |(place, _)| place.value());
        numbers.retired = last + 1;
        self.numbers.put(key, &numbers)?;
        self.retired.insert(last + 1, key.0.as_slice())?;
        if self.retired.len()? > RETIRED_KEYS
            && let Some((_, oldest)) = self.retired.pop_first()?
        {
            self.numbers.table.remove(oldest.value())?;
        }
        Ok(())
    }

    /// Keeps what a daemon that stops in order knows. The association must be closed.
    pub(super) fn finish(
        &mut self,
        index: &Index,
        name: &SaName,
        snapshot: &SaSnapshot,
        now: &Moment,
    ) -> Result<(), StoreError> {
        // An association that was deleted meanwhile has no state to keep; and where two share a
        // key, the other one may have used higher numbers.
        let Some(key) = index.key(name).filter(|key| !index.is_shared(*key)) else {
            return Ok(());
        };
        let mut numbers = self.numbers.get(key)?.unwrap_or_default();
        let sequence = snapshot.sequence();
        match (name.sa.direction, &mut numbers.lease) {
            (Direction::Inbound, _) => numbers.mark = numbers.mark.min(sequence),
            (Direction::Outbound, Some(lease)) => {
                lease.granted = lease.granted.min(sequence);
                lease.used = lease.granted;
            }
            (Direction::Outbound, None) => {}
        }
        self.numbers.put(key, &numbers)?;
        let mut bytes = now.encode().to_vec();
        bytes.extend_from_slice(&snapshot.encode());
        let name = name.encode();
        let seal = self.keys.seal("snapshots", &[&name, &key.0, &bytes]);
        bytes.extend_from_slice(&seal);
        self.snapshots.insert(name.as_slice(), bytes.as_slice())?;
        Ok(())
    }

    fn record(&self, name: &[u8]) -> Result<Option<SaRecord>, StoreError> {
        let Some(bytes) = self.sas.get(name)? else {
            return Ok(None);
        };
        SaRecord::decode(bytes.value())
            .ok_or(StoreError::Damaged { table: "sas" })
            .map(Some)
    }

    /// All associations with where they may go on, but those of a `draft`, which are deleted.
    /// Snapshots are used up.
    pub(super) fn recover(
        &mut self,
        index: &mut Index,
        draft: &HashSet<Vec<u8>>,
        now: &Moment,
    ) -> Result<Vec<(StoredSa, Standing)>, StoreError> {
        let damaged = StoreError::Damaged { table: "sas" };
        let mut rows = Vec::new();
        for row in self.sas.iter()? {
            let (name, record) = row?;
            rows.push((name.value().to_vec(), record.value().to_vec()));
        }
        let mut found = Vec::with_capacity(rows.len());
        let mut dropped = Vec::new();
        for (name_bytes, bytes) in rows {
            let (Some(name), Some(record)) =
                (SaName::decode(&name_bytes), SaRecord::decode(&bytes))
            else {
                return Err(damaged);
            };
            let Some(words) = record.words(self.keys, &name_bytes) else {
                return Err(damaged);
            };
            index.set(&name, Some(record.key));
            // Put for a change that did not come to be.
            if draft.contains(&name_bytes) {
                dropped.push(name);
                continue;
            }
            let direction = name.sa.direction;
            let numbers = self.numbers.get(record.key)?.unwrap_or_default();
            let standing = if let Some(loss) = numbers.burnt {
                Standing::NeedsRekey(loss)
            } else if let Some(snapshot) = self.snapshot(&name_bytes, record.key, now)? {
                Standing::Restored(snapshot)
            } else if numbers.reached(direction) == 0 {
                Standing::Fresh
            } else {
                let (packets, bytes) = numbers.past(direction);
                Standing::After {
                    sequence: numbers.reached(direction),
                    past: Past {
                        packets,
                        bytes,
                        age: now.since(&record.born),
                    },
                }
            };
            let sa = StoredSa {
                name,
                words,
                key: record.key,
                sequence: record.sequence,
                origin: Origin::Request,
                configured: record.configured,
            };
            found.push((sa, standing));
        }
        for name in dropped {
            self.delete(index, &name)?;
        }
        self.snapshots.retain(|_, _| false)?;
        Ok(found)
    }

    fn snapshot(
        &self,
        name: &[u8],
        key: Fingerprint,
        now: &Moment,
    ) -> Result<Option<SaSnapshot>, StoreError> {
        let damaged = || StoreError::Damaged { table: "snapshots" };
        let Some(bytes) = self.snapshots.get(name)? else {
            return Ok(None);
        };
        let (bytes, seal) = bytes.value().split_last_chunk().ok_or_else(damaged)?;
        if self.keys.seal("snapshots", &[name, &key.0, bytes]) != *seal {
            return Err(damaged());
        }
        let (moment, snapshot) = bytes.split_first_chunk().ok_or_else(damaged)?;
        let snapshot = SaSnapshot::decode(snapshot).map_err(|_| damaged())?;
        let pause = now.since(&Moment::decode(*moment));
        Ok(Some(snapshot.aged(pause)))
    }

    /// Marks every key as one that must not be used again.
    pub(super) fn burn_all(&mut self, loss: Loss) -> Result<(), StoreError> {
        let mut rows = Vec::new();
        for row in self.numbers.table.iter()? {
            let (key, bytes) = row?;
            if let Ok(key) = key.value().try_into() {
                rows.push((Fingerprint(key), bytes.value().to_vec()));
            }
        }
        for (key, bytes) in rows {
            let mut numbers = Numbers::decode(self.keys, key, &bytes)
                .ok_or(StoreError::Damaged { table: "numbers" })?;
            numbers.burnt = numbers.burnt.or(Some(loss));
            self.numbers.put(key, &numbers)?;
        }
        self.snapshots.retain(|_, _| false)?;
        Ok(())
    }
}
