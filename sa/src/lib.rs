//! Security associations and policy for IPsec ESP.
#![forbid(unsafe_code)]

mod association;
mod event;
mod ident;
mod inbound;
mod lease;
mod lifetime;
mod lock;
mod outbound;
mod params;
mod replay;
mod selector;
mod sequence;
mod snapshot;
mod state;
mod update;

pub use association::{Sa, SaParamsError, SaState, SaStatistics};
pub use event::{Event, Events, SaIdentity};
pub use ident::{Direction, Spi, Timestamp, VmId};
pub use inbound::{Commit, InboundRefusal};
pub use lease::{
    Lease, LeaseError, LeaseHolder, LeaseRecord, LeaseRequest, LeaseStore, MAX_SKIP,
    MemoryLeaseStore,
};
pub use outbound::{OutboundRefusal, Reservation};
pub use params::{
    Df, Dscp, Ecn, Lifetime, Limits, Mode, NAT_TRAVERSAL_PORT, NatChecksum, ReplayProtection,
    SaParams, Scope, TunnelHeader, UdpEncapsulation, WindowSize,
};
pub use replay::ReplayRefusal;
pub use selector::{AddressRange, Flow, PortRange, Ports, Selector};
pub use snapshot::{RestoreError, SaSnapshot, SnapshotError};
pub use update::{SaUpdate, UpdateError};
