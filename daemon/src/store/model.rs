//! What the store keeps, and what it says about it after a start.

use std::fmt;

use vesper_esp::aead::Cipher;
use vesper_esp::{AssociationError, EspSa, association};
use vesper_sa::{Past, SaIdentity, SaParams, SaSnapshot, Timestamp};
use zeroize::Zeroizing;

/// The name of an association in the store: identities are unique within one node only.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SaName {
    /// The node.
    pub node: String,
    /// The association.
    pub sa: SaIdentity,
}

/// Which key an association has, without telling anything about it: a keyed hash of the
/// encryption key with its salt.
///
/// Sequence numbers belong to the key, not to the association: who deletes an association and
/// adds it again with the same key continues after the last number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub(super) [u8; 16]);

/// An association to be kept.
#[derive(Clone)]
pub struct StoredSa {
    /// Its name.
    pub name: SaName,
    /// The words that it was added with, keys included.
    pub words: Zeroizing<String>,
    /// Its key, by [`Store::fingerprint`](super::Store::fingerprint).
    pub key: Fingerprint,
    /// The number that the words continue from; 0 for a new key.
    pub sequence: u64,
    /// Where the key comes from.
    pub origin: Origin,
    /// The configuration asks for it.
    pub configured: bool,
}

/// Whether a key that the store does not know may have been used nevertheless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The request is new: whoever makes it vouches that the key is.
    Request,
    /// It was read from a file at start: if the store has lost its memory, the key may have
    /// been used before.
    File,
}

/// One change of a transaction.
#[derive(Clone, Debug)]
pub enum Change {
    /// Adds or replaces an association.
    PutSa(StoredSa),
    /// Removes an association. Its key stays known, so that the numbers go on if it returns.
    DeleteSa(SaName),
    /// Replaces the policies of a machine; none removes them.
    PutPolicies {
        /// The node.
        node: String,
        /// The machine's name.
        vm: String,
        /// The words of the policies, in their order.
        words: Vec<String>,
    },
    /// Adds or replaces the settings of a machine.
    PutVm {
        /// The node.
        node: String,
        /// The machine's name.
        vm: String,
        /// Whatever describes it, as the plane writes it down.
        settings: String,
    },
    /// Removes the settings of a machine.
    DeleteVm {
        /// The node.
        node: String,
        /// The machine's name.
        vm: String,
    },
    /// Keeps a value of the daemon itself.
    PutSetting {
        /// Its name.
        name: String,
        /// The value.
        value: String,
    },
}

/// Where an association may go on.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing {
    /// The key was never used: everything is as the words say.
    Fresh,
    /// The daemon was stopped in order: everything is as it was then.
    Restored(SaSnapshot),
    /// The daemon crashed, or the key was in use before: numbers up to this one may have been
    /// used, or accepted.
    After {
        /// The last number that may have been used.
        sequence: u64,
        /// What it had carried at most.
        past: Past,
    },
    /// Nobody knows which numbers were used: the association must neither send nor receive
    /// until it has a new key.
    NeedsRekey(Loss),
}

/// How the store lost its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Loss {
    /// The anchor is there, the store is not.
    StoreMissing = 1,
    /// The store is not readable.
    StoreDamaged = 2,
    /// The store is older than the anchor: an old copy was put back.
    StoreOlder = 3,
    /// The store belongs to another anchor.
    StoreForeign = 4,
    /// The store is not the file that the anchor was made for, but a copy.
    StoreCopied = 5,
    /// Store and anchor were made on another machine.
    OtherMachine = 6,
    /// The store is there, the anchor is not.
    AnchorMissing = 7,
    /// The anchor is not readable.
    AnchorDamaged = 8,
    /// The anchor is older than the store: an old copy of it was put back.
    AnchorOlder = 9,
}

/// An association that was found in the store.
#[derive(Clone, Debug)]
pub struct RecoveredSa {
    /// What was kept.
    pub sa: StoredSa,
    /// Where it may go on.
    pub standing: Standing,
}

/// What a start found.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// How the store lost its memory, if it did; every association that it knew, and every
    /// one that comes from a file, needs a new key.
    pub loss: Option<Loss>,
    /// What exactly was found, for the log; empty unless there was a loss.
    pub detail: String,
    /// How often the store was opened since it was made.
    pub epoch: u64,
    /// The associations.
    pub sas: Vec<RecoveredSa>,
    /// Policies: node, machine, words.
    pub policies: Vec<(String, String, Vec<String>)>,
    /// Machines: node, machine, settings.
    pub vms: Vec<(String, String, String)>,
    /// Values of the daemon: name, value.
    pub settings: Vec<(String, String)>,
}

impl Standing {
    /// The association with these parameters, going on where it may; closed if it may not.
    ///
    /// It still needs a lease, or a mark, before it is used: see
    /// [`Refill::watch`](super::Refill::watch).
    pub fn resume(
        &self,
        params: SaParams,
        cipher: Cipher,
        now: Timestamp,
    ) -> Result<EspSa, AssociationError> {
        let mut params = params;
        match self {
            Self::Fresh => association(params, cipher, now),
            Self::NeedsRekey(_) => {
                let sa = association(params, cipher, now)?;
                sa.close();
                Ok(sa)
            }
            Self::Restored(snapshot) => {
                let fits = (snapshot.spi(), snapshot.direction(), snapshot.esn())
                    == (params.spi, params.direction, params.esn);
                if !fits {
                    // The words have another setting of ESN than they had.
                    let after = Self::After {
                        sequence: snapshot.sequence(),
                        past: Past::default(),
                    };
                    return after.resume(params, cipher, now);
                }
                params.sequence = 0;
                let sa = association(params, cipher, now)?;
                Ok(sa
                    .with_snapshot(snapshot, now)
                    .expect("a snapshot that fits, of a number that is not below 0"))
            }
            Self::After { sequence, past } => {
                params.sequence = params.sequence.max(*sequence);
                let sa = association(params, cipher, now)?;
                Ok(sa.with_past(*past, now).with_all_seen())
            }
        }
    }
}

impl Loss {
    pub(super) const ALL: [Loss; 9] = [
        Self::StoreMissing,
        Self::StoreDamaged,
        Self::StoreOlder,
        Self::StoreForeign,
        Self::StoreCopied,
        Self::OtherMachine,
        Self::AnchorMissing,
        Self::AnchorDamaged,
        Self::AnchorOlder,
    ];

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|loss| *loss as u8 == code)
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StoreMissing => "the store is gone but its anchor is there",
            Self::StoreDamaged => "the store is damaged",
            Self::StoreOlder => "the store is an old copy: its anchor is newer",
            Self::StoreForeign => "the store and its anchor do not belong together",
            Self::StoreCopied => "the store is a copy, not the file that the anchor was made for",
            Self::OtherMachine => "the store was made on another machine",
            Self::AnchorMissing => "the anchor of the store is gone",
            Self::AnchorDamaged => "the anchor of the store is damaged",
            Self::AnchorOlder => "the anchor is an old copy: the store is newer",
        })
    }
}

impl fmt::Display for SaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on node {}", self.sa, self.node)
    }
}

impl fmt::Debug for StoredSa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredSa")
            .field("name", &self.name)
            .field("sequence", &self.sequence)
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}
