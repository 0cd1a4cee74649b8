//! What the plane needs of the store.

use std::fmt;
use std::sync::Arc;

use vesper_esp::EspSa;
use vesper_sa::{SaIdentity, VmId};
use zeroize::Zeroizing;

use super::Refusal;
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

    /// Where an association that was put by the last [`commit`](Self::commit) may go on: its
    /// key may have been in use before, and numbers belong to keys.
    fn standing(&self, host: &str, sa: &SaIdentity) -> Standing {
        let _ = (host, sa);
        Standing::Fresh
    }

    /// Makes an association ready for its first packet: outbound it gets its first lease.
    /// Called after [`commit`](Self::commit), before any packet.
    fn begin(&self, host: &str, sa: &Arc<EspSa>) -> Result<(), PersistenceError>;

    /// [`begin`](Self::begin) for several associations, which may be cheaper together.
    fn begin_all(&self, sas: &[(&str, Arc<EspSa>)]) -> Result<(), PersistenceError> {
        sas.iter().try_for_each(|(host, sa)| self.begin(host, sa))
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

impl fmt::Debug for Secret<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl fmt::Display for PersistenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PersistenceError {}

impl From<Refusal> for PersistenceError {
    fn from(refusal: Refusal) -> Self {
        Self(refusal.to_string())
    }
}
