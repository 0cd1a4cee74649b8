//! Changes to an association that is in use.

use core::fmt;
use core::sync::atomic::Ordering;

use crate::event::Events;
use crate::params::Lifetime;
use crate::state::{PacketState, PerDirection};

/// What may change while packets pass. `None` leaves things as they are.
///
/// What else is in [`SaParams`](crate::SaParams) changes by replacing the association
/// ([`Sa::continuing`](crate::Sa::continuing)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaUpdate {
    /// New limits. Usage so far counts; a soft limit that was reached is armed again; an
    /// association that is dead stays dead.
    pub lifetime: Option<Lifetime>,
    /// The high half of the extended sequence number. It only goes up; inbound, numbers
    /// passed over that way are not received any more, except within the window.
    pub sequence_high: Option<u32>,
    /// Path MTU towards the peer in bytes, of the outer IP packet.
    pub mtu: Option<u32>,
}

/// Why an association was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateError {
    /// It has no extended sequence numbers.
    NotExtended,
    /// The high half of the sequence number would go down.
    SequenceGoesBack {
        /// The current high half.
        current: u32,
        /// The one asked for.
        requested: u32,
    },
    /// The sequence number would leave the lease.
    OutsideLease {
        /// The high half asked for.
        requested: u32,
    },
}

impl fmt::Display for UpdateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotExtended => f.write_str("the association has no extended sequence numbers"),
            Self::SequenceGoesBack { current, requested } => write!(
                f,
                "the high half of the sequence number is {current} and can not go back to \
                 {requested}"
            ),
            Self::OutsideLease { requested } => write!(
                f,
                "sequence numbers with the high half {requested} are not leased"
            ),
        }
    }
}

impl core::error::Error for UpdateError {}

impl PacketState {
    /// All of it or, on an error, nothing.
    pub(crate) fn update(&self, update: &SaUpdate) -> Result<Events, UpdateError> {
        let _held = self.lock.acquire();
        if let Some(high) = update.sequence_high {
            self.set_sequence_high(high)?;
        }
        if let Some(lifetime) = &update.lifetime {
            self.set_lifetime(lifetime);
        }
        if let Some(mtu) = update.mtu {
            self.mtu.store(mtu, Ordering::Relaxed);
        }
        Ok(self.settle(self.usage()))
    }

    fn set_sequence_high(&self, high: u32) -> Result<(), UpdateError> {
        if !self.esn {
            return Err(UpdateError::NotExtended);
        }
        let current = self.sequence.load(Ordering::Relaxed);
        let current_high = (current >> u32::BITS) as u32;
        if high < current_high {
            return Err(UpdateError::SequenceGoesBack {
                current: current_high,
                requested: high,
            });
        }
        let sequence = u64::from(high) << u32::BITS | u64::from(current as u32);
        if sequence == current {
            return Ok(());
        }
        match &self.per_direction {
            PerDirection::Inbound(window, _) => window.advance(current, sequence),
            PerDirection::Outbound(bounds) => {
                if !bounds.covers(sequence) {
                    return Err(UpdateError::OutsideLease { requested: high });
                }
                self.ask_again();
            }
        }
        // Whoever sees the new top sees the positions cleared for it.
        self.sequence.store(sequence, Ordering::Release);
        Ok(())
    }
}
