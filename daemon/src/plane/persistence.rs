//! What the plane needs of the store.

use std::fmt;
use std::sync::Arc;

use vesper_esp::EspSa;
use vesper_offload::NicSwitchParams;
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

    /// Why nothing can be made durable at the moment, if that is so.
    fn trouble(&self) -> Option<String> {
        None
    }
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
