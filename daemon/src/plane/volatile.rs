//! What is remembered of associations only as long as the process lives.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vesper_esp::EspSa;
use vesper_sa::{Direction, Event, Lease, Past, SaIdentity, VmId};
use vesper_verify::xfrm::{Keys, Line, parse_lines};
use zeroize::Zeroizing;

use super::persistence::{Change, Persistence, PersistenceError};
use crate::store::Standing;

/// A store that lives as long as the process: for tests, for a daemon without a state directory,
/// whose associations are gone when it ends, and for keys that are made for one process. Within
/// the process, no number of a key is used twice.
#[derive(Default)]
pub struct Volatile(Mutex<Remembered>);

#[derive(Default)]
struct Remembered {
    ids: HashMap<(String, String), VmId>,
    sas: HashMap<SaName, RememberedSa>,
    keys: HashMap<KeyName, KeyUse>,
    /// Keys that no association had any more, the first to be forgotten in front.
    unused: VecDeque<KeyName>,
    hashes: RandomState,
}

struct RememberedSa {
    words: Zeroizing<String>,
    key: KeyName,
}

/// How far a key has come in one direction.
#[derive(Default)]
struct KeyUse {
    /// Outbound: the last number that was granted. Inbound: no number above this one was
    /// accepted by associations that have ended.
    last: u64,
    /// Those that have it; one that was replaced may be in use for another moment.
    sas: Vec<(SaName, Weak<EspSa>)>,
    /// How often it stands among the unused ones.
    times_unused: usize,
}

/// A hash of a key, which means nothing outside of this process.
type KeyName = (u64, Direction);

type SaName = (String, SaIdentity);

/// Keys that are remembered though no association has them.
const UNUSED_KEYS: usize = 65_536;

/// Numbers that an association is granted first. Half of them last longer than it takes until
/// an event is heard, with as many packets as one processor can seal.
const FIRST_LEASE: u64 = 1 << 20;

/// Numbers that it is granted later, without and with extended sequence numbers.
const LEASE: [u64; 2] = [1 << 22, 1 << 24];

/// The most numbers that an inbound association accepts between the moment at which its
/// successor with the same key is made, which refuses them, and that at which it takes over.
const HANDOVER: u64 = 1 << 16;

impl KeyUse {
    /// Grants an outbound association its next numbers, if there are any left: what it does not
    /// use nobody else gets.
    fn grant(&mut self, sa: &EspSa, size: u64) {
        let end = match sa.esn() {
            true => u64::MAX,
            false => u64::from(u32::MAX),
        };
        let used = self.last.max(sa.sequence());
        let last = used.saturating_add(size).min(end);
        let lease = used.checked_add(1).filter(|first| *first <= last);
        if let Some(lease) = lease.and_then(|first| Lease::new(first, last)) {
            // It begins after everything that was used and ends with the space.
            let granted = sa.set_lease(lease);
            debug_assert!(granted.is_ok(), "{granted:?}");
            self.last = last;
        }
    }
}

impl Remembered {
    fn key(&self, keys: &Keys, direction: Direction) -> KeyName {
        (self.hashes.hash_one(keys.expose()), direction)
    }

    /// What is known of the key of an association.
    fn used(&mut self, name: &SaName) -> Option<&mut KeyUse> {
        let known = self.sas.get(name)?;
        self.keys.get_mut(&known.key)
    }

    /// Keeps how far an inbound association has come, which may go on for `more`.
    fn note(&mut self, name: &SaName, more: u64) {
        if name.1.direction == Direction::Outbound {
            return;
        }
        let Some(used) = self.used(name) else { return };
        let sas = used.sas.iter().filter(|(other, _)| other == name);
        for sa in sas.filter_map(|(_, sa)| sa.upgrade()) {
            used.last = used.last.max(sa.sequence().saturating_add(more));
        }
    }

    /// The association is gone, or has another key.
    fn forget(&mut self, name: &SaName) {
        let Some(known) = self.sas.remove(name) else {
            return;
        };
        let Some(used) = self.keys.get_mut(&known.key) else {
            return;
        };
        used.sas.retain(|(other, _)| other != name);
        if used.sas.is_empty() {
            used.times_unused += 1;
            self.unused.push_back(known.key);
        }
        while self.unused.len() > UNUSED_KEYS {
            let Some(key) = self.unused.pop_front() else {
                return;
            };
            let Some(used) = self.keys.get_mut(&key) else {
                continue;
            };
            used.times_unused -= 1;
            if used.times_unused == 0 && used.sas.is_empty() {
                self.keys.remove(&key);
            }
        }
    }

