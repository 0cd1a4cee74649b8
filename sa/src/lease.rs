//! Sequence number leases: numbers are granted durably before any of them is used, so that
//! none is used twice after a crash, a restored backup or a migration.

use core::fmt;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::event::SaIdentity;

/// A block of consecutive sequence numbers that one holder may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    first: u64,
    last: u64,
}

impl Lease {
    /// The numbers from `first` to `last`, both included; `None` if there are none or if 0,
    /// which is no packet's number, is among them.
    pub const fn new(first: u64, last: u64) -> Option<Self> {
        if first != 0 && first <= last {
            Some(Self { first, last })
        } else {
            None
        }
    }

    /// The first number.
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// The last number.
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// Once this number is used, half of the block is, and the next one should be fetched.
    pub(crate) const fn middle(&self) -> u64 {
        self.first + (self.last - self.first) / 2
    }
}

/// Who holds leases: one incarnation of one host.
///
/// A host takes a new, higher epoch whenever it starts or takes an association over. From
/// then on the store refuses holders with a lower epoch, which can use up what they were
/// granted but get nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseHolder {
    /// The host.
    pub host: u64,
    /// Its incarnation.
    pub epoch: u64,
}

/// A request for the next block of numbers of an association.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRequest {
    /// The outbound association.
    pub sa: SaIdentity,
    /// Who asks.
    pub holder: LeaseHolder,
    /// The highest number that the holder knows to have been used; 0 if it knows of none.
    pub used: u64,
    /// How many numbers are wanted.
    pub size: u32,
    /// The last number of the association's space: 2^32 - 1, or 2^64 - 1 with ESN.
    pub end: u64,
}

/// Why no numbers were granted.
#[derive(Debug)]
pub enum LeaseError {
    /// Another holder has taken the association over.
    Fenced {
        /// Who holds it now.
        by: LeaseHolder,
    },
    /// More numbers were used than the store has granted: it lost its memory, for example
    /// because an old copy was restored. Only new keys are safe.
    StoreBehind {
        /// The highest number that the store knows to be granted.
        granted: u64,
        /// The highest number used.
        used: u64,
    },
    /// So many granted numbers were never used that the peer could lose count of the high
    /// half of the sequence number. Replace the association.
    SkippedTooMany {
        /// The highest number known to be used.
        used: u64,
        /// The highest number that would have been granted.
        last: u64,
    },
    /// The association's sequence numbers are used up. Replace it.
    SequenceExhausted,
    /// An empty block was asked for.
    Empty,
    /// The association is inbound; it needs no sequence numbers.
    Inbound,
    /// The association is outbound; it has no mark.
    Outbound,
    /// The lease begins with numbers that the association may have used.
    Overlap {
        /// The first number of the lease.
        first: u64,
        /// The last number used.
        used: u64,
    },
    /// The lease goes beyond the last sequence number of the association.
    BeyondEnd {
        /// The last number of the lease.
        last: u64,
    },
    /// The store failed; nothing was granted.
    Store(Box<dyn core::error::Error + Send + Sync>),
}

impl fmt::Display for LeaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fenced { by } => write!(
                f,
                "host {} has taken the association over in epoch {}",
                by.host, by.epoch
            ),
            Self::StoreBehind { granted, used } => write!(
                f,
                "sequence number {used} was used but the store has granted only up to \
                 {granted}: it is not the latest copy; replace the keys"
            ),
            Self::SkippedTooMany { used, last } => write!(
                f,
                "granting up to sequence number {last} when only {used} is known to be used \
                 skips more than {MAX_SKIP} numbers; replace the association"
            ),
            Self::SequenceExhausted => {
                f.write_str("all sequence numbers are granted; replace the association")
            }
            Self::Empty => f.write_str("a lease of no sequence numbers was asked for"),
            Self::Inbound => {
                f.write_str("the association is inbound and needs no sequence numbers")
            }
            Self::Outbound => f.write_str("the association is outbound and has no mark"),
            Self::Overlap { first, used } => write!(
                f,
                "the lease begins with sequence number {first} but {used} is used already"
            ),
            Self::BeyondEnd { last } => write!(
                f,
                "the lease ends with {last}, beyond the association's last sequence number"
            ),
            Self::Store(error) => write!(f, "the lease store failed: {error}"),
        }
    }
}

