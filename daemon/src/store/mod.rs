//! State that survives: associations with their keys wrapped, policies, machines, and the
//! sequence numbers that were granted, each durable before it is used.
//!
//! ```text
//!  worker ── LeaseLow ──► Refill (a thread) ──► Store: redb, then the anchor ──► disk
//!     ▲                        │ Sa::set_lease, Sa::set_mark       ▲
//!     └────────────────────────┘                                    │ Store::apply
//!                                        plane: SAs, policies, VMs ─┘
//! ```
//!
//! # What it promises
//!
//! - No (key, sequence number) is used twice, and no packet is accepted twice, over crashes,
//!   power cuts and restarts: outbound numbers are leased, inbound ones accepted up to a mark,
//!   and lease and mark are durable before they are in force.
//! - A store that is gone, damaged, an old copy or a copy on another machine is noticed by its
//!   anchor, a second small file. What cannot be known to be unused is not used: the
//!   associations [need a new key](Standing::NeedsRekey) and say so.
//! - If the disk fails, associations go on within what they were granted, and then stop.
//!
//! What no file can tell is that store **and** anchor were put back together, or that the
//! whole machine was: keep the anchor where a snapshot of the machine does not reach it.
//!
//! Everything here blocks until the disk has answered; it is called from control threads,
//! never from a worker.

mod anchor;
mod clock;
mod durable;
mod error;
mod kek;
mod medium;
mod model;
mod open;
mod plain;
mod record;
mod refill;
mod supply;
mod tables;
mod watch_list;
mod writer;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use vesper_sa::{Lease, LeaseError, LeaseHolder, LeaseRequest, LeaseStore, SaIdentity, SaSnapshot};
use vesper_verify::xfrm::Keys;
use zeroize::Zeroizing;

use self::clock::Moment;
use self::kek::StoreKeys;
use self::record::Usage;
use self::writer::Writer;

pub use self::durable::{Durable, OpenError, StorePaths};
pub use self::error::StoreError;
pub use self::kek::{Kek, KekError};
pub use self::medium::{AnchorFile, Files, Medium};
pub use self::model::{
    Change, Fingerprint, Loss, Origin, Recovered, RecoveredSa, SaName, Standing, StoredSa,
};
pub use self::refill::{Alarm, Refill, RefillSettings, WatchError, Watched};

/// The store of one daemon. Cheap to clone; the last clone closes it.
#[derive(Clone)]
pub struct Store(Arc<Shared>);

struct Shared {
    keys: StoreKeys,
    writer: Mutex<Writer>,
    /// Grants that wait for the writer.
    urgent: AtomicUsize,
}

/// Associations that are made in one go, see [`Store::prepare`]: so few that whoever makes them
/// has done so before its time slice ends, as others wait for the writer meanwhile.
const PART: usize = 8;

/// Between two looks whether a grant that was waiting has the writer.
const PAUSE: Duration = Duration::from_micros(50);

/// What the store has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStatistics {
    /// Changes made durable.
    pub commits: u64,
    /// Changes that failed.
    pub failures: u64,
    /// How long the changes took altogether.
    pub busy: Duration,
    /// How long the longest took.
    pub longest: Duration,
    /// Changes by how long they took: up to 0.25, 0.5, 1, 2, 5, 10, 50 and 250 ms, and longer.
    pub buckets: [u64; 9],
}

/// The upper bounds of [`StoreStatistics::buckets`] in microseconds.
pub const COMMIT_BUCKETS: [u64; 8] = [250, 500, 1_000, 2_000, 5_000, 10_000, 50_000, 250_000];

/// A block of numbers, or a higher mark, that an association needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    pub(crate) sa: SaIdentity,
    /// The key that the association had when it was granted something before.
    pub(crate) key: Option<Fingerprint>,
    pub(crate) kind: NeedKind,
    pub(crate) usage: Usage,
}

/// What is needed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NeedKind {
    /// Outbound numbers.
    Lease { used: u64, size: u32, end: u64 },
    /// An inbound mark.
    Mark(u64),
}

/// What was granted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Granted {
    Lease(Lease),
    Mark(u64),
}

/// What was granted, and of which key the numbers are.
pub(crate) type Grant = Result<(Granted, Fingerprint), LeaseError>;

impl Store {
    /// Opens the store, or makes one, and tells what it knows.
    ///
    /// # Errors
    /// Another process has it, a newer release wrote it, the key-encryption key is another
    /// one, or the disk fails. Damage and loss are no errors: see [`Recovered::loss`].
    pub fn open(medium: impl Medium, kek: &Kek) -> Result<(Self, Recovered), StoreError> {
        let keys = StoreKeys::derive(kek);
        let (writer, recovered) = open::open(Box::new(medium), &keys)?;
        let shared = Shared {
            keys,
            writer: Mutex::new(writer),
            urgent: AtomicUsize::new(0),
        };
        Ok((Self(Arc::new(shared)), recovered))
    }

    /// Which key these are.
    pub fn fingerprint(&self, keys: &Keys) -> Fingerprint {
        self.0.keys.fingerprint(keys)
    }

    /// Makes all of the changes durable, or none of them. Returns where the associations that
    /// were put may go on, in their order.
    ///
    /// An association that was in use under the same name and key must be replaced by
    /// [`Sa::continuing`](vesper_sa::Sa::continuing) the old one.
    pub fn apply(&self, changes: &[Change]) -> Result<Vec<Standing>, StoreError> {
        self.writer().apply(&self.0.keys, changes)
    }

