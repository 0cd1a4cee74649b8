//! What the plane needs of the store.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use vesper_esp::EspSa;
use vesper_sa::{Event, SaIdentity, VmId};
use vesper_verify::xfrm::Keys;
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
    /// inbound ones their first mark. Called after [`commit`](Self::commit), before any packet.
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
/// directory, whose associations are gone when it ends.
#[derive(Default)]
pub struct Volatile {
    ids: Mutex<HashMap<(String, String), VmId>>,
    words: Mutex<HashMap<(String, SaIdentity), Zeroizing<String>>>,
}

impl Persistence for Volatile {
    fn vm_id(&self, host: &str, vm: &str) -> Result<VmId, PersistenceError> {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        let next = VmId(ids.len() as u32 + 1);
        Ok(*ids.entry((host.to_owned(), vm.to_owned())).or_insert(next))
    }

    fn commit(&self, changes: &[Change<'_>]) -> Result<(), PersistenceError> {
        let mut known = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            match change {
                Change::PutSa {
                    host, sa, words, ..
                } => {
                    let words = Zeroizing::new(words.0.to_owned());
                    known.insert(((*host).to_owned(), *sa), words);
                }
                Change::DeleteSa { host, sa } => {
                    known.remove(&((*host).to_owned(), *sa));
                }
                Change::SetPolicies { .. } => {}
            }
        }
        Ok(())
    }

    fn begin(&self, _: &[(&str, &Arc<EspSa>)]) -> Result<(), PersistenceError> {
        Ok(())
    }

    fn end(&self, _: &str, _: &SaIdentity) {}

    fn words(
        &self,
        host: &str,
        sa: &SaIdentity,
    ) -> Result<Option<Zeroizing<String>>, PersistenceError> {
        let known = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(known.get(&(host.to_owned(), *sa)).cloned())
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
