//! What makes changes durable before they are in force: the store, and the thread that keeps
//! leases and marks ahead.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::backends::InMemoryBackend;
use redb::{Builder, Database, DatabaseError};
use vesper_esp::EspSa;
use vesper_sa::{Event, SaIdentity, Timestamp, VmId};
use vesper_verify::xfrm::State;
use zeroize::Zeroizing;

use super::{Origin, Refusal};
use crate::store::{
    self, Alarm, AnchorFile, Change, Kek, Medium, Recovered, Refill, RefillSettings, SaName,
    Standing, Store, StoreError, StoredSa, Watched,
};

/// Begins the words of what the configuration asked for; a comment to whoever parses them.
const CONFIGURED: &str = "# configured\n";

/// Begins the names of the settings that hold the numbers of machines.
const VM_ID: &str = "vm-id ";

/// Makes changes durable, all or none of a set.
pub struct Durable {
    store: Store,
    refill: Refill,
    ids: Mutex<HashMap<(String, String), VmId>>,
    /// Words with keys, for who asks to see them.
    secrets: Mutex<HashMap<SaName, Zeroizing<String>>>,
}

impl Durable {
    /// On a store that was just opened. `alarm` is called from a thread of its own when
    /// something can not be made durable; it must not block.
    ///
    /// # Errors
    /// The system has no thread.
    pub fn new(
        store: Store,
        recovered: &Recovered,
        alarm: impl FnMut(Alarm) + Send + 'static,
    ) -> Result<Self, Refusal> {
        // The thread ends with its last handle.
        let (refill, _) = Refill::start(store.clone(), RefillSettings::default(), alarm)
            .map_err(|error| Refusal::unavailable(error.to_string()))?;
        let id = |(name, value): &(String, String)| {
            let (host, vm) = name.strip_prefix(VM_ID)?.split_once('/')?;
            Some(((host.to_owned(), vm.to_owned()), VmId(value.parse().ok()?)))
        };
        Ok(Self {
            store,
            refill,
            ids: Mutex::new(recovered.settings.iter().filter_map(id).collect()),
            secrets: Mutex::default(),
        })
    }

    /// Without files: what is added is gone when the process ends. Within it, no number of a
    /// key is used twice.
    pub fn in_memory() -> Result<Self, Refusal> {
        let kek = Kek::random().map_err(|error| Refusal::unavailable(error.to_string()))?;
        let (store, recovered) = Store::open(Memory::default(), &kek)?;
        Self::new(store, &recovered, |_| {})
    }

    /// The number of a machine: the same at every start, and never that of another machine.
    /// Sequence numbers are leased to it.
    pub(super) fn vm_id(&self, host: &str, vm: &str) -> Result<VmId, Refusal> {
        let mut ids = lock(&self.ids);
        let name = (host.to_owned(), vm.to_owned());
        if let Some(id) = ids.get(&name) {
            return Ok(*id);
        }
        let last = ids.values().map(|id| id.0).max().unwrap_or(0);
        let id = VmId(last + 1);
        self.store.apply(&[Change::PutSetting {
            name: format!("{VM_ID}{host}/{vm}"),
            value: id.0.to_string(),
        }])?;
        ids.insert(name, id);
        Ok(id)
    }

    /// Makes all of these changes durable, or none; where the associations that were put may go
    /// on, in their order.
    pub(super) fn apply(&self, changes: &[Change]) -> Result<Vec<Standing>, Refusal> {
        let standings = self.store.apply(changes)?;
        let mut secrets = lock(&self.secrets);
        for change in changes {
            match change {
                Change::PutSa(sa) => {
                    secrets.insert(sa.name.clone(), sa.words.clone());
                }
                Change::DeleteSa(name) => {
                    secrets.remove(name);
                }
                _ => {}
            }
        }
        Ok(standings)
    }

