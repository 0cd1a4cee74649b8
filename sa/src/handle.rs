//! What associations are found by.

use core::fmt;
use core::hash::{Hash, Hasher};
use core::net::IpAddr;

use crate::ident::{Spi, VmId};
use crate::params::{SaParams, Scope};

/// Names an association within its database: a slot, and which of the associations that use
/// the slot one after the other. A handle is never valid again after its association is gone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SaHandle {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl SaHandle {
    /// The handle as an opaque number, for interfaces that pass numbers.
    pub const fn to_bits(self) -> u64 {
        (self.generation as u64) << u32::BITS | self.slot as u64
    }

    /// The reverse of [`to_bits`](Self::to_bits). Any number makes a handle; one that names
    /// nothing is not found.
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            slot: bits as u32,
            generation: (bits >> u32::BITS) as u32,
        }
    }
}

impl fmt::Display for SaHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.slot, self.generation)
    }
}

impl fmt::Debug for SaHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who received a packet, before its association is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Receiver {
    /// The host: the association will name the virtual machine.
    Host,
    /// A virtual machine that a receive filter has named.
    Vm(VmId),
}

/// What finds the association of a received packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiveKey {
    /// Who received the packet.
    pub receiver: Receiver,
    /// Its outer destination address.
    pub destination: IpAddr,
    /// Its security parameter index.
    pub spi: Spi,
}

impl Receiver {
    /// Who receives for an association of this scope and owner.
    pub const fn of(scope: Scope, owner: VmId) -> Self {
        match scope {
            Scope::Host => Self::Host,
            Scope::Vm => Self::Vm(owner),
        }
    }
}

impl ReceiveKey {
    /// The key of packets for an association with these parameters.
    pub fn of(params: &SaParams) -> Self {
        Self {
            receiver: Receiver::of(params.scope, params.owner),
            destination: params.destination,
            spi: params.spi,
        }
    }
}

/// In one or two numbers, where a derived implementation would feed six to the hasher: this is
/// done for each packet.
impl Hash for ReceiveKey {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        let receiver = match self.receiver {
            Receiver::Host => 0,
            Receiver::Vm(VmId(vm)) => 1 << u32::BITS | u64::from(vm),
        };
        let spi = self.spi.get();
        match self.destination {
            IpAddr::V4(address) => {
                let found_by = u64::from(address.to_bits()) << u32::BITS | u64::from(spi);
                state.write_u128(u128::from(receiver) << u64::BITS | u128::from(found_by));
            }
            IpAddr::V6(address) => {
                state.write_u128(address.to_bits());
                state.write_u128(u128::from(receiver) << u64::BITS | u128::from(spi));
            }
        }
    }
}

/// What finds the outbound association that serves a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PolicyKey {
    pub(crate) owner: VmId,
    pub(crate) reqid: u32,
    pub(crate) destination: IpAddr,
}

impl PolicyKey {
    pub(crate) fn of(params: &SaParams) -> Self {
        Self {
            owner: params.owner,
            reqid: params.reqid,
            destination: params.destination,
        }
    }
}