impl core::error::Error for LeaseError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Store(error) => Some(&**error),
            _ => None,
        }
    }
}

/// Granted numbers may run ahead of used ones by at most this much.
///
/// A receiver infers the high half of an extended sequence number from the low one as long
/// as it misses fewer than 2^32 packets in a row (RFC 4303 appendix A2); half of that leaves
/// room for packets that were really lost.
pub const MAX_SKIP: u64 = 1 << 31;

/// Remembers which sequence numbers were granted.
///
/// An implementation reads the record of `request.sa`, asks [`LeaseRecord::grant`], and
/// replaces the record only if it is still the one it read (a transaction, or
/// compare-and-swap). It answers after the new record is durable.
pub trait LeaseStore {
    /// Grants the next block of numbers. After an answer other than `Ok` nothing may be used,
    /// even if the grant is in fact recorded.
    fn grant(&self, request: &LeaseRequest) -> Result<Lease, LeaseError>;

    /// Forgets an association whose key will never be used again.
    fn forget(&self, sa: &SaIdentity, holder: LeaseHolder) -> Result<(), LeaseError>;
}

/// What a store keeps about one association.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Who was granted the latest block.
    pub holder: LeaseHolder,
    /// The highest number granted so far.
    pub granted: u64,
    /// The highest number known to be used.
    pub used: u64,
}

impl LeaseRecord {
    /// The decision about a request: the record to store, then the lease to hand out.
    pub fn grant(
        current: Option<&LeaseRecord>,
        request: &LeaseRequest,
    ) -> Result<(LeaseRecord, Lease), LeaseError> {
        let (granted, used) = match current {
            None => (request.used, request.used),
            Some(record) => {
                record.admit(request.holder)?;
                if request.used > record.granted {
                    return Err(LeaseError::StoreBehind {
                        granted: record.granted,
                        used: request.used,
                    });
                }
                (record.granted, record.used.max(request.used))
            }
        };
        if granted >= request.end {
            return Err(LeaseError::SequenceExhausted);
        }
        let last = granted
            .saturating_add(u64::from(request.size))
            .min(request.end);
        if last - used > MAX_SKIP {
            return Err(LeaseError::SkippedTooMany { used, last });
        }
        let lease = Lease::new(granted + 1, last).ok_or(LeaseError::Empty)?;
        let record = LeaseRecord {
            holder: request.holder,
            granted: last,
            used,
        };
        Ok((record, lease))
    }

    /// Whether `holder` may change this record.
    pub fn admit(&self, holder: LeaseHolder) -> Result<(), LeaseError> {
        if holder.epoch > self.holder.epoch || holder == self.holder {
            Ok(())
        } else {
            Err(LeaseError::Fenced { by: self.holder })
        }
    }
}

/// A store that lives as long as the process: it guards against two holders within the
/// process, not against a crash.
#[derive(Debug, Default)]
pub struct MemoryLeaseStore {
    records: Mutex<HashMap<SaIdentity, LeaseRecord>>,
}

impl LeaseStore for MemoryLeaseStore {
    fn grant(&self, request: &LeaseRequest) -> Result<Lease, LeaseError> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let (record, lease) = LeaseRecord::grant(records.get(&request.sa), request)?;
        records.insert(request.sa, record);
        Ok(lease)
    }

    fn forget(&self, sa: &SaIdentity, holder: LeaseHolder) -> Result<(), LeaseError> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(record) = records.get(sa) {
            record.admit(holder)?;
            records.remove(sa);
        }
        Ok(())
    }
}
