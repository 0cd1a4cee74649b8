//! What the plane needs of the store.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vesper_esp::EspSa;
use vesper_offload::NicSwitchParams;
use vesper_sa::{Direction, Event, Past, SaIdentity, VmId};
use vesper_verify::xfrm::{Keys, Line, parse_lines};
use zeroize::Zeroizing;

use crate::store::Standing;

/// Makes changes durable before they are in force.
///
/// All of it may block; it is called from control threads.
pub trait Persistence: Send + Sync {
    /// The number of a machine: the same at every start, and never that of another machine.
    /// Sequence numbers are leased to it, so a number that changes would start them again.
    fn vm_id(&self, host: &str, vm: &str) -> Result<VmId, PersistenceError>;

    /// Makes all of these changes durable, or none.
    fn commit(&self, changes: &[Change<'_>]) -> Result<(), PersistenceError>;

    /// Makes all of these changes, or none, so that they are durable once
    /// [`begin`](Self::begin), which has to follow, has returned.
    fn prepare(&self, changes: &[Change<'_>]) -> Result<(), PersistenceError> {
        self.commit(changes)
    }

    /// Takes back what was made durable, or was only prepared, by undoing it in the reverse way:
    /// what is not there need not be deleted.
    fn revert(&self, changes: &[Change<'_>]) -> Result<(), PersistenceError> {
        self.commit(changes)
    }

    /// Where an association with these keys goes on, before it is made: they may have been in
    /// use before, under this name or another. `configured`: the configuration asks for it.
    fn standing(
        &self,
        host: &str,
        sa: &SaIdentity,
        keys: &Keys,
        configured: bool,
    ) -> Result<Standing, PersistenceError> {
        let _ = (host, sa, keys, configured);
        Ok(Standing::Fresh)
    }

    /// Makes associations ready for their first packets: outbound ones get their first lease,
    /// inbound ones their first mark. Called after [`prepare`](Self::prepare), which it makes
    /// durable, and before any packet.
    fn begin(&self, sas: &[(&str, &Arc<EspSa>)]) -> Result<(), PersistenceError>;

    /// An event of an association: it may need more numbers. Does not block.
    fn notice(&self, host: &str, event: &Event) {
        let _ = (host, event);
    }

    /// The association is deleted. Called after its last packet.
    fn end(&self, host: &str, sa: &SaIdentity);

    /// The words of an association with its keys; `None` if it is not known.
    fn words(
        &self,
        host: &str,
        sa: &SaIdentity,
    ) -> Result<Option<Zeroizing<String>>, PersistenceError>;
}

/// One change.
#[derive(Clone, Debug)]
pub enum Change<'a> {
    /// An association is added, or has new words.
    PutSa {
        /// The host.
        host: &'a str,
        /// Its name.
        sa: SaIdentity,
        /// What follows `ip xfrm state add`, with keys.
        words: Secret<'a>,
        /// The configuration asks for it.
        configured: bool,
    },
    /// An association is deleted.
    DeleteSa {
        /// The host.
        host: &'a str,
        /// Its name.
        sa: SaIdentity,
    },
    /// A machine was added by request, or changed.
    PutVm {
        /// The host.
        host: &'a str,
        /// The machine.
        vm: &'a str,
        /// What describes it.
        settings: String,
    },
    /// A machine was removed.
    DeleteVm {
        /// The host.
        host: &'a str,
        /// The machine.
        vm: &'a str,
    },
    /// The NIC switch of an adapter was made by request.
    PutSwitch {
        /// The host.
        host: &'a str,
        /// What it has.
        params: NicSwitchParams,
    },
    /// A machine, or the host itself, has these policies.
    SetPolicies {
        /// The host.
        host: &'a str,
        /// The machine.
        vm: &'a str,
        /// What follows `ip xfrm policy add`, in their order, and whether the configuration
        /// asks for it.
        policies: Vec<(String, bool)>,
    },
}

/// Words with keys, which are not shown.
#[derive(Clone, Copy)]
pub struct Secret<'a>(pub &'a str);

/// The store failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PersistenceError(pub String);

/// A store that lives as long as the process: for tests, and for a daemon without a state
/// directory, whose associations are gone when it ends. Within the process, no number of a key
/// is used twice.
#[derive(Default)]
pub struct Volatile(Mutex<Remembered>);

#[derive(Default)]
struct Remembered {
    ids: HashMap<(String, String), VmId>,
    sas: HashMap<SaName, RememberedSa>,
    /// The last numbers of keys, by a hash that means nothing outside of this process.
    last: HashMap<(u64, Direction), u64>,
    hashes: RandomState,
}

struct RememberedSa {
    words: Zeroizing<String>,
    key: u64,
    /// As long as it is in use.
    sa: Weak<EspSa>,
}

type SaName = (String, SaIdentity);

/// A new association leaves so many numbers for packets that its predecessor, with the same key,
/// still sends.
const HANDOVER: u64 = 1 << 16;

impl Remembered {
    /// Keeps how far the numbers of a key have come.
    fn note(&mut self, name: &SaName) {
        let Some(known) = self.sas.get(name) else {
            return;
        };
        if let Some(sa) = known.sa.upgrade() {
            let last = self.last.entry((known.key, name.1.direction)).or_default();
            *last = sa.sequence().max(*last);
        }
    }

    fn hash(&self, keys: &Keys) -> u64 {
        self.hashes.hash_one(keys.expose())
    }
}

impl Volatile {
    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Persistence for Volatile {
    fn vm_id(&self, host: &str, vm: &str) -> Result<VmId, PersistenceError> {
        let mut known = self.remembered();
        let next = VmId(known.ids.len() as u32 + 1);
        let name = (host.to_owned(), vm.to_owned());
        Ok(*known.ids.entry(name).or_insert(next))
    }

    fn standing(
        &self,
        _: &str,
        sa: &SaIdentity,
        keys: &Keys,
        _: bool,
    ) -> Result<Standing, PersistenceError> {
        let known = self.remembered();
        let key = known.hash(keys);
        let in_use = known
            .sas
            .iter()
            .filter(|(name, other)| other.key == key && name.1.direction == sa.direction);
        let in_use = in_use.filter_map(|(_, other)| other.sa.upgrade());
        let still = in_use
            .map(|sa| sa.sequence().saturating_add(HANDOVER))
            .max();
        let last = known.last.get(&(key, sa.direction)).copied();
        Ok(match still.max(last) {
            None | Some(0) => Standing::Fresh,
            Some(sequence) => Standing::After {
                sequence,
                past: Past::default(),
            },
        })
    }

    fn commit(&self, changes: &[Change<'_>]) -> Result<(), PersistenceError> {
        let mut known = self.remembered();
        for change in changes {
            match change {
                Change::PutSa {
                    host, sa, words, ..
                } => {
                    let lines = parse_lines(words.0, "request")
                        .map_err(|error| PersistenceError(error.to_string()))?;
                    let [Line::State(state)] = &lines[..] else {
                        return Err(PersistenceError("not the words of one SA".to_owned()));
                    };
                    let name = ((*host).to_owned(), *sa);
                    known.note(&name);
                    let remembered = RememberedSa {
                        words: Zeroizing::new(words.0.to_owned()),
                        key: known.hash(&state.keys),
                        sa: known.sas.remove(&name).map(|sa| sa.sa).unwrap_or_default(),
                    };
                    known.sas.insert(name, remembered);
                }
                Change::DeleteSa { host, sa } => {
                    let name = ((*host).to_owned(), *sa);
                    known.note(&name);
                }
                Change::PutVm { .. }
                | Change::DeleteVm { .. }
                | Change::PutSwitch { .. }
                | Change::SetPolicies { .. } => {}
            }
        }
        Ok(())
    }

    fn begin(&self, sas: &[(&str, &Arc<EspSa>)]) -> Result<(), PersistenceError> {
        let mut known = self.remembered();
        for (host, sa) in sas {
            let name = ((*host).to_owned(), sa.identity());
            known.note(&name);
            if let Some(remembered) = known.sas.get_mut(&name) {
                remembered.sa = Arc::downgrade(sa);
            }
        }
        Ok(())
    }

    fn end(&self, host: &str, sa: &SaIdentity) {
        let mut known = self.remembered();
        let name = (host.to_owned(), *sa);
        known.note(&name);
        known.sas.remove(&name);
    }

    fn words(
        &self,
        host: &str,
        sa: &SaIdentity,
    ) -> Result<Option<Zeroizing<String>>, PersistenceError> {
        let known = self.remembered();
        let found = known.sas.get(&(host.to_owned(), *sa));
        Ok(found.map(|sa| sa.words.clone()))
    }
}

impl fmt::Debug for Secret<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl fmt::Debug for Volatile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Volatile")
    }
}

impl fmt::Display for PersistenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PersistenceError {}
