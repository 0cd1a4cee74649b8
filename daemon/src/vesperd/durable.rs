//! The store as the plane sees it: what it changes becomes durable, and what needs numbers gets
//! them, before it is used.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vesper_esp::EspSa;
use vesper_offload::NicEvent;
use vesper_sa::{Direction, SaIdentity, Timestamp, VmId};
use vesper_verify::xfrm::{Keys, Line, State, parse_lines};
use zeroize::Zeroizing;

use crate::plane::{Change, Persistence, PersistenceError};
use crate::store::{
    Change as Stored, Fingerprint, Origin, Recovered, Refill, SaName, Standing, Store, StoreError,
    StoredSa, Watched,
};

/// What the number of a machine is kept under; host and machine follow.
const VM_ID: &str = "vm-id/";

/// The store of a daemon, and the thread that keeps leases and marks ahead.
pub(super) struct Durable {
    store: Store,
    refill: Refill,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    ids: HashMap<(String, String), VmId>,
    last_id: u32,
    /// The words of all associations.
    words: HashMap<SaName, Zeroizing<String>>,
    /// The keys of those in use.
    used: HashMap<SaName, Fingerprint>,
    /// Keys that are made afresh at each start, and are kept nowhere.
    ephemeral_keys: HashSet<Fingerprint>,
    ephemeral: HashSet<SaName>,
}

impl Durable {
    pub(super) fn new(store: Store, refill: Refill, recovered: &Recovered) -> Self {
        let mut known = Known::default();
        for (name, value) in &recovered.settings {
            let place = name
                .strip_prefix(VM_ID)
                .and_then(|name| name.split_once('/'));
            if let (Some((host, vm)), Ok(id)) = (place, value.parse()) {
                known.last_id = known.last_id.max(id);
                known.ids.insert((host.to_owned(), vm.to_owned()), VmId(id));
            }
        }
        for found in &recovered.sas {
            let words = found.sa.words.clone();
            known.words.insert(found.sa.name.clone(), words);
        }
        Self {
            store,
            refill,
            known: Mutex::new(known),
        }
    }

    /// Associations with these keys are not kept: the keys end with the process.
    pub(super) fn do_not_keep(&self, keys: &Keys) {
        let key = self.store.fingerprint(keys);
        self.known().ephemeral_keys.insert(key);
    }

    /// Which key these are.
    pub(super) fn fingerprint(&self, keys: &Keys) -> Fingerprint {
        self.store.fingerprint(keys)
    }

    /// Hears what associations report.
    pub(super) fn notice(&self, host: &str, events: &[NicEvent]) {
        for event in events {
            if let NicEvent::Sa(event) = event {
                self.refill.notice(host, event);
            }
        }
    }

    /// Forgets an association that nobody asks for any more.
    pub(super) fn forget(&self, name: &SaName) -> Result<(), StoreError> {
        self.store.apply(&[Stored::DeleteSa(name.clone())])?;
        self.known().words.remove(name);
        Ok(())
    }