    /// An association as the store keeps it. `state` says by itself whose it is.
    pub(super) fn stored(
        &self,
        host: &str,
        sa: SaIdentity,
        state: &State,
        origin: Origin,
    ) -> StoredSa {
        let plain = state.words_with_keys();
        let mut words = Zeroizing::new(String::with_capacity(plain.len() + CONFIGURED.len()));
        if origin == Origin::Configured {
            words.push_str(CONFIGURED);
        }
        words.push_str(&plain);
        StoredSa {
            name: name(host, sa),
            words,
            key: self.store.fingerprint(&state.keys),
            sequence: state.params(sa.direction).sequence,
            origin: match origin {
                Origin::Configured => store::Origin::File,
                Origin::Requested => store::Origin::Request,
            },
        }
    }

    /// Remembers an association that the store had.
    pub(super) fn recall(&self, sa: &StoredSa) {
        lock(&self.secrets).insert(sa.name.clone(), sa.words.clone());
    }

    /// Gives associations their first leases and marks, and keeps them ahead; before their
    /// first packet.
    pub(super) fn watch(&self, sas: Vec<(Arc<str>, Arc<EspSa>)>) -> Result<(), Refusal> {
        let watched = sas.into_iter().map(|(host, sa)| Watched {
            node: host.to_string(),
            sa,
        });
        Ok(self.refill.watch(watched.collect())?)
    }

    /// The association is deleted.
    pub(super) fn unwatch(&self, host: &str, sa: SaIdentity) {
        self.refill.unwatch(name(host, sa));
    }

    /// To be told of every event of associations.
    pub(super) fn notice(&self, host: &str, event: &Event) {
        self.refill.notice(host, event);
    }

    /// The words of an association with its keys.
    pub(super) fn words(&self, host: &str, sa: SaIdentity) -> Option<Zeroizing<String>> {
        let secrets = lock(&self.secrets);
        let words = secrets.get(&name(host, sa))?;
        Some(Zeroizing::new(unmarked(words).1.to_owned()))
    }

    /// What the store has for this association, as it was put.
    pub(super) fn kept(&self, host: &str, sa: SaIdentity) -> Option<StoredSa> {
        let secrets = lock(&self.secrets);
        let name = name(host, sa);
        let words = secrets.get(&name)?.clone();
        drop(secrets);
        let (origin, plain) = unmarked(&words);
        let state = super::sa::parse_one(plain).ok()?;
        Some(self.stored(host, sa, &state, origin))
    }

    /// Ends all associations and keeps their state, so that the next start goes on without a
    /// gap; after the workers have ended.
    pub(super) fn finish(&self, now: Timestamp) -> Result<(), Refusal> {
        Ok(self.refill.finish(now)?)
    }
}

/// Who asked for what has these words, and the words.
pub(super) fn unmarked(words: &str) -> (Origin, &str) {
    match words.strip_prefix(CONFIGURED) {
        Some(words) => (Origin::Configured, words),
        None => (Origin::Requested, words),
    }
}

/// The words of a policy as the store keeps them.
pub(super) fn marked(words: String, origin: Origin) -> String {
    match origin {
        Origin::Configured => format!("{CONFIGURED}{words}"),
        Origin::Requested => words,
    }
}

fn name(host: &str, sa: SaIdentity) -> SaName {
    SaName {
        node: host.to_owned(),
        sa,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A store without files.
#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Medium for Memory {
    fn database(&self, builder: &Builder) -> Result<Database, DatabaseError> {
        builder.create_with_backend(InMemoryBackend::new())
    }

    fn anchor(&self) -> Result<Box<dyn AnchorFile>, StoreError> {
        Ok(Box::new(self.clone()))
    }

    fn file(&self) -> Result<u64, StoreError> {
        Ok(1)
    }

    fn machine(&self) -> [u8; 16] {
        [1; 16]
    }

    fn set_aside(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn name(&self) -> std::path::PathBuf {
        "memory".into()
    }
}

impl AnchorFile for Memory {
    fn read(&mut self) -> Result<Vec<u8>, StoreError> {
        Ok(lock(&self.0).clone())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let mut file = lock(&self.0);
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = begin.saturating_add(bytes.len());
        if file.len() < end {
            file.resize(end, 0);
        }
        if let Some(place) = file.get_mut(begin..end) {
            place.copy_from_slice(bytes);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl fmt::Debug for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Durable")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}
