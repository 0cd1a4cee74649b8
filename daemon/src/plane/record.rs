//! What the plane remembers of each thing.

use std::sync::Arc;
use std::time::SystemTime;

use vesper_esp::EspSa;
use vesper_offload::Placement;
use vesper_sa::{Lifetime, SaHandle, SaIdentity, SaState, VmId};
use vesper_verify::xfrm::PolicyLine;

use super::spec::MachineSpec;

/// Names an association for as long as the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SaId(pub u64);

/// Who asked for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The configuration; a reload changes and deletes it.
    Configured,
    /// The control interface; only it deletes it.
    Requested,
}

/// An association. What changes while packets pass is in [`sa`](Self::sa).
#[derive(Clone, Debug)]
pub struct SaRecord {
    /// Its name in the control interface.
    pub id: SaId,
    /// Who asked for it.
    pub origin: Origin,
    /// Index of its node.
    pub(crate) node: usize,
    /// Its host.
    pub host: Arc<str>,
    /// The machine that owns it; `None` is the host itself.
    pub vm: Option<Arc<str>>,
    /// The association.
    pub sa: Arc<EspSa>,
    /// Its name on the node.
    pub(crate) handle: SaHandle,
    /// What follows `ip xfrm state add`, without keys.
    pub words: Arc<str>,
    /// Tells whether other words, keys included, are the same.
    pub(crate) fingerprint: [u8; 32],
    /// Its limits.
    pub lifetime: Lifetime,
    /// When it was added.
    pub added: SystemTime,
    /// Where it is at work, as far as it is known.
    pub placement: Placement,
    /// Its words leave it to the machine how it is offloaded.
    pub(crate) follows_machine: bool,
    /// Why it has to be replaced before anything passes.
    pub needs_rekey: Option<Arc<str>>,
}

/// A machine.
#[derive(Clone, Debug)]
pub struct VmRecord {
    /// Its number.
    pub id: VmId,
    /// Who asked for it.
    pub origin: Origin,
    /// Index of its node.
    pub(crate) node: usize,
    /// What was asked for.
    pub spec: MachineSpec,
    /// What it does not get, and why.
    pub fallbacks: Vec<String>,
    /// It has a port.
    pub(crate) has_port: bool,
    /// The port, as a table of the configuration, if a request gave it.
    pub(crate) port: Option<Arc<serde_json::Value>>,
}

/// A policy.
#[derive(Clone, Debug)]
pub struct PolicyRecord {
    /// Its name in the control interface.
    pub id: u64,
    /// Who asked for it.
    pub origin: Origin,
    /// Its host.
    pub host: Arc<str>,
    /// The machine whose packets it is about.
    pub vm: Arc<str>,
    /// Its words, with `host` and `vm`.
    pub line: PolicyLine,
}

impl SaRecord {
    /// Its name outside of the database.
    pub fn identity(&self) -> SaIdentity {
        self.sa.identity()
    }

    /// How its life stands, in a word.
    pub fn state(&self) -> &'static str {
        match self.sa.state() {
            _ if self.needs_rekey.is_some() => "NEEDS_REKEY",
            SaState::Mature => "INSTALLED",
            SaState::Dying => "REKEYING",
            SaState::Dead => "EXPIRED",
            SaState::Deleted => "DELETED",
        }
    }
}