    /// Keeps everything as it is, for a daemon that stops in order, after its workers have.
    pub(super) fn finish(&self, now: Timestamp) -> Result<(), StoreError> {
        self.refill.finish(now)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the store is to keep of a change; nothing of keys that are not kept.
    fn stored(&self, change: &Change<'_>) -> Result<Option<Stored>, PersistenceError> {
        Ok(match change {
            Change::PutSa {
                host,
                sa,
                words,
                configured,
            } => {
                let name = name(host, sa);
                let state = parse(words.0)?;
                let key = self.store.fingerprint(&state.keys);
                let mut known = self.known();
                let words = Zeroizing::new(words.0.to_owned());
                known.words.insert(name.clone(), words.clone());
                if known.ephemeral_keys.contains(&key) {
                    known.ephemeral.insert(name);
                    return Ok(None);
                }
                Some(Stored::PutSa(StoredSa {
                    name,
                    words,
                    key,
                    sequence: match sa.direction {
                        Direction::Inbound => state.replay_seq,
                        Direction::Outbound => state.replay_oseq,
                    },
                    origin: match configured {
                        true => Origin::File,
                        false => Origin::Request,
                    },
                }))
            }
            Change::DeleteSa { host, sa } => {
                let name = name(host, sa);
                let mut known = self.known();
                known.words.remove(&name);
                match known.ephemeral.remove(&name) {
                    true => None,
                    false => Some(Stored::DeleteSa(name)),
                }
            }
            Change::SetPolicies { host, vm, policies } => Some(Stored::PutPolicies {
                node: (*host).to_owned(),
                vm: (*vm).to_owned(),
                // Those of the configuration come from there at every start.
                words: policies
                    .iter()
                    .filter(|(_, configured)| !configured)
                    .map(|(words, _)| words.clone())
                    .collect(),
            }),
        })
    }

    /// An inbound key that was in use before may have accepted packets that it would accept
    /// again. (An outbound one goes on where its leases end.)
    fn refuse_known_keys(
        &self,
        changes: &[Stored],
        standings: Vec<Standing>,
    ) -> Result<(), PersistenceError> {
        let put = changes.iter().filter_map(|change| match change {
            Stored::PutSa(sa) => Some(sa),
            _ => None,
        });
        let mut refused = Vec::new();
        let mut reason = None;
        for (sa, standing) in put.zip(standings) {
            let known = self.known();
            if standing == Standing::Fresh || known.used.get(&sa.name) == Some(&sa.key) {
                continue;
            }
            if let Standing::NeedsRekey(loss) = &standing {
                reason = Some(format!("{}: {loss}; give it a new key", sa.name));
            } else if sa.name.sa.direction == Direction::Inbound {
                reason = Some(format!(
                    "{}: the key was in use before; give it a new one",
                    sa.name
                ));
            } else {
                continue;
            }
            refused.push(Stored::DeleteSa(sa.name.clone()));
        }
        match reason {
            None => Ok(()),
            Some(reason) => {
                self.store.apply(&refused).map_err(failed)?;
                Err(PersistenceError(reason))
            }
        }
    }
}

impl Persistence for Durable {
    fn vm_id(&self, host: &str, vm: &str) -> Result<VmId, PersistenceError> {
        let mut known = self.known();
        let place = (host.to_owned(), vm.to_owned());
        if let Some(id) = known.ids.get(&place) {
            return Ok(*id);
        }
        let id = known.last_id + 1;
        self.store
            .apply(&[Stored::PutSetting {
                name: format!("{VM_ID}{host}/{vm}"),
                value: id.to_string(),
            }])
            .map_err(failed)?;
        known.last_id = id;
        known.ids.insert(place, VmId(id));
        Ok(VmId(id))
    }

    fn commit(&self, changes: &[Change<'_>]) -> Result<(), PersistenceError> {
        let mut stored = Vec::with_capacity(changes.len());
        for change in changes {
            stored.extend(self.stored(change)?);
        }
        if stored.is_empty() {
            return Ok(());
        }
        let standings = self.store.apply(&stored).map_err(failed)?;
        self.refuse_known_keys(&stored, standings)
    }

    fn begin(&self, host: &str, sa: &Arc<EspSa>) -> Result<(), PersistenceError> {
        let name = name(host, &sa.identity());
        {
            let mut known = self.known();
            if known.ephemeral.contains(&name) {
                return Ok(());
            }
            let key = known.words.get(&name).map(|words| parse(words));
            if let Some(state) = key.transpose()? {
                let key = self.store.fingerprint(&state.keys);
                known.used.insert(name, key);
            }
        }
        let watched = Watched {
            node: host.to_owned(),
            sa: Arc::clone(sa),
        };
        self.refill
            .watch(vec![watched])
            .map_err(|error| PersistenceError(error.to_string()))
    }

    fn end(&self, host: &str, sa: &SaIdentity) {
        let name = name(host, sa);
        self.known().used.remove(&name);
        self.refill.unwatch(name);
    }

    fn words(
        &self,
        host: &str,
        sa: &SaIdentity,
    ) -> Result<Option<Zeroizing<String>>, PersistenceError> {
        Ok(self.known().words.get(&name(host, sa)).cloned())
    }
}

/// The association that words describe.
pub(super) fn parse(words: &str) -> Result<State, PersistenceError> {
    let lines = parse_lines(words, "store").map_err(|error| PersistenceError(error.to_string()))?;
    match lines.into_iter().next() {
        Some(Line::State(state)) => Ok(*state),
        _ => Err(PersistenceError("no words of an association".to_owned())),
    }
}

fn name(host: &str, sa: &SaIdentity) -> SaName {
    SaName {
        node: host.to_owned(),
        sa: *sa,
    }
}

fn failed(error: StoreError) -> PersistenceError {
    PersistenceError(error.to_string())
}

impl fmt::Debug for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Durable")
    }
}
