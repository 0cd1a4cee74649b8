//! A store that lives as long as the process.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use redb::backends::InMemoryBackend;
use redb::{Builder, Database, DatabaseError};
use vesper_esp::EspSa;
use vesper_sa::{SaIdentity, VmId};
use zeroize::Zeroizing;

use super::persistence::{Change, Persistence, PersistenceError};
use super::sa::parse_one;
use crate::store::{
    AnchorFile, Change as Stored, Kek, Medium, Origin, Refill, RefillSettings, SaName, Standing,
    Store, StoreError, StoredSa, Watched,
};

/// For tests, and for a daemon without a state directory, whose associations are gone when it
/// ends. Within the process, no number of a key is used twice.
#[derive(Default)]
pub struct Volatile {
    /// Made at its first use.
    store: OnceLock<Result<(Store, Refill), PersistenceError>>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    ids: HashMap<(String, String), VmId>,
    words: HashMap<SaName, Zeroizing<String>>,
    standings: HashMap<SaName, Standing>,
}

impl Volatile {
    fn store(&self) -> Result<&(Store, Refill), PersistenceError> {
        let open = || {
            let kek = Kek::random().map_err(|error| failed(&error))?;
            let (store, _) =
                Store::open(Memory::default(), &kek).map_err(|error| failed(&error))?;
            let settings = RefillSettings::default();
            // The thread ends with its last handle.
            let (refill, _) =
                Refill::start(store.clone(), settings, |_| {}).map_err(|error| failed(&error))?;
            Ok((store, refill))
        };
        self.store.get_or_init(open).as_ref().map_err(Clone::clone)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Persistence for Volatile {
    fn vm_id(&self, host: &str, vm: &str) -> Result<VmId, PersistenceError> {
        let mut known = self.known();
        let next = VmId(known.ids.len() as u32 + 1);
        let name = (host.to_owned(), vm.to_owned());
        Ok(*known.ids.entry(name).or_insert(next))
    }

    fn commit(&self, changes: &[Change<'_>]) -> Result<(), PersistenceError> {
        let (store, _) = self.store()?;
        let mut stored = Vec::with_capacity(changes.len());
        for change in changes {
            match change {
                Change::PutSa {
                    host, sa, words, ..
                } => {
                    let state = parse_one(words.0)?;
                    stored.push(Stored::PutSa(StoredSa {
                        name: name(host, sa),
                        words: Zeroizing::new(words.0.to_owned()),
                        key: store.fingerprint(&state.keys),
                        sequence: state.params(sa.direction).sequence,
                        origin: Origin::Request,
                    }));
                }
                Change::DeleteSa { host, sa } => stored.push(Stored::DeleteSa(name(host, sa))),
                Change::SetPolicies { .. } => {}
            }
        }
        let standings = store.apply(&stored).map_err(|error| failed(&error))?;
        let mut standings = standings.into_iter();
        let mut known = self.known();
        for change in stored {
            match change {
                Stored::PutSa(sa) => {
                    let standing = standings.next().unwrap_or(Standing::Fresh);
                    known.standings.insert(sa.name.clone(), standing);
                    known.words.insert(sa.name, sa.words);
                }
                Stored::DeleteSa(name) => {
                    known.words.remove(&name);
                    known.standings.remove(&name);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn standing(&self, host: &str, sa: &SaIdentity) -> Standing {
        let standing = self.known().standings.remove(&name(host, sa));
        standing.unwrap_or(Standing::Fresh)
    }

    fn begin(&self, host: &str, sa: &Arc<EspSa>) -> Result<(), PersistenceError> {
        self.begin_all(&[(host, Arc::clone(sa))])
    }

    fn begin_all(&self, sas: &[(&str, Arc<EspSa>)]) -> Result<(), PersistenceError> {
        let (_, refill) = self.store()?;
        let watched = sas.iter().map(|(host, sa)| Watched {
            node: (*host).to_owned(),
            sa: Arc::clone(sa),
        });
        refill
            .watch(watched.collect())
            .map_err(|error| failed(&error))
    }

    fn end(&self, host: &str, sa: &SaIdentity) {
        // Without a store there was nothing to begin.
        if let Ok((_, refill)) = self.store() {
            refill.unwatch(name(host, sa));
        }
    }

    fn words(
        &self,
        host: &str,
        sa: &SaIdentity,
    ) -> Result<Option<Zeroizing<String>>, PersistenceError> {
        Ok(self.known().words.get(&name(host, sa)).cloned())
    }
}

fn name(host: &str, sa: &SaIdentity) -> SaName {
    SaName {
        node: host.to_owned(),
        sa: *sa,
    }
}

fn failed(error: &dyn fmt::Display) -> PersistenceError {
    PersistenceError(error.to_string())
}

impl fmt::Debug for Volatile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Volatile")
    }
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
