//! Opening: is this the store that was closed last, or have we lost our memory?

use std::panic::{AssertUnwindSafe, catch_unwind};

use redb::{Database, DatabaseError, StorageError};

use super::anchor::{Anchor, AnchorState, Found};
use super::clock::Moment;
use super::kek::StoreKeys;
use super::medium::Medium;
use super::model::{Loss, Recovered, RecoveredSa};
use super::plain;
use super::tables::{self, Head, Index, SaTables};
use super::writer::{Writer, builder};
use super::{StoreError, StoreStatistics};

/// Opens the store and begins a new epoch.
pub(super) fn open(
    medium: Box<dyn Medium>,
    keys: &StoreKeys,
) -> Result<(Writer, Recovered), StoreError> {
    let (anchor, found) = Anchor::open(medium.anchor()?, keys)?;
    let anchored = match found {
        Found::State(state) => Some(state),
        Found::Nothing | Found::Damaged => None,
    };
    let mut damage = None;
    let (database, head) = match database(&*medium, keys) {
        Err(Refused::Damaged(what)) => {
            damage = Some(what);
            afresh(&*medium)?
        }
        outcome => outcome?,
    };
    let (loss, detail) = match damage {
        Some(what) => (Some(Loss::StoreDamaged), what),
        None => judge(head.as_ref(), found, medium.file()?, medium.machine()),
    };
    let mut writer = Writer {
        file: medium.file()?,
        machine: medium.machine(),
        medium,
        database: Some(database),
        anchor,
        head: next_head(head, anchored.as_ref(), loss)?,
        index: Index::default(),
        prepared: false,
        lost: false,
        loss,
        statistics: StoreStatistics::default(),
    };
    if let (Some(head), None) = (head, loss) {
        catch_up(&mut writer, head, keys)?;
    }
    let mut recovered = Recovered {
        loss,
        detail,
        epoch: writer.head.epoch,
        ..Recovered::default()
    };
    match begin_epoch(&mut writer, keys, &mut recovered) {
        // What could be opened but not read is damaged, too.
        Err(StoreError::Damaged { table }) => {
            writer.database = None;
            let (database, _) = afresh(&*writer.medium)?;
            writer.database = Some(database);
            writer.file = writer.medium.file()?;
            writer.loss = Some(Loss::StoreDamaged);
            writer.index = Index::default();
            writer.head = next_head(None, anchored.as_ref(), writer.loss)?;
            recovered = Recovered {
                loss: writer.loss,
                detail: StoreError::Damaged { table }.to_string(),
                epoch: writer.head.epoch,
                ..Recovered::default()
            };
            begin_epoch(&mut writer, keys, &mut recovered)?;
        }
        outcome => outcome?,
    }
    Ok((writer, recovered))
}

/// Why there is no database.
enum Refused {
    /// It is there, but not readable.
    Damaged(String),
    Error(StoreError),
}

impl From<Refused> for StoreError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Damaged(_) => Self::Damaged { table: "all" },
            Refused::Error(error) => error,
        }
    }
}

fn database(medium: &dyn Medium, keys: &StoreKeys) -> Result<(Database, Option<Head>), Refused> {
    // The library does not promise to refuse damaged files without a panic.
    let opened = catch_unwind(AssertUnwindSafe(|| medium.database(&builder())));
    let database = match opened {
        Ok(Ok(database)) => database,
        Ok(Err(DatabaseError::DatabaseAlreadyOpen)) => {
            return Err(Refused::Error(StoreError::InUse {
                file: medium.name(),
            }));
        }
        Ok(Err(DatabaseError::Storage(StorageError::Io(error))))
            if error.kind() != std::io::ErrorKind::InvalidData
                && error.kind() != std::io::ErrorKind::UnexpectedEof =>
        {
            return Err(Refused::Error(StoreError::File {
                file: medium.name(),
                error,
            }));
        }
        Ok(Err(error)) => return Err(Refused::Damaged(error.to_string())),
        Err(_) => return Err(Refused::Damaged("unreadable pages".to_owned())),
    };
    match tables::head(&database, keys) {
        Ok(head) => Ok((database, head)),
        Err(StoreError::Damaged { table }) => {
            Err(Refused::Damaged(StoreError::Damaged { table }.to_string()))
        }
        Err(error) => Err(Refused::Error(error)),
    }
}