    fn put(&mut self, name: SaName, words: &str, more: u64) -> Result<(), PersistenceError> {
        let lines =
            parse_lines(words, "request").map_err(|error| PersistenceError(error.to_string()))?;
        let [Line::State(state)] = &lines[..] else {
            return Err(PersistenceError("not the words of one SA".to_owned()));
        };
        let key = self.key(&state.keys, name.1.direction);
        if self.sas.get(&name).is_some_and(|sa| sa.key != key) {
            // It is in use until the new one takes over.
            self.note(&name, more);
            self.forget(&name);
        }
        let words = Zeroizing::new(words.to_owned());
        self.sas.insert(name, RememberedSa { words, key });
        Ok(())
    }

    fn change(&mut self, changes: &[Change<'_>], more: u64) -> Result<(), PersistenceError> {
        for change in changes {
            match change {
                Change::PutSa {
                    host, sa, words, ..
                } => self.put(((*host).to_owned(), *sa), words.0, more)?,
                Change::DeleteSa { host, sa } => self.note(&((*host).to_owned(), *sa), 0),
                Change::PutVm { .. }
                | Change::DeleteVm { .. }
                | Change::PutSwitch { .. }
                | Change::SetPolicies { .. } => {}
            }
        }
        Ok(())
    }
}

impl Volatile {
    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an association of this name was put here.
    pub(crate) fn knows(&self, host: &str, sa: &SaIdentity) -> bool {
        let name = (host.to_owned(), *sa);
        self.remembered().sas.contains_key(&name)
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
        let Some(used) = known.keys.get(&known.key(keys, sa.direction)) else {
            return Ok(Standing::Fresh);
        };
        let still = match sa.direction {
            // They have numbers of their own.
            Direction::Outbound => None,
            Direction::Inbound => {
                let in_use = used.sas.iter().filter_map(|(_, sa)| sa.upgrade());
                in_use
                    .map(|sa| sa.sequence().saturating_add(HANDOVER))
                    .max()
            }
        };
        Ok(match still.max(Some(used.last)) {
            None | Some(0) => Standing::Fresh,
            Some(sequence) => Standing::After {
                sequence,
                past: Past::default(),
            },
        })
    }

    fn commit(&self, changes: &[Change<'_>]) -> Result<(), PersistenceError> {
        self.remembered().change(changes, HANDOVER)
    }

    fn revert(&self, changes: &[Change<'_>]) -> Result<(), PersistenceError> {
        // What is taken back was never in use.
        self.remembered().change(changes, 0)
    }

    fn begin(&self, sas: &[(&str, &Arc<EspSa>)]) -> Result<(), PersistenceError> {
        let mut known = self.remembered();
        for (host, sa) in sas {
            let name = ((*host).to_owned(), sa.identity());
            let Some(key) = known.sas.get(&name).map(|known| known.key) else {
                continue;
            };
            // One of the same name and key is in use until this one takes over.
            known.note(&name, HANDOVER);
            let used = known.keys.entry(key).or_default();
            used.sas.retain(|(other, _)| *other != name);
            used.sas.push((name, Arc::downgrade(sa)));
            if sa.direction() == Direction::Outbound {
                used.grant(sa, FIRST_LEASE);
            }
        }
        Ok(())
    }

    fn notice(&self, host: &str, event: &Event) {
        let Event::LeaseLow(sa) = event else { return };
        if sa.direction == Direction::Inbound {
            return;
        }
        let name = (host.to_owned(), *sa);
        let mut known = self.remembered();
        let Some(used) = known.used(&name) else {
            return;
        };
        let found = used.sas.iter().find(|(other, _)| *other == name);
        if let Some(sa) = found.and_then(|(_, sa)| sa.upgrade()) {
            used.grant(&sa, LEASE[usize::from(sa.esn())]);
        }
    }

    fn end(&self, host: &str, sa: &SaIdentity) {
        let mut known = self.remembered();
        let name = (host.to_owned(), *sa);
        known.note(&name, 0);
        known.forget(&name);
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

impl fmt::Debug for Volatile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Volatile")
    }
}