    /// Makes all of the changes, or none of them, so that they are durable together with the next
    /// change that is, or after [`settle`](Self::settle): nothing may be used before.
    ///
    /// What follows at once, as first leases do, then costs one synchronisation and not two. Of
    /// many new associations parts are made with leases of others between them:
    /// packets do not wait for the whole. A start that finds some of the parts forgets them.
    ///
    /// # Errors
    /// One of them can not be made. Parts may have been: the caller takes everything back.
    pub fn prepare(&self, changes: &[Change]) -> Result<(), StoreError> {
        let (new, mut rest) = {
            let mut writer = self.writer();
            writer.begin();
            let mut is_new = |change: &&Change| match change {
                Change::PutSa(sa) => writer.knows(&self.0.keys, &sa.name).map(|known| !known),
                _ => Ok(false),
            };
            let mut parts = (Vec::new(), Vec::new());
            for change in changes {
                match is_new(&change)? {
                    true => parts.0.push(change),
                    false => parts.1.push(change),
                }
            }
            parts
        };
        let first = new.len().saturating_sub(PART).next_multiple_of(PART);
        let (first, last) = new.split_at(first.min(new.len()));
        for part in first.chunks(PART) {
            self.writer().prepare(&self.0.keys, part, None)?;
            self.let_in();
        }
        rest.extend(last);
        self.writer().prepare(&self.0.keys, &rest, Some(first))
    }

    /// Makes durable what was prepared, if that is still to be done.
    ///
    /// # Errors
    /// The disk fails, or has failed since, and some of what was prepared is gone: the caller takes
    /// everything back.
    pub fn settle(&self) -> Result<(), StoreError> {
        self.writer().settle(&self.0.keys)
    }

    /// Whether there is an association of this name.
    pub(crate) fn knows(&self, name: &SaName) -> Result<bool, StoreError> {
        self.writer().knows(&self.0.keys, name)
    }

    /// Where an association may go on that is about to be put; changes nothing.
    pub fn standing(&self, sa: &StoredSa) -> Result<Standing, StoreError> {
        self.writer().standing(&self.0.keys, sa)
    }

    /// The words of an association, keys included; `None` if it is not known.
    pub fn words(&self, name: &SaName) -> Result<Option<Zeroizing<String>>, StoreError> {
        self.writer().words(&self.0.keys, name)
    }

    /// The leases of one node.
    pub fn node(&self, node: &str) -> NodeLeases {
        NodeLeases {
            store: self.clone(),
            node: node.to_owned(),
        }
    }

    /// Who takes leases here.
    pub fn holder(&self) -> LeaseHolder {
        self.writer().holder()
    }

    /// What the store has cost so far.
    pub fn statistics(&self) -> StoreStatistics {
        self.writer().statistics()
    }

    /// Keeps the state of associations of a daemon that stops in order, so that the next one
    /// goes on without a gap. They must be [closed](vesper_sa::Sa::close) before their snapshots
    /// are taken.
    pub fn finish(&self, snapshots: &[(SaName, SaSnapshot)]) -> Result<(), StoreError> {
        self.writer()
            .finish(&self.0.keys, snapshots, &Moment::now())
    }

    /// Grants what several associations need in one go, and tells of which keys the numbers are;
    /// each may be refused by itself.
    pub(crate) fn grant(&self, needs: &[(SaName, Need)]) -> Result<Vec<Grant>, StoreError> {
        self.0.urgent.fetch_add(1, Ordering::Relaxed);
        let mut writer = self.writer();
        self.0.urgent.fetch_sub(1, Ordering::Relaxed);
        writer.grant(&self.0.keys, needs)
    }

    /// Lets in who has packets that wait for numbers.
    fn let_in(&self) {
        while self.0.urgent.load(Ordering::Relaxed) > 0 {
            thread::sleep(PAUSE);
        }
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.0.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

/// The leases of one node's associations.
#[derive(Clone, Debug)]
pub struct NodeLeases {
    store: Store,
    node: String,
}

impl NodeLeases {
    fn name(&self, sa: &SaIdentity) -> SaName {
        SaName {
            node: self.node.clone(),
            sa: *sa,
        }
    }
}

impl LeaseStore for NodeLeases {
    /// The association must be in the store.
    fn grant(&self, request: &LeaseRequest) -> Result<Lease, LeaseError> {
        let mut writer = self.store.writer();
        writer
            .lease(&self.store.0.keys, &self.name(&request.sa), request)
            .unwrap_or_else(|error| Err(LeaseError::Store(Box::new(error))))
    }

    /// Removes the association from the store; its numbers stay known, in case its key comes
    /// again.
    fn forget(&self, sa: &SaIdentity, holder: LeaseHolder) -> Result<(), LeaseError> {
        let by = self.store.holder();
        if holder != by && holder.epoch <= by.epoch {
            return Err(LeaseError::Fenced { by });
        }
        match self.store.apply(&[Change::DeleteSa(self.name(sa))]) {
            Ok(_) | Err(StoreError::NotFound) => Ok(()),
            Err(error) => Err(LeaseError::Store(Box::new(error))),
        }
    }
}