/// An empty database in place of a damaged one.
fn afresh(medium: &dyn Medium) -> Result<(Database, Option<Head>), StoreError> {
    medium.set_aside()?;
    let database = medium
        .database(&builder())
        .map_err(|error| StoreError::Database(Box::new(error.into())))?;
    Ok((database, None))
}

/// Compares the store with its anchor.
fn judge(
    head: Option<&Head>,
    found: Found,
    file: u64,
    machine: [u8; 16],
) -> (Option<Loss>, String) {
    let lost = |loss, detail: String| (Some(loss), detail);
    let (head, state) = match (head, found) {
        (None, Found::Nothing) => return (None, String::new()),
        (None, _) => return lost(Loss::StoreMissing, "no store beside an anchor".to_owned()),
        // Made a moment ago, and the power went before the anchor was: nothing was granted.
        (Some(head), Found::Nothing) if head.generation <= 1 => return (None, String::new()),
        (Some(_), Found::Nothing) => {
            return lost(Loss::AnchorMissing, "no anchor beside a store".to_owned());
        }
        (Some(_), Found::Damaged) => {
            return lost(
                Loss::AnchorDamaged,
                "neither slot of the anchor is valid".to_owned(),
            );
        }
        (Some(head), Found::State(state)) => (head, state),
    };
    let generations = format!(
        "the store has generation {}, the anchor {}",
        head.generation, state.generation
    );
    if head.instance != state.instance {
        return lost(Loss::StoreForeign, "their identities differ".to_owned());
    }
    let unknown = [0; 16];
    if machine != state.machine && machine != unknown && state.machine != unknown {
        return lost(Loss::OtherMachine, "the machine ids differ".to_owned());
    }
    if state.file != 0 && file != state.file {
        let detail = "inode or time of creation differ".to_owned();
        return lost(Loss::StoreCopied, detail);
    }
    if head.generation < state.generation {
        return lost(Loss::StoreOlder, generations);
    }
    // One ahead: the power went between the two.
    if head.generation > state.generation + 1 {
        return lost(Loss::AnchorOlder, generations);
    }
    (None, String::new())
}

/// The head of the new epoch, above everything that was seen. A store that has lost its memory
/// gets another identity, so that neither its past nor a copy of it fits its anchor.
fn next_head(
    head: Option<Head>,
    anchored: Option<&AnchorState>,
    loss: Option<Loss>,
) -> Result<Head, StoreError> {
    let seen = |of_head: fn(&Head) -> u64, of_anchor: fn(&AnchorState) -> u64| {
        let head = head.as_ref().map_or(0, of_head);
        head.max(anchored.map_or(0, of_anchor))
    };
    let mut instance = [0; 16];
    match head {
        Some(head) if loss.is_none() => instance = head.instance,
        _ => getrandom::fill(&mut instance).map_err(|_| StoreError::Random)?,
    }
    Ok(Head {
        instance,
        epoch: seen(|head| head.epoch, |state| state.epoch) + 1,
        generation: seen(|head| head.generation, |state| state.generation) + 1,
    })
}

/// Lets the anchor catch up with a store that is one change ahead, before the next change: a
/// start that ends between its change and the anchor must not add to the distance.
fn catch_up(writer: &mut Writer, found: Head, keys: &StoreKeys) -> Result<(), StoreError> {
    if writer.anchor.generation() == found.generation {
        return Ok(());
    }
    let next = std::mem::replace(&mut writer.head, found);
    writer.raise_anchor(keys)?;
    writer.head = next;
    Ok(())
}

/// Makes the epoch durable and reads everything.
fn begin_epoch(
    writer: &mut Writer,
    keys: &StoreKeys,
    recovered: &mut Recovered,
) -> Result<(), StoreError> {
    let Some(database) = &writer.database else {
        return Err(StoreError::ChangedOutside);
    };
    let transaction = database.begin_write()?;
    {
        let draft = tables::take_draft(&transaction)?;
        let mut sas = SaTables::open(&transaction, keys)?;
        if let Some(loss) = writer.loss {
            sas.burn_all(loss)?;
        }
        let found = sas.recover(&mut writer.index, &draft, &Moment::now())?;
        recovered.sas = found
            .into_iter()
            .map(|(sa, standing)| RecoveredSa { sa, standing })
            .collect();
        plain::read(&transaction, recovered)?;
        tables::set_head(&transaction, keys, &writer.head)?;
    }
    transaction.commit()?;
    writer.raise_anchor(keys)
}
